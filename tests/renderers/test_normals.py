"""Normals of triangle soups, by definition: corner by corner and vertex by vertex."""

from __future__ import annotations

import numpy as np
import pytest
from shapes import cube, sphere

from renderers.normals import corner_normals, face_normals, unique_faces, unit, vertex_normals, weld


def soup(num_vertices: int, num_faces: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vertices float32 and faces of random triangles that share them."""
    rng = np.random.default_rng(seed)
    faces = np.array([rng.choice(num_vertices, 3, replace=False) for _ in range(num_faces)])
    return rng.normal(size=(num_vertices, 3)).astype(np.float32), faces


def fan(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A flat cone of so many faces around one vertex."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    rim = np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], axis=1)
    faces = np.array([[0, 1 + i, 1 + (i + 1) % count] for i in range(count)])
    return np.concatenate([[[0, 0, 0.4]], rim]).astype(np.float32), faces


def turned(faces: np.ndarray, seed: int = 1) -> np.ndarray:
    """About half of the faces the other way round."""
    result, which = faces.copy(), np.random.default_rng(seed).random(len(faces)) < 0.5
    result[which] = result[which][:, ::-1]
    return result


def by_definition(vertices: np.ndarray, faces: np.ndarray, crease_deg: float) -> np.ndarray:
    """(F, 3, 3): the sum over the faces at a corner's vertex within the crease, each with the sign that agrees."""
    corners = vertices[faces].astype(float)
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    direction = area / np.linalg.norm(area, axis=1, keepdims=True)
    result = np.zeros((len(faces), 3, 3))
    for face in range(len(faces)):
        for corner in range(3):
            for other in np.flatnonzero((faces == faces[face, corner]).any(axis=1)):
                cosine = direction[face] @ direction[other]
                if abs(cosine) >= np.cos(np.deg2rad(crease_deg)):
                    result[face, corner] += np.sign(cosine) * area[other]
    return result / np.linalg.norm(result, axis=2, keepdims=True)


@pytest.mark.parametrize("crease_deg", [20, 40, 90])
@pytest.mark.parametrize(
    "shape",
    [soup(40, 60), soup(12, 60), fan(7), fan(40), (sphere(5).vertices, sphere(5).faces)],
    ids=["few faces a vertex", "many faces a vertex", "fan", "wide fan", "sphere"],
)
def test_corner_normals_by_definition(shape: tuple, crease_deg: int) -> None:
    """Whatever the winding: half of the faces are turned."""
    vertices, faces = shape[0].astype(np.float32), turned(shape[1])
    vertex = weld(vertices)[faces]
    kept = unique_faces(vertex)
    kept = kept[np.linalg.norm(face_normals(vertices[faces[kept]]), axis=1) > 1e-6]  # a pole's own are of rounding
    faces, vertex = faces[kept], vertex[kept]
    found = corner_normals(vertices[faces], vertex, crease_deg)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_definition(vertices, vertex, crease_deg), atol=2e-4)


def test_flat_normals_are_the_faces_own() -> None:
    vertices, faces = soup(12, 30)
    corners = vertices[faces]
    found = corner_normals(corners, faces, 0.0)
    for corner in range(3):
        np.testing.assert_allclose(found[:, corner], unit(face_normals(corners)), atol=1e-6)


def test_vertex_normals_by_definition() -> None:
    """PyTorch3D's: by the winding, so that faces of mixed winding cancel; not of length 1 where hardly any is left."""
    vertices, faces = soup(12, 30)
    corners = vertices[faces]
    found, area = vertex_normals(corners, faces, len(vertices)), face_normals(corners.astype(float))
    for face in range(len(faces)):
        for corner in range(3):
            total = area[(faces == faces[face, corner]).any(axis=1)].sum(axis=0)
            np.testing.assert_allclose(found[face, corner], total / np.linalg.norm(total), atol=1e-5)
    twice = np.concatenate([faces, faces[:, ::-1]])
    assert np.linalg.norm(vertex_normals(vertices[twice], twice, len(vertices)), axis=2).max() < 0.01


def test_normals_are_as_long_as_twice_the_area_and_point_by_the_winding() -> None:
    corners = np.array([[[0, 0, 0], [2, 0, 0], [0, 3, 0]], [[0, 0, 0], [0, 3, 0], [2, 0, 0]]], float)
    assert face_normals(corners).tolist() == [[0, 0, 6], [0, 0, -6]]
    rng = np.random.default_rng(0)
    corners = rng.normal(size=(20, 3, 3))
    expected = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(face_normals(corners), expected)
    mesh = cube()
    middle = mesh.vertices[mesh.faces].mean(axis=1)
    assert (np.einsum("fk,fk->f", face_normals(mesh.vertices[mesh.faces]), middle) > 0).all()  # outwards
    assert unit(np.array([[0.0, 0, 0], [0, 3, 4]])).tolist() == [[0, 0, 0], [0, 0.6, 0.8]]


def test_vertices_at_one_place_are_one() -> None:
    """0.0 and -0.0 are one place; what float32 tells apart is two."""
    places = [
        [1, 0.0, 2],
        [1, -0.0, 2],
        [-0.0, 1, 2],
        [0.0, 1, 2],
        [1, 0, 2 + 1e-12],
        [1, 0, 2.001],
        [2, 1, 0],
        [1, 0, 2],
    ]
    assert weld(np.array(places, float)).tolist() == [0, 0, 2, 2, 0, 5, 6, 0]


def test_faces_are_kept_once_and_those_without_an_area_not_at_all() -> None:
    """Whichever corner comes twice; faces that share an edge, or two of three numbers, are two."""
    faces = [
        [3, 1, 2],
        [2, 1, 3],
        [1, 1, 2],
        [1, 2, 2],
        [2, 1, 2],
        [4, 4, 4],
        [1, 2, 4],
        [1, 3, 4],
        [2, 3, 4],
        [4, 2, 1],
    ]
    assert unique_faces(np.array(faces)).tolist() == [0, 6, 7, 8]
    assert unique_faces(np.array([[0, 1, 2]])).tolist() == [0]
    assert unique_faces(np.array([[0, 0, 1]])).tolist() == []


@pytest.mark.parametrize("where", ["first", "last", "both"])
def test_a_face_without_an_area_changes_no_normal(where: str) -> None:
    """Three different corners on one line: it is no twin and repeats no corner."""
    mesh = cube()
    line = np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2]], float) * 0.1 + mesh.vertices[0]
    more = np.concatenate([mesh.vertices, line[1:]])
    flat = np.array([[0, 8, 9]])
    before, after = (flat if where in side else flat[:0] for side in (("first", "both"), ("last", "both")))
    faces = np.concatenate([before, mesh.faces, after])
    own = slice(len(before), len(before) + len(mesh.faces))
    for crease in (0.0, 40.0, 90.0):
        corners, vertex = more[faces].astype(np.float32), weld(more)[faces]
        found = corner_normals(corners, vertex, crease)[own]
        expected = corner_normals(mesh.vertices[mesh.faces].astype(np.float32), mesh.faces, crease)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.isfinite(corner_normals(corners, vertex, crease)).all()
    np.testing.assert_allclose(
        vertex_normals(more[faces], faces, len(more))[own],
        vertex_normals(mesh.vertices[mesh.faces], mesh.faces, len(mesh.vertices)),
        atol=1e-6,
    )
