"""A folder of somebody else's files to work in: no module that lies there is run by the console scripts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from builders import REPOSITORY, write_off
from training_runs import ONE_STEP

from training.__main__ import main

NAMES = ("json", "numpy", "pipeline", "training", "manifests", "renderers", "torch", "ray")
TABLE = """
title = "none"
[[rows]]
name = "row"
label = "row"
recipe = "small_cross_most"
run = "run"
changes = {init = {all = "WEIGHTS"}}
"""


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A folder whose modules have the names of real ones and write their own into `ran`."""
    folder = tmp_path / "hostile"
    words = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + ' ')\nraise SystemExit(77)\n"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for file in ("__init__.py", "__main__.py"):
            (folder / name / file).write_text(words)
    return folder


def typed(program: str, folder: Path, *arguments: object, code: int = 0) -> tuple[str, str]:
    """What the console script of a program says in a folder, on stdout and on stderr; nothing there was run."""
    call = f"from {program}.__main__ import script; script()"
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    environment.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, "-P", "-c", call, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    ran = folder.parent / "ran"
    assert not ran.exists(), f"{ran.read_text()} of the current folder ran"
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", "small_cross_most", "--shards", str(shards), "--run", str(folder), *ONE_STEP]) == 0
    return folder


def test_predict_runs_no_module_of_the_folder(run, hostile) -> None:
    """It draws the files by the pipeline, as a process of its own."""
    (row,) = json.loads(typed("training", hostile, "predict", run, write_off(hostile / "a.off"), "--json")[0])
    assert row["label"]


@pytest.mark.slow
def test_a_table_runs_no_module_of_the_folder(shards, hostile, tmp_path) -> None:
    """Its fits are processes of their own; this one refuses a file that holds no weights."""
    weights = tmp_path / "weights.safetensors"
    weights.write_text("no weights")
    (tmp_path / "table.toml").write_text(TABLE.replace("WEIGHTS", str(weights)))
    options = ("--shards", shards, "--run", tmp_path / "runs")
    _, err = typed("training", hostile, "table", tmp_path / "table.toml", *options, code=1)
    assert f"fit, exit 2: init.all={weights}" in err


@pytest.mark.slow
def test_a_build_with_ray_runs_no_module_of_the_folder(hostile, tmp_path) -> None:
    """Ray puts the folder in which it is started into its workers' path, before the real packages."""
    options = ("parametric.objects=4", "num_points=256", "fps_prefix=64", "views=[]", "shard_size=2")
    typed("pipeline", hostile, "build", "parametric", "--out", tmp_path / "out", "--workers", 1, *options)


CAREFUL = """
from pipeline.jobs.isolated_worker import CarefulMaker
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan
plan, jobs = make_plan(read_recipe("parametric", {"views": [], "parametric": {"objects": 4}}), None, "out")
with CarefulMaker(plan) as maker:
    print(type(maker.build(jobs[0].assets[0])).__name__)
"""


def test_the_careful_way_runs_no_module_of_the_folder(hostile) -> None:
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    command = [sys.executable, "-P", "-c", CAREFUL]
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True, timeout=120)
    assert not (hostile.parent / "ran").exists()
    assert done.stdout == "BuiltObject\n", done.stderr


def test_the_console_scripts_are_there() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"cross-most-pipeline", "cross-most-training"}
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name


@pytest.mark.parametrize("program", ["pipeline", "training"])
def test_help_names_what_was_typed(program: str, tmp_path, capsys) -> None:
    module = importlib.import_module(f"{program}.__main__")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {program} ")
    assert typed(program, tmp_path, "--help")[0].startswith(f"usage: cross-most-{program} ")
