"""docs/architecture.md says the truth: rooms, paths and names are there, its dataset is built, its commands parse."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
import structure
from builders import REPOSITORY, Commands, stored, write_off

from pipeline.__main__ import main as pipeline_main
from training.__main__ import main as training_main

PAGES = ("docs/architecture.md", "CONTRIBUTING.md")
PAGE = (REPOSITORY / PAGES[0]).read_text()
ALL = PAGE + (REPOSITORY / PAGES[1]).read_text()
NEW = {"pipeline/datasets/scans.py", "manifests/datasets/scans.toml", "pipeline/recipes/scans.toml"}
TABLES = {name: re.findall(r"^\| (.+) \|$", part, re.MULTILINE) for name, part in re.findall(r"## (.+)\n([^#]*)", PAGE)}


def test_rooms_are_those_that_are_held() -> None:
    rows = [[cell.strip() for cell in row.split("|")] for row in TABLES["Rooms"] if "/` |" in f"{row} |"]
    said = {re.findall("`([^`]+)/`", room)[0]: set(re.findall("`([^`]+)`", imports)) for room, _, imports in rows}
    assert set(said) == set(structure.ROOM_MAY_IMPORT)
    for room, imports in said.items():
        own = room.partition("/")[0]
        allowed = set(structure.ROOM_MAY_IMPORT[room])
        if room in ("pipeline", "training"):
            assert allowed == {*imports - {room}, *(r for r in said if r.startswith(f"{room}/"))}
        else:
            assert {each.removeprefix(f"{own}/") for each in allowed} == imports, room


def test_homes_are_those_that_are_held() -> None:
    (line,) = (line for line in PAGE.splitlines() if line.startswith("ray in "))
    for library, files in structure.HOME.items():
        said = re.search(rf"\b{library} in ((?:`[^`]+`(?: and )?)+)", line)
        assert said is not None, library
        assert set(re.findall("`([^`]+)`", said[1])) == files


def test_every_path_is_there_and_defines_what_is_said_to_be_in_it() -> None:
    paths = set(re.findall(r"`?((?:manifests|renderers|pipeline|training|tests|docs)/[\w/.]*)`?", ALL)) - NEW
    assert len(paths) > 30
    for path in paths:
        assert (REPOSITORY / path.rstrip(".")).exists(), path
    pairs = re.findall(r"\| `(\w+)` (?:in|of a file in) `([\w/.]+)` \|", PAGE)
    pairs += re.findall(r"\b(METHODS|SUPERVISED) in `([\w/.]+)`", PAGE)
    assert len(pairs) >= 8
    for name, path in pairs:
        files = [REPOSITORY / path] if path.endswith(".py") else list((REPOSITORY / path).glob("[a-z]*.py"))
        trees = [ast.parse(file.read_text()) for file in files]
        names = {node.name for tree in trees for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assigned = [node for tree in trees for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
        targets = [node.targets[0] if isinstance(node, ast.Assign) else node.target for node in assigned]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        assert name in names, f"{name} is not in {path}"


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with the page's dataset."""
    tree = tmp_path_factory.mktemp("added")
    for package in structure.PACKAGES:
        shutil.copytree(REPOSITORY / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    section = PAGE[PAGE.index("## Add a dataset") : PAGE.index("## Add a method")]
    blocks = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    paths = [path for path in re.findall(r"`([\w/.]+)`", section) if path in NEW]
    for path, text in zip(paths, blocks, strict=True):
        assert not (tree / path).exists()
        (tree / path).write_text(text)
    return tree


def test_the_dataset_of_the_page_is_built(added: Path, tmp_path: Path) -> None:
    for number in range(6):
        write_off(tmp_path / "source" / ("bolt", "gear")[number % 2] / f"part{number}.off", 1 + number)
    (tmp_path / "source/gear/broken.off").write_text("OFF\n1 0\n")
    command = next(line for line in PAGE.splitlines() if "build scans --source" in line)
    words = command.strip("# ").split()[3:]
    given = {"SCANS": tmp_path / "source", "shards/scans": tmp_path / "out"}
    changes = ("num_points=64", "fps_prefix=16", "views.rgb12.image_size=32", "max_failed_fraction=1", "--workers", 0)
    said = Commands(added)(*(given.get(word, word) for word in words), *changes).stderr
    assert "6 objects, 1 failure" in said
    shapes = stored(tmp_path / "out")
    assert {shape.json["class"] for shape in shapes.values()} == {"bolt", "gear"}
    assert {shape.json["split"] for shape in shapes.values()} == {"train", "test"}


def test_every_command_of_the_page_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    found = set(re.findall(r"python -m (pipeline|training) (\w+)(?: [A-Z]+)?((?: --[\w-]+)*)", ALL))
    assert len(found) >= 7
    for program, command, options in found:
        main = pipeline_main if program == "pipeline" else training_main
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        for option in options.split():
            assert option in said, f"{program} {command} has no {option}"
