"""The commands in the header of a training recipe fit each other: views, channel, points, classes, split."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.config import parse_changes
from manifests.dataset_info import load_table
from manifests.presets import load_preset
from pipeline.plan import build_recipe
from training.settings import fit_recipe

RECIPES = sorted(path.stem for path in fit_recipe.RECIPES.glob("*.toml"))


def commands(path: Path) -> Iterator[tuple[list[str], dict[str, str], list[str]]]:
    """The commands in the header of a recipe: words before the options, options by name, changes of keys."""
    header = "\n".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#"))
    for line in re.findall(r"^   python -m (.*)$", header.replace("\\\n", " "), re.MULTILINE):
        words, names, options, changes = shlex.split(line, comments=True), [], {}, []
        while words:
            word = words.pop(0)
            if word.startswith("--"):
                options[word] = words.pop(0)
            else:
                (changes if "=" in word else names).append(word)
        yield names, options, changes


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("small_")])
def test_the_build_of_the_header_has_what_the_recipe_reads(name: str) -> None:
    found = list(commands(fit_recipe.RECIPES / f"{name}.toml"))
    builds = {
        options["--out"]: build_recipe.read_recipe(names[2], parse_changes(changes))
        for names, options, changes in found
        if names[:2] == ["pipeline", "build"]
    }
    fits = [(options["--shards"], names[2], changes) for names, options, changes in found if names[1] == "fit"]
    own = [(shards, changes) for shards, recipe, changes in fits if recipe == name]
    assert own, "the header has no command that trains"
    for shards, changes in own:
        build = builds[shards]
        data = fit_recipe.read_recipe(name, parse_changes(changes)).data
        sets = dict(load_preset(preset, keys) for preset, keys in build.views.items())
        assert data.views in sets, f"{name} reads {data.views}; its build makes {', '.join(sets)}"
        preset, table = sets[data.views], load_table(build.dataset)
        assert data.channel in preset.channels
        assert data.num_points <= build.num_points
        assert data.split in (table.counts or {"train": 0})
        assert set(data.classes) <= set(table.classes) | set(table.subsets)


def test_full_size_recipes_begin_with_the_points_that_pretrain_leaves() -> None:
    """`init.points=runs/pretrain` in a header is the run that the command above it writes, with the same sub-clouds."""
    found = list(commands(fit_recipe.RECIPES / "pretrain.toml"))
    made = {options["--run"] for names, options, _ in found if names[1:] == ["fit", "pretrain"]}
    ((name, changes),) = [(names[2], changes) for names, _, changes in found if "init.points=runs/pretrain" in changes]
    assert made == {"runs/pretrain"}
    before, after = fit_recipe.read_recipe("pretrain", {}), fit_recipe.read_recipe(name, parse_changes(changes))
    assert (before.points.groups, before.points.group_size) == (after.points.groups, after.points.group_size)
    assert before.data.num_points == after.data.num_points
