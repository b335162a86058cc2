"""A shape in memory drawn by a named preset: what a build would store of it, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests.picture_mapping import tower_picture
from manifests.presets import load_preset
from renderers import backend_table
from renderers.cameras import Camera
from renderers.geometry import Mesh, from_trimesh
from renderers.view import View


@dataclass(frozen=True)
class Views:
    """All views of one shape, V of them, H x W pixels.

    cameras: matrices and depth range of each view. rgb: uint8 (V, H, W, 3), or None where the preset draws none. depth:
    float32 (V, H, W), distance along the optical axis in world units, +inf where nothing was hit, or None. pictures:
    float32 (V, 3, H, W), what the image tower sees before mean and deviation: of RGB where it is drawn, else of the
    preset's grey picture, else of depth by the preset's `mapping` (`upsample` may make them larger than H x W).
    """

    cameras: tuple[Camera, ...]
    rgb: np.ndarray | None
    depth: np.ndarray | None
    pictures: np.ndarray


def draw(shape: Any, preset: str, **keys: Any) -> Views:
    """Every view of a shape in the world frame (+Y up, radius 1 fits the presets), used as it is.

    shape: float (N, 3), of which point presets draw the first `points`; or a trimesh.Trimesh for mesh presets. preset:
    a name of `python -m pipeline presets`; keys change it, as key=value does there.
    Raises Refused naming the nearest preset or key for an unknown name, ValueError when the shape is not
    finite, empty or not what the preset draws.
    """
    _, chosen = load_preset(preset, keys)
    if chosen.draws is None:
        raise ValueError(f"preset {preset} is pictures of files: nothing is drawn")
    if chosen.draws == "mesh":
        views = backend_table.draw(chosen, mesh=_mesh(shape, preset))
    else:
        if chosen.needs_colors:
            raise ValueError(f"preset {preset} draws the colours of points, and an (N, 3) array holds places only")
        views = backend_table.draw(chosen, points=_points(shape, preset))
    channel = next(name for name in ("rgb", "gray", "depth") if getattr(views[0], name) is not None)
    pictures = [tower_picture(getattr(view, channel), channel, chosen) for view in views]
    return Views(
        cameras=tuple(view.camera for view in views),
        rgb=_stacked(views, "rgb"),
        depth=_stacked(views, "depth"),
        pictures=np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2), np.float32),
    )


def _mesh(shape: Any, preset: str) -> Mesh:
    if not hasattr(shape, "faces") or not hasattr(shape, "vertices"):
        raise ValueError(f"preset {preset} draws a mesh: give a trimesh.Trimesh, not {type(shape).__name__}")
    return from_trimesh([shape])


def _points(shape: Any, preset: str) -> np.ndarray:
    if hasattr(shape, "faces") or hasattr(shape, "geometry"):
        raise ValueError(f"preset {preset} draws points: give an (N, 3) array, such as the mesh's samples")
    try:
        points = np.asarray(shape, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"preset {preset} draws points: give an (N, 3) array, not {type(shape).__name__}") from error
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"points must be (N, 3) with N at least 1, got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite (NaN or infinity)")
    return points


def _stacked(views: list[View], channel: str) -> np.ndarray | None:
    return None if getattr(views[0], channel) is None else np.stack([getattr(view, channel) for view in views])
