"""docs/extending.md: its files as they stand there, built, drawn and checked; and what a plugin may not do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trimesh
from builders import REPOSITORY, Commands, stored, tar_hashes

import renderers
from manifests import plugins
from manifests.dataset_info import table_names
from manifests.layout import read_manifest, read_view_set
from pipeline.__main__ import main

PAGE = (REPOSITORY / "docs/extending.md").read_text()
FEW = ("num_points=64", "fps_prefix=16", "views.rgb12.image_size=16", "views.depth10.image_size=16", "shard_size=4")
OPTIONS = """
from pipeline.datasets.options import DatasetOptions

class OPTIONS(DatasetOptions):
    grown: float = 1.0
"""


def page_files(folder: Path) -> None:
    """Writes the files of the page under the names that it gives them."""
    blocks = re.findall(r"`(\w+\.(?:py|toml))`[^`]*(?:`[^`\n]*`[^`]*)*?:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    ours = ["shelf.py", "shelf.toml", "front.py"]  # the others: tests/training/test_extending_training.py
    assert [name for name, _ in blocks] == [*ours, "spread.py", "follow.py", "pooled.py"]
    for name, text in blocks:
        assert len(text.splitlines()) < 40
        (folder / name).write_text(text)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files in the current folder, and a source of six objects, one of them broken."""
    monkeypatch.chdir(tmp_path)
    page_files(tmp_path)
    for number in range(6):
        path = tmp_path / "SHELF" / ("cup", "plate")[number % 2] / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        corners = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1 + number]]
        faces = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
        path.write_text(json.dumps({"vertices": corners, "faces": faces}) if number else '{"faces": []}')
    return tmp_path


def typed(line: str, *more: str) -> int:
    return main([*line.strip().split()[3:], *more])


def command(beginning: str) -> str:
    return next(line for line in PAGE.splitlines() if line.strip().startswith(f"python -m pipeline {beginning}"))


def test_the_files_of_the_page_are_built_drawn_and_checked(shelf, capsys) -> None:
    serial = ("--workers", "0")
    build = command("build").replace("--workers 4", "")
    assert typed(build, *serial, *FEW, "max_failed_fraction=0.2") == 0
    said = capsys.readouterr().err
    assert "shards/shelf: 5 objects, 1 failure: 1 of assets, 0 of views" in said
    assert "cup/0: load: its JSON is no object with vertices and faces" in said
    out = shelf / "shards/shelf"
    manifest = read_manifest(str(out))
    assert (manifest.classes, manifest.prompt_names) == (("cup", "plate"), ("cup", "dinner plate"))
    assert list(manifest.plugins) == ["shelf.py"]
    assert manifest.recipe["axes"] == ["y", "z", "x"]  # else a reader without the plugin would not know them
    tall = max(stored(out).values(), key=lambda sample: sample.json["id"])
    assert tall.json["world_from_source"][1][2] > 0  # z of the file is up
    assert typed(command("check"), *serial) == 0
    assert "5 objects compared, 0 differ" in capsys.readouterr().out
    assert typed(command("views"), *serial) == 0
    assert read_view_set(str(out), "front4").preset.num_views == 4
    capsys.readouterr()
    assert typed(command("presets front4")) == 0
    assert "azimuth_deg = [-45.0, -15.0, 15.0, 45.0]" in capsys.readouterr().out
    assert "shelf" not in table_names()  # a command's plugins end with it


@pytest.mark.slow
def test_workers_and_child_processes_get_the_plugin(shelf) -> None:
    """A worker of Ray, and children for the shards of an object that ends its process; the file is gone by then."""
    text = (shelf / "shelf.py").read_text() + OPTIONS
    deadly = "    import os\n    if asset.id.endswith('3'):\n        os.abort()\n    try:"
    (shelf / "shelf.py").write_text(text.replace("    try:", deadly))
    run = Commands(REPOSITORY)
    line = ["build", shelf / "shelf.toml", "--plugin", shelf / "shelf.py", "--source", shelf / "SHELF", *FEW]
    done = run(*line, "--out", shelf / "out", "--workers", 1, "max_failed_fraction=1", "grown=2.0", "views=[]")
    assert "4 objects, 2 failures: 2 of assets" in done.stderr
    assert "plate/3: load: crash: its process was ended by SIGABRT" in done.stderr
    lines = [line for line in done.stderr.splitlines() if "its worker died" in line]
    assert len(lines) == len(set(lines)) == 1
    assert "grown = 2.0" in (shelf / "out/recipe.toml").read_text()


