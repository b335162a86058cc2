"""Which backend draws which preset. A backend's module, and so its library, is imported when it is first used."""

from __future__ import annotations

import importlib

import numpy as np

from manifests.presets import AnyViews, DrawnViews
from renderers.cameras import Camera, orbit_rotation, rig
from renderers.geometry import Mesh, with_ground
from renderers.view import View

# backend -> (module, function)
BACKENDS = {
    "raycast": ("renderers.raycast", "draw_mesh"),
    "rasterize": ("renderers.rasterize", "draw_mesh"),
    "depth": ("renderers.point_depth", "draw_points"),
    "pointclip": ("renderers.pointclip", "draw_points"),
    "realistic": ("renderers.pointclip_v2", "draw_points"),
}


def require(preset: AnyViews) -> None:
    """Imports the preset's backend. Raises Refused, saying what to do, where its library or its device is missing."""
    if preset.draws is None:
        return
    module = importlib.import_module(BACKENDS[preset.backend][0])
    if preset.needs_gpu:
        module.device_of(preset)


def preset_cameras(preset: DrawnViews) -> list[Camera]:
    """The cameras of a preset, in the order of its views."""
    if preset.rotations:
        rotations = np.asarray(preset.rotations)
    else:
        elevations = preset.elevation_deg * (len(preset.azimuth_deg) // len(preset.elevation_deg))
        rotations = np.stack([orbit_rotation(a, e) for a, e in zip(preset.azimuth_deg, elevations, strict=True)])
    return rig(
        rotations,
        distance=preset.distance,
        image_size=preset.image_size,
        near=preset.near,
        far=preset.far,
        model=preset.projection,
        fov_deg=preset.fov_deg,
        half_extent=preset.half_extent,
    )


def draw(
    preset: DrawnViews,
    *,
    mesh: Mesh | None = None,
    points: np.ndarray | None = None,
    colors: np.ndarray | None = None,
) -> list[View]:
    """Every view of a preset, of a mesh or of points float32 (N, 3), in the normalised world frame.

    colors: uint8 (N, 3) of the points, or None. Raises ValueError when what the backend draws is not given, Refused
    when the backend's library is missing.
    """
    module, function = BACKENDS[preset.backend]
    shape = mesh if preset.draws == "mesh" else points
    if shape is None:
        raise ValueError(f"backend {preset.backend} draws {preset.draws}, and there are none")
    if preset.draws == "mesh" and mesh is not None and preset.ground:
        shape = with_ground(mesh, preset.ground_extent, preset.ground_color)
    with_colors = {"colors": colors} if preset.needs_colors else {}
    return getattr(importlib.import_module(module), function)(shape, preset, preset_cameras(preset), **with_colors)
