"""The state of a run: everything that changes while it trains, how it is saved, and how it is resumed exactly.

Beside the optimiser, state.pt holds which samples of the epoch were used, by how many readers
(training/data/sampler.py), and for each process its random numbers and its sums for the log. The same number of
processes resumes with the same results as an unbroken run. Another number divides the unused samples of the epoch
anew, each sample once, and draws other random numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from manifests.errors import Refused, first_problem, one_line
from manifests.rng import generator
from training import distributed
from training.data.batch import AnyRawBatch
from training.data.loader import EpochSamples, Loader
from training.data.sampler import Given, went_on
from training.loop.metric_log import HISTOGRAMS, LOG, cut_rows
from training.loop.update import Updates
from training.settings.fit_recipe import FitRecipe
from training.weights.checkpoint import MODEL, STATE, TEACHER, load_weights, prune, save_step
from training.weights.safe_load import require_plain


@dataclass
class Run:
    """Everything that changes during a run. step: updates so far.

    given: the batches of epoch `given_epoch` that readers gave before this process started, as segments of
    training/data/sampler.py.
    """

    folder: Path
    recipe: FitRecipe
    device: torch.device
    updates: Updates
    samples: EpochSamples
    loader: Loader
    step: int = 0
    given: Given = field(default_factory=list)
    given_epoch: int = 0

    def update(self, raw: AnyRawBatch) -> float:
        """One update by a batch of this process; gives its learning rate."""
        rate = self.updates(raw.to(self.device), self.step)
        self.step += 1
        return rate

    def progress(self) -> tuple[int, list[tuple[int, int, int]]]:
        """The epoch of the next step, and the segments of it that readers gave so far."""
        epoch, inside = divmod(self.step, self.samples.num_batches)
        before = list(self.given) if epoch == self.given_epoch else []
        here = inside - sum(batches for _, _, batches in before)
        return epoch, went_on(before, distributed.world(), self.samples.settings.workers, here)

    def seed(self) -> None:
        """Seeds the random numbers of drop path: process 0 by the recipe's seed, every other process differently."""
        names = ("process", self.step, distributed.rank())
        plain = distributed.leads() and not self.step
        torch.manual_seed(self.recipe.seed if plain else int(generator(self.recipe.seed, *names).integers(2**63)))

    def save(self) -> Path:
        """Writes a checkpoint and gives its folder. All processes call it, and process 0 writes.

        Raises Stopped when a loss, or a weight of student or teacher, is not finite (the run could not go on), and when
        the disk is full.
        """
        updates = self.updates
        updates.refuse_fault()
        updates.student.refresh_classifier()
        saved = self._state()
        teacher = None if updates.teacher is None else updates.teacher.model
        with distributed.together():
            if distributed.leads():
                save_step(self.folder, self.step, updates.student, teacher, saved, self.recipe)
                prune(self.folder, self.recipe.keep_last)
        return self.folder / "checkpoints" / f"step-{self.step:08d}"

    def _state(self) -> dict[str, Any]:
        """The contents of state.pt. Tensors of `torch_rng`, `cuda_rng` and `log` have a row for each process."""
        epoch, given = self.progress()
        saved = {
            "step": self.step,
            "epoch": epoch,
            "given": given,
            "log": self.updates.log.state(),
            "optimizer": self.updates.optimizer.state_dict(),
            "torch_rng": distributed.gather_rows(torch.get_rng_state()[None]),
        }
        if self.updates.scaler.is_enabled():
            scale = self.updates.scaler.state_dict()
            saved["loss_scale"] = scale["scale"], scale["_growth_tracker"]
        if self.device.type == "cuda":
            saved["cuda_rng"] = distributed.gather_rows(torch.cuda.get_rng_state(self.device)[None])
        return saved

    def resume(self, folder: Path) -> None:
        """Loads student, teacher, optimiser, step and random numbers of a checkpoint; Refused when it is damaged."""
        updates = self.updates
        try:
            load_weights(updates.student, folder / MODEL)
            if updates.teacher is not None:
                load_weights(updates.teacher.model, folder / TEACHER)
            saved = _read_state(folder / STATE)
            _load_optimizer(updates.optimizer, saved["optimizer"], folder / STATE)
            self.step, self.given_epoch, self.given = saved["step"], saved["epoch"], saved["given"]
            try:
                updates.log.restore(saved["log"], self.device)
                if updates.scaler.is_enabled():
                    scale = dict(zip(("scale", "_growth_tracker"), saved["loss_scale"], strict=True))
                    updates.scaler.load_state_dict(updates.scaler.state_dict() | scale)
                self._restore_random(saved)
            except (RuntimeError, TypeError, KeyError) as error:  # tensors of other sizes or types, no loss scale
                raise Refused(f"{folder / STATE} is damaged ({one_line(error, 100)})") from error
        except _Earlier:
            raise
        except Refused as error:
            raise Refused(f"{error}; delete {folder} to go on from the checkpoint before it") from error
        if distributed.leads():
            cut_rows(self.folder / LOG, self.step)
            cut_rows(self.folder / HISTOGRAMS, self.step)

    def _restore_random(self, saved: dict[str, Any]) -> None:
        number = distributed.rank()
        if len(saved["torch_rng"]) != distributed.world():
            self.seed()
            return
        torch.set_rng_state(saved["torch_rng"][number].clone())  # torch crashes on a row of a larger tensor
        if self.device.type == "cuda" and "cuda_rng" in saved:
            torch.cuda.set_rng_state(saved["cuda_rng"][number].clone(), self.device)


