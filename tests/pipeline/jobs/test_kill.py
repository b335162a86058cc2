"""kill -9 of the driver and all it started, at random moments; the rerun ends with the bytes of an unbroken build."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import time

import pytest
from builders import SMALL, tar_hashes

from pipeline.jobs import ray_cleanup as left_behind

OBJECTS = ("parametric.objects=48", "shard_size=6", *SMALL)


@pytest.fixture(scope="module")
def unbroken(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "out"
    pipeline("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
    return tar_hashes(out)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4))])
def test_killed_and_run_again(pipeline, unbroken, tmp_path, seed: int) -> None:
    """Seeds 0 to 3 kill Ray builds or in-process ones twice, seed 4 the redrawing of views as well."""
    out, draw = tmp_path / "out", random.Random(seed)
    command = ("build", "parametric", "--out", out, "--workers", 2 if seed % 2 == 0 else 0, *OBJECTS)
    for _ in range(2):
        process = pipeline.start(*command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (out / "shapes").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    pipeline(*command)
    assert tar_hashes(out) == unbroken
    found = json.loads(pipeline("check", out, "--json").stdout)
    assert (found["ok"], found["samples"]) == (True, 48)
    assert not [p for p in out.rglob(".*.tmp") if time.time() - p.stat().st_mtime > 20]


@pytest.mark.slow
def test_twenty_kills_of_one_build(pipeline, tmp_path) -> None:
    """The driver alone dies by kill -9 at 20 random moments of one build, its start among them.

    After each, whatever stands under a final name is what an unbroken build has there; at the end nothing is left.
    """
    objects = ("parametric.objects=400", "shard_size=4", "num_points=512", "fps_prefix=64", "views=['depth10']")
    pipeline("build", "parametric", "--out", tmp_path / "unbroken", "--workers", 0, *objects)
    whole = tar_hashes(tmp_path / "unbroken")
    out, draw, done, alive = tmp_path / "out", random.Random(20), [], 0
    for number in range(20):
        workers = 2 if number % 4 == 0 else 0
        process = pipeline.start(
            *("build", "parametric", "--out", out, "--workers", workers, *objects),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(draw.uniform(0.3, 9 if workers else 4))
        alive += process.poll() is None
        process.kill()
        process.wait()
        left_behind.end_left_behind()
        there = tar_hashes(out) if out.exists() else {}
        assert there.items() <= whole.items()
        folders = (out / "shapes", out / "meshes", out / "views" / "depth10")
        done.append(set.intersection(*({path.name for path in folder.glob("*-?????.json")} for folder in folders)))
    assert all(before <= after for before, after in itertools.pairwise(done))  # what is finished is kept
    assert done[-1]
    pipeline("build", "parametric", "--out", out, "--workers", 0, *objects)
    assert tar_hashes(out) == whole
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]
    assert not list(out.rglob(".*"))
    assert not (out / "build.lock").exists()


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.slow) for n in (0, 1)])
def test_views_killed_and_run_again(pipeline, tmp_path, seed: int) -> None:
    """Redrawing on Ray is killed as soon as a first shard is done; the rerun draws the others to the same bytes."""
    out, draw = tmp_path / "out", random.Random(seed)
    few = ("parametric.objects=48", "shard_size=6", *SMALL[:2], "views=[]")
    pipeline("build", "parametric", "--out", out, "--workers", 0, *few)
    command = ("views", "rgb12", "--shards", out, "image_size=96", "ground=true", "name=again")
    pipeline(*command, "--workers", 0)
    folder = out / "views" / "again"
    unbroken = tar_hashes(folder)
    assert len(unbroken) == 8
    for path in folder.iterdir():
        path.unlink()
    process = pipeline.start(
        *command, "--workers", 2, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("*-?????.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.1))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar") if path.with_suffix(".json").exists()}
    assert 0 < len(kept) < 8
    pipeline(*command, "--workers", 2)
    assert tar_hashes(folder) == unbroken
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]
