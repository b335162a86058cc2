"""The wheel of `make wheel`: it holds every file that the programs read, and works outside the checkout."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from builders import REPOSITORY

TABLE = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
NOT_OURS = ("runs", "build", "dist", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel, made by the line of the Makefile from a copy of the checkout, and unpacked."""
    source, folder = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPOSITORY, source, ignore=shutil.ignore_patterns(".*", *NOT_OURS))
    (line,) = [line for line in (REPOSITORY / "Makefile").read_text().splitlines() if " pip wheel " in line]
    command = line.strip().replace("$(BIN)/python", shlex.quote(sys.executable))
    subprocess.run(shlex.split(command), cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder)
    return folder


@pytest.mark.slow
def test_every_file_of_the_packages_is_in_it(unpacked) -> None:
    folders = [REPOSITORY / package.replace(".", "/") for package in TABLE["packages"]]
    files = [path for folder in folders for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc"]
    subfolders = [path for folder in folders for path in folder.rglob("*/*") if path.suffix in (".toml", ".txt", ".j2")]
    ours = {str(path.relative_to(REPOSITORY)) for path in (*files, *subfolders)}
    assert len(ours) > 250
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert ours - there == set()


@pytest.mark.slow
def test_its_programs_run_elsewhere(unpacked, tmp_path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PYTHONPATH"] = str(unpacked)

    def typed(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import pipeline, renderers, training; print(pipeline.__file__, renderers.__file__, training.__file__)"
    assert typed("-c", code).count(str(unpacked)) == 3
    assert "small_cross_most" in typed("-m", "training", "recipes")
    assert "depth10" in typed("-m", "pipeline", "presets")
    objects = ("parametric.objects=38", "num_points=128", "fps_prefix=128")
    typed("-m", "pipeline", "build", "parametric", "--out", "shards", "--workers", "0", *objects)
    typed("-m", "pipeline", "inspect", "shards", "--html", "page.html")
    small = ("data.num_points=64", "optimizer.batch_size=6", "optimizer.steps=1", "points.depth=1")
    typed("-m", "training", "fit", "small_pretrain", "--shards", "shards", "--run", "run", "--device", "cpu", *small)
    assert "points" in typed(
        "-m", "training", "evaluate", "run", "--shards", "shards", "--split", "train", "--device", "cpu"
    )
    assert (tmp_path / "page.html").stat().st_size > 10_000
