"""A training that cannot work says so, once, with what to do."""

from __future__ import annotations

import logging

import pytest
import torch

from manifests.config import parse_changes
from training.loop.fit import fit
from training.loop.vain_training import ConfidentShares
from training.settings.fit_recipe import read_recipe

FEW = ("data.num_points=64", "optimizer.batch_size=16", "log_every=1", "points.depth=1", "tensorboard=false")


def told(shards, folder, caplog, recipe: str, *changes: str) -> list[str]:
    """The warnings of a whole run of 38 objects, two steps an epoch."""
    with caplog.at_level(logging.WARNING):
        fit(read_recipe(recipe, parse_changes((*FEW, *changes))), str(shards), str(folder), torch.device("cpu"))
    found = [record.getMessage() for record in caplog.records if record.name == "training.loop.vain_training"]
    caplog.clear()
    return found


def test_random_towers_that_teach_themselves(shards, tmp_path, caplog) -> None:
    found = told(shards, tmp_path / "a", caplog, "small_cross_most", "optimizer.steps=1", "labels.threshold=0")
    assert found == [
        "method=cross_most teaches itself, and its image and point tower begins with random weights: give "
        "init.image=TAG or FILE and init.points=FILE (or init.all=RUN)"
    ]
    assert told(shards, tmp_path / "b", caplog, "small_pretrain", "optimizer.steps=1") == []
    begun = ("optimizer.steps=2", "labels.threshold=0")
    init = (f"init.image={tmp_path / 'b'}",)
    (found,) = told(shards, tmp_path / "c", caplog, "small_self_training", *begun, *init)
    assert "its point tower begins with random weights: give init.points=FILE (or init.all=RUN)" in found
    assert told(shards, tmp_path / "d", caplog, "small_cross_most", *begun, f"init.all={tmp_path / 'b'}") == []


@pytest.mark.parametrize(("threshold", "warns"), [("1.0", True), ("0.0", False)])
def test_nothing_is_confident_in_the_first_rows(shards, tmp_path, caplog, threshold: str, warns: bool) -> None:
    """Here the first epoch, of two rows, is the shorter."""
    found = told(shards, tmp_path, caplog, "small_cross_most", "optimizer.steps=5", f"labels.threshold={threshold}")
    about = [line for line in found if line.startswith("no pseudo-label was above labels.threshold=")]
    assert len(about) == warns
    assert not warns or "labels.threshold=1 in the first 2 steps, so they teach nothing: lower it" in about[0]


def test_a_long_epoch_is_not_waited_for(caplog) -> None:
    """The third row of the log tells, once; one label above the threshold until then is enough."""
    recipe = read_recipe("small_cross_most", {"log_every": 10})
    for seen, warns in (([0.0, 0.0, 0.0, 0.0], [30]), ([0.0, 0.1, 0.0, 0.0], [])):
        shares, found = ConfidentShares(recipe, epoch=500), []
        for step, value in zip((10, 20, 30, 40), seen, strict=True):
            shares.see(step, {"confident_image": value, "confident_points": 0.0, "loss": 1.0})
            found += [step] * len(caplog.records)
            caplog.clear()
        assert found == warns
