"""Running a finished build again: nothing is made, nothing heavy is loaded, and the same is said of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from builders import SMALL, tar_hashes

OBJECTS = ("parametric.objects=6", "shard_size=2", *SMALL)
BLOCKED = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "open3d", "torch", "webdataset"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
sys.argv = ["pipeline", *sys.argv[1:]]
runpy.run_module("pipeline", run_name="__main__")
"""


@pytest.fixture(scope="module")
def built(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    made = pipeline("build", "parametric", "--out", out, "--workers", 0, "--json", *OBJECTS)
    return out, json.loads(made.stdout)


def blocked(pipeline, *arguments: object) -> subprocess.CompletedProcess:
    """A command where ray, open3d, torch and webdataset cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, arguments)],
        cwd=pipeline.tree,
        env=pipeline.environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_finished_build_needs_no_renderer_and_no_ray(pipeline, built, workers: int) -> None:
    out, summary = built
    before = tar_hashes(out)
    result = blocked(pipeline, "build", "parametric", "--out", out, "--workers", workers, "--json", *OBJECTS)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == summary
    assert "6 objects are already there" in result.stderr
    assert tar_hashes(out) == before
    assert not (out / "build.lock").exists()


def test_a_finished_view_set_needs_no_renderer_and_no_ray(pipeline, built) -> None:
    out, _ = built
    command = ("views", "depth10", "--shards", out, "image_size=16", "name=tiny", "--workers", 2, "--json")
    first = pipeline(*command, "--workers", 0)
    again = blocked(pipeline, *command)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)


def test_what_is_missing_is_still_made(pipeline, built) -> None:
    out, summary = built
    before = tar_hashes(out)
    (out / "views/rgb12/train-00001.json").unlink()
    (out / "shapes/train-00000.json").write_text("{")
    result = blocked(pipeline, "build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
    assert result.returncode == 2
    assert "pip install" in result.stderr
    again = pipeline("build", "parametric", "--out", out, "--workers", 0, "--json", *OBJECTS)
    assert json.loads(again.stdout) == summary
    assert tar_hashes(out) == before
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]


@pytest.fixture
def read_only(built, tmp_path):
    """The finished build, mounted read-only: nobody can write there, root neither."""
    place = tmp_path / "place"
    place.mkdir()
    for options in (["--bind", str(built[0]), str(place)], ["-o", "remount,bind,ro", str(place)]):
        done = subprocess.run(["mount", *options], capture_output=True, check=False)
        if done.returncode:
            subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
            pytest.skip("no right to mount a folder read-only here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_finished_build_may_be_read_only(pipeline, built, read_only) -> None:
    """Scripts build, draw and check an archive again: there is nothing to do, and so nothing to write."""
    _, summary = built
    command = ("build", "parametric", "--out", read_only, "--workers", 0, "--json", *OBJECTS)
    result = pipeline(*command)
    assert json.loads(result.stdout) == summary
    assert "6 objects are already there" in result.stderr
    assert json.loads(pipeline(*command, "max_failed_fraction=0.5").stdout) == summary
    views = pipeline(
        "views", "depth10", "--shards", read_only, "image_size=32", "name=depth10", "--workers", 0, "--json"
    )
    assert json.loads(views.stdout)["samples"] == 6
    assert json.loads(pipeline("check", read_only, "--json").stdout)["ok"]


def test_an_unfinished_build_that_is_read_only_says_so(pipeline, built, read_only) -> None:
    out, _ = built
    (out / "views/rgb12/train-00001.json").unlink()
    command = ("build", "parametric", "--workers", 0, *OBJECTS, "--out")
    said = pipeline(*command, read_only, code=3).stderr.strip()
    assert said.endswith("run the same again")
    assert "Read-only file system" in said
    pipeline(*command, out)
