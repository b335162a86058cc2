"""PointCLIP V2's realistic projection in numpy: a dense grey picture of a cloud, near dark, far light, empty white.

Source: PointCLIP V2 as released for classification (mv_utils_zs). Stages: cells of a grid that points fall into,
keeping the nearest; a max-pool over each slice, which closes the gaps; a Gaussian over each slice; the largest over
depth, divided by the largest of the picture and inverted. The released translation of the cloud is left out: the box of
the turned cloud is centred afterwards, which cancels it. Along depth the released pool and Gaussian are one cell wide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from manifests.presets import RealisticViews
from renderers.cameras import Camera
from renderers.view import View


@dataclass(frozen=True)
class Box:
    """The box of a cloud in the axes of a view: its middle float32 (3,) and its longest side."""

    middle: np.ndarray
    side: np.float32


def draw_points(points: np.ndarray, preset: RealisticViews, cameras: list[Camera]) -> list[View]:
    """One gray View a camera of the first `preset.points` points of points float32 (N, 3), world frame.

    The Views' cameras are orthographic with the scale of each view's box. Raises ValueError when all points are one.
    """
    chosen = np.asarray(points[: preset.points], np.float32)
    return [_draw(chosen, preset, camera) for camera in cameras]


def _draw(points: np.ndarray, preset: RealisticViews, camera: Camera) -> View:
    view = points_of_view(points, camera)
    box = box_of(view)
    grid = occupied_grid(view, box, preset)
    gray = squeezed(smooth(dense(grid, preset), preset))
    return View(_camera_of_picture(camera, box, preset), gray=gray, coverage=float((gray < 1).mean()))


def points_of_view(points: np.ndarray, camera: Camera) -> np.ndarray:
    """float32 (N, 3) of points (N, 3) in a view's axes: down, right, towards the camera (released: x, y, z)."""
    right, down, forward = camera.camera_from_world[:3, :3].astype(np.float32)
    return points @ np.stack([down, right, -forward], axis=1)


def box_of(view: np.ndarray) -> Box:
    """The box of points (N, 3) in a view's axes. Raises ValueError when all points are one."""
    low, high = view.min(axis=0), view.max(axis=0)
    side = (high - low).max()
    if not side > 0:
        raise ValueError("the object has no extent: all its points are one")
    return Box((high + low) / 2, side)


def occupied_grid(view: np.ndarray, box: Box, preset: RealisticViews) -> np.ndarray:
    """float32 (depth_cells, S, S): the largest value of the points in each cell of depth, row and column, empty 0.

    A point's value is its depth in cells, larger is nearer, clipped to the inner cells; the depth of its cell is not.
    """
    size, inner = preset.image_size, preset.depth_cells - 2
    q = (view - box.middle) / box.side * 2
    place = np.ceil((q[:, :2] * np.float32(preset.object_share) + 1) / 2 * size)
    row, column = np.clip(place, 1, size - 2).astype(np.int64).T
    bias = np.float32(preset.depth_bias)
    depth = ((q[:, 2] + 1) / 2 + bias) / (1 + bias) * inner
    grid = np.zeros((preset.depth_cells, size, size), np.float32)
    index = (np.ceil(depth).astype(np.int64) * size + row) * size + column
    np.maximum.at(grid.reshape(-1), index, np.clip(depth, 1, inner))
    return grid


def dense(grid: np.ndarray, preset: RealisticViews) -> np.ndarray:
    """float32 (depth_cells, T, T), T = S + 2 pool_padding - pool + 1: the largest of each square of side `pool`.

    Slices without a point stay empty and are passed over.
    """
    padding, size = preset.pool_padding, preset.image_size
    used = np.flatnonzero(grid.any(axis=(1, 2)))
    slices = np.zeros((len(used), size + 2 * padding, size + 2 * padding), np.float32)
    slices[:, padding : padding + size, padding : padding + size] = grid[used]
    pooled = _running_maximum(_running_maximum(slices, 1, preset.pool), 2, preset.pool)
    result = np.zeros((len(grid), *pooled.shape[1:]), np.float32)
    result[used] = pooled
    return result


def _running_maximum(array: np.ndarray, axis: int, width: int) -> np.ndarray:
    """The largest of each `width` neighbours along an axis, by windows that double."""
    done = 1
    while done < width:
        step = min(done, width - done)
        length = array.shape[axis] - step
        array = np.maximum(_part(array, axis, 0, length), _part(array, axis, step, length))
        done += step
    return array


def _part(array: np.ndarray, axis: int, start: int, length: int) -> np.ndarray:
    return array[(slice(None),) * axis + (slice(start, start + length),)]


def gaussian(width: int, sigma: float) -> np.ndarray:
    """float32 (width,): a Gaussian whose sum is 1."""
    distance = np.arange(width) - (width - 1) / 2
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    return (weights / weights.sum()).astype(np.float32)


def smooth(slices: np.ndarray, preset: RealisticViews) -> np.ndarray:
    """float32 (depth_cells, T, T): each slice under a Gaussian, zero outside; rows first, then columns."""
    weights = gaussian(preset.blur, preset.blur_sigma)
    used = np.flatnonzero(slices.any(axis=(1, 2)))
    result = np.zeros_like(slices)
    result[used] = _weighted_neighbours(_weighted_neighbours(slices[used], 1, weights), 2, weights)
    return result


def _weighted_neighbours(array: np.ndarray, axis: int, weights: np.ndarray) -> np.ndarray:
    """The sum of neighbours along an axis by symmetric `weights` (odd), zero outside."""
    middle, length = len(weights) // 2, array.shape[axis]
    result = array * weights[middle]
    for step in range(1, middle + 1):
        share = array * weights[middle + step]
        _part(result, axis, step, length - step)[...] += _part(share, axis, 0, length - step)
        _part(result, axis, 0, length - step)[...] += _part(share, axis, step, length - step)
    return result


def squeezed(slices: np.ndarray) -> np.ndarray:
    """The picture float32 (T, T) in [0, 1] of slices (depth_cells, T, T): nearest 0, empty 1."""
    nearest = slices.max(axis=0)
    return 1 - nearest / nearest.max()


def _camera_of_picture(camera: Camera, box: Box, preset: RealisticViews) -> Camera:
    """The orthographic camera of the pooled picture, whose pixels lie in the middle of their squares."""
    size = preset.image_size
    scale = preset.object_share * size / float(box.side)
    cut = (preset.pool - 1) / 2 - preset.pool_padding - 1  # cells the picture loses at each side, less the one clipped
    centre = size / 2 - cut
    x, y = centre - scale * float(box.middle[1]), centre - scale * float(box.middle[0])
    side = size + 2 * preset.pool_padding - preset.pool + 1
    K = np.array([[scale, 0, x], [0, scale, y], [0, 0, 1.0]])
    return replace(camera, K=K, width=side, height=side)
