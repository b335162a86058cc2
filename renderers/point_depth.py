"""Depth maps of point clouds in numpy, so that build machines need no torch.

Paper: CLIP2Point section 3.2. A point (X, Y, Z) in the camera lands on pixel (ceil(x/z), ceil(y/z)) (eq. 9; ours:
f = S/2 / tan(fov/2), principal value S/2 - 1, 0-based) and spreads over a square of side R: it covers pixel p where
p - R/2 <= ceil < p + R/2, so R=2 covers {c, c+1}. `minimum` keeps the nearest depth (eq. 10), `weighted` the harmonic
mean (eq. 8). `disc` is the released renderer instead: orthographic, discs of a fixed radius, nearest point.
"""

from __future__ import annotations

import numpy as np

from manifests.presets import PointViews
from renderers.cameras import Camera
from renderers.view import View

_WEIGHT_EPSILON = 1e-12  # eq. 8 as PointCLIP wrote it: weights are 1 / (z + 1e-12)
_MIN_DEPTH = 1e-6


def draw_points(points: np.ndarray, preset: PointViews, cameras: list[Camera]) -> list[View]:
    """One depth View a camera of the first `preset.points` points of points float32 (N, 3), world frame."""
    chosen = np.asarray(points[: preset.points], np.float32)
    return [View(camera, depth=draw_depth(chosen, preset, camera)) for camera in cameras]


def draw_depth(points: np.ndarray, preset: PointViews, camera: Camera) -> np.ndarray:
    """Depth float32 (H, W) of points (N, 3), +inf where no point lands."""
    x, y, z = _in_camera(points, camera)
    if preset.merge == "disc":
        return _discs(x, y, z, camera, preset.disc_radius)
    in_front = z > _MIN_DEPTH
    if not in_front.all():
        x, y, z = x[in_front], y[in_front], z[in_front]
    column, row = pixel_indices(x, y, z, camera)
    if preset.merge == "minimum":
        return _spread_minimum(column, row, z, preset.dilation, camera)
    return _spread_weighted(column, row, z, preset.dilation, camera)


def _in_camera(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pose = camera.camera_from_world.astype(np.float32)
    moved = pose[:3, :3] @ points.T + pose[:3, 3:]
    return moved[0], moved[1], moved[2]


def pixel_indices(x: np.ndarray, y: np.ndarray, z: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """0-based (column, row) int64 of eq. 9's ceil for camera coordinates (N,), perspective."""
    fx, fy, cx, cy = (np.float32(v) for v in (camera.K[0, 0], camera.K[1, 1], camera.K[0, 2] - 1, camera.K[1, 2] - 1))
    return np.ceil(fx * x / z + cx).astype(np.int64), np.ceil(fy * y / z + cy).astype(np.int64)


def dilation_offsets(dilation: int) -> range:
    """Offsets o such that a point of ceil value c covers pixel c + o: p - R/2 <= c < p + R/2."""
    return range(-((dilation - 1) // 2), dilation // 2 + 1)


def _spread_minimum(column: np.ndarray, row: np.ndarray, z: np.ndarray, dilation: int, camera: Camera) -> np.ndarray:
    """Smallest depth a pixel: one scatter for each of the R x R offsets, no pass over the picture."""
    width, height, offsets = camera.width, camera.height, dilation_offsets(dilation)
    picture = np.full(height * width, np.inf, np.float32)
    if not len(z):
        return picture.reshape(height, width)
    low, high = offsets[0], offsets[-1]
    whole = min(column.min(), row.min()) + low >= 0
    whole = whole and column.max() + high < width and row.max() + high < height
    flat = row * width + column
    for down in offsets:
        for right in offsets:
            if whole:
                np.minimum.at(picture, flat + (down * width + right), z)
                continue
            c, r = column + right, row + down
            inside = (c >= 0) & (c < width) & (r >= 0) & (r < height)
            np.minimum.at(picture, r[inside] * width + c[inside], z[inside])
    return picture.reshape(height, width)


def _spread_weighted(column: np.ndarray, row: np.ndarray, z: np.ndarray, dilation: int, camera: Camera) -> np.ndarray:
    z = z.astype(np.float64)
    step = np.arange(dilation) + dilation_offsets(dilation)[0]
    row, column = row + step[:, None, None], column + step[:, None]
    inside = (row >= 0) & (row < camera.height) & (column >= 0) & (column < camera.width)
    pixel = (row * camera.width + column)[inside]
    z = np.broadcast_to(z, inside.shape)[inside]
    return ratio_of_sums(pixel, z / (z + _WEIGHT_EPSILON), 1 / z, (camera.height, camera.width))


def ratio_of_sums(pixel: np.ndarray, over: np.ndarray, under: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth float32 (H, W), +inf where no flat pixel of `pixel` (M,) lies: the sum of `over` / the sum of `under`."""
    count = size[0] * size[1]
    sums, weights = np.bincount(pixel, over, count), np.bincount(pixel, under, count)
    depth = np.full(count, np.inf, np.float32)
    depth[pixel] = sums[pixel] / weights[pixel]
    return depth.reshape(size)


def disc_reach(radius: float, size: int) -> int:
    """How many pixels from its own a point's disc can reach: radius as a share of half the picture."""
    return int(radius * size / 2 + 0.5 + 1e-3)  # the last: rounding of the point's own pixel


def _discs(x: np.ndarray, y: np.ndarray, z: np.ndarray, camera: Camera, radius: float) -> np.ndarray:
    """The released renderer: pixel centres strictly within `radius` (half image = 1), depth not negative."""
    size = camera.width
    half = np.float32(size / 2)
    scale = np.float32(camera.K[0, 0]) / half  # orthographic: normalised device units a world unit
    in_front = z >= 0
    nx, ny, z = (x * scale)[in_front], (y * scale)[in_front], z[in_front]
    reach = disc_reach(radius, size)
    step = np.arange(-reach, reach + 1)[:, None]
    columns, across = _neighbours(nx, step, size)
    rows, down = _neighbours(ny, step, size)
    flat = np.full(size * size, np.inf, np.float32)
    limit = np.float32(radius) ** 2
    for row, dy in zip(rows, down, strict=True):
        near = across + dy < limit
        pixel = columns + row * size
        np.minimum.at(flat, pixel[near], np.broadcast_to(z, near.shape)[near])
    return flat.reshape(size, size)


def _neighbours(place: np.ndarray, step: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(index, squared distance of its centre), each (K, N), of the pixels `step` (K, 1) from points; outside: +inf."""
    index = np.floor((place + 1) * np.float32(size / 2)).astype(np.int64) + step
    centre = ((2 * index + 1) / np.float32(size) - np.float32(1)).astype(np.float32)
    distance = (place - centre) ** 2
    return index, np.where((index >= 0) & (index < size), distance, np.float32(np.inf))