def test_a_build_says_which_plugin_to_give_and_runs_none(shelf, capsys) -> None:
    """A manifest or a recipe from elsewhere that names a file beside it does not run it."""
    build = command("build").replace("--workers 4", "")
    assert typed(build, "--workers", "0", *FEW, "max_failed_fraction=1") == 0
    out = str(shelf / "shards/shelf")
    hashes = tar_hashes(shelf / "shards/shelf")
    (shelf / "shelf.py").write_text((shelf / "shelf.py").read_text() + "\nraise SystemExit('it ran')\n")
    capsys.readouterr()
    for line in (["views", "rgb10", "--shards", out], ["check", out, "--source", "SHELF"]):
        assert main(line) == 2
        assert f"{out} was built with --plugin shelf.py: give the same here" in capsys.readouterr().err
    assert main(["check", out]) == 0
    assert main(["inspect", out, "--png", "sheet.png"]) == 0
    recipe = shelf / "shelf.toml"
    recipe.write_text(recipe.read_text() + 'plugin = "shelf.py"\n')
    for beginning in ([], ["--plugin", "front.py"]):
        assert main(["build", "shelf.toml", "--source", "SHELF", "--out", "other", *beginning]) == 2
    assert "unknown dataset shelf" in capsys.readouterr().err
    assert tar_hashes(shelf / "shards/shelf") == hashes


def test_another_version_of_the_reader_does_not_go_on_with_a_build(shelf, capsys) -> None:
    build = command("build").replace("--workers 4", "")
    assert typed(build, "--workers", "0", *FEW, "max_failed_fraction=1") == 0
    (shelf / "shelf.py").write_text((shelf / "shelf.py").read_text() + "# another\n")
    assert typed(build, "--workers", "0", *FEW, "max_failed_fraction=1") == 2
    assert "built with another version of plugin shelf.py: choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "bad.py: it has no table DATASETS, PRESETS, TERMS, METHODS or BACKBONES"),
        ("\n\nPRESETS = nothing\n", "bad.py, line 3: NameError: name 'nothing' is not defined"),
        ("PRESETS = {\n", "bad.py: SyntaxError: '{' was never closed (bad.py, line 1)"),
        ("PRESETS = {'rgb12': {}}\n", "plugin bad.py: PRESETS holds rgb12, and so does this package"),
        ("PRESETS = {'own': {'backend': 'raycast', 'azimut_deg': [0]}}\n", "unknown key azimut_deg; did you mean"),
        ("DATASETS = {'own': {'axes': ['x', 'y', '-z']}}\n", "do not turn but mirror"),
        ("DATASETS = {'own': {}}\n", "dataset own: its reader has no function assets"),
        (None, "bad.py: it cannot be read"),
    ],
)
def test_a_wrong_plugin_is_refused_in_one_line(text, words, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("bad.py").write_text(text)
    Path("own.toml").write_text('dataset = "own"\nviews = ["own"]\n')
    line = ["recipes", "own.toml"] if text and "DATASETS" in text else ["presets", "own"]
    assert main([*line, "--plugin", "bad.py"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_an_installed_plugin_is_given_by_its_name(shelf) -> None:
    """A package with an entry point, as pip would leave it, in a folder of the path."""
    site = shelf / "site"
    (site / "shelf_reader-1.2.dist-info").mkdir(parents=True)
    (site / "shelf_reader.py").write_text((shelf / "shelf.py").read_text())
    (site / "shelf_reader-1.2.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: shelf-reader\nVersion: 1.2\n"
    )
    entry = "[cross_most.plugins]\nshelf = shelf_reader\n"
    (site / "shelf_reader-1.2.dist-info/entry_points.txt").write_text(entry)
    run = Commands(REPOSITORY)
    run.environment["PYTHONPATH"] += f":{site}"
    line = ["build", shelf / "shelf.toml", "--source", shelf / "SHELF", "--out", shelf / "out", *FEW, "views=[]"]
    assert "give FILE.py, or a plugin that is installed (shelf)" in run(*line, "--plugin", "shelve", code=2).stderr
    run(*line, "--plugin", "shelf", "--workers", 0, "max_failed_fraction=1")
    assert read_manifest(str(shelf / "out")).plugins == {"shelf": "shelf-reader 1.2"}


def test_python_draws_a_preset_of_a_plugin(shelf) -> None:
    import trimesh

    with plugins.using(["front.py"]):
        views = renderers.draw(trimesh.creation.box((0.8, 0.8, 0.8)), "front4", image_size=16)
    assert views.rgb.shape == (4, 16, 16, 3)


@pytest.mark.slow
def test_training_needs_no_plugin(shelf) -> None:
    """Trained on the plugin's views, a file is drawn for `predict` as they were, and turned as the plugin says."""
    from training_runs import ONE_STEP
    from training_runs import typed as trained

    (shelf / "front.py").write_text((shelf / "front.py").read_text().replace('"image_size": 128', '"image_size": 64'))
    build = command("build").replace("--workers 4", "")
    assert typed(build, "--workers", "0", *FEW, "max_failed_fraction=1") == 0
    assert typed(command("views"), "--workers", "0") == 0
    trained(
        "fit",
        "small_cross_most",
        "--shards",
        "shards/shelf",
        "--run",
        "run",
        "data.views=front4",
        *ONE_STEP,
        "optimizer.batch_size=2",
    )
    mesh = trimesh.creation.box((1, 2, 3))
    mesh.export("box.off")
    (row,) = json.loads(trained("predict", "run", "box.off", "--json")[0])
    assert row["label"] in ("cup", "plate")
    assert json.loads(Path("run/run.json").read_text())["shapes"]["axes"] == ["y", "z", "x"]
