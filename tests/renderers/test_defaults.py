"""What the defaults promise of any mesh: sharp edges, smooth curves, both sides lit, twins drawn once, tiles."""

from __future__ import annotations

import numpy as np
import pytest
from shapes import chair, cube, sphere, textured_plane, twins

from manifests.presets import MeshViews, load_preset
from renderers.backend_table import draw
from renderers.geometry import Mesh
from renderers.normals import unit
from renderers.view import View


@pytest.fixture(params=["raycast", "rasterize"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "rasterize":
        pytest.importorskip("pytorch3d", reason="PyTorch3D is not installed")
    return request.param


def preset(backend: str, **changes: object) -> MeshViews:
    """rgb12 at 64 pixels with a light that shows the normal: no highlight, far away unless the test says otherwise."""
    light = {"ambient": 0.2, "diffuse": 0.7, "specular": 0.0, "light_direction": [0.3, 0.8, 0.52]}
    return load_preset("rgb12", {"backend": backend, "image_size": 64, "name": "test", **light, **changes})[1]


def colors_of(view: View) -> np.ndarray:
    """Distinct colours (N, 3) of the object."""
    return np.unique(view.rgb[np.isfinite(view.depth)], axis=0)


def points_of(view: View) -> np.ndarray:
    """World points (N, 3) that the pixels with a depth show, row by row."""
    rows, columns = np.nonzero(np.isfinite(view.depth))
    z = view.depth[rows, columns]
    camera = view.camera
    x, y = (columns + 0.5 - camera.K[0, 2]) / camera.K[0, 0], (rows + 0.5 - camera.K[1, 2]) / camera.K[1, 1]
    pose = camera.camera_from_world
    return (np.stack([x * z, y * z, z], axis=1) - pose[:3, 3]) @ pose[:3, :3]


def test_a_cube_has_one_colour_a_face(backend: str) -> None:
    """Three faces are seen from above and aside; smooth normals would give a different colour to every pixel."""
    light = np.array([0.3, 0.8, 0.52]) / np.linalg.norm([0.3, 0.8, 0.52])
    for view in draw(preset(backend, azimuth_deg=[30, 120], elevation_deg=[30, 40]), mesh=cube()):
        normal = np.sign(points_of(view)) * (np.abs(points_of(view)) > 0.4999)
        one_face = np.abs(normal).sum(axis=1) == 1
        assert one_face.mean() > 0.9
        expected = (0.2 + 0.7 * np.maximum(normal[one_face] @ light, 0)) * 0.7
        found = view.rgb[np.isfinite(view.depth)][one_face] / 255.0
        assert (np.abs(found - expected[:, None]).max(axis=1) > 0.6 / 255).sum() <= 3
        assert len(colors_of(view)) <= 4
    soft = draw(preset(backend, azimuth_deg=[30], elevation_deg=[30], normals="smooth"), mesh=cube())[0]
    assert len(colors_of(soft)) > 20


def test_a_sphere_is_smooth(backend: str) -> None:
    """The colour tells n.l of every pixel, and n is radial: 800 flat faces stay within three degrees."""
    light = np.array([0.3, 0.8, 0.52]) / np.linalg.norm([0.3, 0.8, 0.52])

    def error_deg(normals: str) -> float:
        worst = 0.0
        for view in draw(
            preset(backend, azimuth_deg=[0, 75], elevation_deg=[10, 60], normals=normals), mesh=sphere(20)
        ):
            expected = unit(points_of(view)) @ light
            found = (view.rgb[np.isfinite(view.depth)][:, 0] / 255.0 / 0.7 - 0.2) / 0.7
            lit = (expected > 0.2) & (expected < 0.9)  # where the arc cosine is not at its end
            assert lit.mean() > 0.4
            difference = np.arccos(np.clip(found[lit], -1, 1)) - np.arccos(expected[lit])
            worst = max(worst, np.rad2deg(np.abs(difference)).max())
        return worst

    assert error_deg("crease") < 3
    assert error_deg("flat") > 4


@pytest.mark.parametrize("own_vertices", [False, True], ids=["shared vertices", "own vertices"])
def test_a_twin_faced_chair_is_the_chair(backend: str, own_vertices: bool) -> None:
    settings = preset(backend, azimuth_deg=[0, 40, 150, 260], elevation_deg=[0, 20, 50, -30], specular=0.2)
    for single, double in zip(
        draw(settings, mesh=chair()), draw(settings, mesh=twins(chair(), own_vertices)), strict=True
    ):
        np.testing.assert_array_equal(single.depth, double.depth)
        assert np.abs(single.rgb.astype(int) - double.rgb).max() <= 1


@pytest.mark.parametrize("own_vertices", [False, True], ids=["shared vertices", "own vertices"])
def test_a_twin_faced_chair_has_no_speckle(backend: str, own_vertices: bool) -> None:
    """Flat parts in three colours under a far light: few colours, each of them a solid patch."""
    settings = preset(backend, azimuth_deg=[40], elevation_deg=[20])
    view = draw(settings, mesh=twins(chair(), own_vertices))[0]
    colors, counts = np.unique(view.rgb[np.isfinite(view.depth)], axis=0, return_counts=True)
    assert 6 <= len(colors) <= 12
    assert counts.min() >= 3


def test_faces_are_lit_from_both_sides_and_whatever_their_winding(backend: str) -> None:
    mesh = chair()
    turned = mesh.faces.copy()
    turned[::2] = turned[::2, ::-1]
    mixed = Mesh(mesh.vertices, turned, mesh.materials, mesh.face_material)
    angles = {"azimuth_deg": [40], "elevation_deg": [20]}
    expected = draw(preset(backend, **angles), mesh=mesh)[0].rgb.astype(int)
    assert np.abs(draw(preset(backend, **angles), mesh=mixed)[0].rgb - expected).max() <= 1
    one_sided = draw(preset(backend, **angles, two_sided=False), mesh=mixed)[0].rgb
    assert np.abs(one_sided - expected).max() > 40


def test_a_texture_repeats_and_clamps_by_key(backend: str) -> None:
    """A picture with a red upper left and a blue lower right quarter, three times in each axis."""
    picture = np.full((8, 8, 4), 255, np.uint8)
    picture[:4, :4, :3], picture[4:, 4:, :3] = (255, 0, 0), (0, 0, 255)
    light = {"ambient": 1.0, "diffuse": 0.0, "azimuth_deg": [0], "elevation_deg": [0], "projection": "orthographic"}
    plane = textured_plane(picture, 3.0)
    tiled = draw(preset(backend, **light, image_size=120), mesh=plane)[0]
    side = slice(18, 102)  # 0.7 of the half image to each side of its middle
    assert np.isfinite(tiled.depth[side, side]).all()
    tile = tiled.rgb[side, side].reshape(3, 28, 3, 28, 3).swapaxes(1, 2)
    for row in range(3):
        for column in range(3):
            assert np.abs(tile[row, column].astype(int) - tile[0, 0]).max() <= 1
    assert tuple(tile[1, 1, 7, 7]) == (255, 0, 0)
    assert tuple(tile[1, 1, 21, 21]) == (0, 0, 255)
    assert tuple(tile[1, 1, 7, 21]) == (255, 255, 255)
    clamped = draw(preset(backend, **light, image_size=120, texture_wrap="clamp"), mesh=plane)[0].rgb[side, side]
    np.testing.assert_array_equal(clamped[60:80, 2:10], tile[2, 0, 4:24, 2:10])  # u, v < 1: the picture itself
    assert (clamped[:50, 60:] == 255).all()  # beyond: the last texels go on, white at the upper right
    assert (clamped[74:82, 60:, :2] == 0).all()  # and blue to the right of the lower half
