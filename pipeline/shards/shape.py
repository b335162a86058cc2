"""Makes the shape that is stored from what a file holds: axes, surface samples, normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from manifests.dataset_info import axes_matrix
from manifests.records import Asset
from manifests.rng import generator
from pipeline.sources.raw_shape import RawShape
from renderers.geometry import Mesh, transform
from renderers.normals import undrawn_faces
from renderers.sampling import farthest_points, has_color, normalization, sample_surface


@dataclass(frozen=True)
class Shape:
    """One object in the world frame (+Y up), normalised.

    points: float32 (N, 3), the first `fps_prefix` of them in farthest-point order. colors: uint8 (N, 3) or None.
    parts: uint8 (N,) or None. mesh: normalised by the same matrix, or None. world_from_source: float64 (4, 4).
    """

    asset: Asset
    points: np.ndarray
    colors: np.ndarray | None
    parts: np.ndarray | None
    mesh: Mesh | None
    world_from_source: np.ndarray
    warnings: dict[str, int]

    def __post_init__(self) -> None:
        if self.points.dtype != np.float32 or self.points.ndim != 2 or self.points.shape[1] != 3:
            raise ValueError(f"points must be float32 (N, 3), got {self.points.dtype} {self.points.shape}")
        if not np.isfinite(self.points).all():
            raise ValueError("a normalised point is not finite")


def make_shape(
    asset: Asset,
    raw: RawShape,
    *,
    axes: tuple[str, str, str],
    seed: int,
    num_points: int,
    fps_prefix: int,
    normalize: str,
) -> Shape:
    """Takes the given points or samples the surface, puts a farthest-point prefix first and normalises.

    num_points: N, area-weighted samples of a mesh, or a random choice of given points; a source with fewer points keeps
    what it has. normalize: a name of renderers.sampling.NORMALIZATIONS; where points are given they alone decide, and
    the mesh is moved with them. Raises ValueError when the surface or the extent is zero.
    """
    rng, turn = generator(seed, asset.key), axes_matrix(axes)
    if raw.upright is not None:
        turn = turn @ raw.upright
    colors, parts = raw.colors, raw.parts
    vertices = None
    if raw.points is None:
        surface = cast(Mesh, raw.mesh)  # a RawShape without points has one
        points, sampled = sample_surface(surface, num_points, rng)
        colors = sampled if has_color(surface) else None
        vertices = transform(turn, surface.vertices)
    else:
        points = raw.points
        if len(points) > num_points:
            chosen = np.sort(rng.permutation(len(points))[:num_points])
            points = points[chosen]
            colors = None if colors is None else colors[chosen]
            parts = None if parts is None else parts[chosen]
    turned = transform(turn, points)
    world_from_source = normalization(normalize, turned, vertices) @ turn
    points = transform(world_from_source, points).astype(np.float32)
    mesh = None if raw.mesh is None else raw.mesh.transformed(world_from_source)
    order = prefix_order(points, fps_prefix)
    return Shape(
        asset=asset,
        points=np.ascontiguousarray(points[order]),
        colors=None if colors is None else np.ascontiguousarray(colors[order]),
        parts=None if parts is None else np.ascontiguousarray(parts[order]),
        mesh=mesh,
        world_from_source=world_from_source,
        warnings=raw.warnings if mesh is None else raw.warnings | _undrawn(mesh),
    )


def _undrawn(mesh: Mesh) -> dict[str, int]:
    """Warnings about the faces of a normalised mesh that are not drawn."""
    zero_area, double = undrawn_faces(mesh.vertices, mesh.faces)
    return {kind: n for kind, n in (("zero-area faces", zero_area), ("double faces", double)) if n}


def prefix_order(points: np.ndarray, fps_prefix: int) -> np.ndarray:
    """An order of points (N, 3): farthest-point samples from index 0 first, then the rest as they came."""
    first = farthest_points(points, min(fps_prefix, len(points)))
    rest = np.ones(len(points), bool)
    rest[first] = False
    return np.concatenate([first, np.flatnonzero(rest)])
