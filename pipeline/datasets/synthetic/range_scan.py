"""A simulated scan: what a range scanner measures of a scene from a few viewpoints.

Each viewpoint sends a grid of rays over the object's outline. A ray measures the range of the first surface it meets,
with noise along the ray; the cloud is cut out by the object's box and a margin, as an annotator would, and thinned
unevenly. Lengths are in radii: half the diagonal of the object's box.
"""

from __future__ import annotations

import numpy as np

from pipeline.datasets.synthetic.domain_gap import ScanOptions
from pipeline.datasets.synthetic.scenes import Extent
from renderers.cameras import direction, look_at
from renderers.geometry import Mesh
from renderers.raycast import first_hits
from renderers.sampling import sample_surface

_UP = np.array([0.0, 1.0, 0.0])


def scan(whole: Mesh, solid: Mesh, around: Extent, knobs: ScanOptions, rng: np.random.Generator) -> np.ndarray:
    """Points float64 (N, 3) of a scan, in the mesh's frame and unit.

    whole: the scene that rays meet. solid: the object in it, which the scanner is aimed at. around: the object's box.
    N follows from the rays that meet something: with the shipped gaps from one thousand to twenty.
    Raises ValueError when no ray meets anything near the object.
    """
    count = int(rng.integers(knobs.viewpoints[0], knobs.viewpoints[1] + 1))
    if not count:
        return sample_surface(solid, knobs.rays, rng)[0]
    rays = np.concatenate([_aimed(eye, solid, around, knobs.rays) for eye in _viewpoints(count, around, knobs, rng)])
    distance = first_hits(whole, rays.astype(np.float32))
    met = np.isfinite(distance)
    rays, distance = rays[met], distance[met].astype(np.float64)
    hit = rays[:, :3] + distance[:, None] * rays[:, 3:]
    error = knobs.range_noise * rng.standard_normal(len(hit))
    astray = rng.random(len(hit)) < knobs.outlier_share
    error[astray] = rng.uniform(-1, 1, np.count_nonzero(astray))
    points = hit + around.radius * error[:, None] * rays[:, 3:]
    points = points[_in_box(points, around, knobs.crop_margin)]
    if not len(points):
        raise ValueError("the scan meets nothing near the object")
    return points[_thinned(points, around, knobs.density_slope, rng)]


def _viewpoints(count: int, around: Extent, knobs: ScanOptions, rng: np.random.Generator) -> list[np.ndarray]:
    """Scanner positions (3,): a walk around the object in one sense, from anywhere."""
    azimuth, sense = 2 * np.pi * rng.random(), rng.choice((-1.0, 1.0))
    eyes = []
    for _ in range(count):
        distance, elevation = rng.uniform(*knobs.distance), rng.uniform(*knobs.elevation_deg)
        eyes.append(around.middle + around.radius * distance * direction(np.rad2deg(azimuth), elevation))
        azimuth += sense * rng.uniform(*knobs.spread_rad)
    return eyes


def _aimed(eye: np.ndarray, solid: Mesh, around: Extent, rays: int) -> np.ndarray:
    """About `rays` rays float64 (M, 6), origin and unit direction: a square grid over the object's outline box."""
    pose = look_at(eye, around.middle, _UP)
    moved = solid.vertices @ pose[:3, :3].T + pose[:3, 3]
    seen = moved[:, :2] / moved[:, 2:]
    low, high = seen.min(axis=0), seen.max(axis=0)
    step = np.sqrt(np.prod(np.maximum(high - low, 1e-6)) / rays)
    x, y = (np.arange(low[axis] + step / 2, high[axis], step) for axis in range(2))
    ahead = np.stack([*(a.ravel() for a in np.meshgrid(x, y)), np.ones(len(x) * len(y))], axis=1) @ pose[:3, :3]
    ahead /= np.linalg.norm(ahead, axis=1)[:, None]
    return np.concatenate([np.broadcast_to(eye, ahead.shape), ahead], axis=1)


def _in_box(points: np.ndarray, around: Extent, margin: float) -> np.ndarray:
    """Which points (N, 3) lie in the object's box, made larger by `margin` radii."""
    return (np.abs(points - around.middle) <= around.half + max(margin, 1e-3) * around.radius).all(axis=1)


def _thinned(points: np.ndarray, around: Extent, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Which points (N, 3) stay so that the density is exp(slope g.x) times what it was; g is drawn on the sphere."""
    towards = rng.standard_normal(3)
    towards /= np.linalg.norm(towards)
    exponent = slope * ((points - around.middle) @ towards) / around.radius
    return rng.random(len(points)) < np.exp(exponent - exponent.max())
