"""The settings `data.*` and `augment.*` of a recipe: what is read of a build, and how strongly it is augmented."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from manifests.config import Settings

MVCNN = "mvcnn80_20"  # data.objects: the objects that MVCNN's pictures of ModelNet40 show


def views_of(count: int, num_views: int, choice: Literal["even", "first"]) -> Sequence[int]:
    """Which of an object's `count` views are used: `num_views` of them, or all where that is 0 or not fewer.

    even: spread over the set: view i is number i count / num_views, rounded down; of a ring, equal angles apart.
    first: the first ones (released code: views 1 to N, of a ring one arc). The paper does not say which.
    """
    if not 0 < num_views < count:
        return range(count)
    return [i * count // num_views for i in range(num_views)] if choice == "even" else range(num_views)


Positive = Annotated[int, Field(ge=1)]


ViewSetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}$")]  # a folder in OUT/views


class DataSettings(Settings):
    """What is read of a build.

    split: of the build. views: a view set's name. channel: which of its pictures. num_points: a prefix of the cloud.
    num_views: how many of each object's views are used, 0 for all: training draws one of them, evaluation averages
    them. view_choice: which (`views_of`). classes: only objects of these: a subset that the dataset table names
    (`medium`, `hard`) or a list. candidates: answers are among them (`subset`) or among all classes (`all`). objects:
    `mvcnn80_20` (the first 80 and 20 of each class, by id) or a file of ids, one a line. shuffle: size of the buffer,
    samples. allow_incomplete: read an unfinished build. fraction: training takes this share of each class's objects, at
    least one, chosen by the recipe's seed; evaluation takes all. shots: this many objects of each class in its place, 0
    for all, chosen by the seed as well; RUN/objects.txt lists them.

    workers: reader processes of a machine, which the processes that train there share evenly, each at least one (8 for
    8 GPUs: one each); with 0 those read, which is best on a CPU. A core reads about 500 full-size samples a second, so
    a GPU that takes n a second wants n / 500 + 1 readers; each keeps two batches and a buffer ahead (full size: 0.4 MB
    a sample of a batch, 0.1 MB of the buffer). cache: a local folder in which tars of an object store are kept
    (training.data.shard_cache); all processes of the machine may share it. cache_gb: its size at most.
    """

    views: ViewSetName = "rgb12"
    channel: Literal["rgb", "depth", "gray"] = "rgb"
    split: str = "train"
    num_points: Positive = 8192
    num_views: Annotated[int, Field(ge=0)] = 0
    view_choice: Literal["even", "first"] = "even"
    classes: str | tuple[str, ...] = ()
    candidates: Literal["subset", "all"] = "subset"
    objects: str = ""
    shuffle: Positive = 1024
    workers: Annotated[int, Field(ge=0)] = 0
    cache: str = ""
    cache_gb: Annotated[float, Field(gt=0)] = 100.0
    allow_incomplete: bool = False
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    shots: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _share_or_number(self) -> DataSettings:
        if self.shots and self.fraction < 1:
            raise ValueError(f"shots={self.shots} and fraction={self.fraction:g}: one of the two says how many objects")
        return self

    def views_of(self, count: int) -> Sequence[int]:
        """Which of an object's views are used, ascending."""
        return views_of(count, self.num_views, self.view_choice)


Share = Annotated[float, Field(ge=0, le=1)]


class PictureAugmentSettings(Settings):
    """How strongly every method augments pictures; the defaults are the released ones.

    image_crop: smallest area share of the strong crop. image_magnitude: RandAugment's, 0 switches it off. image_flip:
    share of pictures that are mirrored. image_jitter: j, brightness, contrast and saturation get factors of
    U(1 - j, 1 + j) in random order, 0 switches it off (CrossPoint: 0.4).
    """

    image_crop: Annotated[float, Field(gt=0, le=1)] = 0.3
    image_magnitude: Annotated[int, Field(ge=0, le=10)] = 9
    image_flip: Share = 0.5
    image_jitter: Share = 0.0


class AugmentSettings(PictureAugmentSettings):
    """How strongly methods without labels augment pictures and clouds; the defaults are the released ones.

    weak_crop: where the weak view of a picture that is not square is cut out: at a `random` place (paper and released)
    or in the `middle`. points_scale: strong clouds are scaled by U(1/s, s). points_shift: of the extent of each axis.
    points_dropout: largest share of points dropped. points_crop: smallest share of each axis that the crop keeps.
    points_fill: what takes the places of points that are gone (training.data.point_augment.filled). points_elastic: how
    strongly strong clouds are bent (training.data.point_augment.bent), 0 switches it off.
    """

    weak_crop: Literal["random", "middle"] = "random"

    points_scale: Annotated[float, Field(ge=1)] = 2.0
    points_shift: Share = 0.5
    points_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.875
    points_crop: Annotated[float, Field(gt=0, le=1)] = 0.9
    points_fill: Literal["first", "neighbours", "repeat"] = "first"
    points_elastic: Annotated[float, Field(ge=0)] = 0.0


class CrossPointAugmentSettings(AugmentSettings):
    """As `augment.*` of other methods without labels. first_cloud: the first of the two clouds of an object is `weak`,
    or `strong` as the second."""

    first_cloud: Literal["strong", "weak"] = "strong"


class LabelledAugmentSettings(PictureAugmentSettings):
    """How methods with labels augment pictures and clouds.

    labelled_points: `plain`, only normalised, `turned`, `ulip`, which is stronger, or those of the authors of `dgcnn`
    (PointMLP's, too), `pointnet2` or `rscnn` (training.data.point_augment.LABELLED).
    """

    labelled_points: Literal["plain", "turned", "ulip", "dgcnn", "pointnet2", "rscnn"] = "turned"
