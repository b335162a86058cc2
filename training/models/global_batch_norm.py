"""Batch normalisation over the global batch, so that one recipe trains the same on any number of processes.

torch's SyncBatchNorm does the same, but on GPUs alone, where no test without one would reach it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training import distributed


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d of (B, C, L); in training its statistics are those of all processes' samples."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) normalised. In one process, or in eval mode, exactly BatchNorm1d."""
        if not self.training or distributed.world() == 1:
            return super().forward(x)
        return self._over_processes(x)

    @torch.compiler.disable  # the collectives are not compiled
    def _over_processes(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # inside a tower x may be bfloat16
        count = x.shape[0] * x.shape[2] * distributed.world()
        mean = distributed.summed(wide.sum(dim=(0, 2))) / count
        centred = wide - mean[:, None]
        variance = distributed.summed(centred.pow(2).sum(dim=(0, 2))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None] + self.bias[:, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, as BatchNorm1d keeps them."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
