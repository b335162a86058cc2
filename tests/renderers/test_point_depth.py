"""Depth maps of points: numpy and torch against the literal reference and against golden data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from clouds import CLOUDS, sphere_points

from manifests.picture_mapping import to_picture
from manifests.presets import load_preset
from renderers import reference
from renderers.backend_table import draw, preset_cameras
from renderers.cameras import Camera, orthographic_K, perspective_K, rig
from renderers.point_depth import draw_depth
from renderers.point_depth_torch import depth_maps, to_pictures

OBJECTS = ("mn10_chair_0890", "sn_car_2cbe6850")


VARIANTS = [
    ("depth10", {"merge": merge, "dilation": dilation})
    for merge in ("minimum", "weighted")
    for dilation in (1, 2, 3, 4)
] + [("depth10_release", {"disc_radius": 0.11})]


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_numpy_and_torch_equal_the_reference(cloud: str, name: str, changes: dict) -> None:
    _, preset = load_preset(name, {**changes, "image_size": 24, "points": 150})
    points = CLOUDS[cloud](200)
    views = draw(preset, points=points)
    live = depth_maps(
        torch.from_numpy(points[None, :150]),
        preset_cameras(preset),
        merge=preset.merge,
        dilation=preset.dilation,
        disc_radius=preset.disc_radius,
    )[0].numpy()
    for number in (0, 1, 4):
        expected = reference.depth_of_points(points[:150], preset, views[number].camera)
        assert np.isfinite(expected).any()
        for got in (views[number].depth, live[number]):
            differ = np.isfinite(got) != np.isfinite(expected)
            assert differ.sum() == 0
            hit = np.isfinite(expected)
            np.testing.assert_allclose(got[hit], expected[hit], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("size", [64, 224])
def test_equations_8_and_10_equal_golden(golden, name: str, size: int) -> None:
    data = np.load(golden / "render" / f"eq10_depth_{name}.npz")
    cameras = rig(data["W"], distance=2, image_size=size, near=0.75, far=3.25)
    assert cameras[0].K[0, 0] == pytest.approx(float(data[f"focal_S{size}"]))
    for merge, key in (("minimum", "min"), ("weighted", "weighted")):
        for dilation in (1, 2, 4):
            _, preset = load_preset("depth10", {"image_size": size, "merge": merge, "dilation": dilation})
            live = depth_maps(torch.from_numpy(data["points"][None]), cameras, merge=merge, dilation=dilation)[
                0
            ].numpy()
            for number, camera in enumerate(cameras):
                expected = data[f"{key}_S{size}_R{dilation}"][number]
                for depth in (draw_depth(data["points"], preset, camera), live[number]):
                    assert ((expected > 0) == np.isfinite(depth)).all()
                    np.testing.assert_allclose(depth[expected > 0], expected[expected > 0], rtol=2e-6)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(("preset_name", "views"), [("depth10_release", 10), ("depth6_release", 6)])
def test_released_renderer_equals_golden(golden, name: str, preset_name: str, views: int) -> None:
    data = np.load(golden / "render" / f"clip2point_depth_{name}.npz")
    _, preset = load_preset(preset_name)
    drawn = draw(preset, points=data["points_world"])
    live = depth_maps(torch.from_numpy(data["points_world"][None]), preset_cameras(preset), merge="disc")[0]
    assert len(drawn) == views
    for number, view in enumerate(drawn):
        zbuf, picture = data[f"v{views}_zbuf"][number], data[f"v{views}_depth"][number]
        for depth, seen in (
            (view.depth, to_picture(view.depth, "clip2point")),
            (live[number].numpy(), to_pictures(live[number]).numpy()),
        ):
            assert ((zbuf >= 0) != np.isfinite(depth)).sum() <= 3
            both = (zbuf >= 0) & np.isfinite(depth)
            assert (np.abs(depth - zbuf)[both] > 1e-6).sum() <= 3
            assert (np.abs(seen - picture) > 1e-6).sum() <= 3


def released_picture(data, number: int) -> np.ndarray:
    """Picture (224, 224) of one of the released random distances."""
    index, values = data["aug_idx"][number], data["aug_depth_of_point"][number]
    return np.where(index >= 0, values[index], 1)


@pytest.mark.parametrize("name", OBJECTS)
def test_released_random_distance_is_a_zoom(golden, name: str) -> None:
    """The released random distance d: points are divided by d and the camera stands at d."""
    data = np.load(golden / "render" / f"clip2point_depth_{name}.npz")
    _, preset = load_preset("depth10_release")
    for repeat, distance in enumerate(data["aug_dist"]):
        changed = preset.model_copy(update={"distance": float(distance), "depth_range": 1.5})
        views = draw(changed, points=data["points_world"] / np.float32(distance))
        for number, view in enumerate(views):
            index, z = data["aug_idx"][repeat * 10 + number], data["aug_z"][repeat * 10 + number]
            assert ((index >= 0) != np.isfinite(view.depth)).sum() <= 3
            both = (index >= 0) & np.isfinite(view.depth)
            assert (np.abs(view.depth - z[index])[both] > 2e-6).sum() <= 3
            picture = to_picture(view.depth, "clip2point")
            assert (np.abs(picture - released_picture(data, repeat * 10 + number)) > 2e-6).sum() <= 3


@pytest.mark.gpu
@pytest.mark.parametrize("merge", ["minimum", "weighted"])
def test_live_on_an_accelerator_equals_numpy(merge: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    _, preset = load_preset("depth10", {"merge": merge})
    points = sphere_points(1024)
    live = depth_maps(torch.from_numpy(points[None]).cuda(), preset_cameras(preset), merge=merge)[0].cpu().numpy()
    for view, depth in zip(draw(preset, points=points), live, strict=True):
        assert (np.isfinite(depth) != np.isfinite(view.depth)).sum() <= 4  # a point may round across a pixel's edge
        both = np.isfinite(depth) & np.isfinite(view.depth)
        assert np.median(np.abs(depth[both] - view.depth[both])) < 1e-6


def test_picture_mapping_by_hand() -> None:
    empty = np.full((2, 2), np.inf, np.float32)
    assert (to_picture(empty, "clip2point") == 1).all()
    two = np.array([[0.5, 1.5], [np.inf, np.inf]], np.float32)
    np.testing.assert_allclose(to_picture(two, "clip2point"), [[0, 1 / 1.5 * 200 / 255], [1, 1]], rtol=1e-6)
    far = np.array([[1.5, np.inf]], np.float32)
    np.testing.assert_allclose(to_picture(far, "clip2point"), [[0.5 / 1.5 * 200 / 255, 1]], rtol=1e-6)
    np.testing.assert_allclose(to_picture(two, "linear"), [[1, 0.2], [0, 0]], rtol=1e-6)


def test_points_behind_the_camera_are_not_drawn() -> None:
    _, preset = load_preset("depth10", {"image_size": 32})
    camera = preset_cameras(preset)[0]
    assert not np.isfinite(draw_depth(np.array([[0, 0, 5.0]], np.float32), preset, camera)).any()


def test_orthographic_and_perspective_are_held_apart() -> None:
    assert orthographic_K(64, 1)[0, 2] == perspective_K(64, 60)[0, 2] == 32


def both(points: np.ndarray, name: str, **changes: object) -> tuple[np.ndarray, np.ndarray, Camera]:
    """Depth of the first view by numpy and by torch, and its camera; points (N, 3) in that camera's axes."""
    _, preset = load_preset(name, changes)
    camera = preset_cameras(preset)[0]
    pose = camera.camera_from_world
    world = ((np.atleast_2d(points) - pose[:3, 3]) @ pose[:3, :3]).astype(np.float32)
    options = {"merge": preset.merge, "dilation": preset.dilation, "disc_radius": preset.disc_radius}
    live = depth_maps(torch.from_numpy(world[None]), [camera], **options)[0, 0].numpy()
    return draw_depth(world, preset, camera), live, camera


