"""Exact nearest neighbours, and sums and maxima over them, without a matrix of all pairs or a tensor of all edges.

Shape letters: B clouds, N points, C channels, k neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

LARGEST_BLOCK = 2**23  # distances at a time, 64 MB: a batch of 40 clouds of 2,048 points would take 1.3 GB


@torch.no_grad()
def nearest_neighbours(points: Tensor, count: int) -> Tensor:
    """Indices (B, N, k) of the `count` nearest points of each point (B, N, C), itself among them, nearest first.

    A squared distance is |a|^2 - 2ab + |b|^2. In float32 (released code) the product loses near-ties to rounding; in
    float64, of clouds around their own mean, it errs by less than float32 coordinates do. (a - b)^2 takes seven times
    as long in 128 dimensions. Of equally far points any may be taken. Raises ValueError where a cloud has fewer points.
    """
    if points.shape[1] < count:
        raise ValueError(f"{points.shape[1]} points for {count} nearest neighbours of each")
    wide = points.detach().double()
    wide = wide - wide.mean(dim=1, keepdim=True)
    halves = wide.square().sum(dim=2)[:, None] / 2
    rows = max(1, LARGEST_BLOCK // wide.shape[1])
    clouds = max(1, rows // wide.shape[1])
    found = [
        torch.cat([_nearest(some, every, half, count) for some in every.split(rows, dim=1)], dim=1)
        for every, half in zip(wide.split(clouds), halves.split(clouds), strict=True)
    ]
    return torch.cat(found)


def _nearest(some: Tensor, every: Tensor, half: Tensor, count: int) -> Tensor:
    """Indices of the points `every` nearest to `some`; half (B, 1, N): half of their squared lengths."""
    return torch.baddbmm(half, some, every.transpose(1, 2), alpha=-1).topk(count, dim=2, largest=False).indices


def over_neighbours(values: Tensor, neighbours: Tensor, mode: str) -> Tensor:
    """The `sum` or the `max` (B, N, C) of values (B, M, C) over neighbours (B, N, k), by their indices into M."""
    start = torch.arange(len(values), device=values.device)[:, None, None] * values.shape[1]
    bags = (neighbours + start).flatten(0, 1)
    return embedding_bag(bags, values.flatten(0, 1), mode=mode).unflatten(0, neighbours.shape[:2])
