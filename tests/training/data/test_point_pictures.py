"""Shards of the pictures of points, and what a tower sees of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import REPOSITORY, Commands, write_off
from PIL import Image

from manifests.picture_mapping import NORMALIZE, tower_picture, value_range
from manifests.samples import decode_array
from renderers.backend_table import draw
from training import load
from training.__main__ import main
from training.data.dataset import open_source
from training.data.decode import picture_of
from training.data.shard_reader import read_joined
from training.data.whole_split import SplitReader
from training.evaluation.embed import embed
from training.settings.data import DataSettings

CHANNELS = {"realistic10": "gray", "pointclip6": "depth", "simpleview6_rgb": "rgb", "depth10_release": "depth"}


@pytest.fixture(scope="module")
def point_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four coloured parametric objects, with three sets drawn at build time and one from the shards."""
    out, run = tmp_path_factory.mktemp("points") / "out", Commands(REPOSITORY)
    first = json.dumps([name for name in CHANNELS if name != "pointclip6"])
    options = ("parametric.objects=4", "num_points=512", "fps_prefix=256", f"views={first}")
    run("build", "parametric", "--out", out, "--workers", 0, *options)
    run("views", "pointclip6", "--shards", out, "--workers", 0)
    return out


def test_check_and_inspect_know_them(point_shards, tmp_path) -> None:
    run = Commands(REPOSITORY)
    found = json.loads(run("check", point_shards, "--json").stdout)
    assert found["ok"]
    assert {name: sums["samples"] for name, sums in found["view_sets"].items()} == dict.fromkeys(CHANNELS, 4)
    run("inspect", point_shards, "--png", tmp_path / "sheet.png", "--views", 2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 5


@pytest.mark.parametrize("name", CHANNELS)
def test_a_tower_sees_what_is_drawn(point_shards, name: str) -> None:
    """Up to half an 8-bit code of the picture's range; grey and depth are stored rounded before that."""
    settings = DataSettings(views=name, channel=CHANNELS[name], num_points=256, split="train")
    source = open_source(str(point_shards), settings)
    preset, channel = source.view_set.preset, CHANNELS[name]
    largest = value_range(channel, preset)
    for shape, views in read_joined(source.shards[0], range(2)):
        points, colors = (decode_array(shape.members[member]) for member in ("points.npy", "colors.npy"))
        for number, view in enumerate(draw(preset, points=points, colors=colors)):
            exact = tower_picture(getattr(view, channel), channel, preset)
            picture = picture_of(views, number, channel, preset)
            assert picture.dtype == np.uint8
            np.testing.assert_allclose(picture / 255 * largest, exact, atol=1.02 * largest / 255)
    batch = next(iter(SplitReader(source, settings, preset.upsample or preset.image_size, [0], 2)))
    assert batch.pictures.shape[:3] == (2, preset.num_views, 3)
    images = batch.normalized(torch.arange(2 * preset.num_views), torch.device("cpu"))
    if name == "pointclip6":
        assert images.min() == 0
        assert 1.6 < images.max() < 2.6
    if name == "realistic10":
        assert (images.min(), images.max()) == (0, 1)


@pytest.mark.parametrize(("normalize", "mean"), [("tower", NORMALIZE["clip"][0]), ("preset", (0, 0, 0))])
def test_the_image_tower_decides_how_pictures_are_normalised(point_shards, tmp_path, normalize: str, mean) -> None:
    """PointCLIP V2's preset normalises nothing; CLIP's weights want CLIP's mean, in `fit`, `embed`, Python."""
    data = ("data.views=realistic10", "data.channel=gray", "data.num_points=256", f"image.normalize={normalize}")
    small = ("optimizer.steps=1", "optimizer.batch_size=4", "tensorboard=false", "points.depth=1")
    assert main(["fit", "small_cross_most", "--shards", str(point_shards), "--run", str(tmp_path), *data, *small]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["pixel_mean"] == pytest.approx(mean)
    model = load(tmp_path)
    found = embed(model.checkpoint, str(point_shards), "train", per_view=True)
    settings = model.checkpoint.recipe.data
    source = open_source(str(point_shards), settings)
    _, views = next(read_joined(source.shards[0], [0]))
    pictures = [picture_of(views, number, "gray", source.view_set.preset) for number in range(2)]
    asked = model.encode_image(np.stack(pictures))
    row = list(found.keys).index(views.key)
    np.testing.assert_allclose(found.views[row, :2], asked, atol=1e-5)


def test_objects_without_colours_have_no_coloured_dots(tmp_path) -> None:
    for number in range(2):
        write_off(tmp_path / "source" / "thing" / f"thing_{number}.off", size=1 + number)
    run, out = Commands(REPOSITORY), tmp_path / "out"
    options = ("num_points=128", "fps_prefix=64", "views=[]")
    run("build", "meshes", "--source", tmp_path / "source", "--out", out, "--workers", 0, *options)
    refused = run("views", "simpleview6_rgb", "--shards", out, "--workers", 0, code=1)
    line = " ".join(refused.stderr.split())
    assert "simpleview6_rgb fits no object (no colours)" in line
    assert "simpleview6," in line
    assert "simpleview6_rgb," not in line