def pixels_of(depth: np.ndarray) -> set[tuple[int, int]]:
    return {tuple(place) for place in np.argwhere(np.isfinite(depth)).tolist()}


EDGES = [(place, 3) for place in (-3, -2, -1, 0, 1, 6, 7, 8, 9, 10)]


@pytest.mark.parametrize("merge", ["minimum", "weighted"])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("among_others", [False, True])
def test_a_dot_across_an_edge_shows_on_this_side_only(merge: str, dilation: int, among_others: bool) -> None:
    """Eq. 10: p - R/2 <= ceil < p + R/2, for pixels p of the picture; none of it at the other end of another row."""
    covered = [o for o in range(-4, 5) if o - dilation / 2 <= 0 < o + dilation / 2]
    assert len(covered) == dilation
    _, preset = load_preset("depth10", {"image_size": 8})
    K = preset_cameras(preset)[0].K
    for column, row in [*EDGES, *((c, r) for r, c in EDGES), (8, 8), (-1, -1), (7, 7), (8, 0), (0, 8)]:
        at = [((v - 0.5) - (K[i, 2] - 1)) / K[i, i] * 2.0 for i, v in ((0, column), (1, row))]  # ceil(v - 0.5) = v
        dots, places = [[*at, 2.0]], [(row, column)]
        if among_others:
            dots.append([0.0, 0.0, 2.0])
            places.append((3, 3))
        expected = {(r + a, c + b) for r, c in places for a in covered for b in covered}
        expected = {(r, c) for r, c in expected if 0 <= r < 8 and 0 <= c < 8}
        for depth in both(np.array(dots), "depth10", image_size=8, merge=merge, dilation=dilation)[:2]:
            assert pixels_of(depth) == expected, (column, row)
            np.testing.assert_allclose(depth[np.isfinite(depth)], 2, rtol=1e-6)


