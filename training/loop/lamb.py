"""LAMB, the optimiser of large batches with which CLIP2Point is pre-trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
LONGEST = 10.0  # of a weight's norm in the trust ratio


class Lamb(torch.optim.Optimizer):
    """Adam's step without bias correction, plus decay, as long as the weight is (at most LONGEST) times the rate.

    Source: You et al. 2020, algorithm 2; the clamp is torch_optimizer's, with which CLIP2Point was trained. (timm's
    Lamb has no clamp, but bias correction and a gradient that is cut.) `found_inf` skips a step on the device, as
    torch's fused optimisers do.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        mean = first * state["exp_avg"] + (1 - first) * gradient
        square = second * state["exp_avg_sq"] + (1 - second) * gradient**2
        update = mean / (square.sqrt() + EPSILON) + group["weight_decay"] * parameter
        length, size = parameter.norm().clamp(max=LONGEST), update.norm()
        trust = torch.where((length > 0) & (size > 0), length / size, 1.0)
        after = {"exp_avg": mean, "exp_avg_sq": square, "value": parameter - group["lr"] * trust * update}
        for name, value in after.items():
            kept = parameter if name == "value" else state[name]
            kept.copy_(value if self.found_inf is None else torch.where(self.found_inf > 0, kept, value))
