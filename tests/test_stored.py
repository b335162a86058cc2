"""Builds, runs and checkpoints that an older version left (tests/stored) are still what today's code makes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from builders import REPOSITORY, Commands, tar_hashes
from object_store import BUCKET, ObjectStore

from training.loop.throughput import TIMING

sys.path.insert(0, str(REPOSITORY / "tests/stored"))
import make

STEPS = 200
AS_MEASURED = {"seconds", "max_rss_mb", "ms_per_step", "path", "versions"}  # of report.json: not a matter of the code
SINCE = {"seeds", "deviation", "names", "rows"}  # keys of report.json that came later


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(make.ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    make.write_source(folder / "source")
    return folder


AS_OF_CONTENT_1 = """
import sys
import manifests.samples
manifests.samples.CONTENT = 1
from pipeline.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def as_of_content_1(*options: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command that takes itself for one of the version that made the stored builds."""
    command = [sys.executable, "-c", AS_OF_CONTENT_1, *map(str, options)]
    result = subprocess.run(command, cwd=REPOSITORY, env=os.environ | variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


def build_again(stored: Path, out: object, **variables: str) -> str:
    options = ("--source", stored / "source", "--out", out, "--workers", 0, *make.BUILD)
    return as_of_content_1("build", "meshes", *options, **variables).stderr


def test_a_build_of_another_content_is_used_as_it_is_and_not_mixed(stored: Path, tmp_path: Path) -> None:
    """Its own reader made it: nothing is added that another reader gives. New views are drawn from what it holds."""
    out, commands = shutil.copytree(stored / "build", tmp_path / "build"), Commands(REPOSITORY)
    before = tar_hashes(out)
    options = ("--source", stored / "source", "--out", out, "--workers", 0, *make.BUILD)
    refused = " ".join(commands("build", "meshes", *options, code=2).stderr.split())
    assert "was made by another version of this program, which reads some files otherwise" in refused
    assert tar_hashes(out) == before
    commands("views", "depth10", "--shards", out, "--workers", 0, "image_size=16", "name=new")
    about = json.loads(commands("check", out, "--json").stdout)
    assert (about["ok"], about["view_sets"]["new"]["samples"]) == (True, 18)


def test_a_build_is_finished(stored: Path) -> None:
    before = tar_hashes(stored / "build")
    times = {path: path.stat().st_mtime_ns for path in (stored / "build").rglob("*.tar")}
    assert "19 objects are already there" in build_again(stored, stored / "build")
    assert (tar_hashes(stored / "build"), len(before)) == (before, 24)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    checked = as_of_content_1("check", stored / "build", "--source", stored / "source", "--json").stdout
    about = json.loads(checked)
    assert (about["ok"], about["samples"], len(about["failures"])) == (True, 18, 1)


def test_a_lost_shard_is_made_again_as_it_was(stored: Path, tmp_path: Path) -> None:
    out = shutil.copytree(stored / "build", tmp_path / "build")
    for path in (*out.rglob("train-00001.tar"), *out.rglob("train-00001.json")):
        path.unlink()
    build_again(stored, out)
    assert tar_hashes(out) == tar_hashes(stored / "build")


def test_a_build_in_an_object_store_is_finished(stored: Path) -> None:
    store = ObjectStore()
    try:
        url = store.put_folder(stored / "objects/out", "out")
        assert url == f"s3://{BUCKET}/out"
        assert "19 objects are already there" in build_again(stored, url, **store.environment)
        for path in (stored / "objects/out").rglob("*.tar"):
            name = path.relative_to(stored / "objects").as_posix()
            assert store.get(name) == path.read_bytes(), name
    finally:
        store.close()


def rows(run: Path) -> list[dict[str, float]]:
    with open(run / "log.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if k not in TIMING} for row in csv.DictReader(file)]


def test_a_stopped_run_goes_on_as_it_would_have(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored / "stopped", tmp_path / "run")
    (tmp_path / "build").symlink_to(stored / "build")
    process = make.start_fit(tmp_path)
    _, said = process.communicate(timeout=250)
    assert process.returncode == 0, said
    assert f"step {STEPS}/{STEPS}" in said
    assert "step 49/" not in said  # it went on
    ours, theirs = rows(tmp_path / "run"), rows(stored / "run")
    assert len(ours) == len(theirs) == STEPS
    for one, other in zip(ours, theirs, strict=True):
        assert set(one) - set(other) == {"gradient_norm"}  # a column of today
        held = {name: one[name] for name in other}
        assert held == pytest.approx(other, rel=1e-3, abs=1e-4)  # to the last digit on the processor that made it


def figures(value: object) -> object:
    """A report without what depends on the machine."""
    if isinstance(value, dict):
        return {key: figures(each) for key, each in value.items() if key not in AS_MEASURED | SINCE}
    return value


def test_a_report_says_the_same(stored: Path, tmp_path: Path) -> None:
    report = [sys.executable, make.TINY, "report", "run", "--shards", "build", "--out", tmp_path]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    subprocess.run(report, cwd=stored, env=environment, check=True, timeout=250, capture_output=True)
    ours = json.loads((tmp_path / "report.json").read_text())
    theirs = json.loads((stored / "report/report.json").read_text())
    assert figures(ours) == figures(theirs)
    assert ours["pseudo_labels"]["cross_most"]["last"]["n"] == 11
