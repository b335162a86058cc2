"""How fast a run is: time a step, samples a second, the share of time spent waiting for data, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from manifests.process_info import peak_resident_mb
from training import distributed

TIMING = ("ms_per_step", "samples_per_second", "data_wait", "memory_mb")


class Pace:
    """Measures from one row of the log to the next. batch_size: of all processes together."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._batch_size, self._device = batch_size, device
        self.restart()

    def restart(self) -> None:
        """Begins to measure from now, after work that is no part of a step."""
        self._since, self._waited = time.perf_counter(), 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Put it around the wait for the next batch.

        Meanwhile a GPU works on its queue, and only its idle time counts. So on a GPU the time between two events in
        its queue is measured, not the time of this process.
        """
        if self._device.type != "cuda":
            begun = time.perf_counter()
            yield
            self._waited += time.perf_counter() - begun
            return
        marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        marks[0].record()
        yield
        marks[1].record()
        self._marks.append(marks)

    def row(self, steps: int) -> dict[str, float]:
        """The values of TIMING for the steps since the last row. All processes call it, after waiting for the device.

        data_wait: share of the time, 0 to 1; memory_mb: the peak so far, allocated on the GPU or resident. Both are the
        largest of all processes.
        """
        if self._marks:
            self._marks[-1][1].synchronize()
            self._waited = sum(first.elapsed_time(last) for first, last in self._marks) / 1000
        seconds = max(time.perf_counter() - self._since, 1e-9)
        worst = distributed.largest(torch.tensor([self._waited / seconds, peak_memory_mb(self._device)]))
        self.restart()
        return dict(
            zip(TIMING, (1000 * seconds / steps, self._batch_size * steps / seconds, *worst.tolist()), strict=True)
        )


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far: allocated by torch on a GPU, else resident in this process (without its readers)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_resident_mb()
