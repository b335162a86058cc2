"""The typed recipe of a run: each part's settings stand beside the code that they configure."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from manifests.config import Value, find_recipe, load_toml, merge, parse_recipe
from manifests.errors import Refused
from training.data.subsets import MVCNN
from training.settings.data import AugmentSettings, DataSettings
from training.settings.model import ImageSettings, InitSettings, PointSettings, Precision, TextSettings
from training.settings.objective import CrossMostSettings, CrossPointSettings, EMASettings, PretrainSettings
from training.settings.prompts import DEFAULT_PROMPTS, Prompts, names_a_file

log = logging.getLogger(__name__)
RECIPES = Path(__file__).parent.parent / "recipes"
POLICY_OF_DATA = ("workers", "cache", "cache_gb")  # of the machine, not of the run


class OptimizerSettings(BaseModel):
    """AdamW. lr: base, times batch_size / 256. steps: in all, or 0 for `epochs`. floor: lowest lr, as a share of lr.

    batch_size: of all processes together, so that a recipe means the same on any number of GPUs (released: of each).
    warmup_epochs: linear from 0. Released: lr 2e-5, floor 1/20, decay 0.05, layer decay 0.65, one warm-up epoch.
    betas: torch's own (released); ULIP's pre-training has (0.9, 0.98).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lr: Annotated[float, Field(gt=0)] = 2e-5
    floor: Annotated[float, Field(ge=0, le=1)] = 0.05
    batch_size: Annotated[int, Field(ge=1)] = 512
    epochs: Annotated[int, Field(ge=1)] = 200
    steps: Annotated[int, Field(ge=0)] = 0
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)


class FitRecipe(CrossMostSettings):
    """What to train on what.

    classifier: one for both branches, or each its `own`. logit_scale: `trained` (released), `clamped` (trained, held in
    1 to 100 after each update; CLIP), or `frozen` as it begins (MUST, at 100; ULIP and released pre-training). prompts:
    the classifier's, or the name of a shipped set (training.settings.prompts), or a file with one a line. log_every,
    save_every: steps; keep_last: newest checkpoints that stay beside the first. tensorboard: write RUN/tensorboard as
    well. precision: of the towers, `fp32` or `bf16`; compile: them, by torch.compile (training/models/precision.py).
    """

    method: Literal["cross_most", "self_training", "pretrain", "crosspoint"] = "cross_most"
    seed: int = 0
    init: InitSettings = InitSettings()
    image: ImageSettings = ImageSettings()
    text: TextSettings = TextSettings()
    prompts: Prompts = DEFAULT_PROMPTS
    points: PointSettings = PointSettings()
    classifier: Literal["shared", "own"] = "shared"
    logit_scale: Literal["trained", "clamped", "frozen"] = "trained"
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    ema: EMASettings = EMASettings()
    pretrain: PretrainSettings = PretrainSettings()
    crosspoint: CrossPointSettings = CrossPointSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    log_every: Annotated[int, Field(ge=1)] = 10
    save_every: Annotated[int, Field(ge=1)] = 1000
    keep_last: Annotated[int, Field(ge=1)] = 2
    tensorboard: bool = True
    precision: Precision = "fp32"
    compile: bool = False

    @model_validator(mode="after")
    def _points_for_groups(self) -> FitRecipe:
        wanted = max(self.points.groups, self.points.group_size)
        if self.data.num_points < wanted:
            raise ValueError(f"data.num_points={self.data.num_points} is fewer than the {wanted} that points.* needs")
        return self

    @model_validator(mode="after")
    def _weights_for_frozen_towers(self) -> FitRecipe:
        given = self.image.pretrained or self.init.image or self.init.all
        if self.method == "pretrain" and not given:
            for name in ("image", "text"):
                learns = getattr(self.pretrain, name)
                if learns != "trained":
                    raise ValueError(f"pretrain.{name}={learns} needs weights: init.image=FILE or a tag")
        return self


def read_recipe(name: str, changes: dict[str, Value]) -> FitRecipe:
    """A recipe file with changes applied. Raises Refused naming what does not fit."""
    return parse_recipe(FitRecipe, merge(load_toml(find_recipe(name, RECIPES)), changes), f"recipe {name}")


def saved_recipe(values: dict[str, Value], where: str) -> FitRecipe:
    """A recipe that was saved with a run, whose prompts are written out; no other file is read for it.

    Raises Refused naming `where` and what does not fit.
    """
    prompts = values.get("prompts")
    if isinstance(prompts, str) and names_a_file(prompts):
        raise Refused(f"{where}: prompts={prompts[:60]!r} names a file, and a saved recipe has its prompts written out")
    return parse_recipe(FitRecipe, values, where)


def travelling_recipe(recipe: FitRecipe) -> FitRecipe:
    """A recipe as it goes with a checkpoint: without what is of the machine that trained."""
    defaults = {name: DataSettings.model_fields[name].default for name in POLICY_OF_DATA}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=defaults)})


def checkpoint_data(recipe: FitRecipe) -> DataSettings:
    """What of `data` holds for a checkpoint: neither policy of a machine nor a file of objects."""
    data = travelling_recipe(recipe).data
    return data if data.objects == MVCNN else data.model_copy(update={"objects": ""})


def checkpoint_recipe(values: dict[str, Value], where: str) -> FitRecipe:
    """The recipe of a checkpoint, which may be somebody else's: nothing in it says what this machine reads or writes.

    Machine policy and a list of objects are the command line's to give. Weights that training began with are named in
    it and never read. Raises Refused as `saved_recipe` does.
    """
    recipe = saved_recipe(values, where)
    used = checkpoint_data(recipe)
    if recipe.data.cache:
        log.warning("%s: data.cache=%r is not used: a cache is named on the command line", where, recipe.data.cache)
    if recipe.data.objects != used.objects:
        words = "%s: data.objects=%r is not read: name the file on the command line, or all objects are used"
        log.warning(words, where, recipe.data.objects)
    return recipe.model_copy(update={"data": used})
