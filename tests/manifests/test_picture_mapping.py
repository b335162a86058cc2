"""Pictures that towers see: every point preset's range, enlarging, raw depth as 8-bit codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manifests.config import load_toml
from manifests.errors import Refused
from manifests.picture_mapping import NORMALIZE, mean_and_deviation, to_picture, tower_picture, upsampled, value_range
from manifests.presets import FOLDER, PointclipViews, PointViews, load_preset, preset_names
from renderers.backend_table import draw

POINT_PRESETS = sorted(name for name in preset_names() if load_preset(name)[1].draws == "points")
RAW = {"pointclip6", "pointclip10", "simpleview6"}


def test_every_point_preset_is_there() -> None:
    depth = {"depth10", "depth10_r1", "depth10_r4", "depth10_above", "depth10_release", "depth6_release"}
    weighted = {f"weighted10_r{side}" for side in (1, 2, 4)}
    assert set(POINT_PRESETS) == depth | weighted | RAW | {"simpleview6_rgb", "realistic10"}


@pytest.mark.parametrize("name", POINT_PRESETS)
def test_a_file_holds_every_parameter(name: str) -> None:
    values, preset = load_toml(FOLDER / f"{name}.toml"), load_preset(name)[1]
    assert values["title"]
    assert {
        "points",
        "image_size",
        "rotations",
        "projection",
        "distance",
        "depth_range",
        "mapping",
        "normalize",
    } <= set(values)
    own = set(type(preset).model_fields) - set(PointViews.__mro__[1].model_fields)
    if isinstance(preset, PointViews):
        own -= {"disc_radius"} if preset.merge != "disc" else {"dilation"}
    if isinstance(preset, PointclipViews) and "rgb" not in preset.channels:
        own -= {"channels", "background"}
    assert own <= set(values)
    assert preset.points == 1024
    assert preset.num_views == int("".join(c for c in name.split("_")[0] if c.isdigit()))


@pytest.mark.parametrize("name", POINT_PRESETS)
def test_the_range_of_what_a_tower_sees(name: str) -> None:
    preset = load_preset(name)[1]
    points = np.random.default_rng(0).normal(size=(1024, 3))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    colors = np.full((1024, 3), 128, np.uint8) if preset.needs_colors else None
    (channel,) = preset.channels
    for view in draw(preset, points=points, colors=colors):
        picture = tower_picture(getattr(view, channel), channel, preset)
        side = preset.upsample or view.camera.width
        assert picture.shape == (side, side, 3)
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        if name in RAW:
            assert preset.distance <= picture.max() <= preset.distance + 1
        else:
            assert picture.max() <= 1
        assert picture.max() > picture.min()


def test_above_differs_from_below_in_the_corners_alone() -> None:
    below, above = load_preset("depth10")[1], load_preset("depth10_above")[1]
    for number, (old, new) in enumerate(zip(below.rotations, above.rotations, strict=True)):
        position, other = -np.array(old[2]), -np.array(new[2])
        if number in range(4, 8):
            assert position[1] < -0.7 < 0.7 < other[1]
            np.testing.assert_allclose(other, position * [1, -1, 1], atol=1e-12)
            assert np.array(new)[1, 1] < 0  # +Y is up
        else:
            assert old == new


def test_released_six_directions_equal_golden(golden) -> None:
    data = np.load(golden / "render" / "clip2point_depth_mn10_chair_0890.npz")
    ours = np.array(load_preset("depth6_release")[1].rotations)
    theirs = np.diag([-1.0, -1.0, 1.0]) @ data["v6_R"].transpose(0, 2, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 11), (5, 5, 3), (16, 16)])
def test_enlarging_equals_torch(shape: tuple) -> None:
    picture = np.random.default_rng(0).random(shape, np.float32)
    planes = torch.from_numpy(picture.reshape(*shape[:2], -1)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(planes, (16, 16), mode="bilinear", align_corners=True)
    got = upsampled(picture, 16).reshape(16, 16, -1).transpose(2, 0, 1)
    np.testing.assert_allclose(got, expected[0].numpy(), atol=1e-6)


def test_raw_depth_as_codes_is_normalised_back() -> None:
    """8-bit codes of [0, far], divided by 255 and normalised, are world depth again."""
    preset = load_preset("pointclip6", {"upsample": 0})[1]
    depth = np.array([[0.7, 2.5], [np.inf, 1.6]], np.float32)
    codes = np.rint(tower_picture(depth, "depth", preset) * (255 / value_range("depth", preset)))
    mean, deviation = mean_and_deviation("depth", preset)
    seen = (codes / 255 - np.array(mean)) / np.array(deviation)
    np.testing.assert_allclose(seen[..., 0], [[0.7, 2.5], [0, 1.6]], atol=preset.far / 510 + 1e-6)
    assert mean_and_deviation("depth", load_preset("depth10")[1])[0][0] == 0.48145466


def test_world_depth_stays_as_it_is() -> None:
    depth = np.array([[0.75, np.inf]], np.float32)
    assert to_picture(depth, "world").tolist() == [[0.75, 0]]
    with pytest.raises(ValueError, match="no picture of depth"):
        to_picture(depth, "none")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("pointclip6", {"footprint": 3}, "side 1 or an even one"),
        ("pointclip6", {"projection": "orthographic"}, "projection=perspective"),
        ("pointclip6", {"mapping": "none"}, "mapping=none"),
        ("pointclip6", {"footprnt": 2}, "did you mean footprint"),
        ("realistic10", {"blur": 4}, "odd side"),
        ("realistic10", {"projection": "perspective"}, "projection=orthographic"),
        ("realistic10", {"pool_padding": 4}, "more than half of pool=7"),
        ("realistic10", {"pool": 0}, "preset realistic10: pool: "),
    ],
)
def test_impossible_presets_are_refused(name: str, changes: dict, words: str) -> None:
    with pytest.raises(Refused, match=words):
        load_preset(name, changes)


def test_colours_and_greys_are_shares_of_one_in_all_three_channels() -> None:
    preset = load_preset("rgb12", {"image_size": 8})[1]
    rgb = np.arange(8 * 4 * 3, dtype=np.uint8).reshape(8, 4, 3) * 2
    rgb[0, 0] = 255
    np.testing.assert_array_equal(tower_picture(rgb, "rgb", preset), rgb / np.float32(255))
    assert tower_picture(rgb, "rgb", preset)[0, 0].tolist() == [1, 1, 1]
    realistic = load_preset("realistic10", {"upsample": 0})[1]
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    for array in (gray, gray / np.float32(255)):
        picture = tower_picture(array, "gray", realistic)
        assert picture.shape == (3, 4, 3)
        for channel in range(3):
            np.testing.assert_allclose(picture[..., channel], gray / 255, atol=1e-6)


def test_a_flat_object_seen_head_on_is_a_picture() -> None:
    """All its depths are one: nothing is divided by their range."""
    depth = np.full((4, 4), np.inf, np.float32)
    depth[1:3, 1:3] = 2.0
    assert set(np.unique(to_picture(depth, "linear"))) == {0.0, 1.0}
    assert set(np.unique(to_picture(depth, "clip2point"))) == {np.float32(0.5 * 200 / 255), 1.0}
    near = np.where(np.isfinite(depth), np.float32(0.8), depth)
    assert set(np.unique(to_picture(near, "clip2point"))) == {0.0, 1.0}
    empty = np.full((2, 2), np.inf, np.float32)
    assert (to_picture(empty, "linear") == 0).all()


def test_towers_get_the_statistics_that_they_were_trained_with() -> None:
    """OpenAI's CLIP and torchvision's ImageNet; codes of world depth are in units of its far end."""
    assert NORMALIZE["clip"] == (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    )
    assert NORMALIZE["imagenet"] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert mean_and_deviation("rgb", load_preset("rgb12")[1]) == NORMALIZE["clip"]
    raw = load_preset("pointclip6", {"normalize": "clip"})[1]
    mean, deviation = mean_and_deviation("depth", raw)
    np.testing.assert_allclose(np.array(mean) * raw.far, NORMALIZE["clip"][0])
    np.testing.assert_allclose(np.array(deviation) * raw.far, NORMALIZE["clip"][1])
