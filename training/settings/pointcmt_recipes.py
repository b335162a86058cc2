"""The recipes of PointCMT's three stages, with the keys of training/objectives/pointcmt.py."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from training.settings import objective
from training.settings.data import LabelledAugmentSettings
from training.settings.model import InitSettings
from training.settings.run_recipe import FitRecipe


class TeacherInitSettings(InitSettings):
    """teacher: a run of method=multiview, whose picture network and classifier are taken, frozen; or the released
    mvcnn.t7, whose classes are ModelNet40's."""

    teacher: str = ""


class TransferInitSettings(TeacherInitSettings):
    """generator: a run of method=cross_modal_generator, whose generator is taken, frozen; or the released cmpg.pth,
    with generator.form=linear."""

    generator: str = ""


class ViewsRecipe(FitRecipe):
    """Methods whose samples have all views of an object; data.num_views says how many."""

    logit_scale: ClassVar[str] = "frozen"  # type: ignore[misc,assignment]  # no key: no logit is scaled
    augment: LabelledAugmentSettings = LabelledAugmentSettings()

    @property
    def every_view(self) -> bool:
        """All."""
        return True

    @property
    def reads_pictures(self) -> bool:
        """All stages do."""
        return True


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
    generator: objective.GeneratorSettings = objective.GeneratorSettings()

    @property
    def towers(self) -> tuple[str, ...]:
        """The teacher's."""
        return ("image",)

    @model_validator(mode="after")
    def _clouds_of_one_size(self) -> GeneratorRecipe:
        if self.generator.points not in (0, self.data.num_points):
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
    def vote_spread(self) -> float:
        """As released (voting_test.py: 0.85 to 1.15), but that each vote scales the stored cloud: there it scales what
        the vote before had made."""
        return 0.15

    @property
    def towers(self) -> tuple[str, ...]:
        """Points alone answer."""
        return ("points",)
