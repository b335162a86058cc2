"""Zero-shot on depth pictures: which tower answers, weights of views, and RGB of the same objects beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tiny_towers import SIZES, tiny
from torch.nn.functional import normalize
from training_runs import typed

import training
from training.evaluation.features import Features
from training.evaluation.view_weights import STEPS, best_weights

FEW = (
    *("optimizer.batch_size=8", "optimizer.steps=2", "log_every=1", "tensorboard=false"),
    *("data.num_points=128", "optimizer.lr=1e-2"),
)


@pytest.fixture(scope="module", autouse=True)
def _tiny_towers() -> Iterator[None]:
    with tiny():
        yield


@pytest.fixture(scope="module")
def runs(depth_shards: Path, tmp_path_factory) -> tuple[Path, Path]:
    """A pre-training on RGB, and CLIP2Point after it."""
    folder = tmp_path_factory.mktemp("runs")
    rgb, depth = folder / "rgb", folder / "depth"
    typed("fit", "small_pretrain", "--shards", depth_shards, "--run", rgb, *FEW)
    typed("fit", "small_clip2point", "--shards", depth_shards, "--run", depth, *FEW, *AFTER, f"init.image={rgb}")
    return rgb, depth


AFTER = ("clip2point.points=128",)


def judged(*arguments: object) -> dict:
    return json.loads(typed("evaluate", *arguments, "--json")[0])


def logits_of(runs: Path, *arguments: object) -> dict:
    return judged(runs, *arguments)["analysis"]["student"]["image"]


def test_view_logits_equal_golden(golden) -> None:
    data = np.load(golden / "method" / "clip2point_training" / "zeroshot_views.npz")
    views, text = (torch.from_numpy(data[name]) for name in ("view_features", "text_features"))
    views, text, weights = normalize(views, dim=2), normalize(text, dim=1), torch.from_numpy(data["view_weights"])
    count = torch.full((len(views), 1), views.shape[1], dtype=views.dtype)
    plain, weighted = (Features(views, count, views, weights=each) for each in (None, weights))
    root, number = views.shape[1] ** 0.5, views.shape[1]
    for found, name in (
        (plain.mean() @ text.T, "eq11_mean"),
        (plain.mean() @ text.T * number, "clip2point_released_sum"),
        (plain.image() @ text.T, "feature_mean_then_cos"),
        (plain.mean() @ text.T * 100 * root, "pointclip_zs"),
        (weighted.mean() @ text.T * 100 * weights.sum() / root, "pointclip_zs_weighted"),
    ):
        np.testing.assert_allclose(found, data[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_best_weights_are_those_with_the_most_right_answers() -> None:
    """Of four views every combination; of eight in turn, never below the same weight for all."""
    g = torch.Generator().manual_seed(0)
    label = torch.randint(5, (60,), generator=g)
    true = torch.nn.functional.one_hot(label, 5)[:, None]
    few = torch.randn(60, 4, 5, generator=g) + torch.tensor([2.0, 0.2, 0.0, -1.0])[:, None] * true

    def right(logits, weights) -> int:
        return int(((logits * torch.tensor(weights)[:, None]).sum(dim=1).argmax(dim=1) == label).sum())

    assert right(few, best_weights(few, label)) == max(right(few, each) for each in product(STEPS, repeat=4))
    assert best_weights(true.expand(-1, 4, -1).float(), label) == (1.0,) * 4
    many = torch.cat([few, torch.randn(60, 4, 5, generator=g)], dim=1)
    assert right(many, best_weights(many, label)) > right(many, (1.0,) * 8)


def test_depth_pictures_go_to_the_depth_tower_and_rgb_to_clips(runs, depth_shards) -> None:
    """The image tower is as it was: RGB has the same answers as before, and depth others than CLIP's tower gives."""
    rgb, depth = runs
    text = ("--shards", depth_shards, "--classes-from-text")
    of_rgb = ("data.views=rgb12", "data.channel=rgb")
    assert logits_of(depth, *text, *of_rgb) == logits_of(rgb, *text, *of_rgb)
    by_clip = logits_of(rgb, *text, "data.views=depth10_release", "data.channel=depth")
    assert logits_of(depth, *text) == logits_of(depth, *text, "data.views=depth10_release", "data.channel=depth")
    assert logits_of(depth, *text)["entropy"] != by_clip["entropy"]
    zero = logits_of(depth / "checkpoints/step-00000000", *text)  # a copy of CLIP's tower
    assert zero["entropy"] == pytest.approx(by_clip["entropy"], abs=1e-4)


def test_a_loaded_run_encodes_depth_pictures(runs, depth_shards) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
    rgb, depth = (training.load(str(run)) for run in runs)
    zero = training.load(str(runs[1] / "checkpoints/step-00000000"))
    torch.testing.assert_close(zero.encode_image(pictures), rgb.encode_image(pictures))
    assert (depth.encode_image(pictures) - rgb.encode_image(pictures)).abs().max() > 1e-3


