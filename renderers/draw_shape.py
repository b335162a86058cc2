"""A shape in memory made to fit, and drawn by a named preset: what a build would store of it, as arrays."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests.picture_mapping import tower_picture
from manifests.presets import load_preset
from renderers import backend_table
from renderers.cameras import Camera
from renderers.geometry import Mesh, from_trimesh, transform
from renderers.sampling import normalization, sample_surface
from renderers.view import View, channels_of

_SAMPLES = 8192  # of a mesh that is fitted, as a build takes
_LOOKED_AT = 1024  # of the points of a shape, for whether it is inside the pictures
_FITS = 1.05  # radius about the origin up to which a shape is as presets want it: those that cut it do so as released
_OUTSIDE = 0.01  # share of a larger one that may be outside a picture without a warning


@dataclass(frozen=True)
class Views:
    """All views of one shape, V of them, H x W pixels.

    cameras: matrices and depth range of each view. rgb: uint8 (V, H, W, 3), or None where the preset draws none. depth:
    float32 (V, H, W), distance along the optical axis in world units, +inf where nothing was hit, or None. pictures:
    float32 (V, 3, H, W), what the image tower sees before mean and deviation: of RGB where it is drawn, else of the
    preset's grey picture, else of depth by the preset's `mapping` (`upsample` may make them larger than H x W).

    >>> import numpy as np, renderers
    >>> renderers.draw(np.eye(3), "depth10", image_size=32)
    Views(10 views of 32 x 32: depth)
    """

    cameras: tuple[Camera, ...]
    rgb: np.ndarray | None
    depth: np.ndarray | None
    pictures: np.ndarray

    def __repr__(self) -> str:
        size = f"{self.cameras[0].width} x {self.cameras[0].height}"
        return f"Views({len(self.cameras)} views of {size}: {channels_of(self) or 'gray'})"


def draw(shape: Any, preset: str, **keys: Any) -> Views:
    """Every view of a shape in the world frame (+Y up, radius 1 fits the presets), used as it is.

    shape: float (N, 3), of which point presets draw the first `points`; or a Mesh, trimesh.Trimesh or trimesh.Scene for
    mesh presets. preset: a name of `python -m pipeline presets`; keys change it, as key=value does there.
    Raises Refused naming the nearest preset or key for an unknown name, ValueError when the shape is not
    finite, empty or not what the preset draws. Warns where it is too large, so that more than 1 % of it is outside a
    picture: `fit` makes it right.

    >>> import trimesh, renderers
    >>> box = trimesh.creation.box((1, 0.7, 0.4))
    >>> renderers.draw(box, "rgb12", image_size=32).pictures.shape
    (12, 3, 32, 32)
    """
    _, chosen = load_preset(preset, keys)
    if chosen.draws is None:
        raise ValueError(f"preset {preset} is pictures of files: nothing is drawn")
    if chosen.draws == "mesh":
        mesh = _mesh(shape, preset)
        views = backend_table.draw(chosen, mesh=mesh)
        places = mesh.vertices[mesh.faces].reshape(-1, 3)
        if _radius(places) > _FITS:
            with suppress(ValueError):  # a surface without area is nowhere
                places, _ = sample_surface(mesh, _LOOKED_AT, np.random.default_rng(0))
    else:
        if chosen.needs_colors:
            raise ValueError(f"preset {preset} draws the colours of points, and an (N, 3) array holds places only")
        places = _points(shape, preset)
        views = backend_table.draw(chosen, points=places)
        places = places[: chosen.points]
    if _radius(places) > _FITS:
        _warn_of_outside(places, [view.camera for view in views])
    channel = next(name for name in ("rgb", "gray", "depth") if getattr(views[0], name) is not None)
    pictures = [tower_picture(getattr(view, channel), channel, chosen) for view in views]
    return Views(
        cameras=tuple(view.camera for view in views),
        rgb=_stacked(views, "rgb"),
        depth=_stacked(views, "depth"),
        pictures=np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2), np.float32),
    )


def fit(shape: Any) -> Any:
    """A shape as a build makes it: its centre at the origin, the farthest of its points at distance 1.

    shape: as `draw` takes it. Returns float32 (N, 3) of points, and a Mesh of a mesh; +Y must be up already. The centre
    is the mean of the points, or of 8,192 samples of the surface. Raises ValueError when the shape has no extent.

    >>> import numpy as np, renderers
    >>> renderers.fit(np.array([[0, 0, 0], [0, 8, 0]])).tolist()
    [[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    if isinstance(shape, Mesh) or hasattr(shape, "faces") or hasattr(shape, "geometry"):
        mesh = _mesh(shape, "renderers.fit")
        points, _ = sample_surface(mesh, _SAMPLES, np.random.default_rng(0))
        return mesh.transformed(normalization("sphere_mean_points", points, mesh.vertices))
    points = _points(shape, "renderers.fit").astype(np.float64)
    return transform(normalization("sphere_mean_points", points, None), points).astype(np.float32)


def _radius(points: np.ndarray) -> float:
    return float(np.linalg.norm(points, axis=1).max(initial=0))


def _warn_of_outside(points: np.ndarray, cameras: list[Camera]) -> None:
    """Warns where a part of a shape, by its points (N, 3), is outside a picture or behind its camera."""
    most, view = 0.0, 0
    for number, camera in enumerate(cameras):
        at = transform(camera.camera_from_world, points)
        ahead = at[:, 2] > 0 if camera.model == "perspective" else np.full(len(at), True)
        at[:, 2] = np.where(ahead, at[:, 2], 1.0) if camera.model == "perspective" else 1.0
        pixels = at @ camera.K.T / at[:, 2:]
        inside = ahead & ((pixels[:, :2] >= 0) & (pixels[:, :2] <= (camera.width, camera.height))).all(axis=1)
        if 1 - inside.mean() > most:
            most, view = float(1 - inside.mean()), number
    if most > _OUTSIDE:
        warnings.warn(
            f"{most:.0%} of the shape is outside the picture of view {view}: renderers.draw(renderers.fit(shape), ...)",
            stacklevel=3,
        )


def _mesh(shape: Any, preset: str) -> Mesh:
    if isinstance(shape, Mesh):
        return shape
    if hasattr(shape, "geometry"):  # a scene: its parts, where they stand
        return from_trimesh(shape.dump())
    if not hasattr(shape, "faces") or not hasattr(shape, "vertices"):
        raise ValueError(f"preset {preset} draws a mesh: give a trimesh.Trimesh, not {type(shape).__name__}")
    return from_trimesh([shape])


def _points(shape: Any, preset: str) -> np.ndarray:
    if hasattr(shape, "faces") or hasattr(shape, "geometry"):
        raise ValueError(f"preset {preset} draws points: give an (N, 3) array, such as the mesh's samples")
    try:
        points = np.asarray(shape, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"preset {preset} draws points: give an (N, 3) array, not {type(shape).__name__}") from None
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"points must be (N, 3) with N at least 1, got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite (NaN or infinity)")
    return points


def _stacked(views: list[View], channel: str) -> np.ndarray | None:
    return None if getattr(views[0], channel) is None else np.stack([getattr(view, channel) for view in views])
