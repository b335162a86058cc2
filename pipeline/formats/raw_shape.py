"""What one source file holds, in its own frame: a mesh, a cloud, colours, part labels (`RawShape`)."""

from __future__ import annotations

from dataclasses import dataclass, field

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
