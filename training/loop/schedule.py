"""Learning rates and momenta by step: how many steps a run has, and what each of them learns with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.settings.optimizer import OptimizerSettings


@dataclass(frozen=True)
class Schedule:
    """The course of a run. total: its steps. warmup: the first of them, at most half. epoch: steps of one."""

    settings: OptimizerSettings
    total: int
    warmup: int
    epoch: int

    @classmethod
    def of(cls, settings: OptimizerSettings, steps_an_epoch: int) -> Schedule:
        """The course over a split of so many batches."""
        total = settings.steps or settings.epochs * steps_an_epoch
        warmup = min(round(settings.warmup_epochs * steps_an_epoch), total // 2)
        return cls(settings, total, warmup, steps_an_epoch)

    def learning_rate(self, step: int) -> float:
        """`optimizer.peak`, from 0 linearly over `warmup` steps, then down to its floor; step from 0.

        The first step of a warm-up learns nothing and its last at the peak, as released.
        """
        peak, floor = self.settings.peak, self.settings.floor
        if step < self.warmup:
            return peak * step / max(self.warmup - 1, 1)
        if self.settings.schedule == "decay":
            number = self._epoch(step, self.settings.ahead) // self.settings.decay_every
            return peak * max(self.settings.decay**number, floor)
        low = peak * floor
        return low + (peak - low) * (1 + math.cos(math.pi * min(self._along(step), 1.0))) / 2

    def norm_momentum(self, step: int) -> float:
        """The momentum of the point network's batch norms, where `optimizer.norm_momentum` says one."""
        s = self.settings
        return max(s.norm_momentum * s.norm_decay ** (self._epoch(step, s.norm_ahead) // s.decay_every), s.norm_floor)

    def _along(self, step: int) -> float:
        """The share of a cosine that is behind."""
        if self.settings.schedule == "cosine_epochs":
            return self._epoch(step, self.settings.ahead) * self.epoch / self.total
        length = self.total - self.warmup
        if self.settings.restart_epochs:
            length = self.settings.restart_epochs * self.epoch
            return (step - self.warmup) % length / length
        return (step - self.warmup) / max(length, 1)

    def _epoch(self, step: int, ahead: int) -> int:
        return max(step // self.epoch + ahead, 0)
