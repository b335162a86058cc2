"""Polygons of any size and shape: their triangles have their area, in OBJ, OFF and PLY alike."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
from mesh_builds import StoredFile, build_files

from pipeline.formats.polygons import triangulate
from renderers.normals import face_normals

Corners = list[tuple[float, float]]
C: Corners = [(1, 1), (1, 2), (3, 2), (3, 3), (0, 3), (0, 0), (3, 0), (3, 1)]
ROOM: Corners = [(0, 0), (1, 0), (1, 1), (1, 2), (2, 2), (2, 1), (1, 1), (1, 0), (3, 0), (3, 3), (0, 3)]  # with a hole
SHAPES: dict[str, tuple[Corners, float]] = {
    "C": (C, 7),
    "arrow": ([(0, 0), (2, 1), (0, 2), (1, 1)], 1),
    "arrow from its notch": ([(1, 1), (0, 0), (2, 1), (0, 2)], 1),
    "L": ([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)], 3),
    "corners on straight lines": ([(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (0, 1)], 3),
    "corners twice": ([(0, 0), (2, 0), (2, 0), (2, 1), (1, 1), (1, 1), (1, 2), (0, 2)], 3),
    "a hole at the end of a slit": (ROOM, 8),
    "touching itself": ([(0, 0), (2, 0), (4, 0), (4, 4), (2, 0), (0, 4)], 8),
    "comb": ([(0, 0), (9, 0), *((9 - i, 1 + 3 * (i % 2)) for i in range(10))], 22.5),
}


def tilted(corners: Corners) -> np.ndarray:
    """A polygon in a plane that is none of the axes'."""
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    return np.column_stack([np.array(corners, float), np.zeros(len(corners))]) @ turn.T


def written(corners: Corners) -> dict[str, str | bytes]:
    """The polygon in each format, with a square beside it that is right as a fan."""
    rows = tilted([*corners, (10, 0), (11, 0), (11, 1), (10, 1)])
    size, text = len(corners), "\n".join(" ".join(map(repr, row)) for row in rows.tolist())
    faces = [list(range(size)), list(range(size, size + 4))]
    numbers = "\n".join(f"{len(face)} {' '.join(map(str, face))}" for face in faces)
    head = f"element vertex {size + 4}\n" + "".join(f"property double {axis}\n" for axis in "xyz")
    head += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    body = rows.astype(">f8").tobytes() + b"".join(struct.pack(f">B{len(f)}i", len(f), *f) for f in faces)
    return {
        "a.obj": "v " + text.replace("\n", "\nv ") + "".join(f"\nf {' '.join(str(i + 1) for i in f)}" for f in faces),
        "a.off": f"OFF\n{size + 4} 2 0\n{text}\n{numbers}\n",
        "a.ply": f"ply\nformat ascii 1.0\n{head}{text}\n{numbers}\n",
        "b.ply": f"ply\nformat binary_big_endian 1.0\n{head}".encode() + body,
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredFile]:
    files = {f"{name}/{path}": data for name, (c, _) in SHAPES.items() for path, data in written(c).items()}
    return build_files(tmp_path_factory.mktemp("polygons"), files)


@pytest.mark.parametrize("path", ["a.obj", "a.off", "a.ply", "b.ply"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_area_is_the_polygons(built: dict[str, StoredFile], name: str, path: str) -> None:
    assert built[f"{name}/{path}"].area == pytest.approx(SHAPES[name][1] + 1, rel=1e-4)
    assert built[f"{name}/{path}"].warnings.keys() <= {
        "vertices without a face",
        "zero-area faces",
    }  # of a corner on a straight line


def area_of(points: np.ndarray) -> tuple[float, float]:
    """(of the triangles, of the polygon by Newell)."""
    triangles, owner = triangulate(points, np.arange(len(points)), np.array([len(points)]))
    assert not owner.any()
    newell = np.cross(points - points[0], np.roll(points, -1, axis=0) - points[0]).sum(axis=0)
    return np.linalg.norm(face_normals(points[triangles]), axis=1).sum() / 2, np.linalg.norm(newell) / 2


def test_random_polygons_from_every_corner() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = int(rng.integers(5, 40))
        angle = (np.arange(size) + rng.uniform(0, 0.8, size)) * 2 * np.pi / size
        radius = rng.uniform(0.1, 1, size)
        points = tilted(np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]).tolist())
        ours, right = area_of(np.roll(points, int(rng.integers(size)), axis=0))
        assert ours == pytest.approx(right, rel=1e-9)
    for corners, area in SHAPES.values():
        for turn in range(len(corners)):
            ours, _ = area_of(tilted(corners[turn:] + corners[:turn])[:: -1 if turn % 2 else 1])
            assert ours == pytest.approx(area, rel=1e-9)


def test_a_polygon_of_ten_thousand_corners_takes_seconds() -> None:
    """A spiral and a star; clipping one ear after the other took minutes."""
    begun = time.perf_counter()
    turn = np.linspace(0, 40 * np.pi, 5000)
    inner, outer = (np.column_stack([(turn + w) * np.cos(turn), (turn + w) * np.sin(turn)]) for w in (1, 3))
    angle, radius = np.linspace(0, 2 * np.pi, 10_000, endpoint=False), np.tile([1, 0.5], 5000)
    for flat in (
        np.concatenate([inner, outer[::-1]]),
        np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]),
    ):
        ours, right = area_of(tilted(flat.tolist()))
        assert ours == pytest.approx(right, rel=1e-9)
    assert time.perf_counter() - begun < 15


def test_a_convex_polygon_stays_a_fan_and_many_are_cut_apart() -> None:
    angle = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    points = np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    corners = np.concatenate([np.arange(6), [0, 2, 4], [0, 1, 2, 3], [5, 1], [2, 5, 4, 3]])
    triangles, owner = triangulate(points, corners, np.array([6, 3, 4, 2, 4]))
    assert corners[triangles].tolist() == [
        *([0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5]),
        [0, 2, 4],
        *([0, 1, 2], [0, 2, 3]),
        *([2, 5, 4], [2, 4, 3]),
    ]
    assert owner.tolist() == [0, 0, 0, 0, 1, 2, 2, 4, 4]


def test_polygons_without_a_right_cut_end(tmp_path) -> None:
    """A bow tie, a line, one point, and corners that are not finite."""
    for corners in ([(0, 0), (1, 1), (1, 0), (0, 1)], [(0, 0), (1, 0), (3, 0), (2, 0)], [(1, 1)] * 5):
        assert len(triangulate(tilted(corners), np.arange(len(corners)), np.array([len(corners)]))[0]) > 0
    points = np.array([[0, 0, 0], [np.nan, 0, 0], [1, 1, 0], [0, np.inf, 0]])
    assert len(triangulate(points, np.arange(4), np.array([4]))[0]) == 2
    pentagram = [(np.cos(2.4 * np.pi * i), np.sin(2.4 * np.pi * i)) for i in range(5)]
    assert len(triangulate(tilted([*pentagram, (0.1, 0)]), np.arange(6), np.array([6]))[0]) > 0
