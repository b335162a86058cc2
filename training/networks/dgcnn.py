"""DGCNN (Wang et al. 2019): convolutions over edges to nearest neighbours, found anew in each feature space.

Source: the authors' release; CrossPoint's is the same. Shape letters: B clouds, N points, k neighbours, C channels of a
layer's input, D of its output.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear
from torch.utils.checkpoint import checkpoint

from training import distributed
from training.networks.contrast_head import contrast_head
from training.networks.global_batch_norm import GlobalBatchNorm2d
from training.networks.nearest import nearest_neighbours, over_neighbours
from training.networks.point_backbone import PointBackbone, new_projection
from training.networks.precision import widened
from training.settings.point_networks import DgcnnSettings

SLOPE = 0.2


class EdgeConv(nn.Module):
    """The maximum over neighbours j of LeakyReLU(BatchNorm(W (x_j - x_i, x_i))), without a tensor of all edges.

    With W = (W1, W2) the product is u_j + v_i, u = W1 x and v = (W2 - W1) x: two matrices of N rows instead of one of
    N k. Norm and LeakyReLU rise or fall with it, so that the maximum is taken of u alone; where a channel's norm has a
    negative weight, u and v are taken with the other sign. The norm's statistics over edges follow from sums over
    neighbours. It works in float32 also inside a run of 16 bits, where such differences would be lost.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(2 * before, after, 1, bias=False))
        self.add_module("1", GlobalBatchNorm2d(after))

    @property
    def norm(self) -> GlobalBatchNorm2d:
        """The layer of upstream's name `1`."""
        return cast(GlobalBatchNorm2d, self.get_submodule("1"))

    def forward(self, features: Tensor, neighbours: Tensor) -> Tensor:
        """(B, N, D) of features (B, N, C) and the indices (B, N, k) of each point's neighbours.

        Backward computes it again: that takes little time, and else its own memory would be that of six outputs.
        """
        with torch.autocast(features.device.type, enabled=False):
            given = (features, neighbours, self.training)
            found, mean, variance = checkpoint(self._edges, *given, use_reentrant=False, preserve_rng_state=False)
        if self.training:
            self.norm.follow(mean.detach(), variance.detach(), neighbours.numel() * distributed.world())
        return found

    def _edges(self, features: Tensor, neighbours: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and mean and variance (D,) of the product over all edges; of no training the running ones."""
        norm = self.norm
        sign = torch.where(norm.weight.detach() < 0, -1.0, 1.0).to(norm.weight.dtype)
        weight = cast(nn.Conv2d, self.get_submodule("0")).weight.flatten(1) * sign[:, None]
        first, second = weight.chunk(2, dim=1)
        ends, starts = features @ first.T, features @ (second - first).T
        mean, variance = norm.running_mean * sign, norm.running_var
        if training:
            mean, variance = _over_edges(ends, starts, neighbours)
        scale = norm.weight * sign * torch.rsqrt(variance + norm.eps)
        farthest = over_neighbours(ends, neighbours, "max") + (starts - mean)
        return leaky_relu(farthest * scale + norm.bias, SLOPE, inplace=True), mean * sign, variance


def _over_edges(ends: Tensor, starts: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) of u_j + v_i over all edges of all processes, of u and v (B, N, D)."""
    k, edges = neighbours.shape[2], neighbours.numel() * distributed.world()
    sums, each = over_neighbours(ends, neighbours, "sum"), neighbours.flatten(1)
    means = distributed.summed(torch.stack([sums.sum(dim=(0, 1)), k * starts.sum(dim=(0, 1))])) / edges
    ends, starts, sums = ends - means[0], starts - means[1], sums - k * means[0]
    used = torch.zeros_like(ends[..., 0]).scatter_add_(1, each, torch.ones_like(each, dtype=ends.dtype))
    squares = (used[..., None] * ends * ends + starts * (k * starts + 2 * sums)).sum(dim=(0, 1))
    variance = (distributed.summed(squares) / edges).clamp(min=0)  # a sum of three that rounding may leave below 0
    return means.sum(dim=0), variance


class Dgcnn(PointBackbone):
    """Four edge convolutions; their features together through a fifth layer, whose maximum and mean are the feature."""

    twice = MappingProxyType({f"bn{number}.": f"conv{number}.1." for number in range(1, 6)})

    def __init__(self, settings: DgcnnSettings, embed_dim: int) -> None:
        super().__init__()
        self.k = settings.k
        for number, (before, after) in enumerate(pairwise((3, *settings.widths)), start=1):
            self.add_module(f"conv{number}", EdgeConv(before, after))
        last = nn.Conv1d(sum(settings.widths), settings.emb_dims, 1, bias=False)
        self.conv5 = nn.Sequential(last, nn.BatchNorm1d(settings.emb_dims), nn.LeakyReLU(SLOPE, inplace=True))
        self.projection = new_projection(2 * settings.emb_dims, embed_dim)

    def represent(self, points: Tensor) -> Tensor:
        """(B, 2 emb_dims) of clouds (B, N, 3). Raises ValueError where a cloud has fewer than k points."""
        found = [widened(points)]
        for number in range(1, 5):
            conv = self.get_submodule(f"conv{number}")
            found.append(conv(found[-1], nearest_neighbours(found[-1], self.k)))
        conv, norm, activation = self.conv5
        weight = cast(nn.Conv1d, conv).weight.flatten(1)
        x = linear(torch.cat(found[1:], dim=2).flatten(0, 1), weight)  # a convolution would copy it, channels first
        x = activation(norm(x)).unflatten(0, points.shape[:2])
        return torch.cat([x.max(dim=1).values, x.mean(dim=1)], dim=1)

    def contrast_head(self) -> nn.Module:
        """As CrossPoint's authors have it, half as wide as the feature in between."""
        width = self.projection.shape[0]
        return contrast_head(width, width // 2)

    def classification_head(self, classes: int) -> nn.Module:
        """Three linear layers."""
        return nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(self.projection.shape[0], 512, bias=False),
                bn6=nn.BatchNorm1d(512),
                relu1=nn.LeakyReLU(SLOPE),
                dp1=nn.Dropout(),
                linear2=nn.Linear(512, 256),
                bn7=nn.BatchNorm1d(256),
                relu2=nn.LeakyReLU(SLOPE),
                dp2=nn.Dropout(),
                linear3=nn.Linear(256, classes),
            )
        )
