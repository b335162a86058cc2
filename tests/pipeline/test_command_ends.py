"""What commands of the pipeline show and say: help, versions, recipes, and the last lines of a build."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from builders import REPOSITORY, write_off

from manifests.cli import meanings, parse_arguments
from manifests.config import names_in
from manifests.layout import read_view_set
from manifests.presets import load_preset, preset_names
from pipeline.__main__ import main
from pipeline.arguments import pipeline_parser
from pipeline.plan.build_recipe import RECIPES, BuildRecipe, read_recipe

FEW = ("num_points=64", "fps_prefix=16", "--workers", "0")


def built(folder: Path, good: int, broken: int, *changes: str, below: str = "cup") -> int:
    for number in range(good):
        write_off(folder / "mine" / below / f"good{number}.off", 1 + number)
    for number in range(broken):
        write_off(folder / "mine" / below / f"broken{number}.off").write_text("OFF\n9 9 0\n")
    return main(["build", "meshes", "--source", str(folder / "mine"), "--out", str(folder / "out"), *FEW, *changes])


def test_too_many_failures_are_listed_with_the_key_that_lets_them_pass(tmp_path, capsys) -> None:
    assert built(tmp_path, 30, 1, "views=[]") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-3].endswith("/out: 30 objects, 1 failure: 1 of assets, 0 of views")
    assert said[-2].startswith("  cup/broken0.off: load: ")
    key = re.search(r"failures: 3\.2%.*; (max_failed_fraction=[\d.]+) lets this pass", said[-1])[1]
    assert built(tmp_path, 30, 1, "views=[]", key) == 0
    said = capsys.readouterr().err
    assert "31 objects are already there" in said
    assert f"next: python -m pipeline inspect {tmp_path}/out\n" in said
    assert f"python -m training fit RECIPE --shards {tmp_path}/out --run RUN\n" in said


def test_of_many_failures_five_are_shown_and_the_command_that_lists_all(tmp_path, capsys) -> None:
    assert built(tmp_path, 1, 7, "views=[]") == 1
    said = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("  cup/broken") for line in said) == 5
    listing = re.fullmatch(r"  and 2 more: python -m pipeline (.*)", said[-2])[1]
    assert main(shlex.split(listing)) == 0
    assert capsys.readouterr().out.count("failure: cup_broken") == 7


def test_the_same_views_under_another_name_are_noticed(tmp_path, capsys) -> None:
    assert built(tmp_path, 1, 0, "views.depth10.image_size=16", "views.depth10.name=a") == 0
    capsys.readouterr()
    line = ["views", "depth10", "--shards", str(tmp_path / "out"), "--workers", "0"]
    assert main([*line, "image_size=16", "name=b"]) == 0
    said = capsys.readouterr().err
    assert "warning: views/a already holds the same views as b" in said
    assert "data.views=b" in said
    assert main([*line, "image_size=16", "name=b"]) == 0
    assert main([*line, "image_size=24", "name=c"]) == 0
    assert "already holds" not in capsys.readouterr().err.partition("views/b: ")[2]
    assert read_view_set(str(tmp_path / "out"), "b") is not None
    (tmp_path / "out/views/a/manifest.json").write_text("{")
    assert main([*line, "image_size=20", "name=d"]) == 0  # damage of another set is the business of `check`


def test_inspect_alone_writes_a_page_of_its_own(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert built(tmp_path, 1, 0, "views=[]") == 0
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out")]) == 0
    path = Path(re.fullmatch(r"(/.*/page\.html): \d\.\d MB\n", capsys.readouterr().err)[1])
    assert "cup_good0_off" in path.read_text()
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


@pytest.mark.parametrize("name", names_in(RECIPES))
def test_a_recipe_is_shown_whole_and_is_one(name, capsys) -> None:
    assert main(["recipes", name]) == 0
    said = capsys.readouterr().out
    assert said.startswith((RECIPES / f"{name}.toml").read_text().splitlines()[0])
    recipe = read_recipe(name, {})
    assert tomllib.loads(said) == json.loads(json.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    assert set(meanings(type(recipe))) >= set(BuildRecipe.model_fields)
    assert "# samples of a surface" in said.replace("8192  ", "").replace("2048  ", "") or "  # samples" in said
    assert f"# dataset {recipe.dataset}: " in said


def test_a_preset_is_shown_with_what_its_keys_mean(capsys) -> None:
    for name in preset_names():
        assert main(["presets", name]) == 0
        said = capsys.readouterr().out
        assert tomllib.loads(said) == load_preset(name)[1].model_dump(mode="json")
    assert main(["recipes", "nosuch"]) == 2
    assert main(["presets", "rgb12"]) == 0
    assert "image_size = 224  # pixels a side" in capsys.readouterr().out


def test_the_help_of_every_command_has_examples_that_are_read(capsys) -> None:
    (commands,) = (action for action in pipeline_parser()._actions if isinstance(action.choices, dict))
    for name, command in commands.choices.items():
        examples = re.findall(r"^  python -m pipeline (.*)$", command.format_help(), re.MULTILINE)
        assert examples, name
        for example in examples:
            options = parse_arguments(pipeline_parser(), shlex.split(example))
            assert options.command == name
        assert "as of" not in command.format_help()


def test_the_version_names_the_commit_of_a_checkout(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, text=True, timeout=30).strip()
    assert re.fullmatch(rf"cross-most \d\S* \(commit {commit[:12]}(-dirty)?\)\n", capsys.readouterr().out)


def completions(line: str, path: str = "") -> str:
    """What a shell is told that may stand at the end of a line."""
    reader, writer = os.pipe()
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([path, str(REPOSITORY), *sys.path]),
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS=" ",
    )
    environment |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    code = f"import os, sys; os.dup2({writer}, 8); from pipeline.__main__ import main; main([], 'cross-most-pipeline')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, pass_fds=[writer], capture_output=True, text=True, timeout=60)
    os.close(writer)
    with os.fdopen(reader) as answer:
        return answer.read() or done.stderr


def test_a_shell_completes_commands_options_and_names() -> None:
    pytest.importorskip("argcomplete")
    assert completions("cross-most-pipeline build mod").split()[:2] == ["modelnet10", "modelnet40"]
    assert completions("cross-most-pipeline views rgb1").split()[0] == "rgb10"
    assert completions("cross-most-pipeline build modelnet40 --so").strip() == "--source"


def test_without_argcomplete_a_shell_gets_no_traceback(tmp_path) -> None:
    (tmp_path / "argcomplete.py").write_text("raise ImportError('not installed')")
    said = completions("cross-most-pipeline build mod", str(tmp_path))
    assert "the following arguments are required" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_workers_are_as_nice_as_their_driver() -> None:
    """Ray's own choice is 15 more, with which other programs of a shared machine take nearly all its time."""
    code = "import os; from pipeline.jobs import ray_cluster\n"
    code += "with ray_cluster.connected(1, None) as ray:\n"
    code += "    print(os.nice(0), ray.get(ray.remote(lambda: os.nice(0)).remote(), timeout=60))\n"
    command = ["nice", "-n", "1", sys.executable, "-c", code]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    mine, workers = done.stdout.split()[-2:]
    assert mine == workers
