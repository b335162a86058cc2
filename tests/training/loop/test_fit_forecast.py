"""fit --dry-run: what a run would take, from one real step, and nothing written."""

from __future__ import annotations

import json

import pytest
import torch

from manifests.config import parse_changes
from training.data.dataset import open_source
from training.loop.fit_forecast import _duration, forecast
from training.settings.data import DataSettings
from training.settings.fit_recipe import read_recipe

FEW = ("data.num_points=128", "optimizer.batch_size=8", "points.depth=2", "save_every=3", "keep_last=1")


@pytest.fixture(scope="module")
def finished(training, shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    training("fit", "small_cross_most", "--shards", shards, "--run", folder, *FEW, "optimizer.steps=6", "log_every=2")
    return folder


def test_a_dry_run_says_it_all_and_writes_nothing(training, shards, tmp_path) -> None:
    command = ("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "run", "--dry-run", *FEW)
    command += ("optimizer.steps=0", "optimizer.epochs=50")
    found = json.loads(training(*command, "--json").stdout)
    assert not (tmp_path / "run").exists()
    objects = open_source(str(shards), DataSettings(num_points=128)).total
    assert (found["objects"], found["steps_an_epoch"], found["done"]) == (objects, objects // 8, 0)
    assert found["steps"] == 50 * (objects // 8)
    assert 0 < found["trained"] < found["parameters"]
    seconds = found["step_seconds"] + found["read_seconds"]  # no reader process: one after the other
    assert found["hours"] == pytest.approx(found["steps"] * seconds / 3600, rel=0.02)
    assert found["samples_per_second"] == pytest.approx(8 / seconds, rel=0.02)
    assert 300 < found["memory_mb"] < 5000
    words = training(*command).stdout
    assert f"{50 * (objects // 8):,} ({objects // 8} an epoch of {objects} objects, batches of 8)" in words
    assert not (tmp_path / "run").exists()


def test_the_forecast_of_checkpoints_is_what_they_take(shards, finished) -> None:
    """Weights, teacher and moments to 5 %; and of a run on its way the steps that are done."""
    recipe = read_recipe("small_cross_most", parse_changes((*FEW, "optimizer.steps=6", "log_every=2")))
    found = forecast(recipe, str(shards), str(finished), torch.device("cpu"))
    assert (found.steps, found.done, found.hours) == (6, 6, 0)
    held = sum(path.stat().st_size for path in (finished / "checkpoints").rglob("*") if path.is_file())
    assert found.disk_mb == pytest.approx(held / 2**20, rel=0.05)
    assert dict(found.lines())["steps"].endswith("6 of them done")


def test_readers_share_the_reading(shards, tmp_path) -> None:
    changes = parse_changes((*FEW, "data.workers=2"))
    found = forecast(read_recipe("small_pretrain", changes), str(shards), str(tmp_path / "run"), torch.device("cpu"))
    assert found.readers == 2
    waiting = max(found.read_seconds / 2 - found.step_seconds, 0)
    assert found.samples_per_second == pytest.approx(8 / (found.step_seconds + waiting))
    assert found.data_wait == pytest.approx(waiting / (found.step_seconds + waiting))


def test_what_fit_refuses_a_dry_run_refuses(training, shards, finished, tmp_path) -> None:
    refused = training("fit", "small_cross_most", "--shards", tmp_path, "--run", tmp_path / "r", "--dry-run", code=2)
    assert "holds no build" in refused.stderr
    command = ("fit", "small_cross_most", "--shards", shards, "--run", finished, "--dry-run", *FEW)
    assert "holds a run of another recipe" in training(*command, "seed=5", code=2).stderr


def test_durations_are_words() -> None:
    hours = (2 / 3600, 0.5, 3.26, 50)
    assert [_duration(each) for each in hours] == ["2 s", "30 min", "3 h 16 min", "2 days 2 h"]
