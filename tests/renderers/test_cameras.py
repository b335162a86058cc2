"""Cameras: poles, look-at and the golden rotations."""

from __future__ import annotations

import numpy as np
import pytest

from manifests.presets import load_preset
from renderers.backends import preset_cameras
from renderers.cameras import direction, look_at, orbit_rotation, orthographic_K, perspective_K, rig


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
