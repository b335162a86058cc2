"""Textured solids that everyday objects are put together from: boxes, turned solids, tubes and plates.

Every solid is closed, its faces run counter-clockwise seen from outside, and it stands in the world frame: +Y up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from renderers.geometry import Material, Mesh, join

Vector = Sequence[float] | np.ndarray
Values = dict[str, float]  # the parameters of one object, by name
SEGMENTS = 20
TEXTURE_SIZE = 32
NUM_PATTERNS = 5


@dataclass(frozen=True)
class Part:
    """One closed solid: vertices (V, 3), faces (F, 3), corner_uvs (F, 3, 2), and which paint it wears."""

    vertices: np.ndarray
    faces: np.ndarray
    corner_uvs: np.ndarray
    paint: int = 0

    def moved(self, by: Vector) -> Part:
        """The same solid elsewhere."""
        return Part(self.vertices + np.asarray(by, float), self.faces, self.corner_uvs, self.paint)

    def turned(self, axis: str, degrees: float, about: Vector = (0, 0, 0)) -> Part:
        """The same solid turned about an axis (right-handed) through a point."""
        a, origin = np.deg2rad(degrees), np.asarray(about, float)
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        matrix = np.eye(3)
        matrix[i, i] = matrix[j, j] = np.cos(a)
        matrix[i, j], matrix[j, i] = -np.sin(a), np.sin(a)
        return Part((self.vertices - origin) @ matrix.T + origin, self.faces, self.corner_uvs, self.paint)

    def painted(self, paint: int) -> Part:
        """The same solid in another paint."""
        return Part(self.vertices, self.faces, self.corner_uvs, paint)


_BOX_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float) / 2
_BOX_QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


def box(size: Vector, centre: Vector = (0, 0, 0), taper: float = 1.0) -> Part:
    """A box of `size` around `centre`; its top is `taper` times as wide and deep as its bottom."""
    corners = _BOX_CORNERS.copy()
    corners[corners[:, 1] > 0, 0] *= taper
    corners[corners[:, 1] > 0, 2] *= taper
    faces = np.concatenate([_BOX_QUADS[:, [0, 1, 2]], _BOX_QUADS[:, [0, 2, 3]]])
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    uvs = np.concatenate([np.tile(square[[0, 1, 2]], (6, 1, 1)), np.tile(square[[0, 2, 3]], (6, 1, 1))])
    return Part(corners * np.asarray(size, float) + np.asarray(centre, float), faces, uvs)


def turned_solid(profile: Sequence[tuple[float, float]], segments: int = SEGMENTS) -> Part:
    """A solid of revolution about +Y. profile: (radius, height) from bottom to top, closed at both ends on the axis."""
    rings = [(max(r, 0.0), y) for r, y in profile]
    if rings[0][0] > 0:
        rings.insert(0, (0.0, rings[0][1]))
    if rings[-1][0] > 0:
        rings.append((0.0, rings[-1][1]))
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    circle = np.stack([np.sin(angle), np.zeros(segments), np.cos(angle)], axis=1)
    vertices: list[np.ndarray] = []
    start: list[int] = []
    for radius, height in rings:
        start.append(sum(map(len, vertices)))
        vertices.append(circle * radius + [0, height, 0] if radius > 0 else np.array([[0.0, height, 0.0]]))
    faces, uvs = [], []
    for ring in range(len(rings) - 1):
        low, high = start[ring], start[ring + 1]
        v0, v1 = ring / (len(rings) - 1), (ring + 1) / (len(rings) - 1)
        for s in range(segments):
            t, u0, u1 = (s + 1) % segments, s / segments, (s + 1) / segments
            if rings[ring][0] > 0:
                faces.append([low + s, low + t, high + (t if rings[ring + 1][0] > 0 else 0)])
                uvs.append([[u0, v0], [u1, v0], [u1, v1]])
            if rings[ring + 1][0] > 0:
                faces.append([low + (s if rings[ring][0] > 0 else 0), high + t, high + s])
                uvs.append([[u0, v0], [u1, v1], [u0, v1]])
    return Part(np.concatenate(vertices), np.array(faces), np.array(uvs, float))


def cylinder(radius: float, height: float, centre: Vector = (0, 0, 0), top: float | None = None) -> Part:
    """A cylinder (or a frustum, with another radius at the top) along +Y around `centre`."""
    top = radius if top is None else top
    return turned_solid([(radius, -height / 2), (top, height / 2)]).moved(centre)


def ellipsoid(size: Vector, centre: Vector = (0, 0, 0)) -> Part:
    """An ellipsoid of `size` (full widths) around `centre`."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 11)
    part = turned_solid([(0.0 if abs(a) > 1.57 else np.cos(a) / 2, np.sin(a) / 2) for a in angle])
    return Part(part.vertices * np.asarray(size, float) + np.asarray(centre, float), part.faces, part.corner_uvs)


