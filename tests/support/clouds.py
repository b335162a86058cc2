"""Point clouds on surfaces that a formula gives, all within the unit sphere, float32 (N, 3)."""

from __future__ import annotations

import numpy as np


def sphere_points(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(count, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def plane_points(count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-0.8, 0.8, (2, count))
    return np.stack([x, y, 0.5 * x - 0.3 * y], axis=1).astype(np.float32)


def cube_points(count: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    points = rng.uniform(-0.55, 0.55, (count, 3))
    axis = rng.integers(3, size=count)
    points[np.arange(count), axis] = np.sign(points[np.arange(count), axis]) * 0.55
    return points.astype(np.float32)


CLOUDS = {"sphere": sphere_points, "plane": plane_points, "cube": cube_points}