class _Earlier(Refused):
    """An undamaged checkpoint that this version cannot resume from."""


class _SavedLog(BaseModel):
    """The state of training.loop.metric_log.Log: sums (processes, names) and counts (processes, classes)."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    names: list[str]
    sums: torch.Tensor | None
    counts: dict[str, torch.Tensor]
    steps: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _of_the_names(self) -> _SavedLog:
        shape = None if self.sums is None else tuple(self.sums.shape)
        if shape is not None and (len(shape) != 2 or not shape[0] or shape[1] != len(self.names)):
            raise ValueError(f"sums of shape {shape} for {len(self.names)} names")
        if any(count.ndim != 2 or not len(count) for count in self.counts.values()):
            raise ValueError("counts without a row for each process")
        return self


class _SavedState(BaseModel):
    """state.pt: the types and shapes that can be checked without knowing the run."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    step: Annotated[int, Field(ge=0)]
    epoch: Annotated[int, Field(ge=0)]
    given: list[tuple[int, int, int]]
    log: _SavedLog
    optimizer: dict[str, Any]
    torch_rng: torch.Tensor
    cuda_rng: torch.Tensor | None = None
    loss_scale: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], Annotated[int, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _random_rows(self) -> _SavedState:
        for rows in (self.torch_rng, self.cuda_rng):
            if rows is not None and (rows.ndim != 2 or rows.dtype != torch.uint8):
                raise ValueError(f"random numbers of {rows.dtype} {tuple(rows.shape)}")
        return self


def _read_state(path: Path) -> dict[str, Any]:
    """Reads the tensors and plain values of state.pt. Raises Refused when it is damaged."""
    try:
        require_plain(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are opcodes and records
        raise Refused(f"{path} is damaged") from error
    if isinstance(loaded, dict) and "step" in loaded and "given" not in loaded:
        raise _Earlier(f"{path} is of an earlier version, whose runs can be evaluated, but not continued")
    try:
        saved = _SavedState.model_validate(loaded)
    except ValidationError as error:
        raise Refused(f"{path} is damaged: {first_problem(error)}") from error
    return {name: getattr(saved, name) for name in saved.model_fields_set} | {"log": saved.log.model_dump()}


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """Loads an optimiser's state. Raises Refused when it is of other parameters, or does not hold numbers."""
    own = [dict(group) for group in optimizer.param_groups]
    wanted = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"exp_avg", "exp_avg_sq"}
    wanted |= {"step"} if isinstance(optimizer, torch.optim.Adam) else set()  # AdamW is one
    try:
        optimizer.load_state_dict(saved)
        pairs = list(zip(own, optimizer.param_groups, strict=True))
        fits = all(_same_form(group[key], other.get(key)) for group, other in pairs for key in group if key != "params")
        for parameter, values in optimizer.state.items():
            tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
            fits &= all(t.shape in ((), parameter.shape) and t.is_floating_point() for t in tensors)
            fits &= len(tensors) == len(values) and wanted <= set(values)
    except Exception as error:  # torch's own checks are few
        raise Refused(f"{path} is damaged: its optimizer ({type(error).__name__})") from error
    if not fits:
        raise Refused(f"{path} is damaged: its optimizer is of other parameters")


def _same_form(own: Any, saved: Any) -> bool:
    """Whether a saved setting has the form of ours: a finite number for a number, or as many of them for a list."""
    if isinstance(own, list | tuple):
        return isinstance(saved, list | tuple) and len(own) == len(saved) and all(map(_same_form, own, saved))
    if isinstance(own, int | float) and not isinstance(own, bool):
        return isinstance(saved, int | float) and math.isfinite(saved)
    return True
