"""`fit --dry-run`: measures a step on a batch of the shards and forecasts the cost of the run. It writes nothing.

The first step is not counted: it allocates the optimiser's state, and compiles where the recipe says so. Of the second
step, reading and updating are timed separately (a short update is repeated). Readers work beside the updates, and the
forecast assumes that they share the reading evenly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from manifests.plain_text import number_of
from training import distributed
from training.data.batch import AnyRawBatch
from training.loop.fit import prepare
from training.loop.throughput import peak_memory_mb
from training.loop.train_state import Run
from training.settings.fit_recipe import FitRecipe
from training.weights.checkpoint import step_folders

LONG_ENOUGH, MOST_STEPS = 1.0, 20  # an update is repeated until this many seconds are measured, at most so often


@dataclass(frozen=True)
class FitForecast:
    """Size and cost of a run.

    objects: in an epoch's shards; batch_size: of all processes; done: steps of the last checkpoint, if the run has one.
    step_seconds: of an update; read_seconds: of one reader that reads and augments a process's batch. data_wait: share
    of the time that updates wait for readers. memory_mb: the peak, allocated on a GPU or resident (without readers).
    disk_mb: of the checkpoints that a run keeps. hours: of the remaining steps.
    """

    device: str
    processes: int
    objects: int
    batch_size: int
    steps_an_epoch: int
    steps: int
    done: int
    parameters: int
    trained: int
    readers: int
    read_seconds: float
    step_seconds: float
    samples_per_second: float
    data_wait: float
    memory_mb: float
    disk_mb: float
    hours: float

    def json(self) -> dict[str, Any]:
        """All fields, rounded."""
        values = asdict(self) | {"ms_per_sample": self.ms_per_sample}
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in values.items()}

    @property
    def ms_per_sample(self) -> float:
        """Of an update: what papers give as the cost of a sample."""
        return 1000 * self.step_seconds / self.batch_size

    def lines(self) -> list[tuple[str, str]]:
        """A short table for a person: (name, value)."""
        each = f"{self.steps_an_epoch:,} an epoch of {number_of(self.objects, 'object')}, batches of {self.batch_size}"
        left = f", {self.done:,} of them done" if self.done else ""
        where = f"{self.processes} x {self.device}" if self.processes > 1 else self.device
        readers = (
            f"{number_of(self.readers, 'reader')} a process" if self.readers else "no reader process (data.workers=0)"
        )
        return [
            ("steps", f"{self.steps:,} ({each}){left}"),
            ("parameters", f"{self.parameters / 1e6:.1f} M, {self.trained / 1e6:.1f} M of them trained"),
            ("one step", f"{1000 * self.step_seconds:,.0f} ms on {where}, {self.ms_per_sample:,.2f} ms a sample"),
            ("one batch read", f"{1000 * self.read_seconds:,.0f} ms a reader; {readers}"),
            ("pace", f"{self.samples_per_second:,.1f} samples/s, data wait {self.data_wait:.0%}"),
            ("memory", f"{self.memory_mb:,.0f} MB a process"),
            ("disk", f"{self.disk_mb:,.0f} MB of checkpoints"),
            ("time", f"{_duration(self.hours)}"),
        ]


def forecast(recipe: FitRecipe, shards: str, run: str, device: torch.device) -> FitForecast:
    """Measures steps whose results are thrown away. Raises the errors of `fit` before and in its first steps."""
    torch.set_flush_denormal(True)
    state = prepare(recipe, shards, run, device)
    step_seconds, read_seconds, memory = _measured(state)
    readers, world = state.samples.settings.workers, distributed.world()
    at_once = min(readers, max((os.cpu_count() or 1) // world, 1))
    waiting = max(read_seconds / at_once - step_seconds, 0.0) if readers else read_seconds
    total, folders = state.updates.total_steps, step_folders(state.folder)
    done = int(folders[-1].name.rpartition("-")[2]) if folders else 0
    parameters = list(state.updates.student.parameters())
    return FitForecast(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        processes=world,
        objects=state.samples.source.total,
        batch_size=recipe.optimizer.batch_size,
        steps_an_epoch=state.samples.num_batches,
        steps=total,
        done=done,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        readers=readers,
        read_seconds=read_seconds,
        step_seconds=step_seconds,
        samples_per_second=recipe.optimizer.batch_size / (step_seconds + waiting),
        data_wait=waiting / (step_seconds + waiting),
        memory_mb=memory,
        disk_mb=_checkpoints_mb(state),
        hours=(total - done) * (step_seconds + waiting) / 3600,
    )


def _measured(state: Run) -> tuple[float, float, float]:
    """(seconds of an update, seconds of reading its batch, peak memory in MB), the largest of all processes."""
    batches = state.samples.onwards()
    _timed_update(state, _next(batches))
    begun = time.perf_counter()
    raw = _next(batches)
    read_seconds = time.perf_counter() - begun
    step_seconds = [_timed_update(state, raw)]
    more = int(distributed.largest(torch.tensor(LONG_ENOUGH / step_seconds[0])).clamp(max=MOST_STEPS))
    step_seconds += [_timed_update(state, raw) for _ in range(more)]
    state.updates.refuse_fault()
    found = torch.tensor([median(step_seconds), read_seconds, peak_memory_mb(state.device)], dtype=torch.float64)
    return tuple(distributed.largest(found).tolist())


def _next(batches: Iterator[AnyRawBatch]) -> AnyRawBatch:
    """A batch of this process; if reading fails in one process, all of them raise its error."""
    with distributed.together():
        return next(batches)


def _timed_update(state: Run, raw: AnyRawBatch) -> float:
    """Seconds of an update, from a batch in this process to the end of all work that it started on the device."""
    begun = time.perf_counter()
    state.update(raw)
    if state.device.type == "cuda":
        torch.cuda.synchronize(state.device)
    return time.perf_counter() - begun


def _checkpoints_mb(state: Run) -> float:
    """Size of the first checkpoint and the last ones: student, teacher and the moments of the optimiser, float32."""
    student, teacher = state.updates.student, state.updates.teacher
    held = sum(value.numel() * value.element_size() for value in student.state_dict().values())
    each = 4 if state.recipe.optimizer.kind == "sgd" else 8
    moments = sum(each * p.numel() for p in student.parameters() if p.requires_grad)
    number = min(state.recipe.keep_last, -(-state.updates.total_steps // state.recipe.save_every))
    # the first checkpoint is made before there are moments
    return ((number + 1) * held * (1 if teacher is None else 2) + number * moments) / 2**20


def _duration(hours: float) -> str:
    """A duration in its two largest units: days and hours, hours and minutes, or minutes or seconds alone."""
    minutes = round(60 * hours)
    if minutes >= 48 * 60:
        return f"{minutes // 1440} days {minutes % 1440 // 60} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{60 * hours:.0f} min" if hours >= 1 / 20 else f"{3600 * hours:.0f} s"
