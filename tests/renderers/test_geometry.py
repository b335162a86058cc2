"""Meshes, sampling, farthest points, normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from renderers.geometry import GREY, Material, Mesh, from_trimesh, join, rigid_scale, transform, with_ground
from renderers.sampling import (
    NORMALIZATIONS,
    farthest_points,
    has_color,
    normalization,
    sample_surface,
    surface_colors,
)

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


@pytest.mark.parametrize("place", [[1.0, 1.0, 1.0], [1e6 + 0.1, -3e5 / 7, 0.3], [0.1, 0.2, 1e9 / 3]])
def test_one_point_has_no_extent(place: list[float]) -> None:
    """Also where the mean of a thousand equal points is a little off: its rounding would be blown up to radius 1."""
    for count in (5, 1000, 1023):
        with pytest.raises(ValueError, match="no extent"):
            normalization("sphere_mean_points", np.tile(place, (count, 1)), None)


def test_a_cloud_without_a_mesh_stands_in_for_its_vertices() -> None:
    points, vertices = np.random.default_rng(0).normal(2, 3, (2, 50, 3))
    for name in NORMALIZATIONS:
        np.testing.assert_array_equal(normalization(name, points, None), normalization(name, points, points))
    by_vertices = normalization("sphere_mean_verts", points, vertices)
    np.testing.assert_allclose(transform(by_vertices, vertices).mean(axis=0), 0, atol=1e-12)
    np.testing.assert_array_equal(by_vertices, normalization("sphere_mean_points", vertices, None))


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (np.full((3, 3), np.nan), [[0, 1, 2]], "not finite"),
        (np.zeros((3, 3)), [[0, 1, 3]], "vertex 3 of 3"),
        (np.zeros((3, 3)), [[0, 1, -1]], "a face names vertex"),
        (np.full((3, 3), np.inf), [[0, 1, 2]], "not finite"),
        (np.zeros((3, 3)), [[0, 1, 2, 2]], r"\(F, 3\)"),
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"face_material": np.array([1, 0])}, "material 1 of 1"),
        ({"face_material": np.array([0, -1])}, "a face names material"),
        ({"face_material": np.array([0])}, r"face_material must be \(2,\)"),
        ({"corner_uvs": np.zeros((3, 3, 2), np.float32)}, r"corner_uvs must be \(2, 3, 2\)"),
        ({"vertex_colors": np.zeros((6, 3), np.uint8)}, r"vertex_colors must be \(6, 4\)"),
    ],
)
def test_what_belongs_to_faces_and_vertices_is_checked(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mesh(TRIANGLES, np.array([[0, 1, 2], [3, 4, 5]]), **fields)


def test_matrices_act_on_columns() -> None:
    """A quarter turn about +Z takes +X to +Y; then everything is moved."""
    turn = np.array([[0, -1, 0, 1.0], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(transform(turn, np.array([[1.0, 0, 0], [0, 1, 0]])), [[1, 3, 3], [0, 2, 3]])
    moved = two_triangles().transformed(turn)
    np.testing.assert_array_equal(moved.vertices, transform(turn, TRIANGLES))
    np.testing.assert_array_equal(
        transform(rigid_scale(2.0, np.array([1, 0, 0])), TRIANGLES[:2]), [[1, 0, 0], [3, 0, 0]]
    )


def test_join_gives_every_part_its_own_and_the_others_nothing_strange() -> None:
    """White vertex colours beside painted parts, uv 0 beside textured ones."""
    uv = np.random.default_rng(0).random((1, 3, 2)).astype(np.float32)
    textured = Mesh(TRIANGLES[:3], np.array([[2, 1, 0]]), (Material((1, 1, 1, 1)), Material()), np.array([1]), uv)
    painted = Mesh(TRIANGLES[:3], np.array([[0, 1, 2]]), vertex_colors=np.full((3, 4), 7, np.uint8))
    both = join([two_triangles(), textured, painted])
    assert both.faces.tolist() == [[0, 1, 2], [3, 4, 5], [8, 7, 6], [9, 10, 11]]
    assert both.face_material.tolist() == [0, 0, 2, 3]
    np.testing.assert_array_equal(both.corner_uvs[2], uv[0])
    assert (both.corner_uvs[[0, 1, 3]] == 0).all()
    assert both.vertex_colors.tolist() == [[255] * 4] * 9 + [[7] * 4] * 3


def test_the_ground_touches_the_lowest_point_that_is_drawn() -> None:
    """A stray vertex far below belongs to no face."""
    stray = Mesh(np.concatenate([TRIANGLES - [0, 0.5, 0], [[0, -9, 0]]]), np.array([[0, 1, 2], [3, 4, 5]]))
    whole = with_ground(stray, 0.8, [0.1, 0.2, 0.3])
    square = whole.vertices[7:]
    assert (square[:, 1] == -0.5).all()
    assert np.abs(square[:, [0, 2]]).tolist() == [[0.8, 0.8]] * 4
    corners = whole.vertices[whole.faces[2:]]
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(area, [[0, 2 * 0.8**2 * 2, 0]] * 2)  # each half of the square, seen from above
    assert whole.materials[-1].base_color == (0.1, 0.2, 0.3, 1.0)


# --- sampling


class Draws:
    """A generator whose numbers are given: the places to look at are too rare to wait for."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def random(self, count: int) -> np.ndarray:
        return np.resize(self.values, count)


