"""Writes RUN/log.csv, RUN/histograms.csv and RUN/tensorboard. Values are summed on the device and read once a row."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.tensorboard import SummaryWriter

from manifests import store
from manifests.errors import Refused, Stopped, one_line
from manifests.plain_text import csv_text
from training import distributed
from training.objectives.losses import biasedness
from training.objectives.step import Step

LOG = "log.csv"
HISTOGRAMS = "histograms.csv"
END = "\r\n"  # of a line of both
WriteEvent = Callable[[str, float, int], None]  # name, value, step


@dataclass(frozen=True)
class Logged:
    """One row of log.csv: what a progress bar shows as well."""

    step: int
    total_steps: int
    values: dict[str, float]

    @property
    def seconds_left(self) -> float:
        """Until the last step, at the pace of this row."""
        return (self.total_steps - self.step) * self.values["ms_per_step"] / 1000


@dataclass
class Log:
    """Sums on the device since the last row of the log, and the first loss that was not finite.

    names: of the entries of `sums`, a vector. counts: histograms by name; histograms: those of the last row. fault:
    the step (or -1), then 1 for each of its terms that was not finite. It is read together with the sums, so that a
    step never waits for the device.
    """

    names: tuple[str, ...] = ()
    sums: torch.Tensor | None = None
    counts: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: int = 0
    fault: torch.Tensor | None = None
    histograms: dict[str, list[int]] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, result: Step, step: int) -> torch.Tensor:
        """Adds a step's values; gives 1.0 where a term is not finite in a process, else 0.0, on the device."""
        values = {"loss": result.total}
        values |= {f"loss_{name}": value for name, value in result.terms.items()}
        values |= {f"weighted_{name}": value for name, value in result.weighted.items()}
        values |= result.figures
        vector = torch.stack([value.detach().float() for value in values.values()])
        self.sums = vector if self.sums is None else self._sums_of(tuple(values)) + vector
        self.names = tuple(values)
        for name, count in result.counts.items():
            self.counts[name] = self.counts[name] + count if name in self.counts else count
        self.steps += 1
        bad = ~torch.isfinite(torch.stack([value.detach() for value in result.terms.values()]))
        bad = distributed.largest(bad.float()) > 0
        here = torch.cat([torch.full((1,), float(step), device=bad.device), bad.float()])
        first = here if self.fault is None else torch.where(self.fault[0] < 0, here, self.fault)
        self.fault = torch.where(bad.any() | (first[0] < step), first, torch.full_like(first, -1.0))
        return bad.any().float()

    def _sums_of(self, names: tuple[str, ...]) -> torch.Tensor:
        """The sums by these names. One that a checkpoint of an earlier version lacks is NaN for one row."""
        if self.sums is None or names == self.names:
            return cast(torch.Tensor, self.sums)
        known = dict(zip(self.names, self.sums, strict=True))
        return torch.stack([known.get(name, torch.full_like(self.sums[0], math.nan)) for name in names])

    def refuse_fault(self) -> None:
        """Raises Stopped naming the first step and its terms that were not finite."""
        if self.fault is not None and self.fault[0] >= 0:
            step, *bad = self.fault.tolist()
            terms = [name.removeprefix("weighted_") for name in self.names if name.startswith("weighted_")]
            names = [name for name, wrong in zip(terms, bad, strict=True) if wrong]
            raise Stopped(f"step {int(step)}: the loss {', '.join(names)} is not finite; lower optimizer.lr")

    def row(self) -> dict[str, float]:
        """Means of the global batches since the last row, and the biasedness of their histograms.

        `histograms` keeps those. All processes call it.
        """
        if self.sums is None:
            raise ValueError("no step was added since the last row")
        values = dict(zip(self.names, distributed.mean(self.sums / self.steps).tolist(), strict=True))
        counts = {name: distributed.summed(count) for name, count in self.counts.items()}
        self.histograms = {name: count.tolist() for name, count in counts.items()}
        values |= {f"biasedness_{name}": biasedness(count.float()).item() for name, count in counts.items()}
        self.sums, self.counts, self.steps = None, {}, 0
        return values

    def state(self) -> dict[str, Any]:
        """The values that a checkpoint keeps, so that a resumed run logs the same rows as an unbroken one.

        Tensors have a row for each process. All processes call it.
        """
        sums = None if self.sums is None else distributed.gather_rows(self.sums[None])
        counts = {name: distributed.gather_rows(count[None]) for name, count in self.counts.items()}
        return {"names": list(self.names), "sums": sums, "counts": counts, "steps": self.steps}

    def restore(self, saved: dict[str, Any], device: torch.device) -> None:
        """Loads the values of a checkpoint; with another number of processes, their means and sums."""
        self.names, self.steps = tuple(saved["names"]), saved["steps"]
        self.sums = None
        if saved["sums"] is not None:
            sums = saved["sums"]
            own = sums[distributed.rank()] if len(sums) == distributed.world() else sums.mean(dim=0)
            self.sums = own.to(device)
        self.counts = {}
        for name, count in saved["counts"].items():
            if len(count) == distributed.world():
                own = count[distributed.rank()]
            else:
                own = count.sum(dim=0) * distributed.leads()
            self.counts[name] = own.to(device)


