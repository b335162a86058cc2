"""What a build and a run have finished outlasts a loss of power: bytes first, then the name, then the record."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from builders import SMALL
from disk_order import DiskOrder

from pipeline.__main__ import main
from training.settings.fit_recipe import CrossMostRecipe
from training.weights.checkpoint import save_step

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are named by /proc")


def test_every_tar_of_a_build_is_on_the_disk_before_its_record(tmp_path: Path, monkeypatch) -> None:
    """Else a rerun finds a record beside an empty tar, and takes the shard for done."""
    order, out = DiskOrder(monkeypatch), tmp_path / "out"
    keys = ("parametric.objects=3", "shard_size=2", *SMALL[:2], "views=['depth10']")
    assert main(["build", "parametric", "--out", str(out), "--workers", "0", *keys]) == 0
    tars = sorted(out.rglob("*.tar"))
    assert len(tars) >= 4
    for tar in tars:
        assert order.assert_lasting(tar) < order.assert_lasting(tar.with_suffix(".json"))
    order.assert_lasting(out / "manifest.json")
    order.assert_lasting(out / "assets.jsonl")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch) -> None:
    """Else a run is resumed from half of a file, and the checkpoint before it may be gone."""
    order, model = DiskOrder(monkeypatch), torch.nn.Linear(200, 200)
    folder = save_step(tmp_path, 10, model, model, {"step": 10}, CrossMostRecipe())
    assert {"model.safetensors", "teacher.safetensors", "state.pt"} <= {path.name for path in folder.iterdir()}
    order.assert_lasting(folder)
