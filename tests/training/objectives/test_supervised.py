"""The oracle: the losses by hand, what it obeys of `fit`, and the run that a report takes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from manifests.config import parse_changes
from training import oracle
from training.data.batch import LabelledBatch
from training.evaluation.evaluate import examine
from training.objectives.supervised import step
from training.reports.report import collect
from training.settings.fit_recipe import read_recipe
from training.weights.checkpoint import build_model, open_checkpoint
from training.weights.run_folder import step_folders

FEW = ("data.num_points=64", "optimizer.batch_size=8", "points.depth=1", "log_every=1", "tensorboard=false")


@pytest.mark.parametrize("classifier", ["shared", "own"])
def test_the_losses_by_hand(classifier: str) -> None:
    """Cross-entropy of each branch with its own classifier, divided by B; the total is their sum."""
    changes = parse_changes((*FEW, "method=supervised", f"classifier={classifier}"))
    recipe = read_recipe("small_cross_most", changes)
    model = build_model(recipe, ("mug", "bowl", "chair"))[0].eval()
    with torch.no_grad():
        for parameter in (model.points_classifier, model.points_logit_scale):
            if parameter is not None:
                parameter.mul_(0.5)
    g = torch.Generator().manual_seed(0)
    pictures, clouds = torch.randn(6, 1, 3, 48, 48, generator=g), torch.randn(6, 64, 3, generator=g)
    label = torch.arange(6) % 3
    found = step(model, None, LabelledBatch(tuple("abcdef"), pictures, clouds, label), recipe)
    own = classifier == "own"
    columns, scale = (
        (model.points_classifier, model.points_logit_scale) if own else (model.classifier, model.logit_scale)
    )
    image = model.logit_scale.exp() * model.image_features(pictures[:, 0]) @ model.classifier
    points = scale.exp() * model.point_features(clouds) @ columns
    expected = {
        name: cross_entropy(logits, label, reduction="sum").item() / 6
        for name, logits in (("image", image), ("points", points))
    }
    assert {name: value.item() for name, value in found.terms.items()} == pytest.approx(expected)
    assert found.total.item() == pytest.approx(sum(expected.values()))
    right = (points.argmax(dim=1) == label).float().mean().item()
    assert found.figures["right_points"].item() == pytest.approx(right)


def typed(*arguments: object) -> int:
    return oracle.main(["small_self_training", *map(str, arguments)])


def test_the_command_trains_goes_on_and_is_reported(shards, tmp_path: Path, capsys, training) -> None:
    """An interrupted oracle goes on as any run of fit; a report takes it; labels make it right more often."""
    run = tmp_path / "oracle"
    common = ("--shards", shards, "--run", run, *FEW, "optimizer.lr=2e-2", "optimizer.steps=24", "save_every=12")
    assert typed(*common, "keep_last=9") == 0
    with open(run / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name.startswith("loss_")] == ["loss_image", "loss_points"]
    last = step_folders(run)[-1]
    weights = (last / "model.safetensors").read_bytes()
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    assert typed(*common) == 0
    assert (last / "model.safetensors").read_bytes() == weights
    checkpoint = open_checkpoint(str(run))
    assert (checkpoint.recipe.method, checkpoint.step) == ("supervised", 24)

    def right(path: Path) -> dict:
        return examine([open_checkpoint(str(path))], str(shards), "train")[0].result()["student"]

    first = right(step_folders(run)[0])
    known = right(run)
    assert known["points"] > first["points"]
    training("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "run", *FEW, "optimizer.steps=1")
    assert collect([tmp_path / "run"], str(shards), oracle=run).values["oracle"]["points"] >= 0
    assert "oracle" not in json.loads((run / "run.json").read_text())  # its method says so


def test_the_method_of_the_oracle_is_its_own(shards, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        typed("--shards", shards, "--run", tmp_path / "run", "method=pretrain")
    assert stopped.value.code == 2
    assert "the oracle's method is supervised" in capsys.readouterr().err
    assert typed("--shards", shards, "--run", tmp_path / "run", *FEW, "labels.threshold=0.5") == 2
    assert "labels.threshold is a key of cross_most and self_training" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
