"""The recipes of PointCMT's three stages, with the keys of training/objectives/pointcmt.py."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from training.settings import objective
from training.settings.data import LabelledAugmentSettings, Share
from training.settings.model import CLIP, ImageSettings, InitSettings
from training.settings.run_recipe import FitRecipe


class TeacherInitSettings(InitSettings):
    """teacher: a run of method=multiview, whose picture network and classifier are taken, frozen."""

    teacher: str = ""


class TransferInitSettings(TeacherInitSettings):
    """generator: a run of method=cross_modal_generator, whose generator is taken, frozen."""

    generator: str = ""


class ViewsImageSettings(ImageSettings):
    """The picture network is a ResNet of torchvision. model: its text tower, which no stage reads, is the smallest."""

    model: str = "cross_most_small"
    backbone: Literal["clip", "resnet18", "resnet50"] = "resnet18"
    image_size: Annotated[int, Field(ge=0)] = 224


class ViewsAugmentSettings(LabelledAugmentSettings):
    """All views of an object as they are, unless a key says otherwise; then each of them is augmented."""

    image_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    image_magnitude: Annotated[int, Field(ge=0, le=10)] = 0
    image_flip: Share = 0.0


class GeneratorAugmentSettings(ViewsAugmentSettings):
    """Clouds as they are stored, too: a picture does not show how a cloud was stretched (released: `dgcnn`)."""

    labelled_points: Literal["plain", "turned", "ulip", "dgcnn", "pointnet2", "rscnn"] = "plain"


class ViewsRecipe(FitRecipe):
    """Methods whose samples have all views of an object; data.num_views says how many."""

    image: ViewsImageSettings = ViewsImageSettings()
    logit_scale: ClassVar[str] = "frozen"  # type: ignore[misc,assignment]  # no key: no logit is scaled
    augment: ViewsAugmentSettings = ViewsAugmentSettings()

    @property
    def every_view(self) -> bool:
        """All."""
        return True

    @property
    def reads_pictures(self) -> bool:
        """All stages do."""
        return True

    @model_validator(mode="after")
    def _a_picture_network_of_one_feature(self) -> ViewsRecipe:
        if self.image.backbone == CLIP:
            raise ValueError(f"image.backbone={CLIP}: method={self.method} wants resnet18 or resnet50")
        return self


class MultiviewRecipe(ViewsRecipe):
    """Stage I."""

    method: Literal["multiview"]
    multiview: objective.MultiviewSettings = objective.MultiviewSettings()

    @property
    def towers(self) -> tuple[str, ...]:
        """Pictures alone."""
        return ("image",)


class GeneratorRecipe(ViewsRecipe):
    """Stage II."""

    method: Literal["cross_modal_generator"]
    init: TeacherInitSettings = TeacherInitSettings()
    augment: GeneratorAugmentSettings = GeneratorAugmentSettings()
    generator: objective.GeneratorSettings = objective.GeneratorSettings()

    @property
    def towers(self) -> tuple[str, ...]:
        """The teacher's."""
        return ("image",)

    @model_validator(mode="after")
    def _clouds_of_one_size(self) -> GeneratorRecipe:
        if self.generator.points != self.data.num_points:
            sizes = f"generator.points={self.generator.points} and data.num_points={self.data.num_points}"
            raise ValueError(f"{sizes} must be the same: each point goes to one of the other cloud")
        return self


class PointCmtRecipe(ViewsRecipe):
    """Stage III."""

    method: Literal["pointcmt"]
    init: TransferInitSettings = TransferInitSettings()
    generator: objective.GeneratorSettings = objective.GeneratorSettings()
    pointcmt: objective.TransferSettings = objective.TransferSettings()

    @property
    def towers(self) -> tuple[str, ...]:
        """Points alone answer."""
        return ("points",)
