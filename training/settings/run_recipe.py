"""The keys of a recipe that every method reads; each method's own are in fit_recipe.py and pointcmt_recipes.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from manifests.config import Settings
from training.settings import objective
from training.settings.data import DataSettings, PictureAugmentSettings
from training.settings.model import ImageSettings, InitSettings, PointSettings, Precision
from training.settings.optimizer import OptimizerSettings
from training.settings.prompts import DEFAULT_PROMPTS, Prompts


class FitRecipe(Settings):
    """What to train on what: the keys that every method reads.

    method: of training/objectives. seed: of all that is random in the run. logit_scale: `trained` (released), `clamped`
    (trained, held in 1 to 100 after each update; CLIP), or `frozen` as it begins (MUST, at 100; ULIP and released
    pre-training). prompts: the classifier's, or the name of a shipped set (training.settings.prompts), or a file with
    one a line. log_every: steps between two rows of the log. save_every: steps between two checkpoints. keep_last:
    newest checkpoints that stay beside the first. eval_every: steps between two looks at the labelled test split, a
    multiple of log_every, or 0 for never; `fit` wants --looks-at-labels beside it. tensorboard: write RUN/tensorboard
    as well. precision: of the towers, `fp32`, `bf16` or `fp16` (training/networks/precision.py). compile: the towers,
    by torch.compile. activation_checkpointing: backward computes the blocks of the towers again, which takes a third
    more time and less memory.
    """

    method: str
    seed: int = 0
    init: InitSettings = InitSettings()
    image: ImageSettings = ImageSettings()
    prompts: Prompts = DEFAULT_PROMPTS
    points: PointSettings = PointSettings()
    logit_scale: Literal["trained", "clamped", "frozen"] = "trained"
    data: DataSettings = DataSettings()
    augment: PictureAugmentSettings = PictureAugmentSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    log_every: Annotated[int, Field(ge=1)] = 10
    save_every: Annotated[int, Field(ge=1)] = 1000
    eval_every: Annotated[int, Field(ge=0)] = 0
    keep_last: Annotated[int, Field(ge=1)] = 2
    tensorboard: bool = True
    precision: Precision = "fp32"
    compile: bool = False
    activation_checkpointing: bool = False

    @model_validator(mode="after")
    def _points_for_groups(self) -> FitRecipe:
        wanted = self.points.fewest_points
        if self.data.num_points < wanted:
            raise ValueError(f"data.num_points={self.data.num_points} is fewer than the {wanted} that points.* needs")
        return self

    @model_validator(mode="after")
    def _evaluated_where_it_is_logged(self) -> FitRecipe:
        if self.eval_every % self.log_every:
            raise ValueError(f"eval_every={self.eval_every} is no multiple of log_every={self.log_every}")
        return self

    @model_validator(mode="after")
    def _batch_norm_of_whole_batches(self) -> FitRecipe:
        if self.optimizer.accumulate > 1 and self.points.learns_batch_norms:
            bert = isinstance(self.points, PointSettings)
            whose = "a trained tokenizer" if bert else f"points.backbone={self.points.backbone}"
            other = "; use points.freeze_tokenizer=true, or activation_checkpointing=true" if bert else ""
            raise ValueError(
                f"optimizer.accumulate={self.optimizer.accumulate}: the batch norms of {whose} need the "
                f"whole batch at once{other}"
            )
        return self

    @property
    def pseudo_labels(self) -> objective.LabelSettings:
        """The pseudo-labels that a run teaches and that evaluation measures; the defaults where a method has none."""
        return objective.LabelSettings()

    @property
    def towers(self) -> tuple[str, ...]:
        """The towers that a run teaches and that are asked afterwards: `image`, `points`."""
        return "image", "points"

    @property
    def reads_pictures(self) -> bool:
        """Whether training needs pictures."""
        return "image" in self.towers

    @property
    def vote_spread(self) -> float:
        """By how much the votes of `evaluate --votes` scale each axis (RS-CNN's 0.8 to 1.2)."""
        return 0.2

    @property
    def has_depth_tower(self) -> bool:
        """Whether the model has a tower of depth pictures beside that of images."""
        return False

    @property
    def judged_data(self) -> DataSettings:
        """What evaluation reads of a build where nobody says otherwise."""
        return self.data

    @property
    def every_view(self) -> bool:
        """Whether a sample has all views of its object, else one of them."""
        return False


class ClassifierRecipe(FitRecipe):
    """Methods whose classifier is made from text once. classifier: one for both branches, or each its `own`."""

    classifier: Literal["shared", "own"] = "shared"
