"""The settings of the networks on sampled points and their neighbours: PointNet++, RS-CNN, PointMLP.

All defaults are the authors' sizes. Released weights fit no other widths; centres, radii and numbers of neighbours
change no tensor's shape, so that a checkpoint is only what it was with the same ones.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from training.settings.model import BackboneSettings, Positive

Radius = Annotated[float, Field(gt=0)]
Layers = Annotated[tuple[Positive, ...], Field(min_length=1)]
Scales = Annotated[tuple[Layers, ...], Field(min_length=1)]
Family = Literal["ours", "cuda", "yanx"]


class PointSetSettings(BackboneSettings):
    """centres: points that stand for the cloud, of each level, the farthest from each other.

    family: how they are sampled and whom a ball holds. `ours`: from index 0, any point, d^2 < r^2. `cuda` (the CUDA
    operators of PointCMT, RS-CNN and PointMLP): as ours, but points of |x|^2 <= 0.001 are never chosen. `yanx` (Yan's
    PointNet++): from a random point while it is trained, d^2 <= r^2; from index 0 at evaluation, where the released
    program is random, too.
    """

    centres: Annotated[tuple[Positive, ...], Field(min_length=1)] = (512, 128)
    family: Family = "ours"

    @property
    def fewest_points(self) -> int:
        """Each centre is another point. A ball with fewer points than it may hold is padded."""
        return self.centres[0]

    @property
    def learns_batch_norms(self) -> bool:
        """Every layer has one."""
        return True

    @model_validator(mode="after")
    def _centres_of_centres(self) -> PointSetSettings:
        if list(self.centres) != sorted(self.centres, reverse=True):
            raise ValueError(f"centres={list(self.centres)}: those of a level are taken from the level before")
        return self

    def _must_be_levels(self, **keys: tuple) -> None:
        """Raises ValueError where a key has not one entry for each level."""
        for name, values in keys.items():
            if len(values) != len(self.centres):
                raise ValueError(f"{name} has {len(values)} entries for the {len(self.centres)} levels of centres")


class PointNet2Settings(PointSetSettings):
    """Keys of every PointNet++: of each level some scales, side by side, each a ball and a network over it.

    radii, neighbours (points of a ball), widths (channels of its layers): one of each scale of each level. last: the
    channels of the layers over all centres; the last of them is the feature's width.
    """

    radii: tuple[tuple[Radius, ...], ...]
    neighbours: tuple[tuple[Positive, ...], ...]
    widths: tuple[Scales, ...]
    last: Layers = (256, 512, 1024)

    @model_validator(mode="after")
    def _scales_have_all_of_theirs(self) -> PointNet2Settings:
        self._must_be_levels(radii=self.radii, neighbours=self.neighbours, widths=self.widths)
        for level, keys in enumerate(zip(self.radii, self.neighbours, self.widths, strict=True), 1):
            if len({*map(len, keys)}) > 1:
                raise ValueError(f"level {level} has {' / '.join(str(len(k)) for k in keys)} radii, neighbours, widths")
        return self


class SingleScaleSettings(PointNet2Settings):
    """PointNet++ with one scale a level, as Yan's program has it."""

    backbone: Literal["pointnet2_ssg"] = "pointnet2_ssg"
    radii: tuple[tuple[Radius], ...] = ((0.2,), (0.4,))
    neighbours: tuple[tuple[Positive], ...] = ((32,), (64,))
    widths: tuple[tuple[Layers], ...] = (((64, 64, 128),), ((128, 128, 256),))


_RADII = ((0.1, 0.2, 0.4), (0.2, 0.4, 0.8))
_NEIGHBOURS = ((16, 32, 128), (32, 64, 128))
_WIDTHS = (((32, 32, 64), (64, 64, 128), (64, 96, 128)), ((64, 64, 128), (128, 128, 256), (128, 128, 256)))