def test_one_view_and_weights_of_views(runs, depth_shards) -> None:
    """A weight of 1 for one view is that view alone; all alike is no weight."""
    shards = ("--shards", depth_shards)
    plain = judged(runs[1], *shards)
    alike = judged(runs[1], *shards, "views_weight=[0.5,0.5,0.5]")
    assert plain["student"] == alike["student"]
    assert (plain["views_weight"], alike["views_weight"]) == (None, [0.5, 0.5, 0.5])
    one = judged(runs[1], *shards, "views_weight=[1,0,0]")
    assert one["student"]["image_star"] == judged(runs[1], *shards, "data.num_views=1")["student"]["image"]
    rows = [
        json.loads(typed("predict", runs[1], *shards, "--json", *more)[0])
        for more in ((), ("--views-weight", "1,1,1"), ("--views-weight", "1,0,0"))
    ]
    assert rows[0] == rows[1] != rows[2]
    assert {row["surer"] for row in rows[0]} == {"image"}


def test_weights_are_searched_on_training_objects(runs, depth_shards) -> None:
    found = judged(runs[1], "--shards", depth_shards, "--search-view-weights", "train")
    assert found["views_weight_searched_on"] == "train"
    assert set(found["views_weight"]) <= set(STEPS)
    given = judged(runs[1], "--shards", depth_shards, f"views_weight={found['views_weight']}")
    assert given["student"] == found["student"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--search-view-weights", "test"), "PointCLIP's released search_weights.py fits them to the labels that then"),
        (("--split", "train", "--search-view-weights", "train"), "give a split of training, and judge another"),
        (("--search-view-weights", "train", "views_weight=[1,1,1]"), "both say the weights of views"),
        (("views_weight=[1,1]",), "views_weight has 2 numbers, and objects have 3 views"),
        (("views_weight=[0,0,0]",), "one of them must be above 0"),
        (("views_weight=[1,-1,1]",), "numbers from 0 on, one a view"),
        (("--beside", "rgb12", "--without-labels"), "compares accuracies, and --without-labels reads none"),
        (("--beside", "rgb99"), "data.views=rgb99"),
    ],
)
def test_refusals_are_one_line(runs, depth_shards, more: tuple[str, ...], words: str) -> None:
    said = typed("evaluate", runs[1], "--shards", depth_shards, *more, code=2)[1].splitlines()
    assert words in said[-1]


def test_rgb_beside_depth_is_of_the_same_objects(runs, depth_shards) -> None:
    out, said = typed("evaluate", runs[1], "--shards", depth_shards, "--beside", "rgb12", "--json")
    found = json.loads(out)
    beside = found["rgb_beside_depth"]
    of_rgb = judged(runs[1], "--shards", depth_shards, "data.views=rgb12", "data.channel=rgb")
    assert (beside["rgb"], beside["depth"]) == (of_rgb["student"]["image_star"], found["student"]["image_star"])
    assert (beside["n"], beside["chance"]) == (found["n"], 5.26)
    assert f"RGB {beside['rgb']:.1f}, depth {beside['depth']:.1f}, chance 5.3" in said


def test_a_released_depth_tower_is_the_image_tower_of_depth_pictures(depth_shards, tmp_path) -> None:
    """A file with upstream's names is judged on depth with CLIP's text; on RGB it is refused."""
    sizes = SIZES | {"quick_gelu": True}
    (tmp_path / "tiny-quickgelu.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(tmp_path / "tiny-quickgelu.json")
    state = open_clip.create_model("tiny-quickgelu").state_dict()
    g = torch.Generator().manual_seed(0)
    taught = {
        name: value + torch.randn(value.shape, generator=g) * 0.1
        for name, value in state.items()
        if name.startswith("visual.")
    }
    released = {f"point_model.{name.removeprefix('visual.')}": value for name, value in taught.items()}
    released |= {f"image_model.{name.removeprefix('visual.')}": state[name] for name in taught}
    files = {"best": released | {"weights": torch.ones(())}, "clip": state, "whole": state | taught}
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    keys = ("image.model=tiny-quickgelu", "--shards", depth_shards, "data.views=depth10_release")
    text = (f"init.image={tmp_path / 'best.safetensors'}", f"image.pretrained={tmp_path / 'clip.safetensors'}")
    found = judged(*text, *keys, "data.channel=depth")
    assert found == judged(tmp_path / "whole.safetensors", *keys, "data.channel=depth")
    said = typed("evaluate", *text, *keys[:-1], "data.views=rgb12", code=2)[1]
    assert "has a tower of depth pictures, which this run would show RGB: data.views=NAME data.channel=depth" in said


@pytest.mark.slow
def test_clouds_as_files_are_drawn_as_the_depth_tower_learned_them(runs, tmp_path) -> None:
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    np.save(tmp_path / "cloud.npy", points)
    (row,) = json.loads(typed("predict", runs[1], tmp_path / "cloud.npy", "--json", "--views-weight", "1,1,1")[0])
    assert (row["error"], row["towers"]) == (None, ["image"])


@pytest.mark.slow
def test_cross_most_on_depth_pictures_begins_where_the_depth_tower_ended(runs, depth_shards, tmp_path) -> None:
    """Its first checkpoint says of pictures what CLIP2Point's run says, and it trains."""
    keys = (*FEW, "data.views=depth10_release", "data.channel=depth", f"init.image={runs[1]}", "points.depth=1")
    typed("fit", "small_cross_most", "--shards", depth_shards, "--run", tmp_path / "run", *keys, "mask.image_cell=8")
    first, last = (tmp_path / f"run/checkpoints/step-{number:08d}" for number in (0, 2))
    text = ("--shards", depth_shards, "--classes-from-text")
    assert logits_of(first, *text)["entropy"] == pytest.approx(logits_of(runs[1], *text)["entropy"], abs=1e-4)
    assert judged(last, "--shards", depth_shards)["student"]["points"] is not None
