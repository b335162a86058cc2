"""PointCLIP's and SimpleView's pictures: by hand, and against golden data."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import CLOUDS

from manifests.picture_mapping import to_picture, tower_picture
from manifests.presets import load_preset
from manifests.samples import depth_codes, depth_of_codes
from renderers import reference
from renderers.backend_table import draw, preset_cameras

OBJECTS = ("mn10_chair_0890", "sn_car_2cbe6850")
RELEASED = {"pointclip6": "zs", "pointclip10": "fs", "simpleview6": "sv"}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("preset_name", RELEASED)
def test_released_pictures_equal_golden(golden, name: str, preset_name: str) -> None:
    data, tag = np.load(golden / "render" / f"pointclip_weighted_{name}.npz"), RELEASED[preset_name]
    _, preset = load_preset(preset_name)
    views = draw(preset, points=data["points"])
    assert len(views) == len(data[f"{tag}_img"])
    for number, (view, expected) in enumerate(zip(views, data[f"{tag}_img"], strict=True)):
        _assert_same(to_picture(view.depth, "world"), expected, int((data[f"{tag}_ambiguous"][:, 0] == number).sum()))


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("footprint", [2, 4])
def test_larger_footprints_equal_golden(golden, name: str, footprint: int) -> None:
    data = np.load(golden / "render" / f"pointclip_weighted_{name}.npz")
    _, preset = load_preset("pointclip10", {"footprint": footprint})
    for view, expected in zip(draw(preset, points=data["points"]), data[f"fs_img_size{footprint}"], strict=True):
        _assert_same(to_picture(view.depth, "world"), expected, 0)


def _assert_same(picture: np.ndarray, expected: np.ndarray, flips: int) -> None:
    """Equal coverage, but for points (`flips` of them) that round across a pixel's edge; equal values."""
    differ = (picture > 0) != (expected > 0)
    assert differ.sum() <= 2 * flips
    wrong = np.abs(picture - expected) > 1e-6
    assert (wrong & ~differ).sum() <= 2 * flips


@pytest.mark.parametrize("name", OBJECTS)
def test_the_tower_sees_the_enlarged_picture(golden, name: str) -> None:
    data = np.load(golden / "render" / f"pointclip_weighted_{name}.npz")
    _, preset = load_preset("pointclip6")
    views = draw(preset, points=data["points"])
    for number, expected in zip(data["zs_img224_view_ids"], data["zs_img224_views"], strict=True):
        picture = tower_picture(views[number].depth, "depth", preset)
        np.testing.assert_allclose(picture, expected[..., None].repeat(3, axis=2), atol=5e-5)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("preset_name", RELEASED)
def test_16_bits_keep_raw_depth(golden, name: str, preset_name: str) -> None:
    points = np.load(golden / "render" / f"pointclip_weighted_{name}.npz")["points"]
    _, preset = load_preset(preset_name)
    for view in draw(preset, points=points):
        codes, outside = depth_codes(view.depth, view.camera.near, view.camera.far)
        assert outside == 0
        stored = depth_of_codes(codes, view.camera.near, view.camera.far)
        np.testing.assert_allclose(to_picture(stored, "world"), to_picture(view.depth, "world"), atol=3e-5)


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("footprint", "mirror"), [(1, True), (1, False), (2, True), (4, False)])
def test_equal_to_the_reference(cloud: str, footprint: int, mirror: bool) -> None:
    _, preset = load_preset("pointclip10", {"image_size": 24, "points": 150, "footprint": footprint, "mirror": mirror})
    points = CLOUDS[cloud](200)
    views, cameras = draw(preset, points=points), preset_cameras(preset)
    for number in (0, 1, 4, 9):
        expected = reference.depth_of_dots(points[:150], preset, cameras[number])
        depth, hit = views[number].depth, np.isfinite(expected)
        assert (np.isfinite(depth) == hit).all()
        np.testing.assert_allclose(depth[hit], expected[hit], rtol=1e-6)
        assert views[number].coverage == pytest.approx(hit.mean())


def one_view(points: list, colors: list | None = None, **changes: object):
    """The view of camera (0, 0, -1.4), which looks along +Z, 8 pixels wide."""
    _, preset = load_preset("pointclip10", {"image_size": 8, "mirror": False, **changes})
    colors = None if colors is None else np.array(colors, np.uint8)
    return draw(preset, points=np.array(points, np.float32), colors=colors)[0]


def test_a_dot_lands_on_the_rounded_pixel() -> None:
    """x to the right is -X, y down is -Y: u = (0.35 / 1.4 + 1) 4 = 5, v = 4, and a dot lands on ceil(u - 1/2)."""
    view = one_view([[-0.35, 0, 0]])
    assert np.argwhere(np.isfinite(view.depth)).tolist() == [[4, 5]]
    assert view.depth[4, 5] == pytest.approx(1.4)
    assert view.coverage == 1 / 64
    assert np.argwhere(np.isfinite(one_view([[-0.35, 0, 0]], mirror=True).depth)).tolist() == [[4, 3]]


@pytest.mark.parametrize("mirror", [True, False])
def test_the_camera_tells_where_a_dot_lands(mirror: bool) -> None:
    rng = np.random.default_rng(0)
    _, preset = load_preset("pointclip10", {"mirror": mirror})
    for point in rng.uniform(-0.5, 0.5, (5, 3)).astype(np.float32):
        for view in draw(preset, points=point[None]):
            x = view.camera.camera_from_world[:3, :3] @ point + view.camera.camera_from_world[:3, 3]
            u, v, w = view.camera.K @ x
            row, column = np.argwhere(np.isfinite(view.depth))[0]
            assert abs(column + 0.5 - u / w) <= 0.5 + 1e-6
            assert abs(row + 0.5 - v / w) <= 0.5 + 1e-6


