"""Tiny real shards for the trainer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import REPOSITORY, Commands
from pointcmt_stages import stages_in
from tiny_towers import tiny


@pytest.fixture(scope="session")
def training() -> Commands:
    return Commands(REPOSITORY, "training")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 parametric objects of 32-pixel views, built by the pipeline."""
    out = tmp_path_factory.mktemp("shards") / "out"
    Commands(REPOSITORY)(
        "build",
        "parametric",
        "--out",
        out,
        "--workers",
        0,
        "parametric.objects=60",
        "parametric.test_fraction=0.5",
        "shard_size=7",
        "num_points=256",
        "fps_prefix=128",
        "views.rgb12.image_size=64",
        "views.rgb12.azimuth_deg=[0, 90, 180]",
        "views.depth10.image_size=64",
    )
    return out


@pytest.fixture(scope="session")
def stages(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run of each stage of PointCMT, with tiny towers of CLIP."""
    with tiny():
        return stages_in(tmp_path_factory.mktemp("stages"), shards)
