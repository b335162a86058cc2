"""Meshes, sampling, farthest points, normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderers.geometry import Material, Mesh, join, transform
from renderers.sampling import NORMALIZATIONS, farthest_points, has_color, normalization, sample_surface

TRIANGLES = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 3, 5]], float)


def two_triangles() -> Mesh:
    return Mesh(TRIANGLES, np.array([[0, 1, 2], [3, 4, 5]]))


def test_sampling_is_area_weighted_and_on_the_surface() -> None:
    points, colors = sample_surface(two_triangles(), 20000, np.random.default_rng(0))
    height = points[:, 2].round(12)
    assert set(height) == {0.0, 5.0}
    assert (height == 5).mean() == pytest.approx(0.9, abs=0.01)  # areas 0.5 and 4.5
    small = points[height == 0]
    assert (small[:, :2].sum(axis=1) <= 1 + 1e-12).all()
    np.testing.assert_allclose(small[:, :2].mean(axis=0), 1 / 3, atol=0.02)
    assert (colors == round(0.7 * 255)).all()


def test_samples_wear_their_texture() -> None:
    picture = np.zeros((2, 1, 4), np.uint8)
    picture[0], picture[1] = [255, 0, 0, 255], [0, 0, 255, 255]  # red above, blue below
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = corners[:, :2].astype(np.float32)[faces] * 0.5 + 0.25  # from texel centre to texel centre
    mesh = Mesh(corners, faces, (Material((1, 1, 1, 1), picture),), corner_uvs=uv)
    points, colors = sample_surface(mesh, 500, np.random.default_rng(0))
    assert has_color(mesh)
    np.testing.assert_allclose(colors[:, 0], 255 * points[:, 1], atol=2)
    np.testing.assert_allclose(colors[:, 2], 255 * (1 - points[:, 1]), atol=2)


def test_zero_area_is_refused() -> None:
    with pytest.raises(ValueError, match="zero area"):
        sample_surface(Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])), 10, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["mn10_chair_0890", "sn_motorcycle_923ce819"])
def test_farthest_points_equal_golden(golden, name: str) -> None:
    data = np.load(golden / "render" / "fps_1024_of_8192.npz")
    np.testing.assert_array_equal(farthest_points(data[f"{name}_points8192"], 1024), data[f"{name}_fps_idx_f64"])


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(0, 10**6))
def test_farthest_points_by_definition(count: int, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(60, 3)).astype(np.float32)
    chosen = farthest_points(points, count)
    assert chosen[0] == 0
    for i in range(1, count):
        distance = ((points[:, None].astype(float) - points[chosen[:i]]) ** 2).sum(-1).min(axis=1)
        assert distance[chosen[i]] >= distance.max() - 1e-5


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalizations(name: str) -> None:
    rng = np.random.default_rng(0)
    points, vertices = rng.normal(2, 3, (100, 3)), rng.normal(1, 2, (50, 3))
    matrix = normalization(name, points, vertices)
    p, v = transform(matrix, points), transform(matrix, vertices)
    if name == "sphere_mean_points":
        np.testing.assert_allclose(p.mean(axis=0), 0, atol=1e-12)
        assert np.linalg.norm(p, axis=1).max() == pytest.approx(1)
    elif name == "sphere_mean_verts":
        assert np.linalg.norm(v, axis=1).max() == pytest.approx(1)
    elif name == "none":
        np.testing.assert_array_equal(matrix, np.eye(4))
    else:
        side = v.max(axis=0) - v.min(axis=0)
        assert side.max() == pytest.approx(1.0 if name == "bbox_unit_cube" else 0.8)
        np.testing.assert_allclose(v.max(axis=0) + v.min(axis=0), 0, atol=1e-12)


def test_one_point_has_no_extent() -> None:
    with pytest.raises(ValueError, match="no extent"):
        normalization("sphere_mean_points", np.ones((5, 3)), None)


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (np.full((3, 3), np.nan), [[0, 1, 2]], "not finite"),
        (np.zeros((3, 3)), [[0, 1, 3]], "vertex 3 of 3"),
        (np.zeros((3, 2)), [[0, 1, 2]], r"\(V, 3\)"),
    ],
)
def test_a_mesh_is_checked_when_it_is_made(vertices: np.ndarray, faces: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mesh(vertices, np.array(faces))


def test_join_keeps_materials_apart() -> None:
    red = Mesh(TRIANGLES[:3], np.array([[0, 1, 2]]), (Material((1, 0, 0, 1)),))
    both = join([red, two_triangles()])
    assert both.face_material.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(both.vertices[both.faces[1]], TRIANGLES[:3])
