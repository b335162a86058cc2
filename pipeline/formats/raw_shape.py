"""What one source file holds, in its own frame: a mesh, a cloud, colours, part labels (`RawShape`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from renderers.geometry import Mesh

_BOUND = 1e18  # beyond this, areas overflow in float64 when multiplied up


@dataclass(frozen=True)
class RawShape:
    """What one file held, in its own frame.

    mesh: or None for a file of points. points: float64 (N, 3) in the mesh's frame, or None where the cloud is to be
    sampled from the mesh; where there are both, the points are the cloud and the mesh is what pictures are drawn of.
    colors: uint8 (N, 3) of the points, or None. parts: uint8 (N,) part labels of the points, or None. upright: float64
    (4, 4), a rotation of this object's own that comes before the dataset's axes, or None. warnings: type -> count.
    """

    mesh: Mesh | None = None
    points: np.ndarray | None = None
    colors: np.ndarray | None = None
    parts: np.ndarray | None = None
    upright: np.ndarray | None = None
    warnings: dict[str, int] = field(default_factory=dict)


def check_finite(raw: RawShape) -> RawShape:
    """The same shape. Raises ValueError when it has no point, or one that is not finite or out of all bounds."""
    points = raw.mesh.vertices if raw.mesh is not None else raw.points
    if points is None or not len(points):
        raise ValueError("the file holds no points")
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite (NaN or infinity)")
    if np.abs(points).max() > _BOUND:
        raise ValueError(f"a coordinate of {np.abs(points).max():.1e} is no length")
    return raw


def placed(points: np.ndarray) -> np.ndarray:
    """bool (N,), which of points (N, 3) are finite."""
    return np.asarray(np.isfinite(points).all(axis=1))


def with_places(raw: RawShape) -> RawShape:
    """The same cloud without rows that have no place, as range cameras write where they saw nothing; they are counted.

    Raises ValueError when no row is left.
    """
    if raw.mesh is not None or raw.points is None or not len(raw.points):
        return raw
    kept = placed(raw.points)
    if kept.all():
        return raw
    if not kept.any():
        raise ValueError(f"none of its {len(kept):,} points has a place: all are NaN or infinite")
    return replace(
        raw,
        points=raw.points[kept],
        colors=None if raw.colors is None else raw.colors[kept],
        parts=None if raw.parts is None else raw.parts[kept],
        warnings={**raw.warnings, "points without a place": int(np.count_nonzero(~kept))},
    )


def without_strays(raw: RawShape) -> RawShape:
    """The same mesh without vertices that no face has, so that centre and scale are of its surface; they are counted.

    The other vertices and all faces keep their order.
    """
    if raw.mesh is None:
        return raw
    used = np.zeros(len(raw.mesh.vertices), bool)
    used[raw.mesh.faces.reshape(-1)] = True
    strays = len(used) - int(np.count_nonzero(used))
    if not strays:
        return raw
    colors, number = raw.mesh.vertex_colors, np.cumsum(used) - 1
    mesh = replace(
        raw.mesh,
        vertices=raw.mesh.vertices[used],
        faces=number[raw.mesh.faces],
        vertex_colors=None if colors is None else colors[used],
    )
    return replace(raw, mesh=mesh, warnings={**raw.warnings, "vertices without a face": strays})
