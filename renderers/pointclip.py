"""Point clouds as PointCLIP and SimpleView draw them, in numpy: dots in perspective, a weighted mean in each pixel.

Source: PointCLIP and SimpleView as released (mv_utils). A point at u = (x / z + 1) S/2 pixels lands on ceil(u - 1/2):
on the nearest corner of a pixel, half a pixel off the middle, which the returned cameras' K accounts for. Depths of one
pixel are averaged with weights 1 / (z + 1e-12), near and far surfaces alike. The authors see the cloud mirrored.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from manifests.presets import PointclipViews
from renderers.cameras import Camera
from renderers.point_depth import ratio_of_sums
from renderers.view import View

_EPSILON = 1e-12
_HALF_PIXEL = 0.5


def draw_points(
    points: np.ndarray, preset: PointclipViews, cameras: list[Camera], colors: np.ndarray | None = None
) -> list[View]:
    """One View a camera of the first `preset.points` points of points float32 (N, 3), world frame.

    colors: uint8 (N, 3), needed for channel rgb; ValueError where they are missing.
    """
    if "rgb" in preset.channels and colors is None:
        raise ValueError("channel rgb draws the colours of points, and these points have no colours")
    colors = colors if "rgb" in preset.channels else None
    chosen = np.asarray(points[: preset.points], np.float64)
    return [_draw(chosen, preset, released_camera(camera, preset.mirror), colors) for camera in cameras]


def released_camera(camera: Camera, mirror: bool) -> Camera:
    """The camera with the released K: the principal point half a pixel off, and mirrored by a negative focal length."""
    K = camera.K.copy()
    K[0, 0] *= -1 if mirror else 1
    K[:2, 2] += _HALF_PIXEL
    return replace(camera, K=K)


def _draw(points: np.ndarray, preset: PointclipViews, camera: Camera, colors: np.ndarray | None) -> View:
    pixel, z, number = landing_pixels(points, camera, preset.footprint)
    shown = np.zeros(camera.height * camera.width, bool)
    shown[pixel] = True
    size = (camera.height, camera.width)
    return View(
        camera,
        rgb=None if colors is None else _nearest_color(pixel, z, colors[number], preset.background, size),
        depth=weighted_depth(pixel, z, size) if "depth" in preset.channels else None,
        coverage=float(shown.mean()),
    )


def landing_pixels(points: np.ndarray, camera: Camera, footprint: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(flat pixel int64, depth float64, index of the point), each (M,), of all dots of points (N, 3) in the picture."""
    x, y, z = camera.camera_from_world[:3, :3] @ points.T + camera.camera_from_world[:3, 3:]
    K, shift = camera.K, _HALF_PIXEL + footprint / 2
    u = K[0, 0] * x / (z + _EPSILON) + (K[0, 2] - shift)
    v = K[1, 1] * y / (z + _EPSILON) + (K[1, 2] - shift)
    column, row = np.ceil(u).astype(np.int64), np.ceil(v).astype(np.int64)
    number = np.arange(len(points))
    if footprint > 1:
        step = np.arange(footprint)
        column, row, z, number = (
            np.broadcast_to(array, (footprint, footprint, len(points))).ravel()
            for array in (column + step[:, None], (row + step[:, None])[:, None], z, number)
        )
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height) & (z >= 0)
    if not inside.all():
        column, row, z, number = column[inside], row[inside], z[inside], number[inside]
    return row * camera.width + column, z, number


def weighted_depth(pixel: np.ndarray, z: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth float32 (H, W), +inf where no dot lies: sum(w z) / sum(w) with w = 1 / (z + 1e-12) over a pixel's dots."""
    weight = 1 / (z + _EPSILON)
    return ratio_of_sums(pixel, z * weight, weight, size)


def _nearest_color(
    pixel: np.ndarray, z: np.ndarray, colors: np.ndarray, background: list[float], size: tuple[int, int]
) -> np.ndarray:
    """uint8 (H, W, 3): the colour of each pixel's nearest dot, of the lowest index among equals."""
    picture = np.tile(np.rint(np.asarray(background) * 255).astype(np.uint8), (size[0] * size[1], 1))
    far_to_near = np.argsort(z, kind="stable")[::-1]  # the last assignment stays
    picture[pixel[far_to_near]] = colors[far_to_near]
    return picture.reshape(*size, 3)
