"""The scene around an object of the target domain: a piece of floor, things that stand beside it, other paints.

Pictures and scans see one scene. What each of them sees of it is set by its own knobs: a side with the lower chance
sees a part of what the other side sees, so that either gap can be changed without the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.synthetic.domain_gap import SceneOptions, Surroundings
from pipeline.datasets.synthetic.primitives import (
    NUM_PATTERNS,
    TEXTURE_SIZE,
    Part,
    box,
    cylinder,
    ellipsoid,
    hsv,
    pattern,
    textured,
)
from renderers.geometry import Material, Mesh

NUM_NEW_PATTERNS = 4
MOST_CLUTTER = 6
_FLOOR_THICKNESS = 0.02  # radii
_UNDER = 0.002  # how far the floor lies under the object, radii: two surfaces in one plane would be drawn as spots


@dataclass(frozen=True)
class Extent:
    """The box of an object: its middle (3,), half its sides (3,) and half its diagonal, source units."""

    middle: np.ndarray
    half: np.ndarray
    radius: float


def extent(mesh: Mesh) -> Extent:
    """The axis-parallel box of a mesh."""
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    return Extent((low + high) / 2, (high - low) / 2, float(np.linalg.norm(high - low)) / 2)


@dataclass(frozen=True)
class SceneDraws:
    """Uniform draws in [0, 1) that decide a scene; knobs turn them into lengths and counts.

    floor: (5,) chance, two sides, two offsets. clutter_count: one draw. clutter: (MOST_CLUTTER, 6) kind, bearing,
    gap, three sizes.
    """

    floor: np.ndarray
    clutter_count: float
    clutter: np.ndarray


def draw_scene(rng: np.random.Generator) -> SceneDraws:
    """The draws of one scene."""
    return SceneDraws(rng.random(5), float(rng.random()), rng.random((MOST_CLUTTER, 6)))


def surroundings(draws: SceneDraws, knobs: Surroundings, around: Extent) -> list[Part]:
    """Floor and clutter around an object, as closed parts; all wear paint 0 but for the floor's 1."""
    parts = []
    ground = around.middle[1] - around.half[1] - _UNDER * around.radius
    if draws.floor[0] < knobs.floor_chance:
        width, depth = around.radius * _between(knobs.floor_size, draws.floor[1:3])
        thickness = _FLOOR_THICKNESS * around.radius
        x, z = around.middle[[0, 2]] + 0.3 * around.radius * (2 * draws.floor[3:5] - 1)
        parts.append(box((width, thickness, depth), (x, ground - thickness / 2, z)).painted(1))
    for row in draws.clutter[: _poisson(draws.clutter_count, knobs.clutter_mean)]:
        parts.append(_clutter(row, knobs, around, ground))
    return parts


def _between(limits: tuple[float, float], share: np.ndarray) -> np.ndarray:
    return limits[0] + (limits[1] - limits[0]) * share


def _poisson(draw: float, mean: float) -> int:
    """The count whose Poisson distribution function first exceeds a uniform draw, MOST_CLUTTER at most."""
    count, term = 0, math.exp(-mean)
    total = term
    while draw >= total and count < MOST_CLUTTER:
        count += 1
        term *= mean / count
        total += term
    return count


def _clutter(row: np.ndarray, knobs: Surroundings, around: Extent, ground: float) -> Part:
    """A box, a cylinder or an egg that stands beside the object's box, touching it or up to half a width away."""
    size = around.radius * _between(knobs.clutter_size, row[3:6])
    bearing = 2 * np.pi * row[1]
    towards = np.array([np.sin(bearing), 0, np.cos(bearing)])
    reach = around.half[[0, 2]] / np.maximum(np.abs(towards[[0, 2]]), 1e-9)
    wide = max(size[0], size[2])
    middle = around.middle + towards * (reach.min() + wide * (0.5 + 0.5 * row[2]))
    middle[1] = ground + size[1] / 2
    if row[0] < 1 / 3:
        return box(size, middle)
    if row[0] < 2 / 3:
        return cylinder(wide / 2, size[1], middle)
    return ellipsoid(size, middle)


def make_target_paint(rng: np.random.Generator, knobs: SceneOptions) -> Material:
    """A material of the target domain: two colours of its palette in one of the source's textures or a new one."""
    hue, value = rng.random(), rng.uniform(*knobs.value)
    other = np.clip(value + knobs.value_shift * rng.uniform(-1, 1), 0, 1)
    first = hsv(hue, rng.uniform(*knobs.saturation), value)
    second = hsv(hue + knobs.hue_shift * rng.uniform(-1, 1), rng.uniform(*knobs.saturation), other)
    new = rng.random() < knobs.new_texture_chance
    if new:
        return textured(first, second, _new_pattern(int(rng.integers(NUM_NEW_PATTERNS)), rng))
    return textured(first, second, pattern(int(rng.integers(NUM_PATTERNS)), rng))


def _new_pattern(kind: int, rng: np.random.Generator) -> np.ndarray:
    """A texture that no source object wears: float (S, S) in [0, 1], as `primitives.pattern`."""
    size = TEXTURE_SIZE
    x, y = np.meshgrid(np.arange(size) / size, np.arange(size) / size)
    count = int(rng.integers(2, 6))
    if kind == 0:  # blotches: noise in blocks of four texels
        return np.kron(rng.random((size // 4, size // 4)), np.ones((4, 4)))
    if kind == 1:  # rings
        return 0.5 + 0.5 * np.sin(2 * np.pi * 2 * count * np.hypot(x - 0.5, y - 0.5))
    if kind == 2:  # slanted bands
        return (np.sin(2 * np.pi * count * (x + y)) > 0).astype(float)
    across = (np.floor(x * 8) + np.floor(y * 8)) % 2  # fine checks with noise
    return np.clip(across + 0.3 * rng.standard_normal((size, size)), 0, 1)
