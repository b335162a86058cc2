"""Cameras: poles, look-at and the golden rotations."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from manifests.presets import FOLDER, MeshViews, load_preset
from renderers.backend_table import preset_cameras
from renderers.cameras import (
    Camera,
    direction,
    look_at,
    orbit_rotation,
    orthographic_K,
    perspective_K,
    pixel_rays,
    rig,
)
from renderers.reference import ray_of_pixel


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (30, 30), (-120, -20), (200, 80)])
def test_a_camera_sees_the_origin_in_its_middle(azimuth: float, elevation: float) -> None:
    eye = 2.2 * direction(azimuth, elevation)
    pose = look_at(eye, np.zeros(3), np.array([0, 1.0, 0]))
    np.testing.assert_allclose(pose[:3, :3], orbit_rotation(azimuth, elevation), atol=1e-12)
    np.testing.assert_allclose(pose @ [*eye, 1], [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(pose @ [0, 0, 0, 1], [0, 0, 2.2, 1], atol=1e-12)
    a = np.deg2rad(azimuth)
    np.testing.assert_allclose(pose[0, :3], [np.cos(a), 0, -np.sin(a)], atol=1e-12)


@pytest.mark.parametrize(("azimuth", "elevation", "view"), [(0, 180, 2), (-45, 225, 4), (45, 315, 7), (-90, 0, 8)])
def test_released_angles_give_the_released_rotations(azimuth: float, elevation: float, view: int) -> None:
    expected = load_preset("depth10")[1].rotations[view]
    np.testing.assert_allclose(orbit_rotation(azimuth, elevation), expected, atol=1e-9)


def test_look_at_from_the_pole_is_refused() -> None:
    with pytest.raises(ValueError, match="parallel"):
        look_at(np.array([0, 2.0, 0]), np.zeros(3), np.array([0, 1.0, 0]))


def test_up_is_up_and_right_is_right() -> None:
    camera = rig(orbit_rotation(0, 0)[None], distance=2, image_size=100, near=0.5, far=3)[0]
    point = camera.camera_from_world @ [0.1, 0.2, 0.0, 1]
    u, v, w = camera.K @ point[:3]
    assert u / w > 50  # +X is to the right of a camera that looks from +Z
    assert v / w < 50  # +Y is above


def test_unit_sphere_touches_the_border_at_distance_two() -> None:
    K = perspective_K(224, 60)
    assert K[0, 0] == pytest.approx(112 * np.sqrt(3))
    tangent = K[0, 0] * np.tan(np.arcsin(1 / 2)) + K[0, 2]
    assert tangent == pytest.approx(224)
    assert orthographic_K(224, 1.0)[0, 0] == 112


def test_released_directions_equal_golden_rotations(golden) -> None:
    data = np.load(golden / "render" / "clip2point_depth_mn10_chair_0890.npz")
    cameras = preset_cameras(load_preset("depth10_release")[1])
    for camera, R, T in zip(cameras, data["v10_R"], data["v10_T"], strict=True):
        # theirs: rows times R, +x left, +y up; ours: columns, +x right, +y down
        theirs = np.diag([-1.0, -1.0, 1.0]) @ R.T
        np.testing.assert_allclose(camera.camera_from_world[:3, :3], theirs, atol=1e-6)
        np.testing.assert_allclose(camera.camera_from_world[:3, 3], np.diag([-1.0, -1.0, 1.0]) @ T, atol=1e-6)


COS30 = np.sqrt(3) / 2


def rotations_of(name: str) -> np.ndarray:
    return np.stack([c.camera_from_world[:3, :3] for c in preset_cameras(load_preset(name)[1])])


def positions_of(name: str) -> np.ndarray:
    return np.stack([c.position for c in preset_cameras(load_preset(name)[1])])


@pytest.mark.parametrize("name", ["rgb12", "rgbd12"])
def test_rig_of_rgb12_by_hand(name: str) -> None:
    found = rotations_of(name)
    np.testing.assert_allclose(found[0], [[1, 0, 0], [0, -COS30, 0.5], [0, -0.5, -COS30]], atol=1e-12)
    np.testing.assert_allclose(found[3], [[0, 0, -1], [0.5, -COS30, 0], [-COS30, -0.5, 0]], atol=1e-12)
    np.testing.assert_allclose(found[6], [[-1, 0, 0], [0, -COS30, -0.5], [0, -0.5, COS30]], atol=1e-12)
    np.testing.assert_allclose(found, rotations_of("rgb12"), atol=1e-12)


def test_rig_of_mvtn_starts_on_the_right_and_goes_to_the_back() -> None:
    found = positions_of("rgb12_mvtn")
    azimuth = np.deg2rad(np.linspace(-180, 180, 13)[:-1] - 90)
    expected = 2.2 * np.stack([COS30 * np.sin(azimuth), np.full(12, 0.5), COS30 * np.cos(azimuth)], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found[0], [2.2 * COS30, 1.1, 0], atol=1e-12)
    np.testing.assert_allclose(found[3], [0, 1.1, -2.2 * COS30], atol=1e-12)


@pytest.mark.parametrize("name", ["rgb10", "rgb10_release"])
def test_rig_of_rgb10_is_clip2points(name: str) -> None:
    np.testing.assert_array_equal(rotations_of(name), rotations_of("depth10"))
    half, corner = 2 / 2, 2 * np.sqrt(0.5)
    below = [[half, -corner, -half], [-half, -corner, -half], [-half, -corner, half], [half, -corner, half]]
    expected = [[0, 0, 2], [0, 2, 0], [0, 0, -2], [0, -2, 0], *below, [-2, 0, 0], [2, 0, 0]]
    np.testing.assert_allclose(positions_of(name), expected, atol=1e-12)


def test_rig_of_rgb20_is_a_dodecahedron_and_upright() -> None:
    vertices = positions_of("rgb20") / 2.2
    between = np.linalg.norm(vertices[:, None] - vertices[None], axis=2) + 9 * np.eye(20)
    edge = 4 / (np.sqrt(3) * (1 + np.sqrt(5)))  # of the regular dodecahedron in the unit sphere
    np.testing.assert_allclose(np.sort(between, axis=1)[:, :3], edge, atol=1e-12)
    assert np.sort(between, axis=1)[:, 3].min() > edge + 0.2
    found = rotations_of("rgb20")
    np.testing.assert_allclose(found[:, 0, 1], 0, atol=1e-12)
    assert found[:, 1, 1].max() < -0.3


def test_rig_of_rgb30_by_hand() -> None:
    cameras = preset_cameras(load_preset("rgb30")[1])
    for number, camera in enumerate(cameras):
        np.testing.assert_allclose(camera.position, 2.332 * direction(12 * number, 30.96), atol=1e-12)
        assert camera.K[0, 0] == pytest.approx(112 / np.tan(np.deg2rad(49.13 / 2)))
    assert len(cameras) == 30


MESH_PRESETS = ("rgb12", "rgb12_mvtn", "rgb10", "rgb10_release", "rgb20", "rgb30", "rgbd12")


@pytest.mark.parametrize("name", MESH_PRESETS)
def test_every_camera_of_a_mesh_preset_sees_the_origin_in_its_middle(name: str) -> None:
    preset = load_preset(name)[1]
    for camera in preset_cameras(preset):
        x, y, z = camera.camera_from_world[:3, 3]
        np.testing.assert_allclose([x, y, z], [0, 0, preset.distance], atol=1e-12)
        np.testing.assert_allclose(camera.K[:2, 2], preset.image_size / 2)


@pytest.mark.parametrize("name", MESH_PRESETS)
def test_a_mesh_preset_names_every_parameter(name: str) -> None:
    """A file tells all, and a default that changes later changes no shipped preset."""
    keys = set(tomllib.loads((FOLDER / f"{name}.toml").read_text()))
    rig_keys = {"azimuth_deg", "elevation_deg", "rotations"}
    assert keys | rig_keys == set(MeshViews.model_fields) | rig_keys
    assert keys & rig_keys >= {"rotations"}


def one_camera(**changes: object) -> Camera:
    values = {"distance": 2.2, "image_size": 8, "near": 0.5, "far": 3.0, **changes}
    return rig(orbit_rotation(35, 20)[None], **values)[0]


@pytest.mark.parametrize(
    "change",
    [np.diag([-1.0, 1, 1, 1]), np.diag([1.0, 1, -1, 1]), np.diag([2.0, 2, 2, 1]), np.eye(4) + 0.2 * np.eye(4, k=1)],
    ids=["mirrored", "inside out", "scaled", "skewed"],
)
def test_what_is_no_rigid_motion_is_no_camera(change: np.ndarray) -> None:
    """A mirrored camera exchanges left and right of every picture; a scaled one has depths that are no distances."""
    camera = one_camera()
    with pytest.raises(ValueError, match="not a rigid motion"):
        Camera(change @ camera.camera_from_world, camera.K, 8, 8, 0.5, 3.0)
    noise = 1e-7 * np.random.default_rng(0).normal(size=(4, 4))  # of a matrix read from float32
    Camera(camera.camera_from_world + noise, camera.K, 8, 8, 0.5, 3.0)


def test_a_depth_range_has_an_extent_before_the_camera() -> None:
    for near, far in ((1.0, 1.0), (2.0, 1.0), (-0.5, 1.0)):
        with pytest.raises(ValueError, match="no range"):
            one_camera(near=near, far=far)
    assert one_camera(near=0.0, far=1.0).near == 0


def test_scale_and_depth_range_are_the_presets() -> None:
    changes = {"distance": 3.0, "depth_range": 1.5, "half_extent": 1.6, "image_size": 64}
    for camera in preset_cameras(load_preset("depth10_release", changes)[1]):
        assert (camera.near, camera.far, camera.model) == (1.5, 4.5, "orthographic")
        assert camera.K[0, 0] == camera.K[1, 1] == 32 / 1.6
    close = load_preset("depth10_release", {"distance": 1.0, "depth_range": 1.5})[1]
    assert (close.near, close.far) == (0.0, 2.5)


@pytest.mark.parametrize("model", ["perspective", "orthographic"])
@pytest.mark.parametrize("scale", [1, 2])
def test_rays_go_through_the_middles_of_pixels(model: str, scale: int) -> None:
    """Also of a picture that is not square and whose axis is not in its middle."""
    camera = one_camera(model=model)
    K = camera.K.copy()
    K[0, 2], K[1, 1], K[1, 2] = 6.5, 1.25 * K[1, 1], 2.25
    wide = Camera(camera.camera_from_world, K, 11, 5, 0.5, 3.0, camera.model)
    rays = pixel_rays(wide, range(1 * scale, 5 * scale), range(2 * scale, 11 * scale), scale)
    rays = rays.reshape(4, scale, 9, scale, 6).mean(axis=(1, 3))  # the mean of a pixel's rays is that of its middle
    for row in range(4):
        for column in range(9):
            expected = np.concatenate(ray_of_pixel(wide, row + 1, column + 2))
            np.testing.assert_allclose(rays[row, column], expected, atol=1e-5)