def tube(path: Sequence[Vector] | np.ndarray, radius: float, sides: int = 8) -> Part:
    """A round bar along a path (P, 3) without sharp turns, closed at both ends."""
    points = np.asarray(path, float)
    tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1)[:, None]
    side = np.cross(tangent[0], [1.0, 0, 0] if abs(tangent[0, 0]) < 0.9 else [0, 1.0, 0])
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    rings = []
    for point, along in zip(points, tangent, strict=True):
        side = side - along * (side @ along)
        side /= np.linalg.norm(side)
        other = np.cross(along, side)
        rings.append(point + radius * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other))
    vertices = np.concatenate([*rings, points[:1], points[-1:]])
    first, last = len(vertices) - 2, len(vertices) - 1
    faces, uvs = [], []
    for i in range(len(points) - 1):
        v0, v1 = i / (len(points) - 1), (i + 1) / (len(points) - 1)
        for s in range(sides):
            t, u0, u1 = (s + 1) % sides, s / sides, (s + 1) / sides
            a, b, c, d = i * sides + s, i * sides + t, (i + 1) * sides + t, (i + 1) * sides + s
            faces += [[a, b, c], [a, c, d]]
            uvs += [[[u0, v0], [u1, v0], [u1, v1]], [[u0, v0], [u1, v1], [u0, v1]]]
    end = (len(points) - 1) * sides
    for s in range(sides):
        t = (s + 1) % sides
        faces += [[first, t, s], [last, end + s, end + t]]
        uvs += [[[0.5, 0.5], [0, 0], [1, 0]], [[0.5, 0.5], [1, 0], [0, 0]]]
    return Part(vertices, np.array(faces), np.array(uvs, float))


def bar(start: Vector, end: Vector, radius: float) -> Part:
    """A straight round bar."""
    return tube(np.linspace(start, end, 3), radius)


def plate(outline: Sequence[tuple[float, float]], thickness: float, centre: Vector = (0, 0, 0)) -> Part:
    """A plate in the x-y plane: a star-shaped outline (counter-clockwise, seen from +Z) pulled out along z."""
    ring = np.asarray(outline, float)
    count, middle = len(ring), ring.mean(axis=0)
    flat = np.concatenate([ring, middle[None]])
    front = np.concatenate([flat, np.full((count + 1, 1), thickness / 2)], axis=1)
    back = np.concatenate([flat, np.full((count + 1, 1), -thickness / 2)], axis=1)
    low, high = flat.min(axis=0), flat.max(axis=0)
    uv = (flat - low) / np.maximum(high - low, 1e-9)
    faces, uvs = [], []
    for i in range(count):
        j = (i + 1) % count
        faces += [[count, i, j], [2 * count + 1, count + 1 + j, count + 1 + i]]
        uvs += [[uv[count], uv[i], uv[j]], [uv[count], uv[j], uv[i]]]
        faces += [[i, count + 1 + i, count + 1 + j], [i, count + 1 + j, j]]
        uvs += [[uv[i], uv[i], uv[j]], [uv[i], uv[j], uv[j]]]
    return Part(np.concatenate([front, back]) + np.asarray(centre, float), np.array(faces), np.array(uvs, float))


def assemble(parts: list[Part], paints: Sequence[Material]) -> Mesh:
    """One mesh of many parts, a part's paint naming its material."""
    return join(
        [Mesh(p.vertices, p.faces, (paints[p.paint],), corner_uvs=p.corner_uvs.astype(np.float32)) for p in parts]
    )


def make_paint(rng: np.random.Generator) -> Material:
    """A material of any class: one of five textures in two related colours. Colours tell nothing about the class."""
    hue, value = rng.uniform(0, 1), rng.uniform(0.35, 0.9)
    first = hsv(hue, rng.uniform(0.1, 0.8), value)
    second = hsv(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.1, 0.8), np.clip(value + rng.uniform(-0.3, 0.3), 0, 1))
    return textured(first, second, pattern(int(rng.integers(NUM_PATTERNS)), rng))


def pattern(kind: int, rng: np.random.Generator) -> np.ndarray:
    """One of NUM_PATTERNS textures: float (S, S) in [0, 1], how much of the second colour."""
    size = TEXTURE_SIZE
    x, y = np.meshgrid(np.arange(size) / size, np.arange(size) / size)
    count = int(rng.integers(2, 6))
    if kind == 0:  # plain, with a little noise
        return 0.15 * rng.random((size, size))
    if kind == 1:  # stripes
        return (np.sin(2 * np.pi * count * x) > 0).astype(float)
    if kind == 2:  # checks
        return ((np.floor(x * 2 * count) + np.floor(y * 2 * count)) % 2).astype(float)
    if kind == 3:  # wood: bent lines
        bend = 0.2 * np.sin(2 * np.pi * (y + rng.random()))
        return 0.5 + 0.5 * np.sin(2 * np.pi * (count * 2 * (x + bend)))
    return rng.random((size, size))  # speckles


def textured(first: np.ndarray, second: np.ndarray, blend: np.ndarray) -> Material:
    """An opaque material: the first RGB colour (3,) where `blend` (S, S) is 0, the second where it is 1."""
    mixed = first + (second - first) * blend[..., None]
    alpha = np.ones((*blend.shape, 1))
    picture = np.rint(np.concatenate([mixed, alpha], axis=2) * 255).astype(np.uint8)
    return Material((1.0, 1.0, 1.0, 1.0), picture)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB float (3,) in [0, 1] of a hue (any real number), a saturation and a value."""
    channel = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return value * (1 + saturation * (np.clip(channel, 0, 1) - 1))
