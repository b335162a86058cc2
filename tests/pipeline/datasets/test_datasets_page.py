"""docs/datasets.md: every shipped recipe is in it, and every command in it is one that the program takes."""

from __future__ import annotations

import re
import shlex

import pytest
from builders import REPOSITORY

from manifests.cli import parse_arguments
from manifests.config import names_in, parse_changes
from manifests.dataset_info import load_table
from pipeline.arguments import pipeline_parser
from pipeline.plan.build_recipe import RECIPES, read_recipe

PAGE = (REPOSITORY / "docs" / "datasets.md").read_text(encoding="utf-8")
COMMANDS = [line.strip().partition("  #")[0] for line in PAGE.splitlines() if line.startswith("    python -m pipeline")]


@pytest.mark.parametrize("name", names_in(RECIPES))
def test_every_recipe_has_its_place_and_its_counts(name: str) -> None:
    assert f"`{name}`" in PAGE
    assert any(f"pipeline build {name} " in command for command in COMMANDS) or name.startswith("parametric_")
    for count in load_table(read_recipe(name, {}).dataset).counts.values():
        assert f"{count:,}" in PAGE, count


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_taken(command: str) -> None:
    words = shlex.split(command)[3:]
    options = parse_arguments(pipeline_parser(), words)
    if options.command == "build" and options.recipe != "RECIPE":
        read_recipe(options.recipe, parse_changes(options.changes))


def test_keys_in_the_text_are_keys() -> None:
    given = re.findall(r"`'?((?:views\.|axes=|classes=|split=|allow_partial=)[^`]*?)'?`", PAGE)
    assert len(given) >= 5
    for change in given:
        read_recipe("modelnet40", parse_changes([change]))