@pytest.mark.parametrize("faces", [[[0, 0, 1], [0, 1, 2], [2, 2, 2]], [[0, 1, 3], [0, 1, 2], [0, 3, 1]]])
@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
def test_no_point_lies_on_a_face_without_an_area(faces: list, draw: float) -> None:
    """A first and a last one, at both ends of what is drawn: its points would be copies of a corner or lie on a line.

    A random number is below 1; times the area it may be rounded up to all of it.
    """
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0, 0]], float)
    materials = (Material((1, 0, 0, 1)), Material((0, 1, 0, 1)), Material((0, 0, 1, 1)))
    mesh = Mesh(corners, np.array(faces), materials, np.array([0, 1, 2]))
    _, colors = sample_surface(mesh, 4, Draws(draw))
    assert colors.tolist() == [[0, 255, 0]] * 4


def test_samples_fill_a_face_evenly() -> None:
    """In four parts of equal area (between the middles of the edges) lie equally many."""
    points, _ = sample_surface(Mesh(TRIANGLES[:3], np.array([[0, 1, 2]])), 20000, np.random.default_rng(1))
    x, y, _ = points.T
    assert min(x.min(), y.min()) >= 0
    assert (x + y).max() <= 1 + 1e-12
    for part in (x > 0.5, y > 0.5, x + y < 0.5):
        assert part.mean() == pytest.approx(0.25, abs=0.015)


def test_a_surface_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        sample_surface(Mesh(TRIANGLES * 1e200, np.array([[0, 1, 2]])), 5, np.random.default_rng(0))


def test_colours_of_points_by_hand() -> None:
    """Base colour x texture x vertex colours, rounded; texel centres at (i + 0.5) / size, repeating over the border."""
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[0, 0], picture[0, 1], picture[1, 0], picture[1, 1] = [0, 100, 10, 255], [200, 0, 0, 0], 40, 80
    places = {(0.25, 0.75): [0, 100, 10], (0.75, 0.75): [200, 0, 0], (0.25, 0.25): [40, 40, 40]}
    places |= {(0.5, 0.75): [100, 50, 5], (0.0, 0.75): [100, 50, 5], (1.0, 0.75): [100, 50, 5]}
    places |= {(2.25, -0.25): [0, 100, 10], (0.25, 0.5): [20, 70, 25], (0.25, 0.0): [20, 70, 25]}
    places |= {(0.9, 0.75): [140, 30, 3], (0.25, 0.1): [28, 58, 31]}  # beyond the last centre comes the first texel
    for place, expected in places.items():
        uv = np.tile(np.array(place, np.float32), (1, 3, 1))
        mesh = Mesh(TRIANGLES[:3], np.array([[0, 1, 2]]), (Material((1, 1, 1, 1), picture),), corner_uvs=uv)
        assert surface_colors(mesh, np.array([0]), np.full((1, 3), 1 / 3)).tolist() == [expected], place
    colors = np.array([[255, 0, 0, 9], [0, 255, 0, 9], [0, 0, 255, 9]], np.uint8)
    uv = np.tile(np.array((0.25, 0.75), np.float32), (1, 3, 1))
    tinted = Mesh(TRIANGLES[:3], np.array([[0, 1, 2]]), (Material((1, 0.5, 1, 1), picture),), None, uv, colors)
    found = surface_colors(tinted, np.array([0, 0]), np.array([[0, 1.0, 0], [0.25, 0.5, 0.25]]))
    assert found.tolist() == [[0, 50, 0], [0, 25, 2]]
    plain = Mesh(TRIANGLES[:3], np.array([[0, 1, 2]]), (Material((0.3, 0.5, 0.699, 1)),))
    assert surface_colors(plain, np.array([0]), np.array([[1.0, 0, 0]])).tolist() == [[76, 128, 178]]


def test_a_mesh_has_colour_where_anything_but_grey_is_said() -> None:
    plain = two_triangles()
    assert not has_color(plain)
    assert has_color(join([plain, Mesh(TRIANGLES[:3], np.array([[0, 1, 2]]), (Material((1, 0, 0, 1)),))]))
    assert has_color(Mesh(TRIANGLES[:3], np.array([[0, 1, 2]]), vertex_colors=np.zeros((3, 4), np.uint8)))
    picture = np.zeros((1, 1, 4), np.uint8)
    assert has_color(Mesh(TRIANGLES[:3], np.array([[0, 1, 2]]), (Material(GREY, picture),)))


