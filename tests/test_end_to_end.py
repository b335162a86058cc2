"""Real files to shards to a loss: the ModelNet samples, where they are there."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from builders import REPOSITORY, Commands

from manifests.layout import shapes_tar
from manifests.samples import decode_array, read_samples

pipeline, training = Commands(REPOSITORY), Commands(REPOSITORY, "training")


@pytest.mark.parametrize("name", ["ModelNet40", pytest.param("ModelNet10", marks=pytest.mark.slow)])
def test_modelnet_samples_become_shards_and_shards_train(shared, tmp_path, name: str) -> None:
    out, source = tmp_path / "out", shared / "samples" / name
    objects = len(list(source.rglob("*.off")))
    common = ("build", name.lower(), "--source", source, "--out", out)
    message = pipeline(*common, "--workers", 2, code=2).stderr
    assert "allow_partial=true" in message
    assert not out.exists()
    pipeline(*common, "--workers", 2, "allow_partial=true", "views.rgb12.image_size=96", "views.rgb12.name=rgb12")
    found = json.loads(pipeline("check", out, "--json").stdout)
    assert (found["ok"], found["samples"], found["failures"]) == (True, objects, [])
    pipeline("inspect", out, "--png", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 20_000
    split = max(found["classes"], key=lambda s: sum(found["classes"][s].values()))
    fewest = sum(found["classes"][split].values())
    run = tmp_path / "run"
    training(
        "fit",
        "small_cross_most",
        "--shards",
        out,
        "--run",
        run,
        f"data.split={split}",
        f"optimizer.batch_size={min(4, fewest)}",
        "optimizer.steps=40",
        "optimizer.lr=0.1",  # times 4 / 256
        "points.depth=1",
    )
    with open(run / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) == 40
    assert np.isfinite([float(v) for row in rows for v in row.values()]).all()
    assert float(rows[-1]["loss_mim"]) < float(rows[0]["loss_mim"])
    result = json.loads(training("evaluate", run, "--shards", out, "--split", split, "--json").stdout)
    assert result["n"] == fewest
    assert len(result["classes"]) == int(name.removeprefix("ModelNet"))


def test_the_bathtub_with_and_without_run_together_header_has_the_same_points(shared, tmp_path) -> None:
    clouds = []
    for name in ("ModelNet40", "ModelNet10"):
        out = tmp_path / name
        source = shared / "samples" / name
        options = ("allow_partial=true", "classes=['bathtub']", "splits=['train']", "views=[]", "--workers", 0)
        pipeline("build", name.lower(), "--source", source, "--out", out, *options)
        with open(shapes_tar(str(out), "train", 0), "rb") as file:
            found = {s.key: s.members["points.npy"] for _, s in read_samples(file)}
        clouds.append(found["bathtub_0001"])
    assert clouds[0] == clouds[1]
    assert decode_array(clouds[0]).shape == (8192, 3)
