"""The commands in the header of a training recipe fit each other: views, channel, points, classes, split."""

from __future__ import annotations

import pytest
from journeys import of_header, parsed

from manifests.config import names_in, parse_changes
from manifests.dataset_info import load_table
from manifests.presets import load_preset
from pipeline.plan import build_recipe
from training.settings import fit_recipe

LARGE = [name for name in names_in(fit_recipe.RECIPES) if not name.startswith("small_")]
FULL_SIZE = [name for name in LARGE if fit_recipe.read_recipe(name, {}).method == "cross_most"]


@pytest.mark.parametrize("name", LARGE)
def test_the_build_of_the_header_has_what_the_recipe_reads(name: str) -> None:
    found = [parsed(command) for command in of_header(fit_recipe.RECIPES / f"{name}.toml")]
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


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_recipes_begin_with_the_points_that_pretrain_leaves(name: str) -> None:
    """`init.points=runs/pretrain` in a header is the run that the pre-training's header writes, with its sub-clouds."""
    pretrain = map(parsed, of_header(fit_recipe.RECIPES / "pretrain.toml"))
    made = {options["--run"] for names, options, _ in pretrain if names[1:] == ["fit", "pretrain"]}
    (fit,) = [each for each in map(parsed, of_header(fit_recipe.RECIPES / f"{name}.toml")) if each[0][1] == "fit"]
    assert "init.points=runs/pretrain" in fit[2]
    assert made == {"runs/pretrain"}
    before, after = fit_recipe.read_recipe("pretrain", {}), fit_recipe.read_recipe(name, parse_changes(fit[2]))
    assert (before.points.groups, before.points.group_size) == (after.points.groups, after.points.group_size)
    assert before.data.num_points in (after.data.num_points, 4 * after.data.num_points)  # released clouds have 2,048
