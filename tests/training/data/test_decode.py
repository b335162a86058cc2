"""One object of a shard as arrays: which points of a cloud, and depth in the range of its own view."""

from __future__ import annotations

import numpy as np
import pytest

from manifests.picture_mapping import mapped_picture, value_range
from manifests.presets import load_preset
from manifests.samples import POINTS, Sample, depth_codes, encode_array, encode_json, encode_picture
from training.data.decode import cloud_of, pad_cloud, picture_of


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def shape_of(points: np.ndarray) -> Sample:
    return Sample("k", {POINTS: encode_array(points)})


def test_a_cloud_is_the_first_points_or_all_of_them_and_some_again() -> None:
    """The first ones are a farthest-point sample of the whole; any others would be a worse cloud."""
    points = rng().normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_array_equal(cloud_of(shape_of(points), 20, rng()), points[:20])
    np.testing.assert_array_equal(cloud_of(shape_of(points), 50, rng()), points)
    filled = cloud_of(shape_of(points), 500, rng())
    np.testing.assert_array_equal(filled[:50], points)
    assert {row.tobytes() for row in filled[50:]} == {row.tobytes() for row in points}
    np.testing.assert_array_equal(filled, pad_cloud(points, 500, rng()))
    with pytest.raises(ValueError, match="no cloud of finite points"):
        cloud_of(shape_of(np.full((9, 3), np.nan, np.float32)), 5, rng())


def test_depth_of_a_view_is_in_its_own_range() -> None:
    """Two views of one surface at 2 to 3 units, coded in other ranges: the pictures are alike, as far as codes go."""
    depth = np.full((64, 64), np.inf, np.float32)
    depth[16:48, 16:48] = np.linspace(2, 3, 32, dtype=np.float32)[:, None]
    preset = load_preset("depth10")[1].model_copy(update={"image_size": 64})
    ranges, members = ((1.0, 4.0), (2.0, 3.0)), {}
    for number, (near, far) in enumerate(ranges):
        members[f"v{number:02d}.depth.png"] = encode_picture(depth_codes(depth, near, far)[0], "png")
    cameras = [{"near": near, "far": far} for near, far in ranges]
    views = Sample("k", members | {"json": encode_json({"views": cameras})})
    first, second = (picture_of(views, number, "depth", preset).astype(int) for number in (0, 1))
    assert np.abs(first - second).max() <= 1
    inside = second[16:48, 16:48, 0]
    assert len(np.unique(inside)) > 5
    shown = mapped_picture(depth, "depth", preset) * (255 / value_range("depth", preset))
    assert np.abs(first[..., 0] - shown.squeeze()).max() <= 1  # near stays near
    with pytest.raises(ValueError, match="no depth picture of view 2"):
        picture_of(views, 2, "depth", preset)
