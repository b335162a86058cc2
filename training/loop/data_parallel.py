"""Gradients averaged over several processes, while backward still runs.

It is torch's DistributedDataParallel with a static graph, as every step of a recipe uses the same weights: weights
without a gradient need no search (find_unused_parameters, as released). Buffers are not exchanged: batch norms that
are trained take their statistics from the global batch (training/networks/global_batch_norm.py), the others are frozen.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import distributed
from training.objectives.step import Step, StepFunction

BUCKET_MB = 25  # gradients that are exchanged together
_NAMES = inspect.signature(DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"  # torch before 2.15
_OPTIONS: dict[str, Any] = {_BUFFERS: False}


class _Method(nn.Module):
    """A module whose `forward` is the whole step: DistributedDataParallel only follows `forward`."""

    def __init__(self, step: StepFunction, student: nn.Module) -> None:
        super().__init__()
        self.step, self.student = step, student

    def forward(self, teacher: nn.Module | None, batch: Any, recipe: Any) -> tuple[Tensor, Step]:
        result = self.step(self.student, teacher, batch, recipe)
        return result.total, result


class _OverProcesses:
    """`averaged` for several processes."""

    def __init__(self, step: StepFunction, student: nn.Module) -> None:
        self._method = _Method(step, student)
        self._several: DistributedDataParallel | None = None

    def __call__(self, student: nn.Module, teacher: nn.Module | None, batch: Any, recipe: Any) -> Step:
        with distributed.answered():
            if self._several is None:  # not earlier: making it is a collective, and set-up may fail in one process
                self._several = DistributedDataParallel(
                    self._method,
                    **_OPTIONS,
                    bucket_cap_mb=BUCKET_MB,
                    gradient_as_bucket_view=True,
                    static_graph=True,
                )
            total, result = self._several(teacher, batch, recipe)
        return replace(result, total=total)


def averaged(step: StepFunction, student: nn.Module) -> StepFunction:
    """The step of a method with gradients averaged over all processes; in one process the step itself.

    At the first step all processes get the weights of rank 0. Later, weights may be loaded into the student, but it may
    not be replaced; each result's total must go backward before the next step.
    """
    return step if distributed.world() == 1 else _OverProcesses(step, student)
