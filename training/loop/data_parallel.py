"""A method's step over several processes: gradients are averaged while backward still runs.

torch's DistributedDataParallel, with a graph that is the same in every step: weights that a recipe leaves without a
gradient need no search (find_unused_parameters, as released) and stay without one. Buffers are not exchanged: batch
norms that are trained take their statistics from the global batch (training/models/point_bert.py), the others rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import distributed
from training.objectives.step import Step

BUCKET_MB = 25  # gradients that travel together
_NAMES = inspect.signature(DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"  # torch before 2.15

StepFunction = Callable[[nn.Module, nn.Module | None, Any, Any], Step]


class _Method(nn.Module):
    """The student below a `forward` that is the whole step: DistributedDataParallel follows forwards only."""

    def __init__(self, step: StepFunction, student: nn.Module) -> None:
        super().__init__()
        self.step, self.student = step, student

    def forward(self, teacher: nn.Module | None, batch: Any, recipe: Any) -> tuple[Tensor, Step]:
        result = self.step(self.student, teacher, batch, recipe)
        return result.total, result


class _OverProcesses:
    """`averaged` of several processes."""

    def __init__(self, step: StepFunction, student: nn.Module) -> None:
        self._method = _Method(step, student)
        self._several: DistributedDataParallel | None = None

    def __call__(self, student: nn.Module, teacher: nn.Module | None, batch: Any, recipe: Any) -> Step:
        with distributed.answered():
            if self._several is None:  # not before: making it is a collective, and setting up may fail in one process
                self._several = DistributedDataParallel(
                    self._method,
                    **{_BUFFERS: False},
                    bucket_cap_mb=BUCKET_MB,
                    gradient_as_bucket_view=True,
                    static_graph=True,
                )
            total, result = self._several(teacher, batch, recipe)
        return replace(result, total=total)


def averaged(step: StepFunction, student: nn.Module) -> StepFunction:
    """The step of a method with gradients averaged over all processes; in one process the step itself.

    All processes' weights are made those of rank 0 at the first step. Later the student may be loaded anew, but not
    replaced; each result's total must go backward before the next step.
    """
    return step if distributed.world() == 1 else _OverProcesses(step, student)
