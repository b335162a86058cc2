"""RUN/checkpoints/step-00001200/: model, teacher, optimiser state and recipe, written whole or not at all."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from manifests import store
from manifests.config import load_toml, to_toml
from manifests.errors import Refused, Stopped, one_line
from manifests.plain_text import number_of
from training.models.clip import TextTower
from training.models.cross_modal import CrossModalModel
from training.models.gated_adapter import GatedAdapter
from training.objectives import adapter, clip2point, crosspoint, pointcmt, pretrain, supervised
from training.settings import from_plugins
from training.settings.adapter_recipe import AdapterRecipe
from training.settings.checkpoint_recipe import checkpoint_recipe, travelling_recipe
from training.settings.clip2point_recipe import Clip2PointRecipe
from training.settings.fit_recipe import (
    ClassifierRecipe,
    CrossPointRecipe,
    FitRecipe,
    PartsRecipe,
    PretrainRecipe,
    SupervisedRecipe,
)
from training.settings.pointcmt_recipes import ViewsRecipe
from training.weights.formats import below, first_not_finite, require_finite
from training.weights.pointcmt_weights import heads_of, take_stages
from training.weights.pretrained import Loaded, initial_towers
from training.weights.run_folder import (
    MODEL,
    RECIPE,
    STATE,
    TEACHER,
    TEXT,
    last_step,
    read_about,
    step_folders,
    with_its_plugins,
)

FREEZES: dict[type[FitRecipe], Callable[..., None]] = {  # what methods, and plugins that build on them, do not train
    PretrainRecipe: pretrain.freeze,
    CrossPointRecipe: crosspoint.freeze,
    SupervisedRecipe: supervised.freeze,
    ViewsRecipe: pointcmt.freeze,
    Clip2PointRecipe: clip2point.freeze,
    AdapterRecipe: adapter.freeze,
}


@dataclass(frozen=True)
class Checkpoint:
    """One opened checkpoint folder."""

    folder: Path
    step: int
    recipe: FitRecipe
    classes: tuple[str, ...]
    prompt_names: tuple[str, ...]
    dataset: str


def build_model(
    recipe: FitRecipe,
    prompt_names: tuple[str, ...],
    on_weights: Callable[[Loaded], None] = lambda loaded: None,
    blank: bool = False,
) -> tuple[CrossModalModel, TextTower]:
    """A new model and its text tower, seeded by the recipe, with the weights that it names.

    The classifier is made from text (the class names in words, in the recipe's prompts), or taken from the file of
    `init.all`. on_weights: called for each source of weights. blank: leaves the classifier zero, for a checkpoint that
    is loaded next. Raises Refused when weights are missing or of other sizes.
    """
    if isinstance(recipe, PartsRecipe):
        raise Refused("a run of part segmentation classifies no object: `evaluate` and `predict --shards` take it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        towers = initial_towers(recipe)
        for loaded in towers.loaded:
            on_weights(loaded)
        text, classifier = towers.text, towers.classifier
        pretrained = isinstance(recipe, PretrainRecipe)
        if blank:
            classifier = torch.zeros(towers.image.embed_dim, len(prompt_names))
        elif classifier is None:
            classifier = text.classifier(prompt_names, recipe.prompts)
        elif classifier.shape != (towers.image.embed_dim, len(prompt_names)):
            known = f"{number_of(classifier.shape[1], 'class')}, the shards {len(prompt_names)}"
            raise Refused(f"init.classifier=file: {recipe.init.all} has a classifier of {known}")
        model = CrossModalModel(
            towers.image,
            towers.points,
            classifier,
            recipe.scale if isinstance(recipe, AdapterRecipe) else towers.scale,
            separate=isinstance(recipe, ClassifierRecipe) and recipe.classifier == "own",
            text=text if pretrained else None,
            captions=text.captions(prompt_names, recipe.prompts) if pretrained else None,
            **heads_of(recipe, towers, len(prompt_names)),
        )
        if recipe.has_depth_tower:
            model.add_depth_tower(towers.depth)
        take_stages(model, recipe, prompt_names, on_weights)
        if isinstance(recipe, CrossPointRecipe) and recipe.crosspoint.has_heads:
            model.add_contrast_heads()
        if isinstance(recipe, AdapterRecipe):
            model.adapter = GatedAdapter(recipe.adapter, towers.image.embed_dim)
        for kind, freeze in FREEZES.items():
            if isinstance(recipe, kind):
                freeze(model, recipe)
        own = from_plugins.methods().get(recipe.method)
        if own is not None and own.freeze is not None:
            own.freeze(model, recipe)
        if recipe.logit_scale == "frozen":
            model.freeze_scale()
    return model, text


def load_text(checkpoint: Checkpoint, text: TextTower) -> None:
    """Loads the text tower of a checkpoint: from its model, where the method trains it, or from its run."""
    own = below(read_weights(checkpoint.folder / MODEL), "text.")
    file = checkpoint.folder.parent.parent / TEXT
    if not own and not file.is_file():
        raise Refused(
            f"{file} is missing, which prompts need: `fit` wrote this text tower beside the checkpoints; copy "
            "it from there"
        )
    _load(text, own or read_weights(file), checkpoint.folder / MODEL if own else file)


def without_pretrained(recipe: FitRecipe) -> FitRecipe:
    """A recipe for the same towers with random weights, which a checkpoint then replaces: needs no files of weights."""
    image = recipe.image.model_copy(update={"pretrained": ""})
    return recipe.model_copy(update={"image": image, "init": type(recipe.init)()})


def _write(path: Path, data: bytes) -> None:
    with store.stopping(str(path)), open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A state dict that safetensors takes: contiguous, on the CPU, no shared storage."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def save_step(
    run: Path, step: int, student: nn.Module, teacher: nn.Module | None, state: dict[str, Any], recipe: FitRecipe
) -> Path:
    """Writes one step's folder under another name and renames it.

    Raises Stopped when the disk is full, or a number of student or teacher is not finite.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    if folder.is_dir():
        return folder
    for words, model in (("the weight", student), ("the teacher's weight", teacher)):
        name = None if model is None else first_not_finite(model.state_dict())
        if name is not None:
            raise Stopped(f"step {step}: {words} {name} is not finite; lower optimizer.lr")
    temporary = folder.parent / store.temporary_name(folder.name)
    with store.stopping(str(folder)):
        temporary.mkdir(parents=True)
        try:
            _write(temporary / MODEL, save(tensors_of(student)))
            if teacher is not None:
                _write(temporary / TEACHER, save(tensors_of(teacher)))
            buffer = io.BytesIO()
            torch.save(state, buffer)
            _write(temporary / STATE, buffer.getvalue())
            _write(temporary / RECIPE, to_toml(travelling_recipe(recipe).model_dump(mode="json")).encode())
            os.replace(temporary, folder)
            store.fsync_folder(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def prune(run: Path, keep_last: int) -> None:
    """Deletes all checkpoints but the first (zero-shot) and the last `keep_last`, each of them at once by a rename."""
    for folder in step_folders(run)[1:-keep_last]:
        aside = folder.parent / store.temporary_name(folder.name)
        os.replace(folder, aside)
        shutil.rmtree(aside)


def open_checkpoint(path: str) -> Checkpoint:
    """A run (its last step) or one step's folder. Raises Refused when it is neither."""
    folder = last_step(Path(path))
    if not (folder / MODEL).is_file():
        raise Refused(f"{path} is no checkpoint and no run with one (no {MODEL})")
    run = folder.parent.parent
    about, step = read_about(run), folder.name.rpartition("-")[2]
    if not step.isdecimal():
        raise Refused(f"{folder} is no checkpoint: its name does not end in a step")
    with with_its_plugins(about, str(run)):
        recipe = checkpoint_recipe(load_toml(folder / RECIPE), str(folder / RECIPE))
    return Checkpoint(
        folder=folder,
        step=int(step),
        recipe=recipe,
        classes=tuple(about["classes"]),
        prompt_names=tuple(about["prompt_names"]),
        dataset=about["dataset"],
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises Refused naming it when it is missing or damaged, or a number is not finite."""
    try:
        tensors = load_file(path)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise Refused(f"{path}: {one_line(error)}") from error
    require_finite(tensors, path)
    return tensors


def refuse_broken_other(folder: Path, who: str) -> None:
    """Raises Refused where a checkpoint's other model (not `who`) is damaged or not finite: then the run went wrong
    before this step, even if the model of `who` still answers."""
    other = folder / (MODEL if who == "teacher" else TEACHER)
    if other.is_file():
        read_weights(other)


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads every tensor of a file, no more and no fewer. Raises Refused naming what does not fit."""
    _load(model, read_weights(path), path)


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise Refused(f"{path}: {one_line(error)}") from error
