"""Runs of CrossPoint as a person has them: what the commands say, what is read, how a run goes on, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from builders import REPOSITORY
from safetensors.torch import load_file
from tiny_towers import tiny
from training_runs import typed

from manifests.config import parse_changes
from training.data.batch import Batch
from training.loop.fit import prepare
from training.models.cross_modal import CrossModalModel
from training.objectives.crosspoint import step
from training.objectives.step import Step
from training.settings.fit_recipe import read_recipe
from training.weights.checkpoint import build_model

CPU = torch.device("cpu")
FEW = (
    *("data.num_points=64", "optimizer.batch_size=6", "optimizer.steps=3", "optimizer.lr=1e-3", "tensorboard=false"),
    *("points.backbone=pointnet", "log_every=1"),
)
MODEL, LAST = "model.safetensors", "step-00000002"


@pytest.fixture(scope="module", autouse=True)
def tiny_towers() -> Iterator[None]:
    with tiny():
        yield


def fitted(shards: Path, run: Path, *changes: str) -> Path:
    typed("fit", "small_crosspoint", "--shards", shards, "--run", run, *FEW, *changes)
    return run


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    """Heads of its own, two pictures of each object."""
    return fitted(shards, tmp_path_factory.mktemp("runs") / "run", "crosspoint.images=2")


def test_text_answers_by_chance_after_heads_of_its_own_and_one_line_says_so(shards, run, tmp_path) -> None:
    """evaluate, predict, embed and report work and name `probe`, which works without it."""
    asked = {
        "evaluate": ("evaluate", run, "--shards", shards, "--json"),
        "predict": ("predict", run, "--shards", shards, "--json"),
        "embed": ("embed", run, "--shards", shards, "--out", tmp_path / "e.npz"),
        "report": ("report", run, "--shards", shards, "--out", tmp_path / "report"),
        "probe": ("probe", run, "--shards", shards, "--json"),
    }
    for name, words in asked.items():
        _, err = typed(*words)
        lines = [line for line in err.splitlines() if "crosspoint.heads=own" in line]
        assert len(lines) == (name != "probe"), (name, err)
        assert all(f"python -m training probe {run} --shards" in line for line in lines)
    found = json.loads(typed(*asked["probe"])[0])
    assert (found["width"], found["backbone"], found["space"]) == (1024, "pointnet", "own")
    clip = typed(*asked["probe"], "--space", "clip", "--without-random")[1]
    assert clip.count("crosspoint.heads=own") == 1


def test_text_answers_after_a_frozen_image_tower(shards, run, tmp_path) -> None:
    """The projection learned: no line. The image tower is to the last bit that which the run began with."""
    begun = tmp_path / "clip"
    typed("fit", "small_pretrain", "--shards", shards, "--run", begun, *FEW, "optimizer.steps=1")
    frozen = fitted(shards, tmp_path / "run", f"init.image={begun}", "crosspoint.image=frozen", "crosspoint.images=3")
    first, last = (load_file(frozen / f"checkpoints/step-0000000{n}" / MODEL) for n in (0, 3))
    same = {name for name in last if torch.equal(first[name], last[name])}
    assert {name for name in last if name.startswith("image.")} <= same
    assert "points.projection" not in same
    assert not any(name.startswith("contrast.") for name in last)
    assert "crosspoint.heads" not in typed("evaluate", frozen, "--shards", shards)[1]


@pytest.mark.parametrize("images", [1, 2, 3, 4, 5])
def test_as_many_pictures_as_asked_of_different_views_while_there_are_any(shards, tmp_path, images: int) -> None:
    """The build has three views of an object."""
    recipe = read_recipe("small_crosspoint", parse_changes((*FEW, f"crosspoint.images={images}", *PLAIN)))
    batch = next(iter(prepare(recipe, str(shards), str(tmp_path / "none"), CPU).samples))
    shown = batch.strong_image if images > 1 else batch.strong_image[:, None]
    assert shown.shape == (6, images, 3, 16, 16)
    assert [len(each.flatten(1).unique(dim=0)) for each in shown] == [min(images, 3)] * 6
    model = build_model(recipe, ("mug", "bowl"))[0].train()
    found = step(model, None, batch.to(CPU), recipe)
    found.total.backward()
    assert model.contrast["image"][0].weight.grad.abs().max() > 0


PLAIN = ("augment.image_magnitude=0", "augment.image_crop=1", "augment.image_flip=0")


def stepped(*changes: str) -> tuple[CrossModalModel, Step]:
    """A new model and its first step."""
    recipe = read_recipe("small_crosspoint", parse_changes((*FEW, *changes)))
    model = build_model(recipe, ("mug", "bowl"))[0].train()
    model.precision = recipe.precision
    g = torch.Generator().manual_seed(0)
    pictures, clouds = torch.randn(2, 6, 3, 16, 16, generator=g), torch.randn(2, 6, 64, 3, generator=g)
    mask = torch.zeros(6, 1, 1, dtype=torch.bool)
    batch = Batch(tuple("abcdef"), *pictures, *clouds, mask, torch.zeros(6, 2), torch.zeros(6))
    return model, step(model, None, batch, recipe)


@pytest.mark.parametrize("passes", [1, 2])
def test_both_clouds_are_one_batch_of_the_norms_of_tower_and_head(passes: int) -> None:
    """Or, with passes=2, two. Pictures are always one."""
    model, _ = stepped(f"crosspoint.passes={passes}")
    counts = {name: int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert {count for name, count in counts.items() if "points" in name} == {passes}
    assert counts["contrast.image.1.num_batches_tracked"] == 1


def test_bf16_is_near_fp32() -> None:
    """Both terms within 2 %; heads, losses and gradients stay float32."""
    found = {}
    for precision in ("fp32", "bf16"):
        model, result = stepped(f"precision={precision}")
        result.total.backward()
        assert {weight.grad.dtype for weight in model.parameters() if weight.grad is not None} == {torch.float32}
        found[precision] = {name: value.item() for name, value in result.terms.items()}
    assert found["bf16"] != found["fp32"]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.02)


def test_judging_on_the_way_chooses_nothing(shards, run, tmp_path) -> None:
    """The last checkpoint is that of a run which nobody judged, whatever the test split said of others."""
    judged = fitted(shards, tmp_path / "run", "crosspoint.images=2", "eval_every=1", "--looks-at-labels")
    weights = [(each / "checkpoints/step-00000003" / MODEL).read_bytes() for each in (run, judged)]
    assert weights[0] == weights[1]
    assert json.loads(typed("probe", judged, "--shards", shards, "--json", "--without-random")[0])["step"] == 3


def test_parts_of_a_batch_and_blocks_again_with_heads(shards, tmp_path) -> None:
    """Refused beside batch norms of a tower, each in one line; beside Point-BERT and CLIP's tower they are right
    (tests/training/loop/test_accumulate.py)."""
    for words, reason in (
        (("optimizer.accumulate=2",), "the batch norms of points.backbone=pointnet need the whole batch at once"),
        (
            ("activation_checkpointing=true", "image.backbone=resnet18", "image.image_size=32", "image.stem=patch"),
            "activation_checkpointing=true: image.backbone=resnet18 learns batch norms, which would learn twice",
        ),
    ):
        fit = ("fit", "small_crosspoint", "--shards", shards, "--run", tmp_path / "run", *FEW, *words)
        said = typed(*fit, code=2)[1]
        assert reason in said
        assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_contrasted_is_one_line(shards, tmp_path) -> None:
    """A build without pictures, one object, a batch of one."""
    bare, one = tmp_path / "bare", tmp_path / "one.txt"
    shutil.copytree(shards, bare, ignore=shutil.ignore_patterns("views"))
    key = next(iter(json.loads(next((shards / "shapes").glob("train-*.json")).read_text())["keys"]))
    one.write_text(f"{key}\n")
    for build, change, words in (
        (bare, "data.views=rgb12", "rgb12"),
        (shards, f"data.objects={one}", "optimizer.batch_size=6 is more than the 1 object of data.split=train"),
        (shards, "optimizer.batch_size=1", "optimizer.batch_size=1: an object is told apart from others"),
    ):
        fit = ("fit", "small_crosspoint", "--shards", build, "--run", tmp_path / "run", *FEW, change)
        said = typed(*fit, code=2)[1]
        assert words in said
        assert len(said.splitlines()) == 1, said
    assert not (tmp_path / "run").exists()


def digests(run: Path) -> dict[str, str]:
    """Of the weights, heads and running statistics of the last checkpoint, and its step."""
    folder = max((run / "checkpoints").iterdir())
    return {MODEL: hashlib.sha256((folder / MODEL).read_bytes()).hexdigest(), "step": folder.name}


@pytest.mark.slow
def test_cross_most_begins_with_what_crosspoint_taught(shards, tmp_path) -> None:
    """Towers of text and pictures, then points by CrossPoint behind them, then Cross-MoST, and its answers."""
    clip, taught, run = (tmp_path / name for name in ("clip", "crosspoint", "cross_most"))
    few = [key for key in FEW if not key.startswith("points.backbone")]
    few = ("--shards", shards, *few, "points.depth=1", "optimizer.steps=2")
    typed("fit", "small_pretrain", "--run", clip, *few)
    typed("fit", "small_crosspoint", "--run", taught, *few, f"init.image={clip}", "crosspoint.image=frozen")
    begun = (f"init.image={clip}", f"init.points={taught}")
    said = typed("fit", "small_cross_most", "--run", run, *few, *begun, "mask.image_cell=8")[1]
    assert "begins with random weights" not in said
    before, after = (
        load_file(each / "checkpoints" / step / MODEL) for each, step in ((taught, LAST), (run, "step-00000000"))
    )
    names = {name for name in after if name.startswith("points.") and name in before}
    assert {name for name in names if torch.equal(before[name], after[name])} == names
    assert "points.projection" in names
    zero = json.loads(typed("evaluate", run / "checkpoints/step-00000000", "--shards", shards, "--json")[0])
    of_crosspoint = json.loads(typed("evaluate", taught, "--shards", shards, "--json")[0])
    assert zero["student"]["points"] == of_crosspoint["student"]["points"]
    assert json.loads(typed("evaluate", run, "--shards", shards, "--json")[0])["step"] == 2
    alone = typed("fit", "small_cross_most", "--run", tmp_path / "alone", *few, begun[0], "mask.image_cell=8")[1]
    assert "its point tower begins with random weights" in alone


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_last_digit(shards, tmp_path) -> None:
    """Killed after a checkpoint within an epoch, with heads, two pictures and running statistics."""
    keys = (*FEW, "crosspoint.images=2", "optimizer.steps=24", "save_every=4", "keep_last=20")
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    script = (sys.executable, REPOSITORY / "tests/support/tiny_towers.py", "fit", "small_crosspoint")
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def begin(folder: Path) -> subprocess.Popen:
        command = [*map(str, (*script, "--shards", shards, "--run", folder)), *keys]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    for folder in (whole, broken):
        process = begin(folder)
        if folder == broken:
            deadline = time.monotonic() + 120
            while not (folder / "checkpoints/step-00000004").exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
            assert not (folder / "checkpoints/step-00000024").exists()
            process = begin(folder)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert digests(whole) == digests(broken)
    assert digests(whole)["step"] == "step-00000024"
