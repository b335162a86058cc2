"""The training loop: streams batches, follows the schedule, moves the teacher, logs, saves, resumes."""

from __future__ import annotations

import csv
import json
import math
import pickle
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.utils.tensorboard import SummaryWriter

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
from training.losses import biasedness
from training.model import CrossModalModel, parameter_groups
from training.objectives import METHODS, SUPERVISED
from training.objectives.step import Step
from training.recipe import FitRecipe, OptimizerSettings
from training.teacher import Teacher

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "webdataset", "numpy", "pillow")
LOG = "log.csv"


@dataclass(frozen=True)
class Logged:
    """One row of log.csv: what a progress bar shows as well."""

    step: int
    total_steps: int
    values: dict[str, float]


def steps_of(settings: OptimizerSettings, steps_an_epoch: int) -> tuple[int, int]:
    """All steps of a run, and those of its warm-up: at most half of them."""
    total = settings.steps or settings.epochs * steps_an_epoch
    return total, min(round(settings.warmup_epochs * steps_an_epoch), total // 2)


def learning_rate(step: int, total: int, warmup: int, settings: OptimizerSettings) -> float:
    """lr batch_size / 256, from 0 linearly over `warmup` steps, then half a cosine down to its floor; step from 0.

    The first step of a warm-up learns nothing and its last at the peak, as released.
    """
    peak = settings.lr * settings.batch_size / 256
    if step < warmup:
        return peak * step / max(warmup - 1, 1)
    along = (step - warmup) / max(total - warmup, 1)
    low = peak * settings.floor
    return low + (peak - low) * (1 + math.cos(math.pi * min(along, 1.0))) / 2


@dataclass
class _Log:
    """What is summed up on the device since the last row of the log, and the first loss that was not finite.

    names: of the entries of `sums`, a vector. counts: histograms by name. fault: step (or -1), then 1 for each term
    that was not finite in it; read together with the sums, so that a step never waits for the device.
    """

    names: tuple[str, ...] = ()
    sums: torch.Tensor | None = None
    counts: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: int = 0
    fault: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, result: Step, step: int) -> torch.Tensor:
        """Adds a step's values; gives 1.0 where one of its terms is not finite, else 0.0, on the device."""
        values = {"loss": result.total}
        values |= {f"loss_{name}": value for name, value in result.terms.items()}
        values |= {f"weighted_{name}": value for name, value in result.weighted.items()}
        values |= result.figures
        vector = torch.stack([value.detach().float() for value in values.values()])
        self.names = tuple(values)
        self.sums = vector if self.sums is None else self.sums + vector
        for name, count in result.counts.items():
            self.counts[name] = self.counts[name] + count if name in self.counts else count
        self.steps += 1
        bad = ~torch.isfinite(torch.stack([value.detach() for value in result.terms.values()]))
        here = torch.cat([torch.full((1,), float(step), device=bad.device), bad.float()])
        first = here if self.fault is None else torch.where(self.fault[0] < 0, here, self.fault)
        self.fault = torch.where(bad.any() | (first[0] < step), first, torch.full_like(first, -1.0))
        return bad.any().float()

    def refuse_fault(self, terms: list[str]) -> None:
        """Raises Stopped naming the first step and its terms that were not finite."""
        if self.fault is not None and self.fault[0] >= 0:
            step, *bad = self.fault.tolist()
            names = [name for name, wrong in zip(terms, bad, strict=True) if wrong]
            raise Stopped(f"step {int(step)}: the loss {', '.join(names)} is not finite; lower optimizer.lr")

    def row(self) -> dict[str, float]:
        """Means since the last row; and the biasedness of the hard predictions since then."""
        values = dict(zip(self.names, (self.sums / self.steps).tolist(), strict=True))
        values |= {f"biasedness_{name}": biasedness(count.float()).item() for name, count in self.counts.items()}
        self.sums, self.counts, self.steps = None, {}, 0
        return values

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the rows of a run that goes on are those of an unbroken one."""
        return {"names": list(self.names), "sums": self.sums, "counts": self.counts, "steps": self.steps}

    def restore(self, saved: dict[str, Any], device: torch.device) -> None:
        """Goes on from a checkpoint."""
        self.names, self.steps = tuple(saved["names"]), saved["steps"]
        self.sums = None if saved["sums"] is None else saved["sums"].to(device)
        self.counts = {name: count.to(device) for name, count in saved["counts"].items()}


@dataclass
class _Run:
    """Everything that moves during a run."""

    folder: Path
    recipe: FitRecipe
    device: torch.device
    student: CrossModalModel
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    samples: Any
    loader: Any
    step: int = 0
    log: _Log = field(default_factory=_Log)

    @property
    def steps_an_epoch(self) -> int:
        return self.samples.num_batches

    @property
    def total_steps(self) -> int:
        return steps_of(self.recipe.optimizer, self.steps_an_epoch)[0]


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
    teacher = None if recipe.method in SUPERVISED else Teacher(student, recipe.ema)
    groups = parameter_groups(student, settings.weight_decay, settings.layer_decay, settings.lr)
    optimizer = torch.optim.AdamW(groups, fused=True)  # fused: an update can be skipped on the device (found_inf)
    return _Run(folder, recipe, device, student, teacher, optimizer, samples, loader), text


def _write_run_files(state: _Run, text: nn.Module) -> None:
    """recipe.toml, run.json and the text tower: what prediction and evaluation need beside a checkpoint."""
    store.write_bytes(str(state.folder / RECIPE), to_toml(state.recipe.model_dump(mode="json")).encode())
    about = run_information(state.samples.source)
    store.write_bytes(str(state.folder / CLASSES), json.dumps(about, indent=1).encode())
    if state.student.text is None:  # else it is trained, and part of every checkpoint
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
    folder = step_folders(state.folder)[-1]
    load_weights(state.student, folder / MODEL)
    if state.teacher is not None:
        load_weights(state.teacher.model, folder / TEACHER)
    try:
        saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise Refused(f"{folder / STATE} is damaged: delete {folder} to go on from the one before") from error
    state.optimizer.load_state_dict(saved["optimizer"])
    state.step = saved["step"]
    state.log.restore(saved["log"], state.device)
    torch.set_rng_state(saved["torch_rng"])
    if state.device.type == "cuda" and "cuda_rng" in saved:
        torch.cuda.set_rng_state(saved["cuda_rng"], state.device)
    _cut_log(state.folder / LOG, state.step)


def _cut_log(path: Path, step: int) -> None:
    """Drops the rows of log.csv behind the checkpoint that a run goes on from."""
    if path.is_file():
        lines = path.read_text().splitlines(keepends=True)
        kept = lines[:1] + [line for line in lines[1:] if int(line.partition(",")[0]) <= step]
        store.write_bytes(str(path), "".join(kept).encode())


def _save(state: _Run) -> Path:
    """Writes a checkpoint. Raises Stopped when a loss was not finite, or a weight is: the run could not go on."""
    state.log.refuse_fault(list(_terms(state)))
    state.student.refresh_classifier()
    for name, value in state.student.named_parameters():
        if not torch.isfinite(value).all():
            raise Stopped(f"step {state.step}: the weight {name} is not finite; lower optimizer.lr")
    saved = {
        "step": state.step,
        "log": state.log.state(),
        "optimizer": state.optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
    }
    if state.device.type == "cuda":
        saved["cuda_rng"] = torch.cuda.get_rng_state(state.device)
    teacher = None if state.teacher is None else state.teacher.model
    folder = save_step(state.folder, state.step, state.student, teacher, saved, state.recipe)
    prune(state.folder, state.recipe.keep_last)
    return folder


def _loop(state: _Run, on_log: Callable[[Logged], None], on_step: Callable[[int, int], None]) -> None:
    recipe, total = state.recipe, state.total_steps
    seen, since = time.monotonic(), state.step
    with _events(state) as events:
        while state.step < total:
            epoch, skip = divmod(state.step, state.steps_an_epoch)
            state.samples.set_epoch(epoch, skip)
            for batch in batches_of(state.loader):
                if state.step >= total:
                    return
                rate = _update(state, batch.to(state.device))
                state.step += 1
                on_step(state.step, total)
                if state.step % recipe.log_every == 0 or state.step == total:
                    state.log.refuse_fault(list(_terms(state)))
                    now = time.monotonic()
                    timing = {"ms_per_step": 1000 * (now - seen) / (state.step - since)}
                    values = state.log.row() | {"lr": rate} | timing
                    seen, since = now, state.step
                    _append(state.folder / LOG, state.step, values)
                    for name, value in values.items():
                        events(name, value, state.step)
                    on_log(Logged(state.step, total, values))
                if state.step % recipe.save_every == 0 and state.step < total:
                    _save(state)


def _terms(state: _Run) -> tuple[str, ...]:
    """Names of the losses, in the order of the log."""
    return tuple(name.removeprefix("weighted_") for name in state.log.names if name.startswith("weighted_"))


def _update(state: _Run, batch: Any) -> float:
    """One optimiser step and one step of the teacher; gives the learning rate.

    An update whose loss is not finite is skipped on the device; the log finds it at its next row.
    """
    recipe = state.recipe
    settings = recipe.optimizer
    rate = learning_rate(state.step, *steps_of(settings, state.steps_an_epoch), settings)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    teacher = None if state.teacher is None else state.teacher.model
    result = METHODS[recipe.method](state.student, teacher, batch, recipe)
    state.optimizer.zero_grad(set_to_none=True)
    result.total.backward()
    state.optimizer.found_inf = state.log.add(result, state.step + 1)
    state.optimizer.step()
    if state.teacher is not None:
        state.teacher.update(state.student, state.step)
    return rate


@contextmanager
def _events(state: _Run) -> Iterator[Callable[[str, float, int], None]]:
    """TensorBoard's writer of scalars; after a resume it drops the events behind the checkpoint."""
    if not state.recipe.tensorboard:
        yield lambda name, value, step: None
        return
    with SummaryWriter(str(state.folder / "tensorboard"), purge_step=state.step + 1) as writer:
        yield writer.add_scalar


def _append(path: Path, step: int, values: dict[str, float]) -> None:
    """Adds a row to log.csv, with the names first where the file is new."""
    with store.stopping(str(path)), open(path, "a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(["step", *values])
        writer.writerow([step, *(f"{value:.8g}" for value in values.values())])
