"""Augments point clouds (weak, strong, turned, ULIP's, those of networks' authors), a batch at once on its device.

Every draw is a hash of the sample's own seed and a counter, in 64-bit integers: the same on every device and in every
batch, rank or reader process. Source: Cross-MoST as released, with two corrections: the strong crop really crops
(released: x_min 9 in place of 0.9), and nothing is interpolated where points are many (`filled`).

Shape letters: B clouds, N points. Inside, clouds are axes (B, 3, N): arithmetic is fastest along a contiguous axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, grid_sample

from training.settings.data import AugmentSettings

WEAK_TURN_SIGMA, WEAK_TURN_LIMIT = 0.06, 0.18
JITTER_SIGMA, JITTER_LIMIT = 0.01, 0.05
LARGEST_DROPOUT = 0.875
NEAREST = 10  # kept points whose mean fills a place (released)
# Independent streams of draws from one seed.
ELASTIC = -1
WEAK, STRONG, JITTER, POINT, VOTE = range(5)  # VOTE and all beyond it: one stream a vote
NODES = 11  # along each axis, 0.2 apart in a cloud of radius 1
POOL, OF_POOL = 75, 64  # RS-CNN trains with 1,024 of 1,200 points
GAMMA, FIRST_FACTOR, SECOND_FACTOR = -7046029254386353131, -4658895280553007687, -7723592293110705685


def weak_clouds(points: Tensor, seed: Tensor) -> Tensor:
    """Normalised; scaled by U(0.9, 1.1); turned a little about all axes (N(0, 0.06), at most 0.18 rad).

    points: float32 (B, N, 3). seed: int64 (B,). Gives (B, N, 3).
    """
    draw = uniforms(seed, WEAK, 4)
    turn = _small_turns(draw[:, 1:]) * _between(draw[:, 0], 0.9, 1.1)[:, None, None]
    return _rows(_turned(normalized_axes(points), turn))


def strong_clouds(points: Tensor, seed: Tensor, settings: AugmentSettings) -> Tensor:
    """Normalised, bent, scaled, turned about +Y, shifted, jittered, thinned, cropped and filled up again to N points.

    points: float32 (B, N, 3). seed: int64 (B,). Gives (B, N, 3). The first point, where farthest-point sampling starts,
    is a random one of the remaining points. The others follow in the order of the cloud; what fills up comes last.
    """
    draw = uniforms(seed, STRONG, 12)
    scale = _between(draw[:, 0], 1 / settings.points_scale, settings.points_scale)
    axes = normalized_axes(points)
    if settings.points_elastic:
        axes = bent(axes, seed, settings.points_elastic)
    axes = turned_about_up(axes, 2 * math.pi * draw[:, 1]) * scale[:, None, None]
    axes = shifted(axes, _between(draw[:, 2:5], -settings.points_shift, settings.points_shift))
    axes += jitter(seed, axes.shape[2])
    bits = _hashed(seed, POINT, axes.shape[2])
    kept = _thinned(bits, draw[:, 5] * settings.points_dropout)
    if settings.points_crop < 1:
        side = _between(draw[:, 6:9], settings.points_crop, 1.0)
        kept &= in_box(axes, kept, side, draw[:, 9:12])
    return filled(axes, kept, bits, settings.points_fill)


def plain_clouds(points: Tensor, seed: Tensor) -> Tensor:
    """Normalised, and nothing else. points: float32 (B, N, 3). seed: not read."""
    return _rows(normalized_axes(points))


def turned_clouds(points: Tensor, seed: Tensor) -> Tensor:
    """Normalised, turned about +Y by U(0, 2 pi), jittered by N(0, 0.01), at most 0.05: supervised training's clouds.

    points: float32 (B, N, 3). seed: int64 (B,). Gives (B, N, 3).
    """
    angle = 2 * math.pi * uniforms(seed, STRONG, 2)[:, 1]
    return _rows(turned_about_up(normalized_axes(points), angle) + jitter(seed, points.shape[1]))


def ulip_clouds(points: Tensor, seed: Tensor) -> Tensor:
    """ULIP's: normalised, scaled, shifted, turned, thinned and filled up again to N points.

    Scale U(0.8, 1.25); shift U(-0.1, 0.1) along each axis; turns of N(0, 0.06), at most 0.18 rad, about all axes, then
    of U(0, 2 pi) about +Y; a share of U(0, 0.875) of the points is dropped.
    points: float32 (B, N, 3). seed: int64 (B,). Gives (B, N, 3). Source: ULIP's pre-training (its dropped points become
    copies of the first).
    """
    draw = uniforms(seed, STRONG, 9)
    axes = normalized_axes(points) * _between(draw[:, 0], 0.8, 1.25)[:, None, None]
    axes = axes + _between(draw[:, 1:4], -0.1, 0.1)[:, :, None]
    axes = turned_about_up(_turned(axes, _small_turns(draw[:, 4:7])), 2 * math.pi * draw[:, 7])
    bits = _hashed(seed, POINT, axes.shape[2])
    kept = _thinned(bits, draw[:, 8] * LARGEST_DROPOUT)
    return filled(axes, kept, bits, "repeat")


def dgcnn_clouds(points: Tensor, seed: Tensor) -> Tensor:
    """DGCNN's and PointMLP's: normalised, each axis scaled by U(2/3, 3/2) and shifted by U(-0.2, 0.2), points shuffled.

    points: float32 (B, N, 3). seed: int64 (B,). Gives (B, N, 3).
    """
    return _shuffled(_stretched(points, seed), seed, points.shape[1])


def rscnn_clouds(points: Tensor, seed: Tensor) -> Tensor:
    """RS-CNN's: as DGCNN's, and of the first `pool_of(N)` stored points a random N.

    points: float32 (B, pool_of(N), 3), in farthest-point order where a build's fps_prefix is as large. seed: int64
    (B,). Gives (B, N, 3). RS-CNN draws 1,024 of the 1,200 farthest points.
    """
    return _shuffled(_stretched(points, seed), seed, points.shape[1] * OF_POOL // POOL)


def pool_of(count: int) -> int:
    """How many stored points RS-CNN's `count` are drawn from: 1,200 for 1,024."""
    return -(-count * POOL // OF_POOL)


def pointnet2_clouds(points: Tensor, seed: Tensor) -> Tensor:
    """Those of PyTorch's PointNet and PointNet++ (YX): normalised, thinned, scaled and shifted.

    A share of U(0, 0.875) of the points become copies of the first, in their places; scale U(0.8, 1.25); shift
    U(-0.1, 0.1) along each axis. points: float32 (B, N, 3). seed: int64 (B,). Gives (B, N, 3).
    """
    draw, axes = uniforms(seed, STRONG, 5), normalized_axes(points)
    kept = _thinned(_hashed(seed, POINT, axes.shape[2]), draw[:, 4] * LARGEST_DROPOUT)
    axes = torch.where(kept[:, None], axes, axes[:, :, :1])
    return _rows(axes * _between(draw[:, 0], 0.8, 1.25)[:, None, None] + _between(draw[:, 1:4], -0.1, 0.1)[:, :, None])


def scaled_clouds(points: Tensor, seed: Tensor, vote: int, spread: float = 0.2) -> Tensor:
    """Clouds (B, N, 3) whose axes are scaled by U(1 - spread, 1 + spread), drawn anew for each vote (`evaluate
    --votes`)."""
    return points * _between(uniforms(seed, VOTE + vote, 3), 1 - spread, 1 + spread)[:, None]


def _stretched(points: Tensor, seed: Tensor) -> Tensor:
    """Axes (B, 3, N), normalised, each scaled by U(2/3, 3/2) and shifted by U(-0.2, 0.2)."""
    draw = uniforms(seed, STRONG, 6)[:, :, None]
    return normalized_axes(points) * _between(draw[:, :3], 2 / 3, 3 / 2) + _between(draw[:, 3:], -0.2, 0.2)


def random_part(points: Tensor, seed: Tensor, count: int) -> Tensor:
    """float32 (B, count, 3): a random `count` of the points of clouds (B, N, 3), as they are."""
    return _shuffled(points.transpose(1, 2), seed, count)


def _shuffled(axes: Tensor, seed: Tensor, count: int) -> Tensor:
    """Clouds (B, count, 3): a random `count` of the points, in random order."""
    order = _hashed(seed, POINT, axes.shape[2]).argsort(dim=1)[:, :count]
    return _rows(axes.gather(2, order[:, None].expand(-1, 3, -1)))


def moved_clouds(points: Tensor, seed: Tensor, scale: float, shift: float) -> Tensor:
    """Normalised, scaled by U(1/scale, scale), moved by U(-shift, shift) along each axis; points stay in their order.

    points: float32 (B, N, 3). seed: int64 (B,). Gives (B, N, 3).
    """
    draw = uniforms(seed, STRONG, 4)
    axes = normalized_axes(points) * _between(draw[:, 0], 1 / scale, scale)[:, None, None]
    return _rows(axes + _between(draw[:, 1:], -shift, shift)[:, :, None])


def normalized_axes(points: Tensor) -> Tensor:
    """float32 (B, 3, N) of clouds (B, N, 3), about the centroid, farthest point at 1."""
    axes = points.transpose(1, 2).contiguous()
    axes = axes - axes.mean(dim=2, keepdim=True)
    return axes / axes.square().sum(dim=1).amax(dim=1).sqrt().clamp(min=1e-9)[:, None, None]


def turn_matrices(angles: Tensor) -> Tensor:
    """Rotations (B, 3, 3) by angles (B, 3) in radians: about x, then y, then z, all right-handed."""
    (a, b, c), (d, e, f) = angles.cos().unbind(1), angles.sin().unbind(1)
    rows = (
        *(b * c, d * e * c - a * f, a * e * c + d * f),
        *(b * f, d * e * f + a * c, a * e * f - d * c),
        *(-e, d * b, a * b),
    )
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))


