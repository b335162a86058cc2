"""PointCLIP V2's projection: every stage against golden data and against loops."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import CLOUDS

from manifests.picture_mapping import tower_picture
from manifests.presets import load_preset
from manifests.samples import gray_codes
from renderers import reference
from renderers.backend_table import draw, preset_cameras
from renderers.pointclip_v2 import box_of, dense, gaussian, occupied_grid, points_of_view, smooth, squeezed

OBJECTS = ("mn10_chair_0890", "sn_car_2cbe6850")


def released_grid(data, view: int) -> np.ndarray:
    grid = np.zeros(data["grid_shape"][1:], np.float32)
    chosen = data["grid_idx"][:, 0] == view
    grid[tuple(data["grid_idx"][chosen, 1:].T)] = data["grid_val"][chosen]
    return grid


@pytest.mark.parametrize("name", OBJECTS)
def test_every_stage_equals_golden(golden, name: str) -> None:
    data = np.load(golden / "render" / f"pointclip_v2_realistic_{name}.npz")
    _, preset = load_preset("realistic10")
    np.testing.assert_allclose(np.outer(*[gaussian(3, 3.0)] * 2), data["conv_kernel"][0], atol=1e-7)
    staged = data["stage_views"].tolist()
    for number, view in enumerate(data["points_view"]):
        grid = occupied_grid(view, box_of(view), preset)
        expected = released_grid(data, number)
        assert ((grid > 0) == (expected > 0)).all()
        np.testing.assert_allclose(grid, expected, atol=1e-6)
        full = dense(grid, preset)
        smoothed = smooth(full, preset)
        picture = squeezed(smoothed)
        np.testing.assert_allclose(picture, data["img110"][number], atol=1e-6)
        if number in staged:
            np.testing.assert_allclose(full, data["dense_views"][staged.index(number)], atol=1e-6)
            np.testing.assert_allclose(smoothed, data["smooth_views"][staged.index(number)], atol=3e-6)
            enlarged = tower_picture(picture, "gray", preset)
            assert enlarged.shape == (224, 224, 3)
            np.testing.assert_allclose(enlarged[..., 1], data["img224_views"][staged.index(number)], atol=1e-5)


@pytest.mark.parametrize("name", OBJECTS)
def test_the_preset_equals_golden_from_points(golden, name: str) -> None:
    data = np.load(golden / "render" / f"pointclip_v2_realistic_{name}.npz")
    _, preset = load_preset("realistic10")
    views = draw(preset, points=data["points"])
    for number, (view, camera) in enumerate(zip(views, preset_cameras(preset), strict=True)):
        turned, released = points_of_view(data["points"], camera), data["points_view"][number]
        np.testing.assert_allclose(turned - box_of(turned).middle, released - box_of(released).middle, atol=1e-6)
        ambiguous = int((data["ambiguous"][:, 0] == number).sum())
        grid = occupied_grid(turned, box_of(turned), preset)
        assert ((grid > 0) != (released_grid(data, number) > 0)).sum() <= 2 * ambiguous
        differ = np.abs(view.gray - data["img110"][number]) > 1e-4
        assert differ.sum() <= 49 * ambiguous  # a point in another cell moves a square of pool x pool pixels
        assert differ.mean() < 1e-3


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": 5, "pool_padding": 1, "blur": 5, "blur_sigma": 1.3, "depth_cells": 5},
        {"pool": 4, "pool_padding": 2, "object_share": 1.0, "depth_bias": 0.0, "blur": 1},
    ],
)
def test_equal_to_the_reference(cloud: str, changes: dict) -> None:
    _, preset = load_preset("realistic10", {"image_size": 20, "points": 60, **changes})
    points = CLOUDS[cloud](80)
    views, cameras = draw(preset, points=points), preset_cameras(preset)
    for number in (0, 5, 9):
        expected = reference.realistic_picture(points[:60], preset, cameras[number])
        assert expected.min() == 0
        assert views[number].gray.shape == expected.shape
        np.testing.assert_allclose(views[number].gray, expected, atol=2e-6)


def test_near_is_dark_and_empty_white() -> None:
    """Two dots seen from (0, 0.34, 0.94): the nearer is 0, and what shows neither is 1."""
    _, preset = load_preset("realistic10")
    view = draw(preset, points=np.array([[-0.8, 0, 0.5], [0.8, 0, -0.5]], np.float32))[4]
    middle = view.gray.shape[1] // 2
    assert view.gray[:, :middle].min() == 0
    assert 0.2 < view.gray[:, middle:].min() < 0.9
    assert view.gray.max() == 1
    assert view.coverage == pytest.approx(2 * 81 / 110**2)  # 7 x 7 cells, smoothed over one more on each side


def test_the_camera_tells_where_a_point_lies() -> None:
    """The middle of a dot's square of 9 x 9 is its own pixel, within one, in every view that holds two dots apart."""
    _, preset = load_preset("realistic10")
    dots, measured = np.array([[-0.5, -0.4, 0.3], [0.5, 0.2, -0.6]], np.float32), 0
    for view in draw(preset, points=dots):
        x = view.camera.camera_from_world[:3, :3] @ dots.T + view.camera.camera_from_world[:3, 3:]
        places = (view.camera.K[:2, :2] @ x[:2]).T + view.camera.K[:2, 2]
        if np.abs(places[0] - places[1]).max() < 18:
            continue
        for column, row in places:
            top, left = round(row) - 7, round(column) - 7
            rows, columns = np.nonzero(view.gray[top : top + 14, left : left + 14] < 1)
            assert len(rows) == 81
            assert abs(top + rows.mean() + 0.5 - row) <= 1
            assert abs(left + columns.mean() + 0.5 - column) <= 1
            measured += 1
    assert measured >= 12