def test_depths_of_a_pixel_are_averaged_harmonically() -> None:
    view = one_view([[0, 0, 0.6], [0, 0, -0.4]])  # depths 2 and 1
    assert np.isfinite(view.depth).sum() == 1
    assert view.depth[4, 4] == pytest.approx(2 / (1 / 2 + 1 / 1))


def test_a_footprint_of_two_reaches_back() -> None:
    view = one_view([[0, 0, 0]], footprint=2)  # u = v = 4: pixels ceil(4 - 1) and ceil(4)
    assert np.argwhere(np.isfinite(view.depth)).tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]


def test_points_behind_and_beside_the_picture_are_not_drawn() -> None:
    view = one_view([[0, 0, -2.0], [5.0, 0, 0]])
    assert not np.isfinite(view.depth).any()
    assert view.coverage == 0


def test_a_pixel_has_the_colour_of_its_nearest_point() -> None:
    points, colors = [[0, 0, 0.5], [0, 0, -0.5], [-0.35, 0, 0]], [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    view = one_view(points, colors, channels=["rgb", "depth"], background=[1.0, 1.0, 1.0])
    assert view.rgb[4, 4].tolist() == [0, 255, 0]
    assert view.rgb[4, 5].tolist() == [0, 0, 255]
    others = np.ones((8, 8), bool)
    others[4, 4:6] = False
    assert (view.rgb[others] == 255).all()
    assert (np.isfinite(view.depth) == ~others).all()
    with pytest.raises(ValueError, match="colours of points"):
        one_view(points, None, channels=["rgb"])


def test_colours_and_depth_show_the_same_pixels(golden) -> None:
    points = np.load(golden / "render" / "pointclip_weighted_sn_car_2cbe6850.npz")["points"]
    _, colored = load_preset("simpleview6_rgb")
    _, plain = load_preset("simpleview6")
    colors = np.full((len(points), 3), 200, np.uint8)
    for view, other in zip(draw(colored, points=points, colors=colors), draw(plain, points=points), strict=True):
        assert view.depth is None
        assert ((view.rgb == 200).all(axis=2) == np.isfinite(other.depth)).all()


@pytest.mark.parametrize("footprint", [1, 2, 4])
def test_a_dot_across_an_edge_shows_on_this_side_only(footprint: int) -> None:
    """At the last column and the row after it, at every edge and corner: none of it at the other end of another row."""
    edges = [(place, 3) for place in (-4, -3, -2, -1, 0, 1, 6, 7, 8, 9, 10, 11)]
    _, preset = load_preset("pointclip10", {"image_size": 8, "mirror": False, "footprint": footprint})
    camera = preset_cameras(preset)[0]
    pose = camera.camera_from_world
    steps = [int(np.ceil(step - footprint / 2)) for step in range(footprint)]  # a dot at u = 0
    for column, row in [*edges, *((c, r) for r, c in edges), (8, 8), (-1, -1), (7, 7), (8, 0), (0, 8)]:
        place = np.array([(column - 4) / camera.K[0, 0] * 2, (row - 4) / camera.K[1, 1] * 2, 2.0])
        dots = np.stack([place, place])  # a second one behind it changes no pixel
        dots[1] *= 1.5
        world = ((dots - pose[:3, 3]) @ pose[:3, :3]).astype(np.float64)
        nudged = world - 1e-9 * pose[0, :3] - 1e-9 * pose[1, :3]  # of two pixels the one that an exact number lands on
        depth = draw(preset, points=nudged)[0].depth
        found = {tuple(each) for each in np.argwhere(np.isfinite(depth)).tolist()}
        expected = {(row + a, column + b) for a in steps for b in steps}
        assert found == {(r, c) for r, c in expected if 0 <= r < 8 and 0 <= c < 8}, (column, row)
        np.testing.assert_allclose(depth[np.isfinite(depth)], 2 / (1 / 2 + 1 / 3), rtol=1e-6)


def test_a_dot_at_the_camera_itself_is_no_point_behind_it() -> None:
    """Depth zero is kept, as released; below it nothing is."""
    assert one_view([[0, 0, -1.4]]).coverage == 1 / 64
    assert one_view([[0, 0, -1.4001]]).coverage == 0


def test_of_equally_near_dots_the_first_is_seen() -> None:
    colors = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    for order in ([0, 1, 2], [2, 0, 1]):
        given = [colors[number] for number in order]
        assert one_view([[0, 0, 0]] * 3, given, channels=["rgb"]).rgb[4, 4].tolist() == given[0]


@pytest.mark.parametrize("footprint", [1, 2])
def test_dots_keep_their_colours_when_others_are_outside(footprint: int) -> None:
    """Dots behind the camera or beside the picture have numbers, too."""
    points = [[9, 0, 0], [0, 0, -3], [0, 0, 0], [0, 9, 0], [-0.7, 0, 0]]
    colors = [[9, 9, 9], [8, 8, 8], [255, 0, 0], [7, 7, 7], [0, 0, 255]]
    rgb = one_view(points, colors, channels=["rgb"], footprint=footprint).rgb
    assert rgb[4, 4].tolist() == [255, 0, 0]
    assert rgb[4, 6].tolist() == [0, 0, 255]
    assert {tuple(c) for c in rgb.reshape(-1, 3)} == {(0, 0, 0), (255, 0, 0), (0, 0, 255)}


def test_only_the_presets_number_of_points_is_drawn() -> None:
    points = [[0, 0, 0], [-0.35, 0, 0], [0.35, 0, 0]]
    _, preset = load_preset("pointclip10", {"image_size": 8, "points": 2})
    assert draw(preset, points=np.array(points, np.float32))[0].coverage == 2 / 64
