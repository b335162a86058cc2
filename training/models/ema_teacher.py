"""The teacher: a model whose weights are an exponential moving average of the student's."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from training.settings.objective import EMASettings

Model = TypeVar("Model", bound=nn.Module)


def momentum(step: int, settings: EMASettings) -> float:
    """d(step) = start + (end - start) min(1, step / steps); step counts updates from 0."""
    return settings.start + (settings.end - settings.start) * min(1.0, step / settings.steps)


class Teacher(Generic[Model]):
    """A copy of the student in eval mode that follows it; `model` is the copy."""

    def __init__(self, student: Model, settings: EMASettings) -> None:
        self.model = copy.deepcopy(student).eval().requires_grad_(False)
        self._settings = settings

    @torch.no_grad()
    def update(self, student: Model, step: int) -> float:
        """teacher <- d teacher + (1 - d) student over parameters and floating buffers; others are copied. Gives d."""
        d = momentum(step, self._settings)
        pairs = list(zip(_tensors(self.model), _tensors(student), strict=True))
        floating = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floating], [theirs for _, theirs in floating], 1 - d)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)
        return d


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