def test_farthest_points_of_copies_are_different_ones() -> None:
    """A cloud that was filled up with copies: no index twice, in the order of their numbers."""
    points = np.repeat(np.array([[0, 0, 0], [1, 0, 0], [0, 3, 0]], np.float32), 3, axis=0)
    chosen = farthest_points(points, 9)
    assert chosen[:3].tolist() == [0, 6, 3]
    assert sorted(chosen.tolist()) == list(range(9))
    assert farthest_points(points, 0).tolist() == []
    for count in (10, -1):
        with pytest.raises(ValueError, match=f"{count} farthest points of 9"):
            farthest_points(points, count)


# --- trimesh


def box_with(visual: object) -> trimesh.Trimesh:
    box = trimesh.creation.box((1, 1, 1))
    return trimesh.Trimesh(box.vertices, box.faces, visual=visual, process=False)


def test_colours_of_faces_stay_on_their_faces() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (12, 4), dtype=np.uint8)
    box = box_with(trimesh.visual.ColorVisuals(face_colors=colors))
    mesh = from_trimesh([box])
    assert mesh.materials[0].base_color == (1.0, 1.0, 1.0, 1.0)
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], box.triangles)
    for corner in range(3):
        np.testing.assert_array_equal(mesh.vertex_colors[mesh.faces[:, corner]], colors)


def test_colours_of_vertices_and_grey_where_there_are_none() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (8, 4), dtype=np.uint8)
    mesh = from_trimesh([box_with(trimesh.visual.ColorVisuals(vertex_colors=colors))])
    np.testing.assert_array_equal(mesh.vertex_colors, colors)
    plain = from_trimesh([box_with(None)])
    assert (plain.materials[0].base_color, plain.vertex_colors) == (GREY, None)
    with pytest.raises(ValueError, match="no faces"):
        from_trimesh([trimesh.PointCloud(np.zeros((3, 3)))])


def textured(material: object, uv: np.ndarray | None, **attributes: np.ndarray) -> Mesh:
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    visual.vertex_attributes.update(attributes)
    return from_trimesh([box_with(visual)])


IMAGE = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))


def test_materials_of_foreign_files() -> None:
    """OBJ has numbers to 255, glTF shares of one; a base colour of three numbers is opaque."""
    uv = np.random.default_rng(0).random((8, 2))
    simple = textured(trimesh.visual.material.SimpleMaterial(diffuse=[255, 51, 0, 102]), uv)
    np.testing.assert_allclose(simple.materials[0].base_color, [1, 0.2, 0, 0.4])
    pbr = trimesh.visual.material.PBRMaterial(baseColorFactor=[0.2, 0.4, 1.0, 1.0], baseColorTexture=IMAGE)
    mesh = textured(pbr, uv)
    np.testing.assert_allclose(mesh.materials[0].base_color, [0.2, 0.4, 1, 1], atol=1e-6)
    np.testing.assert_array_equal(mesh.materials[0].texture[..., :3], np.asarray(IMAGE))
    assert (mesh.materials[0].texture[..., 3] == 255).all()
    np.testing.assert_array_equal(mesh.corner_uvs, uv.astype(np.float32)[mesh.faces])
    white = textured(trimesh.visual.material.PBRMaterial(baseColorTexture=IMAGE), uv)
    assert white.materials[0].base_color == (1.0, 1.0, 1.0, 1.0)
    assert textured(trimesh.visual.material.PBRMaterial(), uv).materials[0].base_color == GREY


def test_uvs_that_are_none_leave_the_mesh_without_its_texture() -> None:
    """Files of the wild have too few, or NaN for some: the object is drawn all the same."""
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=IMAGE, baseColorFactor=[255, 0, 0, 255])
    for uv in (None, np.zeros((5, 2))):
        mesh = textured(material, uv)
        assert mesh.corner_uvs is None
        assert mesh.materials[0].texture is None
        assert mesh.materials[0].base_color == (1.0, 0.0, 0.0, 1.0)
    odd = np.full((8, 2), 0.25)
    odd[0], odd[1], odd[2] = np.nan, np.inf, -np.inf
    mesh = textured(material, odd)
    assert set(np.unique(mesh.corner_uvs)) == {0.0, 0.25}


def test_vertex_colours_beside_a_material() -> None:
    """glTF's COLOR_0: shares of one or bytes, with alpha or without."""
    uv, material = np.zeros((8, 2)), trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 255, 255, 255])
    shares = np.linspace(0, 1, 24).reshape(8, 3)
    found = textured(material, uv, color=shares).vertex_colors
    np.testing.assert_array_equal(found, np.concatenate([np.rint(shares * 255), np.full((8, 1), 255)], axis=1))
    colors = np.random.default_rng(0).integers(0, 256, (8, 4), dtype=np.uint8)
    np.testing.assert_array_equal(textured(material, uv, color=colors).vertex_colors, colors)