def append_row(path: Path, step: int, values: dict[str, float]) -> None:
    """Adds a row to log.csv. A new file begins with the names; an old one gets the columns that it lacks."""
    row = {"step": str(step)} | {name: f"{value:.8g}" for name, value in values.items()}
    with store.stopping(str(path)):
        known = _widened(path, list(row)) if path.is_file() and path.stat().st_size else []
        with open(path, "a", newline="") as file:
            names = known or list(row)
            file.write(csv_text([*([] if known else [names]), [row.get(name, "nan") for name in names]], END))


def append_histograms(path: Path, step: int, histograms: dict[str, list[int]], classes: Sequence[str]) -> None:
    """Adds a row for each histogram to histograms.csv: how often each class was predicted, or taught, since the last
    row of log.csv. A new file begins with the class names. Methods without pseudo-labels have no histograms.
    """
    if not histograms:
        return
    with store.stopping(str(path)), open(path, "a", newline="") as file:
        head = [] if file.tell() else [["step", "histogram", *(" ".join(name.split()) for name in classes)]]
        file.write(csv_text([*head, *([step, name, *counts] for name, counts in histograms.items())], END))


def _widened(path: Path, names: list[str]) -> list[str]:
    """The columns of a file, after adding those of `names` that it lacks, as a run of an earlier version does."""
    header, *rows = csv.reader(io.StringIO(store.read_text(path), newline=""))
    lacking = [name for name in names if name not in header]
    if lacking:
        text = csv_text([[*header, *lacking], *([*row, *("nan" for _ in lacking)] for row in rows)], END)
        store.write_bytes(str(path), text.encode())
    return header + lacking


def cut_rows(path: Path, step: int) -> None:
    """Drops the rows of log.csv, or histograms.csv, behind the checkpoint that a run goes on from.

    Raises Refused naming the file when it is damaged.
    """
    if path.is_file():
        try:
            lines = store.read_text(path).splitlines(keepends=True)
            ended = [line for line in lines[1:] if line.endswith("\n")]
            kept = lines[:1] + [line for line in ended if int(line.partition(",")[0]) <= step]
        except ValueError as error:
            raise Refused(
                f"{path} is damaged ({one_line(error, 100)}): delete it, or the rows that are damaged"
            ) from error
        store.write_bytes(str(path), "".join(kept).encode())


@contextmanager
def events(run: Path, wanted: bool, step: int) -> Iterator[WriteEvent]:
    """TensorBoard's writer of scalars; after a resume it drops the events behind `step`."""
    if not wanted:
        yield lambda name, value, step: None
        return
    with SummaryWriter(str(run / "tensorboard"), purge_step=step + 1) as writer:
        yield writer.add_scalar
