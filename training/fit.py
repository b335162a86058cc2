"""The training loop: streams batches, follows the schedule, moves the teacher, logs, saves, resumes."""

from __future__ import annotations

import json
import pickle
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from manifests import store
from manifests.errors import Refused, Stopped
from manifests.recipes import first_difference, load_toml, to_toml
from manifests.shards import library_versions
from training.checkpoint import (
    CLASSES,
    MODEL,
    RECIPE,
    STATE,
    TEACHER,
    TEXT,
    build_model,
    load_weights,
    prune,
    save_step,
    step_folders,
    tensors_of,
    without_pretrained,
)
from training.data import Form, batches_of, supervised, unlabelled
from training.join import Source, open_source
from training.log import LOG, Logged, append_row, cut_rows, events
from training.objectives import SUPERVISED
from training.recipe import FitRecipe
from training.updates import Updates, updates_of

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "webdataset", "numpy", "pillow")


@dataclass
class _Run:
    """Everything that moves during a run."""

    folder: Path
    recipe: FitRecipe
    device: torch.device
    updates: Updates
    samples: Any
    loader: Any
    step: int = 0

    @property
    def steps_an_epoch(self) -> int:
        return self.samples.num_batches


def fit(
    recipe: FitRecipe,
    shards: str,
    run: str,
    device: torch.device,
    on_log: Callable[[Logged], None] = lambda logged: None,
    on_step: Callable[[int, int], None] = lambda step, total: None,
) -> Path:
    """Trains to the last step, going on from the last checkpoint of `run` if there is one. Returns its folder.

    Raises Refused when shards or recipe do not fit (before anything is written), Stopped on a loss or weight that is
    not finite, a damaged shard (DamagedShard) or a full disk.
    """
    folder = Path(run).absolute()
    _refuse_other_run(folder, recipe)
    torch.set_flush_denormal(True)
    state, text = _set_up(folder, recipe, shards, device)
    if not step_folders(folder):
        try:
            _write_run_files(state, text)
        except OSError as error:
            raise Refused(f"--run {folder} cannot be written: {error.strerror or error}") from error
        torch.manual_seed(recipe.seed)
        _save(state)
    else:
        _resume(state)
    started, first = time.monotonic(), state.step
    _loop(state, on_log, on_step)
    last = _save(state)
    write_seconds(folder, time.monotonic() - started, state.step - first)
    return last


def _refuse_other_run(folder: Path, recipe: FitRecipe) -> None:
    known = folder / RECIPE
    if not known.is_file():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise Refused(f"--run {folder} is not empty and no run (it has no {RECIPE})")
        return
    old, new = load_toml(known), recipe.model_dump(mode="json")
    change = first_difference(old, new)
    if change:
        raise Refused(f"--run {folder} holds a run of another recipe: {change}; choose another --run")


def _refuse_other_shards(folder: Path, source: Source) -> None:
    """A run goes on with the shards it began with: the same shapes, view set and classes, wherever they lie."""
    if not step_folders(folder):
        return
    try:
        old = json.loads((folder / CLASSES).read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"{folder / CLASSES} is missing or damaged: {error}") from error
    for name, value in _identity(source).items():
        if old.get(name) != value:
            raise Refused(f"--run {folder} began with other shards (another {name}); choose another --run")


def _identity(source: Source) -> dict[str, Any]:
    """What run.json says about the shards."""
    manifest = source.manifest
    return {
        "dataset": manifest.dataset,
        "classes": list(manifest.classes),
        "prompt_names": list(manifest.prompt_names),
        "assets_hash": manifest.assets_hash,
        "shapes_hash": manifest.shapes_hash,
        "view_set": source.view_set.name,
        "view_set_hash": source.view_set.hash,
    }


def run_information(source: Source) -> dict[str, Any]:
    """What run.json holds before a run begins."""
    return {**_identity(source), "versions": library_versions(*LIBRARIES), "seconds": 0.0, "max_rss_mb": 0.0}


def _set_up(folder: Path, recipe: FitRecipe, shards: str, device: torch.device) -> tuple[_Run, nn.Module]:
    """Opens the shards first (cheap, and most mistakes are there), then builds the model."""
    source = open_source(shards, recipe.data)
    if not source.manifest.classes:
        raise Refused(f"--shards {shards} has no class names: build it with classes=[...]")
    _refuse_other_shards(folder, source)
    built = without_pretrained(recipe) if step_folders(folder) else recipe
    student, text = build_model(built, source.manifest.prompt_names)
    form = Form(student.image.image_size, student.image.patch, recipe.mask.image_cell, recipe.mask.image_ratio)
    masked = recipe.method not in SUPERVISED
    if masked and (form.mask_cell % form.patch or form.image_size % form.mask_cell):
        raise Refused(
            f"mask.image_cell={form.mask_cell} must be whole patches of {form.patch} and divide {form.image_size}"
        )
    settings = recipe.optimizer
    stream = supervised if recipe.method in SUPERVISED else unlabelled
    samples, loader = stream(source, recipe.data, recipe.augment, form, settings.batch_size, recipe.seed)
    student.to(device).train()
    updates = updates_of(student, recipe, samples.num_batches)
    return _Run(folder, recipe, device, updates, samples, loader), text


