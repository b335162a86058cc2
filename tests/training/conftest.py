"""Tiny real shards for the trainer's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from builders import REPOSITORY, Commands
from pointcmt_stages import stages_in
from tiny_towers import tiny

from pipeline.__main__ import main


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


@pytest.fixture(scope="session")
def depth_shards(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same objects with CLIP2Point's released depth pictures beside, near and far: 48 pixels, three views."""
    out = tmp_path_factory.mktemp("depth") / "out"
    shutil.copytree(shards, out)
    views = ("rotations=[]", "azimuth_deg=[0, 90, 180]", "elevation_deg=[30]")  # as of rgb12
    for name, distance in (("depth10_release", 1.0), ("near", 0.95), ("far", 1.05)):
        more = (f"name={name}", "image_size=48", f"distance={distance}", *views)
        assert main(["views", "depth10_release", "--shards", str(out), "--workers", "0", *more]) == 0
    return out