@pytest.mark.parametrize("dilation", [1, 3])
def test_a_point_in_the_plane_of_the_camera_is_not_drawn(dilation: int) -> None:
    """It has no place in the picture: dividing by its depth gives infinity, and as a pixel anything."""
    dots = np.array([[0.3, 0.2, 0.0], [0.0, 0.0, 0.0], [0.1, 0.1, -1.0], [0.0, 0.0, 2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for depth in both(dots, "depth10", image_size=8, dilation=dilation)[:2]:
            assert len(pixels_of(depth)) == dilation**2
            np.testing.assert_allclose(depth[np.isfinite(depth)], 2, rtol=1e-6)


def test_a_disc_ends_just_before_its_radius() -> None:
    """As released: a pixel whose centre is as far from the point as the radius shows nothing of it.

    With 8 pixels over 2 units centres lie 0.25 apart, at numbers that float32 has.
    """
    dot = np.array([0.125, -0.375, 2.0])
    for depth in both(dot, "depth10_release", image_size=8, disc_radius=0.25)[:2]:
        assert pixels_of(depth) == {(2, 4)}
    for depth in both(dot, "depth10_release", image_size=8, disc_radius=0.2501)[:2]:
        assert pixels_of(depth) == {(2, 4), (1, 4), (3, 4), (2, 3), (2, 5)}


@pytest.mark.parametrize("radius", [0.04, 0.11, 0.2, 0.3, 0.45])
def test_discs_equal_the_reference_up_to_the_edges(radius: float) -> None:
    """Every reach of a disc, from less than a pixel, at places that fill a pixel and cross the picture's edges."""
    rng = np.random.default_rng(4)
    dots = np.concatenate([rng.uniform(-1.2, 1.2, (25, 2)), rng.uniform(1, 3, (25, 1))], axis=1)
    for dot in dots:
        drawn, live, camera = both(dot, "depth10_release", image_size=12, disc_radius=radius)
        _, preset = load_preset("depth10_release", {"disc_radius": radius})
        pose = camera.camera_from_world
        expected = reference.depth_of_points((dot[None] - pose[:3, 3]) @ pose[:3, :3], preset, camera)
        for depth in (drawn, live):
            assert pixels_of(depth) == pixels_of(expected)


def test_a_disc_at_the_camera_is_drawn_and_behind_it_is_not() -> None:
    """As released: depth zero is kept, anything less is not."""
    for z, pixels in ((0.0, 1), (-1e-3, 0), (-1.0, 0)):
        for depth in both(np.array([0.125, 0.125, z]), "depth10_release", image_size=8, disc_radius=0.2)[:2]:
            assert len(pixels_of(depth)) == pixels
            assert (depth[np.isfinite(depth)] == 0).all()
