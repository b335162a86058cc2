"""Which points stand for a cloud and which are whose neighbours, as the point networks define them: in torch, anywhere.

The released programs differ (`Family`, in training/settings/point_set_networks.py). Distances are sums of squared
differences, and of those of many centres to many points at most LARGEST exist at a time.

Shape letters: B clouds, N points, S centres, K neighbours of a centre, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LARGEST = 2**21  # distances at a time: 8 MB in float32, which a cache holds
NEAR_ORIGIN = 1e-3  # squared; the CUDA sampler never chooses such a point


def farther(axes: Tensor, nearest: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """One step of farthest-point sampling, which adds `last` (3, B, 1) to the chosen points of clouds (3, B, N).

    Gives squared distances (B, N) to the nearest chosen point, and the index (B, 1) of the farthest point.
    """
    nearest = torch.minimum(nearest, (axes - last).square().sum(dim=0))
    return nearest, nearest.argmax(dim=1, keepdim=True)


@torch.no_grad()
def farthest_points(
    points: Tensor,
    count: int,
    step: Callable[..., tuple[Tensor, Tensor]] = farther,
    start: Tensor | None = None,
    skip_origin: bool = False,
) -> Tensor:
    """Indices (B, count) of farthest-point sampling of (B, N, 3) from index 0, or from `start`, int64 (B,).

    It takes the first of equally far points. skip_origin: points of |x|^2 <= 1e-3 are never chosen, except as the start
    (the CUDA operators). On a CPU it works on one cloud at a time, which then stays in the cache (numpy: three fifths
    of the time, measured); elsewhere on all clouds at once by `step`, which may be compiled, and no step waits for the
    device. Both ways give the same indices.
    """
    chosen = torch.zeros(len(points), count, dtype=torch.long, device=points.device)
    if start is not None:
        chosen[:, 0] = start
    nearest = torch.full_like(points[..., 0], torch.inf)
    if skip_origin:
        nearest[points.square().sum(dim=2) <= NEAR_ORIGIN] = -torch.inf
    if points.device.type == "cpu" and step is farther:
        for cloud, begun, row in zip(points.detach().numpy(), nearest.numpy(), chosen.numpy(), strict=True):
            _choose_farthest(cloud, begun, row)
        return chosen
    axes = points.permute(2, 0, 1).contiguous()
    for i in range(1, count):
        last = axes.gather(2, chosen[:, i - 1 : i].expand(3, -1, -1))
        nearest, chosen[:, i : i + 1] = step(axes, nearest, last)
    return chosen


def _choose_farthest(points: np.ndarray, nearest: np.ndarray, chosen: np.ndarray) -> None:
    """Fills all but the first of `chosen`, int64 (count,), with indices in one cloud (N, 3); changes `nearest` (N,)."""
    axes = np.ascontiguousarray(points.T)
    square, distance = np.empty_like(axes[0]), np.empty_like(axes[0])
    for i in range(1, len(chosen)):
        last = chosen[i - 1]
        for number, axis in enumerate(axes):
            np.subtract(axis, axis[last], out=square)
            np.multiply(square, square, out=square if number else distance)
            if number:
                np.add(distance, square, out=distance)
        np.minimum(nearest, distance, out=nearest)
        chosen[i] = nearest.argmax()


def gathered(values: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, S, ..., C) of values (B, N, C) at indices (B, S, ...)."""
    b, n, c = values.shape
    rows = indices.flatten(1) + n * torch.arange(b, device=indices.device)[:, None]
    return values.reshape(b * n, c).index_select(0, rows.flatten()).reshape(*indices.shape, c)


@torch.no_grad()
def ball_query(points: Tensor, centres: Tensor, radius: float, count: int, closed: bool = False) -> Tensor:
    """Indices (B, S, count) of the first points, by index, within a radius of centres (B, S, 3); the rest is the first.

    A point is within it at d^2 < r^2 (the CUDA operators) or, if closed, d^2 <= r^2 (Yan's). A centre that is no point
    and has no neighbour gets index 0.
    """
    found = _first_hits(points, centres, count, lambda d: d <= radius**2 if closed else d < radius**2)
    first = found[..., :1].where(found[..., :1] < points.shape[1], 0)
    return found.where(found < points.shape[1], first)


@torch.no_grad()
def ball_query_without_centre(points: Tensor, chosen: Tensor, radius: float, count: int) -> Tensor:
    """RS-CNN's own, (B, S, 1 + count): the centre, then the first `count` points with 0 < d^2 < r^2, then centres.

    chosen (B, S): the indices of the centres.
    """
    found = _first_hits(points, gathered(points, chosen), count, lambda d: (d < radius**2) & (d > 0))
    own = chosen[..., None]
    return torch.cat([own, found.where(found < points.shape[1], own)], dim=2)


def _first_hits(points: Tensor, centres: Tensor, count: int, hit: Callable[[Tensor], Tensor]) -> Tensor:
    """Indices (B, S, count), ascending, of the first points whose squared distance is a hit; N where there is none."""
    wanted = torch.arange(1, count + 1, dtype=torch.int32, device=points.device)
    parts = []
    for some in _in_parts(centres, points):
        hits = hit(_squared_distances(some, points)).cumsum(dim=2, dtype=torch.int32)
        parts.append(torch.searchsorted(hits, wanted.expand(*some.shape[:2], count).contiguous()))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def nearest_to_centres(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """Indices (B, S, count) of the points nearest to centres (B, S, 3), a centre itself among them; in no order."""
    parts = [
        _squared_distances(some, points).topk(count, dim=2, largest=False, sorted=False).indices
        for some in _in_parts(centres, points)
    ]
    return torch.cat(parts, dim=1)


def upsampled(features: Tensor, known: Tensor, points: Tensor, squared: bool) -> Tensor:
    """Features (B, N, C) at points (B, N, 3), the weighted means of those (B, S, C) at the three nearest known points.

    Weights: 1 / (d + 1e-8), d the distance (the CUDA operators), or if squared 1 / (d^2 + 1e-8) (Yan's), divided by
    their sum; they carry no gradient. With fewer than three known points it takes those (B, S, 3) that there are.
    """
    with torch.no_grad():
        parts = [
            _squared_distances(some, known).topk(min(3, known.shape[1]), dim=2, largest=False)
            for some in _in_parts(points, known)
        ]
        distances = torch.cat([part.values for part in parts], dim=1)
        weights = 1 / ((distances if squared else distances.sqrt()) + 1e-8)
        weights /= weights.sum(dim=2, keepdim=True)
        nearest = torch.cat([part.indices for part in parts], dim=1)
    return (gathered(features, nearest) * weights[..., None]).sum(dim=2)


def _in_parts(centres: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """Centres (B, S, 3) divided so that each part has at most LARGEST distances to points (B, N, 3)."""
    return centres.split(max(1, LARGEST // (points.shape[0] * points.shape[1])), dim=1)


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """(B, S, N) of (B, S, 3) and (B, N, 3), without the cancellation of the form by a product of matrices."""
    total = (first[:, :, None, 0] - second[:, None, :, 0]).square_()
    for axis in (1, 2):
        total += (first[:, :, None, axis] - second[:, None, :, axis]).square_()
    return total
