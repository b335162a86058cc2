"""The pages: the programs take every command that is shown, and those of the first hour run as they are written."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import trimesh
from builders import REPOSITORY
from journeys import commands
from structure import PACKAGES

from manifests.cli import parse_arguments
from manifests.config import parse_changes
from pipeline.arguments import pipeline_parser
from pipeline.plan import build_recipe
from training.command_line import parser
from training.settings import fit_recipe

PARSERS = {"pipeline": pipeline_parser, "training": parser}
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")])
SMALL = (
    *("--build", "parametric.objects=57", "--build", "parametric.test_fraction=0.5"),
    *("--build", "parametric.val_fraction=0.0", "--build", "num_points=128", "--build", "fps_prefix=128"),
    *("data.num_points=96", "optimizer.batch_size=8", "optimizer.steps=4", "points.depth=1"),
)
OF_SMALL = ("data.num_points=96", "optimizer.batch_size=8", "optimizer.steps=4", "points.depth=1")


def shown(page: Path) -> list[str]:
    """Every command of both programs on a page, in indented and in fenced blocks."""
    text = page.read_text().replace("<br>", "\n")
    return [*commands(text, "    "), *commands(text, "")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_programs_take_every_command(page: Path, capsys) -> None:
    """Its options, and where a shipped recipe is named, its keys."""
    for command in shown(page):
        program, *words = shlex.split(command.partition(" -- ")[2] or command.removeprefix("python -m "))
        if program not in ("pipeline", "training"):
            continue
        try:
            options = parse_arguments(PARSERS[program](program), words)
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err}")
        require_known_recipe(options)


def require_known_recipe(options: argparse.Namespace) -> None:
    """Reads a recipe with the keys of a command; a placeholder and a recipe of the page's own are left out."""
    written = {"scans"}  # docs/architecture.md
    recipe = getattr(options, "recipe", "")
    if not recipe.islower() or recipe.endswith(".toml") or recipe in written or options.plugin:
        return
    if options.command == "build":
        build_recipe.read_recipe(recipe, parse_changes(options.changes))
    if options.command == "fit":
        fit_recipe.read_recipe(recipe, parse_changes(options.changes), options.preset)


def test_every_target_of_make_is_there() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    targets = {
        name for page in PAGES for name in re.findall(r"(?:^    |`)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE)
    }
    assert targets <= set(phony[1].split())
    assert {"demo", "demo-quick", "test"} <= targets


def test_words_of_refusals_are_those_of_the_programs() -> None:
    files = [path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")]
    sources = [path.read_text() for path in files]
    said = re.sub(r'"\s+f?"', "", " ".join(" ".join(sources).split()))
    page = (REPOSITORY / "docs/troubleshooting.md").read_text().partition("## It runs, but")[0]
    rows = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(rows) > 20
    assert [words for words in rows if words.strip() not in said] == []


def test_the_site_has_no_broken_link(tmp_path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")} - {"index"}
    assert pages <= {path.name for path in (tmp_path / "site").iterdir()}
    assert "classify" in (tmp_path / "site/api/index.html").read_text()


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 15
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_hour(tmp_path) -> None:
    """docs/start.md from top to bottom, after a demonstration of few objects, in a folder with two meshes."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"PATH": f"{Path(sys.executable).parent}:{variables['PATH']}", "OMP_NUM_THREADS": "1"}

    def typed(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout + done.stderr

    typed(f"python -m training.demo --quick --out runs/demo-quick --workers 0 {shlex.join(SMALL)}")
    for kind, height in (("chair", 2), ("table", 1)):
        file = tmp_path / "my_meshes" / kind / "1.obj"
        file.parent.mkdir(parents=True)
        trimesh.creation.box(extents=(1, height, 1)).export(file)
    page = (REPOSITORY / "docs/start.md").read_text()
    for command in commands(page, "    "):
        typed(command + (f" {shlex.join(OF_SMALL)}" if " fit " in command else ""))
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        assert "(10, " in typed(f"python -c {shlex.quote(block)}")
    for path in ("shards/mine.html", "shards/level.png", "runs/demo-quick/align/report.html"):
        assert (tmp_path / path).stat().st_size > 5000