class MultiScaleSettings(PointNet2Settings):
    """PointNet++ with several scales a level, as Yan's program has it."""

    backbone: Literal["pointnet2_msg"] = "pointnet2_msg"
    radii: tuple[tuple[Radius, ...], ...] = _RADII
    neighbours: tuple[tuple[Positive, ...], ...] = _NEIGHBOURS
    widths: tuple[Scales, ...] = _WIDTHS


class PointCmtSettings(PointNet2Settings):
    """PointNet++ with several scales a level, as PointCMT's program has it. feature: the width of its own feature."""

    backbone: Literal["pointnet2_pointcmt"] = "pointnet2_pointcmt"
    radii: tuple[tuple[Radius, ...], ...] = _RADII
    neighbours: tuple[tuple[Positive, ...], ...] = _NEIGHBOURS
    widths: tuple[Scales, ...] = _WIDTHS
    feature: Positive = 512


class RelationShapeSettings(PointSetSettings):
    """RS-CNN with one scale a level (SSN).

    radii, neighbours: of each level. widths: channels after each level. last: of the layer over all centres, the
    feature's width. raised: to which the first level raises the offset to a neighbour. form: what a relation is;
    `paper`: distance, centre, neighbour and offset; `released`: distance, zeros, offset, offset, since in that program
    the coordinates are overwritten by offsets (RS-CNN issue 23). Released weights were trained so.
    """

    backbone: Literal["rscnn"] = "rscnn"
    radii: tuple[Radius, ...] = (0.23, 0.32)
    neighbours: tuple[Positive, ...] = (48, 64)
    widths: tuple[Annotated[int, Field(ge=4)], ...] = (128, 512)
    last: Positive = 1024
    raised: Positive = 16
    form: Literal["paper", "released"] = "paper"

    @model_validator(mode="after")
    def _levels_have_all_of_theirs(self) -> RelationShapeSettings:
        self._must_be_levels(radii=self.radii, neighbours=self.neighbours, widths=self.widths)
        return self


class PointMlpSettings(PointSetSettings):
    """PointMLP. neighbours: the points of a group, nearest to its centre. embedding: channels before the first stage.

    expansion: by how much each stage multiplies the channels. before, after: residual blocks of each stage over a
    group, and over the centres. inner: channels between the two layers of a block, as a share of its own.
    """

    backbone: Literal["pointmlp"] = "pointmlp"
    centres: Annotated[tuple[Positive, ...], Field(min_length=1)] = (512, 256, 128, 64)
    neighbours: Positive = 24
    embedding: Positive = 64
    expansion: tuple[Positive, ...] = (2, 2, 2, 2)
    before: tuple[Annotated[int, Field(ge=0)], ...] = (2, 2, 2, 2)
    after: tuple[Annotated[int, Field(ge=0)], ...] = (2, 2, 2, 2)
    inner: Annotated[float, Field(gt=0)] = 1.0

    @property
    def fewest_points(self) -> int:
        """Each centre is another point, and so is each neighbour."""
        return max(self.centres[0], self.neighbours)

    @model_validator(mode="after")
    def _stages_have_all_of_theirs(self) -> PointMlpSettings:
        self._must_be_levels(expansion=self.expansion, before=self.before, after=self.after)
        fewest = min(self.centres[:-1], default=self.neighbours)
        if self.neighbours > fewest:
            raise ValueError(f"neighbours={self.neighbours} of a centre are taken from {fewest} points")
        if int(self.embedding * self.expansion[0] * self.inner) < 1:
            raise ValueError(f"inner={self.inner}: of {self.embedding * self.expansion[0]} channels it leaves none")
        return self


class PointMlpEliteSettings(PointMlpSettings):
    """PointMLP's small form."""

    backbone: Literal["pointmlp_elite"] = "pointmlp_elite"  # type: ignore[assignment]  # keys are the parent's
    embedding: Positive = 32
    expansion: tuple[Positive, ...] = (2, 2, 2, 1)
    before: tuple[Annotated[int, Field(ge=0)], ...] = (1, 1, 2, 1)
    after: tuple[Annotated[int, Field(ge=0)], ...] = (1, 1, 2, 1)
    inner: Annotated[float, Field(gt=0)] = 0.25
