"""A run on its way: what moves, and how it is saved and gone on with, to the last digit, by any number of processes.

state.pt holds, beside the optimiser: how far the epoch was given out and by how many readers (training/order.py), and
of every process its random numbers and its sums for the log. As many processes as before go on as if there had been no
break. Another number shares what is left of the epoch anew, each sample once, and draws other random numbers.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from manifests.errors import Refused, Stopped
from manifests.seeds import generator
from training import distributed
from training.checkpoint import MODEL, STATE, TEACHER, load_weights, prune, save_step
from training.data import EpochSamples, Loader
from training.log import HISTOGRAMS, LOG, cut_rows
from training.order import Given, went_on
from training.recipe import FitRecipe
from training.updates import Updates


@dataclass
class Run:
    """Everything that moves during a run. step: updates so far.

    given: what readers gave of epoch `given_epoch` before this process began, segments of training/order.py.
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

        Raises Stopped when a loss was not finite, or a weight is: the run could not go on; and when the disk is full.
        """
        updates = self.updates
        updates.log.refuse_fault()
        updates.student.refresh_classifier()
        for name, value in updates.student.named_parameters():
            if not torch.isfinite(value).all():
                raise Stopped(f"step {self.step}: the weight {name} is not finite; lower optimizer.lr")
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
            updates.optimizer.load_state_dict(saved["optimizer"])
        except (Refused, KeyError, ValueError) as error:
            raise Refused(f"{error}; delete {folder} to go on from the checkpoint before it") from error
        if "given" not in saved:
            raise Refused(f"{folder / STATE} is of an earlier version, whose runs are evaluated, but not gone on with")
        self.step, self.given_epoch, self.given = saved["step"], saved["epoch"], saved["given"]
        updates.log.restore(saved["log"], self.device)
        self._restore_random(saved)
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


def _read_state(path: Path) -> dict[str, Any]:
    """The tensors and plain values of state.pt. Raises Refused when it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise Refused(f"{path} is damaged") from error
