"""The curve of held-out accuracy (eval_every, --looks-at-labels): what it shows, and that training never sees it."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from builders import REPOSITORY, torchrun
from safetensors.torch import load_file
from tiny_towers import tiny
from training_runs import evaluated, relabelled, typed

from training.loop.throughput import TIMING
from training.plots.curves import Curves, labelled

FEW = (
    "data.num_points=64",
    "optimizer.batch_size=8",
    "optimizer.steps=3",
    "optimizer.lr=0.5",  # so that three steps change answers
    "log_every=1",
    "save_every=1",
    "keep_last=9",
    "points.depth=1",
    "points.drop_path=0.3",  # draws from torch's generator, as a look that drew would show
)
LOOK = ("eval_every=2", "--looks-at-labels")
COLUMNS = ("image", "image_star", "points")


@pytest.fixture(scope="module", autouse=True)
def tiny_towers() -> Iterator[None]:
    with tiny():
        yield


def fitted(recipe: str, shards: Path, folder: Path, *more: str) -> Path:
    typed("fit", recipe, "--shards", shards, "--run", folder, *FEW, *more)
    return folder


def rows(run: Path) -> dict[int, dict[str, str]]:
    with open(run / "log.csv", newline="") as file:
        return {int(row.pop("step")): row for row in csv.DictReader(file)}


def told(run: Path) -> dict[int, dict[str, str]]:
    """Rows without what a machine's speed changes."""
    return {step: {k: v for k, v in row.items() if k not in TIMING} for step, row in rows(run).items()}


def same_weights(one: Path, other: Path, step: int) -> bool:
    names = [path.name for path in sorted((one / f"checkpoints/step-{step:08d}").glob("*.safetensors"))]
    assert names
    pairs = [[load_file(run / f"checkpoints/step-{step:08d}" / name) for run in (one, other)] for name in names]
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a)


@pytest.fixture(scope="module")
def blind(shards, tmp_path_factory) -> Path:
    return fitted("small_cross_most", shards, tmp_path_factory.mktemp("runs") / "blind")


@pytest.fixture(scope="module")
def seen(shards, tmp_path_factory) -> Path:
    return fitted("small_cross_most", shards, tmp_path_factory.mktemp("runs") / "seen", *LOOK)


def test_a_look_changes_no_weight_and_no_random_number(blind, seen) -> None:
    for step in range(4):
        assert same_weights(blind, seen, step), step
        states = [torch.load(r / f"checkpoints/step-{step:08d}/state.pt", weights_only=True) for r in (blind, seen)]
        assert torch.equal(states[0]["torch_rng"], states[1]["torch_rng"])
    without = {step: {k: v for k, v in row.items() if "labelled" not in k} for step, row in told(seen).items() if step}
    assert without == told(blind)


def test_the_curve_is_what_evaluate_finds(seen, shards) -> None:
    """Before the first step, at its own steps and at the last one; between them there is no value."""
    found = rows(seen)
    assert list(found) == [0, 1, 2, 3]
    assert math.isnan(float(found[1]["labelled_image"]))
    assert math.isnan(float(found[0]["loss"]))
    for step in (0, 2, 3):
        expected = evaluated(seen / f"checkpoints/step-{step:08d}", shards)
        for who, name in (("student", "labelled"), ("teacher", "labelled_teacher")):
            for column in COLUMNS:
                assert float(found[step][f"{name}_{column}"]) == expected[who][column]
    assert len({tuple(found[step][f"labelled_{column}"] for column in COLUMNS) for step in (0, 2, 3)}) > 1


def test_a_run_that_was_stopped_goes_on_with_its_curve(seen, shards, tmp_path) -> None:
    """From between two looks, and without the key, which is no part of what a run is."""
    run = tmp_path / "run"
    shutil.copytree(seen, run)
    for step in (2, 3):
        shutil.rmtree(run / f"checkpoints/step-{step:08d}")
    fitted("small_cross_most", shards, run, *LOOK)
    assert told(run) == told(seen)
    assert same_weights(seen, run, 3)
    shutil.rmtree(run / "checkpoints/step-00000003")
    fitted("small_cross_most", shards, run)
    assert same_weights(seen, run, 3)
    assert told(run)[3]["labelled_image"] == "nan"


def test_pretraining_is_judged_zero_shot_by_real_prompts(shards, tmp_path) -> None:
    """And its classifier stays that of its captions."""
    more = ('prompts=["{}"]', "tensorboard=false")
    blind = fitted("small_pretrain", shards, tmp_path / "blind", *more)
    seen = fitted("small_pretrain", shards, tmp_path / "seen", *more, *LOOK)
    assert same_weights(blind, seen, 3)
    for step in (0, 3):
        expected = evaluated(seen / f"checkpoints/step-{step:08d}", shards)
        assert expected["prompts"] == ["a photo of a {}.", "a 3D model of a {}."]
        assert [float(rows(seen)[step][f"labelled_{c}"]) for c in COLUMNS] == [expected["student"][c] for c in COLUMNS]
    assert "labelled_teacher_image" not in rows(seen)[3]


def test_flag_and_key_are_asked_for_together_before_anything_is_written(shards, tmp_path) -> None:
    options = ("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "run", *FEW)
    message = typed(*options, "eval_every=2", code=2)[1]
    assert message.startswith("eval_every=2 reads the labels of the test split: say --looks-at-labels as well")
    assert "eval_every=STEPS" in typed(*options, "--looks-at-labels", code=2)[1]
    assert "eval_every=3 is no multiple of log_every=2" in typed(*options, "log_every=2", "eval_every=3", code=2)[1]
    assert not (tmp_path / "run").exists()


def test_a_build_without_labels_to_look_at_is_refused_at_once(shards, tmp_path) -> None:
    bare = relabelled(shards, tmp_path / "bare", lambda key, label: None)
    options = ("fit", "small_cross_most", "--shards", bare, "--run", tmp_path / "run", *FEW, *LOOK)
    message = typed(*options, code=2)[1]
    assert "no object of test has a label" in message
    assert not (tmp_path / "run").exists()


def test_the_curve_is_drawn_where_there_is_one(seen, blind) -> None:
    curves = [
        Curves(run.name, {n: [float(row.get(n, "nan")) for row in rows(run).values()] for n in rows(run)[3]}, False)
        for run in (seen, blind)
    ]
    for each, run in zip(curves, (seen, blind), strict=True):
        each.columns["step"] = [float(step) for step in rows(run)]
    assert labelled(curves[1:]) is None
    assert len(labelled(curves) or b"") > 5000


@pytest.mark.slow
def test_two_processes_look_as_one(shards, tmp_path) -> None:
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    for name, more in (("blind", ()), ("seen", LOOK)):
        options = ("--shards", shards, "--run", tmp_path / name, "tensorboard=false", *FEW, *more)
        command = torchrun(2, "--", REPOSITORY / "tests/support/tiny_towers.py", "fit", "small_cross_most", *options)
        ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
    assert same_weights(tmp_path / "blind", tmp_path / "seen", 3)
    expected = json.loads(typed("evaluate", tmp_path / "seen", "--shards", shards, "--json")[0])["student"]
    assert [float(rows(tmp_path / "seen")[3][f"labelled_{c}"]) for c in COLUMNS] == [expected[c] for c in COLUMNS]
