"""examples/: the scripts by the commands of their own headers, and the notebook from top to bottom."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import trimesh
from builders import REPOSITORY, miniature
from nbclient import NotebookClient
from PIL import Image

from training.__main__ import main

EXAMPLES = REPOSITORY / "examples"
SCRIPTS = ["draw_mesh.py", "nearest_objects.py", "read_shards.py"]
BUILD = (
    "parametric.objects=57",
    "parametric.test_fraction=0.5",
    "parametric.val_fraction=0.0",
    "num_points=128",
    "fps_prefix=128",
)
TINY = ("data.num_points=128", "optimizer.batch_size=8", "optimizer.steps=2", "points.depth=1", "data.workers=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the headers name."""
    home = tmp_path_factory.mktemp("home")
    demo = home / "runs/demo-quick"
    miniature(demo / "target", *BUILD, "views.rgb12.image_size=48")
    run = ["fit", "small_pretrain", "--shards", str(demo / "target"), "--run", str(demo / "cross_most")]
    assert main([*run, *TINY]) == 0
    trimesh.creation.box((1, 2, 1)).export(home / "chair.obj")
    Image.new("RGB", (60, 40), "red").save(home / "picture.jpg")
    return home


def test_there_is_no_other_script() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_of_a_script(home: Path, script: str) -> None:
    said = []
    for line in re.findall(r"^    python (.*)$", (EXAMPLES / script).read_text(), re.MULTILINE):
        command = shlex.split(line.replace("examples/", f"{EXAMPLES}/"))
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, *command], cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines())
    if script == "draw_mesh.py":
        assert Image.open(home / "chair.png").size == (4 * 224, 3 * 224)
        assert np.asarray(Image.open(home / "chair.png")).std() > 10
    elif script == "read_shards.py":
        assert all(re.search(r"points \(128, 3\), pictures \(12, 48, 48, 3\), label \d+$", line) for line in said[0])
        assert len(said[0]) > 10
    else:
        assert all(len(lines) == 5 for lines in said[1:])
        likeness = [float(line.split()[0]) for line in said[1]]
        assert likeness == sorted(likeness, reverse=True)


@pytest.mark.slow
def test_the_notebook(tmp_path: Path) -> None:
    """With fewer objects and steps than it is written with, so that its answers are no evidence here."""
    book = nbformat.read(EXAMPLES / "first_objects.ipynb", 4)
    (chosen,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ())]
    chosen.source = chosen.source.replace("760, 550", "76, 60")
    NotebookClient(book, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "step 50/60" in printed
    assert re.search(r"^bottle: (table|stool|bottle) \(\d+%\), points alone: (table|stool|bottle)$", printed, re.M)
