"""Batch normalisation over the global batch, so that one recipe trains the same on any number of processes.

torch's SyncBatchNorm does the same, but on GPUs alone, where no test without one would reach it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from manifests.errors import Stopped
from training import distributed


class OverProcesses(_BatchNorm):
    """A batch norm of (B, C) or (B, C, ...); in training its statistics are those of all processes' samples."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """x normalised. In one process, or in eval mode, exactly torch's. Raises Stopped where training has a single
        value of each channel, whose deviation is 0."""
        if self.training and x.numel() // x.shape[1] * distributed.world() == 1:
            raise Stopped(
                "batch norms learn from two clouds or more, this batch has one: optimizer.batch_size=2 or more"
            )
        if not self.training or distributed.world() == 1:
            return super().forward(x)
        return self._over_processes(x)

    @torch.compiler.disable  # the collectives are not compiled
    def _over_processes(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # inside a tower x may be bfloat16
        count = x.numel() // x.shape[1] * distributed.world()
        others = [axis for axis in range(x.ndim) if axis != 1]
        each = (-1, *[1] * (x.ndim - 2))  # the shape in which a channel's number meets x
        mean = distributed.summed(wide.sum(dim=others)) / count
        centred = wide - mean.view(each)
        variance = distributed.summed(centred.square().sum(dim=others)) / count
        self.follow(mean.detach(), variance.detach(), count)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(each) + self.bias.view(each)).to(x.dtype)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """The running statistics, as torch keeps them, after `count` values a channel with this mean and variance (C,),
        not corrected."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


class GlobalBatchNorm1d(OverProcesses, nn.BatchNorm1d):
    """BatchNorm1d over all processes."""


class GlobalBatchNorm2d(OverProcesses, nn.BatchNorm2d):
    """BatchNorm2d over all processes."""


_GLOBAL: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm1d: GlobalBatchNorm1d, nn.BatchNorm2d: GlobalBatchNorm2d}


def with_global_norms(module: nn.Module) -> nn.Module:
    """The same module, whose batch norms of torch are now over all processes; their weights and names stay."""
    for each in module.modules():
        if type(each) in _GLOBAL:
            each.__class__ = _GLOBAL[type(each)]
    return module
