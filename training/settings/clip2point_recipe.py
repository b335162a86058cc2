"""The recipe of CLIP2Point's pre-training, with the keys of training/objectives/clip2point.py."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from manifests.config import Settings
from training.settings.data import DataSettings, PictureAugmentSettings, ViewSetName
from training.settings.objective import Weight
from training.settings.run_recipe import FitRecipe

RGB = "rgb"


class Clip2PointSettings(Settings):
    """Image-depth pre-training. intra: weight of two depth maps of a view (eq. 5), 0 for the cross term alone. cross:
    of depth and picture (eq. 6). temperature: of both (released; the paper gives none).

    depth: the preset of depth maps, which is also the view set that evaluation reads: RGB views say which camera, the
    preset what is drawn. maps: view sets whose stored maps are taken in place of drawn ones: of two sets a pair of
    maps, of one a single map, which has no L_intra. points: of the cloud in a drawn map. sampling: they are its first
    ones in `farthest` order (paper), or drawn at `random` among data.num_points (released).
    """

    intra: Weight = 1.0
    cross: Weight = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.07
    depth: ViewSetName = "depth10_release"
    maps: Annotated[tuple[ViewSetName, ...], Field(max_length=2)] = ()
    points: Annotated[int, Field(ge=1)] = 1024
    sampling: Literal["farthest", "random"] = "farthest"

    @model_validator(mode="after")
    def _a_loss_of_its_maps(self) -> Clip2PointSettings:
        if not self.cross:
            raise ValueError("cross=0 leaves nothing that knows the picture")
        if len(self.maps) == 1 and self.intra:
            raise ValueError("maps of one view set are one map a view, which has no pair: intra=0")
        return self


class DepthTowerRecipe(FitRecipe):
    """Methods whose model has a tower of depth pictures beside CLIP's of images, and no use for points' tower."""

    logit_scale: ClassVar[str] = "frozen"  # type: ignore[misc,assignment]  # no key: no logit is scaled

    @property
    def has_depth_tower(self) -> bool:
        """Always."""
        return True

    @property
    def towers(self) -> tuple[str, ...]:
        """Pictures alone answer."""
        return ("image",)


class Clip2PointRecipe(DepthTowerRecipe):
    """Pre-training."""

    method: Literal["clip2point"]
    augment: ClassVar[PictureAugmentSettings] = PictureAugmentSettings()  # type: ignore[misc]  # no picture is augmented
    eval_every: ClassVar[int] = 0  # type: ignore[misc]
    clip2point: Clip2PointSettings = Clip2PointSettings()

    @model_validator(mode="after")
    def _pairs_of_objects(self) -> Clip2PointRecipe:
        if self.optimizer.batch_size == 1:
            raise ValueError("optimizer.batch_size=1: an object is told apart from others, so two are needed at least")
        if self.data.channel != RGB:
            raise ValueError(f"data.channel={self.data.channel}: the pictures beside depth maps are {RGB}")
        if self.data.num_points < self.clip2point.points:
            words = f"clip2point.points={self.clip2point.points}"
            raise ValueError(f"data.num_points={self.data.num_points} is fewer than {words}")
        return self

    @property
    def judged_data(self) -> DataSettings:
        """The depth tower is judged, on depth pictures."""
        return self.data.model_copy(update={"views": self.clip2point.depth, "channel": "depth"})
