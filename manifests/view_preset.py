"""What every kind of view preset answers about itself, so that its readers need not ask which kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from manifests.config import Settings


class ViewPreset(Settings):
    """The base of all kinds of presets.

    draws: what a renderer draws of an object; None where its pictures exist already. reads: those pictures, a person's
    own `files` or `frames` of the dataset's own sequences, of which an object may have fewer than `num_views`.
    """

    draws: ClassVar[Literal["mesh", "points"] | None]
    reads: ClassVar[Literal["files", "frames"] | None]

    if TYPE_CHECKING:  # a kind has these as fields or as properties

        @property
        def channels(self) -> Sequence[str]:
            """The pictures of each view: `rgb`, `depth` or `gray`."""

        @property
        def num_views(self) -> int:
            """How many views an object has, 0 where that is not known yet."""

    @property
    def needs_mesh(self) -> bool:
        """Whether it draws the mesh, and so skips an object without one."""
        return self.draws == "mesh"

    @property
    def needs_colors(self) -> bool:
        """Whether it draws the colours of points, and so skips an object whose points have no colours."""
        return self.draws == "points" and "rgb" in self.channels

    @property
    def needs_gpu(self) -> bool:
        """Whether its renderer draws on a GPU."""
        return False

    @property
    def released_discs(self) -> tuple[float, float] | None:
        """Of CLIP2Point's released renderer: its discs' radius (half a picture = 1) and `half_extent`; else None."""
        return None

    def needs_source(self, store_meshes: bool) -> bool:
        """Whether views of stored objects need --source; store_meshes: whether the build has stored its meshes."""
        return self.reads is not None or (self.needs_mesh and not store_meshes)