def test_shards_keep_it_within_half_a_code() -> None:
    _, preset = load_preset("realistic10")
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    for view in draw(preset, points=points):
        stored = tower_picture(gray_codes(view.gray), "gray", preset)
        np.testing.assert_allclose(stored, tower_picture(view.gray, "gray", preset), atol=0.5 / 255 + 1e-6)


def test_a_cloud_without_extent_is_refused() -> None:
    _, preset = load_preset("realistic10")
    with pytest.raises(ValueError, match="no extent"):
        draw(preset, points=np.zeros((5, 3), np.float32))


@pytest.mark.parametrize(("pool", "padding"), [(9, 2), (5, 0), (7, 3)])
def test_the_camera_tells_where_a_point_lies_whatever_the_pool(pool: int, padding: int) -> None:
    """A picture that loses cells at its sides, or gains some, is shifted against the grid."""
    _, preset = load_preset("realistic10", {"pool": pool, "pool_padding": padding})
    dots = np.array([[-0.5, -0.4, 0.3], [0.5, 0.2, -0.6]], np.float32)
    for view in draw(preset, points=dots)[4:8]:
        x = view.camera.camera_from_world[:3, :3] @ dots.T + view.camera.camera_from_world[:3, 3:]
        places = (view.camera.K[:2, :2] @ x[:2]).T + view.camera.K[:2, 2]
        rows, columns = np.nonzero(view.gray < 1)
        near_first = np.hypot(columns + 0.5 - places[0, 0], rows + 0.5 - places[0, 1])
        near_second = np.hypot(columns + 0.5 - places[1, 0], rows + 0.5 - places[1, 1])
        for place, own in ((places[0], near_first < near_second), (places[1], near_first > near_second)):
            assert abs(columns[own].mean() + 0.5 - place[0]) <= 1
            assert abs(rows[own].mean() + 0.5 - place[1]) <= 1


def test_every_cell_of_the_grid_at_its_bounds() -> None:
    """By hand, as released: the border's cells stay empty, the nearest and farthest points lie in the inner slices."""
    _, preset = load_preset("realistic10", {"image_size": 10, "object_share": 1.0})
    view = np.array([[-1, -1, -1], [1, 1, 1], [0, 0, 0]], np.float32)
    grid = occupied_grid(view, box_of(view), preset)
    assert [tuple(each) for each in np.argwhere(grid > 0)] == [(1, 1, 1), (4, 5, 5), (6, 8, 8)]
    np.testing.assert_allclose(grid[grid > 0], [1.0, 3.5, 6.0], rtol=1e-6)  # (0.5 + 0.2) / 1.2 * 6 in the middle
    with pytest.raises(ValueError, match="no extent"):
        box_of(np.ones((1, 3), np.float32))
