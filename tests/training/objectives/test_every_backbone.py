"""Every backbone in every method that takes a point tower, and in every command that asks a run."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import REPOSITORY
from safetensors.torch import load_file
from tiny_towers import tiny
from training_runs import typed

import training
from training.models.backbones import TOWERS
from training.networks.part_networks import PART_TOWERS
from training.settings.backbone_rows import BACKBONE_SETTINGS

UNMASKED = ("weights.mpm=0", "weights.lg_align=0")
RECIPES = {  # recipe -> keys without which a backbone without tokens is refused
    "small_cross_most": (*UNMASKED, "mask.image_cell=8"),
    "small_self_training": (*UNMASKED, "mask.image_cell=8"),
    "small_pretrain": (),
    "small_crosspoint": (),
}
WHOLE = [name for name in TOWERS if name not in PART_TOWERS]  # these take 512 points or more
WIDE = ("points.centres=[32,8]", "points.radii=[[0.3,0.5,0.8],[0.5,0.8,1.2]]")  # each ball has several of few points
KEYS = {  # few points: sizes that the default ones do not allow
    "point_bert": ("points.depth=1",),
    "dgcnn": ("points.k=6",),
    "pointnet2_ssg": ("points.centres=[32,8]",),
    "pointnet2_msg": WIDE,
    "pointnet2_pointcmt": WIDE,
    "rscnn": ("points.centres=[32,8]",),
    "pointmlp": ("points.centres=[32,16,8,8]", "points.neighbours=8"),
    "pointmlp_elite": ("points.centres=[32,16,8,8]", "points.neighbours=8"),
}
FEW = (
    *("data.num_points=64", "optimizer.batch_size=4", "optimizer.steps=2", "log_every=1", "save_every=2"),
    *("optimizer.warmup_epochs=0", "optimizer.lr=0.001", "tensorboard=false", "data.shuffle=8"),
)


@pytest.fixture(scope="module", autouse=True)
def tiny_towers() -> Iterator[None]:
    with tiny():
        yield


def trained(shards: Path, run: Path, recipe: str, backbone: str) -> None:
    keys = (f"points.backbone={backbone}", *KEYS.get(backbone, ()), *RECIPES[recipe], *FEW)
    typed("fit", recipe, "--shards", shards, "--run", run, *keys)
    with open(run / "log.csv") as file:
        assert all(np.isfinite(float(row["loss"])) for row in csv.DictReader(file))
    begun, ended = (load_file(run / f"checkpoints/step-0000000{step}/model.safetensors") for step in (0, 2))
    own = [name for name in ended if name.startswith("points.") and begun[name].is_floating_point()]
    still = [name for name in own if torch.equal(begun[name], ended[name])]
    unused = ("points.mask_token", "points.lm_head.", "points.own_projection", "points.encoder.")  # of Point-BERT
    unused += ("points.projection",) if recipe == "small_crosspoint" else ()  # heads of their own are compared
    unused += ("points.SA_modules.1.mlps.0.RSConvLayer0.RS_Conv.bn_xyz_raising.",)  # RS-CNN has it for its name alone
    assert [name for name in still if not name.startswith(unused)] == []
    heads = {name.split(".")[1] for name in ended if name.startswith("contrast.")}
    assert heads == ({"points", "image"} if recipe == "small_crosspoint" else set())
    assert not any(
        torch.equal(begun[f"contrast.{tower}.3.weight"], ended[f"contrast.{tower}.3.weight"]) for tower in heads
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backbone", WHOLE)
def test_a_backbone_learns_in_a_method(shards, tmp_path, backbone, recipe) -> None:
    trained(shards, tmp_path / "run", recipe, backbone)


@pytest.mark.slow
def test_a_run_of_another_backbone_is_asked_by_every_command(shards, tmp_path) -> None:
    run = tmp_path / "run"
    trained(shards, run, "small_crosspoint", "dgcnn")
    found = json.loads(typed("evaluate", run, "--shards", shards, "--json")[0])
    assert 0 <= found["student"]["points"] <= 100
    typed("embed", run, "--shards", shards, "--out", tmp_path / "e.npz")
    assert np.load(tmp_path / "e.npz")["points"].shape == (found["n"], 8)
    assert len(json.loads(typed("predict", run, "--shards", shards, "--json")[0])) == found["n"]
    model = training.load(run)
    clouds = torch.rand(3, 64, 3).numpy()
    together, alone = model.encode_points(clouds), model.encode_points(clouds[:1])
    torch.testing.assert_close(together[:1], alone)


def test_what_does_not_go_with_a_backbone_is_one_line(shards, tmp_path) -> None:
    def refused(*words: str, code: int = 2) -> str:
        fit = ("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "run", *FEW, "mask.image_cell=8")
        return typed(*fit, *words, code=code)[1]

    dgcnn = ("points.backbone=dgcnn", *UNMASKED)
    assert refused(dgcnn[0]).endswith("points.backbone=dgcnn has no tokens to mask: weights.mpm=0 weights.lg_align=0")
    assert refused(*dgcnn, "points.k=65").endswith("data.num_points=64 is fewer than the 65 that points.* needs")
    assert refused(*dgcnn, "points.k=0").endswith("points.k: Input should be greater than or equal to 1, got 0")
    assert "points.emb_dims is a key of" in refused(*UNMASKED, "points.emb_dims=8")
    said = refused(*dgcnn, "optimizer.accumulate=2")
    assert said.endswith("the batch norms of points.backbone=dgcnn need the whole batch at once")
    one = ("points.backbone=pointnet_tnet", *UNMASKED, "optimizer.batch_size=1")
    said = refused(*one, code=3).splitlines()[-1]
    assert said == "batch norms learn from two clouds or more, this batch has one: optimizer.batch_size=2 or more"


def test_the_page_has_every_backbone_with_its_size() -> None:
    page = (REPOSITORY / "docs/backbones.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+ \| [\d.]+) \|", page, re.MULTILINE))
    assert rows.keys() == TOWERS.keys() - PART_TOWERS.keys()  # these: docs/parts.md
    for backbone in rows:
        tower = TOWERS[backbone](BACKBONE_SETTINGS[backbone](), 8)
        weights = (*tower.named_parameters(), *tower.classification_head(40).named_parameters())
        count = sum(weight.numel() for name, weight in weights if name not in ("projection", "own_projection"))
        assert rows[backbone] == f"{tower.projection.shape[0]} | {count / 1e6:.2f}", backbone
