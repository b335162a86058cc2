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
from training.objectives.cross_most import CrossMoST
from training.recipe import FitRecipe
from training.towers.clip import TextTower, build_towers
from training.towers.points import PointTower

MODEL, TEACHER, STATE, RECIPE, CLASSES = (
    "model.safetensors",
    "teacher.safetensors",
    "state.pt",
    "recipe.toml",
    "run.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """One opened checkpoint folder."""

    folder: Path
    step: int
    recipe: FitRecipe
    classes: tuple[str, ...]
    prompt_names: tuple[str, ...]
    dataset: str


def build_model(recipe: FitRecipe, prompt_names: tuple[str, ...]) -> tuple[CrossMoST, TextTower]:
    """A fresh model with its classifier initialised from text, seeded by the recipe; and the text tower. May Refuse."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        image, text, scale = build_towers(recipe.image)
        points = PointTower(recipe.points, image.embed_dim)
        return CrossMoST(image, points, text.classifier(prompt_names, recipe.text), scale), text


def without_pretrained(recipe: FitRecipe) -> FitRecipe:
    """The same towers with random weights: for a checkpoint that is loaded next, weights need not be fetched."""
    return recipe.model_copy(update={"image": recipe.image.model_copy(update={"pretrained": ""})})


def _write(path: Path, data: bytes) -> None:
    with store.stopping(str(path)), open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A state dict that safetensors takes: contiguous, on the CPU, no shared storage."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def save_step(
    run: Path, step: int, student: nn.Module, teacher: nn.Module, state: dict[str, Any], recipe: FitRecipe
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


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads every tensor of a file, no more and no fewer. Raises Refused naming what does not fit."""
    try:
        model.load_state_dict(load_file(path), strict=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise Refused(f"{path}: {' '.join(str(error).split())[:300]}") from error
