"""RUN/checkpoints/step-00001200/: model, teacher, optimiser state and recipe, written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from manifests import store
from manifests.errors import Refused
from manifests.recipes import load_toml, parse_recipe, to_toml
from training.model import CrossModalModel
from training.objectives import SUPERVISED
from training.recipe import FitRecipe, InitSettings
from training.towers.clip import ImageTower, TextTower, build_towers
from training.towers.points import PointTower

MODEL, TEACHER, STATE, RECIPE, CLASSES = (
    "model.safetensors",
    "teacher.safetensors",
    "state.pt",
    "recipe.toml",
    "run.json",
)
TEXT = "text/text.safetensors"
_SIZES = {  # keys that the weights depend on
    "image": ("model", "stem", "image_size"),
    "points": ("tokenizer_widths", "tokenizer_width", "width", "depth", "heads"),
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


def build_model(recipe: FitRecipe, prompt_names: tuple[str, ...]) -> tuple[CrossModalModel, TextTower]:
    """A fresh model and its text tower, seeded by the recipe, with the weights that it names.

    Its classifier is made from text: from the class names in words, in the recipe's prompts. Raises Refused when the
    weights are missing or of other sizes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        image, text, scale = build_towers(recipe.image)
        points = PointTower(recipe.points, image.embed_dim)
        if recipe.init.all:
            scale = _load_towers(recipe, image, points, text)
        supervised = recipe.method in SUPERVISED
        if supervised and recipe.text.freeze_tokens:
            text.clip.token_embedding.requires_grad_(False)
        model = CrossModalModel(
            image,
            points,
            text.classifier(prompt_names, recipe.prompts),
            scale,
            separate=recipe.classifier == "own" and not supervised,
            text=text if supervised else None,
            captions=text.captions(prompt_names, recipe.prompts) if supervised else None,
        )
    return model, text


def _load_towers(recipe: FitRecipe, image: ImageTower, points: PointTower, text: TextTower) -> float:
    """The towers of `init.all`; gives its logit scale (a logarithm)."""
    begun = open_checkpoint(recipe.init.all)
    for table, keys in _SIZES.items():
        for key in keys:
            old, new = (getattr(getattr(r, table), key) for r in (begun.recipe, recipe))
            if old != new:
                raise Refused(f"init.all={recipe.init.all} has {table}.{key}={old}, this recipe {new}")
    weights = read_weights(begun.folder / MODEL)
    for name, module in (("image", image), ("points", points)):
        _load(module, _below(weights, name), begun.folder / MODEL)
    load_text(begun, text)
    return float(weights["logit_scale"])


def _below(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one submodule, by their names inside it."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def load_text(checkpoint: Checkpoint, text: TextTower) -> None:
    """The text tower of a checkpoint: its own, where it was trained, or its run's."""
    own = _below(read_weights(checkpoint.folder / MODEL), "text")
    file = checkpoint.folder.parent.parent / TEXT
    _load(text, own or read_weights(file), checkpoint.folder / MODEL if own else file)


def without_pretrained(recipe: FitRecipe) -> FitRecipe:
    """The same towers with random weights: for a checkpoint that is loaded next, weights need not be there."""
    image = recipe.image.model_copy(update={"pretrained": ""})
    return recipe.model_copy(update={"image": image, "init": InitSettings()})


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
    """Writes one step's folder under another name and renames it. Raises Stopped when the disk is full."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    if folder.is_dir():
        return folder
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
            _write(temporary / RECIPE, to_toml(recipe.model_dump(mode="json")).encode())
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def step_folders(run: Path) -> list[Path]:
    """Finished checkpoint folders of a run, by step."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def prune(run: Path, keep_last: int) -> None:
    """Deletes all but the first (zero-shot) and the last `keep_last` checkpoints."""
    for folder in step_folders(run)[1:-keep_last]:
        shutil.rmtree(folder)


def open_checkpoint(path: str) -> Checkpoint:
    """A run (its last step) or one step's folder. Raises Refused when it is neither."""
    given = Path(path)
    folders = step_folders(given)
    folder = folders[-1] if folders else given
    if not (folder / MODEL).is_file():
        raise Refused(f"{path} is no checkpoint and no run with one (no {MODEL})")
    run = folder.parent.parent
    try:
        about = json.loads((run / CLASSES).read_text())
        return Checkpoint(
            folder=folder,
            step=int(folder.name.rpartition("-")[2]),
            recipe=parse_recipe(FitRecipe, load_toml(folder / RECIPE), str(folder / RECIPE)),
            classes=tuple(about["classes"]),
            prompt_names=tuple(about["prompt_names"]),
            dataset=about["dataset"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{run / CLASSES} is missing or damaged: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises Refused naming it when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise Refused(f"{path}: {' '.join(str(error).split())[:300]}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads every tensor of a file, no more and no fewer. Raises Refused naming what does not fit."""
    _load(model, read_weights(path), path)


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise Refused(f"{path}: {' '.join(str(error).split())[:300]}") from error
