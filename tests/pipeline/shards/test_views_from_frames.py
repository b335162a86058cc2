"""Frames of a sequence: which are chosen, what is cut out, and what becomes of depth and camera."""

from __future__ import annotations

import json

import numpy as np
import pytest
from redwood_release import png

from manifests.presets import load_preset
from manifests.records import Asset
from manifests.samples import decode_picture, depth_of_codes
from pipeline.formats.frame import Frame, FrameCamera
from pipeline.shards.views_from_frames import frame_members, resized_nearest, stored_size

ASSET = Asset("a", "a", "train", "thing", "a")
WORLD = np.diag([0.5, 0.5, 0.5, 1.0])
SIZE = (30, 20)  # width, height


def picture(number: int = 0) -> np.ndarray:
    """uint8 (20, 30, 3) whose pixels say where they lie."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.stack([rows * 10, columns * 8, np.full_like(rows, number)], axis=2).astype(np.uint8)


def frames(count: int, mask: np.ndarray | None = None, depth: np.ndarray | None = None) -> list[Frame]:
    K = np.array([[100.0, 0, 15.5], [0, 110.0, 9.25], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, 3] = [0.25, -0.5, 4]
    return [
        Frame(
            name=f"{number:03d}",
            rgb=lambda number=number: png(picture(number)),
            depth=None if depth is None else lambda: depth,
            mask=None if mask is None else lambda: mask,
            camera=FrameCamera(K, *SIZE, pose),
        )
        for number in range(count)
    ]


def stored(of: list[Frame], asset: Asset = ASSET, seed: int = 0, **keys: object) -> tuple[list[dict], dict[str, bytes]]:
    """(the json's views, members)."""
    _, preset = load_preset("frames20", {"image_size": 0, "rgb_format": "png", **keys})
    members = frame_members(asset, of, WORLD, preset, "frames20", seed)
    return json.loads(members["json"])["views"], members


def test_every_object_and_seed_has_frames_of_its_own() -> None:
    def chosen(key: str, seed: int) -> tuple[str, ...]:
        views, _ = stored(frames(200), Asset(key, key, "train", None, key), seed)
        return tuple(view["frame"] for view in views)

    assert len({chosen(key, seed) for key in ("a", "b") for seed in (0, 1)}) == 4
    assert chosen("a", 1) == chosen("a", 1)


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_the_object_is_cut_out_whole_with_its_margin_on_every_side(margin: float) -> None:
    mask = np.zeros(SIZE[::-1], bool)
    mask[6:14, 9:21] = True  # 12 wide: a quarter of that is 3
    more = round(12 * margin)
    views, members = stored(frames(1, mask), crop="mask", crop_margin=margin)
    shown = decode_picture(members["v00.rgb.png"])
    np.testing.assert_array_equal(shown, picture()[6 - more : 14 + more, 9 - more : 21 + more])
    assert views[0]["coverage"] == pytest.approx(8 * 12 / (shown.shape[0] * shown.shape[1]), abs=1e-6)
    np.testing.assert_allclose(
        views[0]["K"], [[100, 0, 15.5 - 9 + more], [0, 110, 9.25 - 6 + more], [0, 0, 1]], atol=1e-9
    )


def test_a_margin_ends_at_the_picture() -> None:
    mask = np.zeros(SIZE[::-1], bool)
    mask[1:19, 2:29] = True
    _, members = stored(frames(1, mask), crop="mask", crop_margin=1.0)
    np.testing.assert_array_equal(decode_picture(members["v00.rgb.png"]), picture())


def test_depth_and_camera_are_in_world_units() -> None:
    depth = np.linspace(3, 5, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE[::-1])
    views, members = stored(frames(1, depth=depth), channels=["rgb", "depth"])
    codes = decode_picture(members["v00.depth.png"])
    found = depth_of_codes(codes, views[0]["near"], views[0]["far"])
    np.testing.assert_allclose(found, 0.5 * depth, atol=2e-5)
    np.testing.assert_allclose(np.array(views[0]["camera_from_world"])[:3, 3], [0.125, -0.25, 2], atol=1e-12)


def test_a_resized_picture_takes_the_nearest_pixel_centres() -> None:
    array = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(resized_nearest(array, (0, 0, 6, 4), (6, 4)), array)
    np.testing.assert_array_equal(resized_nearest(array, (0, 0, 6, 4), (2, 2)), array[[1, 3]][:, [1, 4]])
    np.testing.assert_array_equal(resized_nearest(array, (2, 1, 4, 3), (2, 2)), array[1:3, 2:4])
    np.testing.assert_array_equal(
        resized_nearest(array, (0, 0, 6, 4), (12, 8)), array.repeat(2, axis=0).repeat(2, axis=1)
    )


def test_the_short_side_is_brought_to_size() -> None:
    assert stored_size((0, 0, 640, 480), 240) == (320, 240)
    assert stored_size((10, 20, 110, 320), 50) == (50, 150)
    assert stored_size((0, 0, 7, 9), 0) == (7, 9)
    views, members = stored(frames(1), image_size=10)
    assert decode_picture(members["v00.rgb.png"]).shape == (10, 15, 3)
    np.testing.assert_allclose(views[0]["K"], [[50, 0, 7.75], [0, 55, 4.625], [0, 0, 1]], atol=1e-9)