def _write_run_files(state: _Run, text: nn.Module) -> None:
    """recipe.toml, run.json and the text tower: what prediction and evaluation need beside a checkpoint."""
    store.write_bytes(str(state.folder / RECIPE), to_toml(state.recipe.model_dump(mode="json")).encode())
    about = run_information(state.samples.source)
    store.write_bytes(str(state.folder / CLASSES), json.dumps(about, indent=1).encode())
    if state.updates.student.text is None:  # else it is trained, and part of every checkpoint
        store.write_bytes(str(state.folder / TEXT), save(tensors_of(text)))


def write_seconds(folder: Path, seconds: float, steps: int) -> None:
    """Adds to run.json what a run took: seconds, the most resident memory, milliseconds a step."""
    about = json.loads((folder / CLASSES).read_text())
    about["seconds"] = round(about["seconds"] + seconds, 3)
    about["max_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    if steps:
        about["ms_per_step"] = round(1000 * seconds / steps, 1)
    store.write_bytes(str(folder / CLASSES), json.dumps(about, indent=1).encode())


def _resume(state: _Run) -> None:
    """Student, teacher, optimiser, step and random numbers of the last checkpoint."""
    folder, updates = step_folders(state.folder)[-1], state.updates
    load_weights(updates.student, folder / MODEL)
    if updates.teacher is not None:
        load_weights(updates.teacher.model, folder / TEACHER)
    try:
        saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise Refused(f"{folder / STATE} is damaged: delete {folder} to go on from the one before") from error
    updates.optimizer.load_state_dict(saved["optimizer"])
    state.step = saved["step"]
    updates.log.restore(saved["log"], state.device)
    torch.set_rng_state(saved["torch_rng"])
    if state.device.type == "cuda" and "cuda_rng" in saved:
        torch.cuda.set_rng_state(saved["cuda_rng"], state.device)
    cut_rows(state.folder / LOG, state.step)


def _save(state: _Run) -> Path:
    """Writes a checkpoint. Raises Stopped when a loss was not finite, or a weight is: the run could not go on."""
    updates = state.updates
    updates.log.refuse_fault()
    updates.student.refresh_classifier()
    for name, value in updates.student.named_parameters():
        if not torch.isfinite(value).all():
            raise Stopped(f"step {state.step}: the weight {name} is not finite; lower optimizer.lr")
    saved = {
        "step": state.step,
        "log": updates.log.state(),
        "optimizer": updates.optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
    }
    if state.device.type == "cuda":
        saved["cuda_rng"] = torch.cuda.get_rng_state(state.device)
    teacher = None if updates.teacher is None else updates.teacher.model
    folder = save_step(state.folder, state.step, updates.student, teacher, saved, state.recipe)
    prune(state.folder, state.recipe.keep_last)
    return folder


def _loop(state: _Run, on_log: Callable[[Logged], None], on_step: Callable[[int, int], None]) -> None:
    recipe, updates, total = state.recipe, state.updates, state.updates.total_steps
    seen, since = time.monotonic(), state.step
    with events(state.folder, recipe.tensorboard, state.step) as write_event:
        while state.step < total:
            epoch, skip = divmod(state.step, state.steps_an_epoch)
            state.samples.set_epoch(epoch, skip)
            for batch in batches_of(state.loader):
                if state.step >= total:
                    return
                rate = updates(batch.to(state.device), state.step)
                state.step += 1
                on_step(state.step, total)
                if state.step % recipe.log_every == 0 or state.step == total:
                    updates.log.refuse_fault()
                    now = time.monotonic()
                    timing = {"ms_per_step": 1000 * (now - seen) / (state.step - since)}
                    values = updates.log.row() | {"lr": rate} | timing
                    seen, since = now, state.step
                    append_row(state.folder / LOG, state.step, values)
                    for name, value in values.items():
                        write_event(name, value, state.step)
                    on_log(Logged(state.step, total, values))
                if state.step % recipe.save_every == 0 and state.step < total:
                    _save(state)
