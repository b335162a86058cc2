"""A run on its way: what moves, and how it is saved and gone on with, to the last digit, by any number of processes.

state.pt holds, beside the optimiser: how far the epoch was given out and by how many readers
(training/data/sampler.py), and of every process its random numbers and its sums for the log. As many processes as
before go on as if there had been no break. Another number shares what is left of the epoch anew, each sample once, and
draws other random numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from manifests.errors import Refused, first_problem
from manifests.rng import generator
from training import distributed
from training.data.loader import EpochSamples, Loader
from training.data.sampler import Given, went_on
from training.loop.metric_log import HISTOGRAMS, LOG, cut_rows
from training.loop.update import Updates
from training.settings.fit_recipe import FitRecipe
from training.weights.checkpoint import MODEL, STATE, TEACHER, load_weights, prune, save_step
from training.weights.safe_load import require_plain


@dataclass
class Run:
    """Everything that moves during a run. step: updates so far.

    given: what readers gave of epoch `given_epoch` before this process began, segments of training/data/sampler.py.
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

    def progress(self) -> tuple[int, list[tuple[int, int, int]]]:
        """The epoch of the next step, and what of it was given so far, by whom."""
        epoch, inside = divmod(self.step, self.samples.num_batches)
        before = list(self.given) if epoch == self.given_epoch else []
        here = inside - sum(batches for _, _, batches in before)
        return epoch, went_on(before, distributed.world(), self.recipe.data.workers, here)

    def seed(self) -> None:
        """Random numbers of this process (drop path): of the recipe's seed in the first, others in each other."""
        names = ("process", self.step, distributed.rank())
        plain = distributed.leads() and not self.step
        torch.manual_seed(self.recipe.seed if plain else int(generator(self.recipe.seed, *names).integers(2**63)))

    def save(self) -> Path:
        """Writes a checkpoint; all processes call it, the first writes.

        Raises Stopped when a loss was not finite, or a weight of student or teacher is: the run could not go on; and
        when the disk is full.
        """
        updates = self.updates
        updates.log.refuse_fault()
        updates.student.refresh_classifier()
        saved = self._state()
        teacher = None if updates.teacher is None else updates.teacher.model
        with distributed.together():
            if distributed.leads():
                save_step(self.folder, self.step, updates.student, teacher, saved, self.recipe)
                prune(self.folder, self.recipe.keep_last)
        return self.folder / "checkpoints" / f"step-{self.step:08d}"

    def _state(self) -> dict[str, Any]:
        """What state.pt holds. Tensors of `torch_rng`, `cuda_rng` and `log` have a row for each process."""
        epoch, given = self.progress()
        saved = {
            "step": self.step,
            "epoch": epoch,
            "given": given,
            "log": self.updates.log.state(),
            "optimizer": self.updates.optimizer.state_dict(),
            "torch_rng": distributed.gather_rows(torch.get_rng_state()[None]),
        }
        if self.device.type == "cuda":
            saved["cuda_rng"] = distributed.gather_rows(torch.cuda.get_rng_state(self.device)[None])
        return saved

    def resume(self, folder: Path) -> None:
        """Student, teacher, optimiser, step and random numbers of a checkpoint. Raises Refused when it is damaged."""
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
                self._restore_random(saved)
            except (RuntimeError, TypeError) as error:  # tensors of other sizes or types
                raise Refused(f"{folder / STATE} is damaged ({' '.join(str(error).split())[:100]})") from error
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
    """A whole checkpoint, which this version does not go on from."""


class _SavedLog(BaseModel):
    """What training.loop.metric_log keeps in state.pt: sums (processes, names), counts (processes, classes)."""

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
    """state.pt, as far as its types and shapes can be held without the run."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    step: Annotated[int, Field(ge=0)]
    epoch: Annotated[int, Field(ge=0)]
    given: list[tuple[int, int, int]]
    log: _SavedLog
    optimizer: dict[str, Any]
    torch_rng: torch.Tensor
    cuda_rng: torch.Tensor | None = None

    @model_validator(mode="after")
    def _random_rows(self) -> _SavedState:
        for rows in (self.torch_rng, self.cuda_rng):
            if rows is not None and (rows.ndim != 2 or rows.dtype != torch.uint8):
                raise ValueError(f"random numbers of {rows.dtype} {tuple(rows.shape)}")
        return self


def _read_state(path: Path) -> dict[str, Any]:
    """The tensors and plain values of state.pt. Raises Refused when it is damaged."""
    try:
        require_plain(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are opcodes and records
        raise Refused(f"{path} is damaged") from error
    if isinstance(loaded, dict) and "step" in loaded and "given" not in loaded:
        raise _Earlier(f"{path} is of an earlier version, whose runs are evaluated, but not gone on with")
    try:
        saved = _SavedState.model_validate(loaded)
    except ValidationError as error:
        raise Refused(f"{path} is damaged: {first_problem(error)}") from error
    return {name: getattr(saved, name) for name in saved.model_fields_set} | {"log": saved.log.model_dump()}


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """An optimiser's state. Raises Refused when it is of other parameters, or its numbers are none."""
    own = [dict(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(saved)
        pairs = list(zip(own, optimizer.param_groups, strict=True))
        fits = all(_same_form(group[key], other.get(key)) for group, other in pairs for key in group if key != "params")
        for parameter, values in optimizer.state.items():
            tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
            fits &= all(t.shape in ((), parameter.shape) and t.is_floating_point() for t in tensors)
            fits &= len(tensors) == len(values) and {"step", "exp_avg", "exp_avg_sq"} <= set(values)
    except Exception as error:  # torch's own checks are few
        raise Refused(f"{path} is damaged: its optimizer ({type(error).__name__})") from error
    if not fits:
        raise Refused(f"{path} is damaged: its optimizer is of other parameters")


def _same_form(own: Any, saved: Any) -> bool:
    """Whether a saved setting can stand for one of our own: a number for a number, as many of them for several."""
    if isinstance(own, list | tuple):
        return isinstance(saved, list | tuple) and len(own) == len(saved) and all(map(_same_form, own, saved))
    if isinstance(own, int | float) and not isinstance(own, bool):
        return isinstance(saved, int | float) and math.isfinite(saved)
    return True