def _small_turns(draw: Tensor) -> Tensor:
    """Rotations (B, 3, 3) by N(0, 0.06), at most 0.18 rad, about each axis. draw: uniform numbers (B, 3)."""
    return turn_matrices((_normal(draw) * WEAK_TURN_SIGMA).clamp(-WEAK_TURN_LIMIT, WEAK_TURN_LIMIT))


def _turned(axes: Tensor, turn: Tensor) -> Tensor:
    """Rotated axes, by products and sums: a device may round the numbers of a matrix product."""
    parts = [turn[:, :, i, None] * axes[:, i, None] for i in range(3)]
    return parts[0] + parts[1] + parts[2]


def turned_about_up(axes: Tensor, angle: Tensor) -> Tensor:
    """Axes (B, 3, N) turned about +Y by (B,) radians, right-handed."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y, z = axes.unbind(1)
    return torch.stack([cos * x + sin * z, y, cos * z - sin * x], dim=1)


def shifted(axes: Tensor, share: Tensor) -> Tensor:
    """Axes (B, 3, N) moved by a share (B, 3) of the extent of each."""
    return axes + (share * (axes.amax(dim=2) - axes.amin(dim=2)))[:, :, None]


def jitter(seed: Tensor, count: int) -> Tensor:
    """float32 (B, 3, N) of N(0, 0.01), at most 0.05: 21 bits a number, so at most 5.03 deviations."""
    bits = _hashed(seed, JITTER, count)
    draw = torch.stack([_float(bits, start, 21, 0.5) for start in (0, 21, 42)], dim=1)
    return (_normal(draw) * JITTER_SIGMA).clamp(-JITTER_LIMIT, JITTER_LIMIT)


def bent(axes: Tensor, seed: Tensor, strength: float) -> Tensor:
    """Elastic distortion of axes (B, 3, N) within the unit cube: neighbouring points move together.

    At NODES^3 nodes stands noise N(0, 1), averaged twice over 3^3 nodes; a point moves by `strength` times what lies
    between the nodes about it. At 0.4 a coordinate moves by 0.04, one deviation (measured). Source: Simard et al. 2003,
    in three dimensions as SparseConvNet and DepthContrast have it, for rooms.
    """
    noise = _normal(uniforms(seed, ELASTIC, 3 * NODES**3)).view(-1, 3, NODES, NODES, NODES)
    for _ in range(2):
        noise = avg_pool3d(noise, 3, stride=1, padding=1)
    places = axes.transpose(1, 2)[:, None, None]
    return axes + strength * grid_sample(noise, places, padding_mode="border", align_corners=True)[:, :, 0, 0]


def in_box(axes: Tensor, kept: Tensor, side: Tensor, corner: Tensor) -> Tensor:
    """bool (B, N): the points of clouds (B, 3, N) inside a box within the extent of the points in `kept` (B, N).

    side: (B, 3), the sides as shares of that extent; corner: (B, 3) in [0, 1], the position of the box in it.
    """
    gone = ~kept[:, None]
    low = axes.masked_fill(gone, math.inf).amin(dim=2)
    high = axes.masked_fill(gone, -math.inf).amax(dim=2)
    length = side * (high - low)
    start = low + corner * (high - low - length)
    return ((axes >= start[:, :, None]) & (axes <= (start + length)[:, :, None])).all(dim=1)


def _thinned(bits: Tensor, share: Tensor) -> Tensor:
    """bool (B, N): the points that remain when a share (B,) of them is dropped at random."""
    return _float(bits, 43, 21) >= share[:, None]


def filled(axes: Tensor, kept: Tensor, bits: Tensor, fill: str) -> Tensor:
    """Clouds (B, N, 3): of axes (B, 3, N) the kept points, from a random one on, then what takes the others' places.

    fill: `first`, copies of the first of them (released dropout): a group of near points then has its full number of
    distinct ones, but for that point's own. `neighbours`, for each a mean of the NEAREST kept points about a random one
    (released, where clouds are too small: memory of N x N a cloud). `repeat`, random ones again: a group holds copies.
    bits: int64 (B, N), random.
    """
    order = _filled(kept, bits)
    left = kept.sum(dim=1, keepdim=True).clamp(min=1)
    gone = torch.arange(kept.shape[1], device=kept.device) >= left
    if fill == "first":
        order = torch.where(gone, order[:, :1], order)
    rows = _rows(axes.gather(2, order[:, None].expand_as(axes)))
    if fill == "neighbours":
        for cloud, number in zip(rows, left[:, 0].tolist(), strict=True):
            there = cloud[:number]
            near = torch.cdist(cloud[number:], there).topk(min(NEAREST, number), largest=False).indices
            cloud[number:] = there[near].mean(dim=1)
    return rows


def _filled(kept: Tensor, bits: Tensor) -> Tensor:
    """int64 (B, N): all kept points, from a random one on, then random ones again; only point 0 if `kept` is empty."""
    count = kept.shape[1]
    number = kept.cumsum(dim=1)
    total = number[:, -1:].clamp(min=1)
    places = torch.where(kept, number - 1, count)  # dropped points share one place behind the last
    slot = torch.arange(count, device=kept.device)
    order = torch.zeros(len(kept), count + 1, dtype=torch.int64, device=kept.device)
    order.scatter_(1, places, slot.expand_as(places))
    drawn = (_bits(bits, 0, 22) * total) >> 22
    around = (slot + drawn[:, :1]) % total
    return order.gather(1, torch.where(slot < total, around, drawn))


def _rows(axes: Tensor) -> Tensor:
    return axes.transpose(1, 2).contiguous()


def uniforms(seed: Tensor, stream: int, count: int) -> Tensor:
    """float32 (B, count) in (0, 1): the draws of a stream of each seed (B,)."""
    return _float(_hashed(seed, stream, count), 41, 23, 0.5)


def _hashed(seed: Tensor, stream: int, count: int) -> Tensor:
    """int64 (B, count), 64 random bits each. Source: SplitMix64 (Steele, Lea and Flood 2014), from a hashed seed."""
    start = _mixed(_mixed(seed) + stream)
    counter = torch.arange(1, count + 1, device=seed.device) * GAMMA
    return _mixed(start[:, None] + counter)


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ _bits(bits, 30, 34)) * FIRST_FACTOR
    bits = (bits ^ _bits(bits, 27, 37)) * SECOND_FACTOR
    return bits ^ _bits(bits, 31, 33)


def _bits(bits: Tensor, first: int, number: int) -> Tensor:
    """Some bits as a number of 0 or more (a shift of signed integers alone keeps the sign)."""
    return (bits >> first) & ((1 << number) - 1)


def _float(bits: Tensor, first: int, number: int, offset: float = 0.0) -> Tensor:
    """Some bits as float32 in [0, 1); with an offset of half a step in (0, 1)."""
    return (_bits(bits, first, number).float() + offset) * 2.0**-number


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draw


def _normal(draw: Tensor) -> Tensor:
    """Standard normal numbers of uniform ones."""
    return torch.erfinv(2 * draw - 1) * math.sqrt(2)


LABELLED = {  # augment.labelled_points
    "plain": plain_clouds,
    "turned": turned_clouds,
    "ulip": ulip_clouds,
    "dgcnn": dgcnn_clouds,
    "pointnet2": pointnet2_clouds,
    "rscnn": rscnn_clouds,
}
