"""A release of clouds to shards, and shards to batches: pictures of dots as the image tower gets them."""

from __future__ import annotations

import numpy as np
import releases
import torch
from builders import REPOSITORY, Commands

from training.data.dataset import open_source
from training.data.labels import labelled
from training.data.loader import Form, Loader, UnlabelledSamples
from training.settings.data import AugmentSettings, DataSettings

pipeline = Commands(REPOSITORY)


def test_a_miniature_scanobjectnn_reaches_training(tmp_path) -> None:
    source, out = releases.scanobjectnn_h5(tmp_path), tmp_path / "out"
    arguments = ("--source", source, "--out", out, "--workers", 2, "allow_partial=true")
    pipeline("build", "scanobjectnn_hardest", *arguments)
    settings = DataSettings(views="realistic10", channel="gray", split="test", num_points=1024)
    found = open_source(str(out), settings)
    assert found.total == 3
    held = list(labelled(found, settings, 64, range(2), 2))
    named = [pair for part in held for pair in zip(part.keys, part.labels, strict=True)]
    assert {key: found.manifest.classes[label] for key, label in named} == {
        "hardest-11416": "bag",
        "hardest-11417": "bag",
        "hardest-11418": "chair",
    }
    assert held[0].pictures.shape == (2, 10, 3, 64, 64)
    assert held[0].points.shape == (2, 1024, 3)
    train = settings.model_copy(update={"split": "train"})
    joined = open_source(str(out), train)
    form = Form(image_size=64, patch=8, mask_cell=16, mask_ratio=0.3)
    loader = Loader(UnlabelledSamples(joined, train, AugmentSettings(), form, 4, 0))
    batch = next(iter(loader))
    assert set(batch.keys) == {f"hardest-{row:05d}" for row in range(4)}
    pictures = batch.weak_image.float()
    assert torch.equal(pictures[:, 0], pictures[:, 1])
    assert pictures.std(dim=(1, 2, 3)).min() > 5
    assert np.isfinite(batch.to(torch.device("cpu")).strong_points.numpy()).all()
