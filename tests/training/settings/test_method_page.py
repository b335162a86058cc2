"""docs/method.md: every key in it is a key, every default is the default, and no key of the objective is missing.

Its columns `paper` and `released` are the presets of these names, key by key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from builders import REPOSITORY
from pydantic import BaseModel

from manifests.config import load_toml, parse_changes, parse_recipe
from training.settings.fit_recipe import RECIPE_OF, keys_in, read_recipe, saved_recipe
from training.settings.recipe_presets import PRESETS

PAGE = (REPOSITORY / "docs" / "method.md").read_text(encoding="utf-8")
CODE = [code for line in PAGE.splitlines() for code in re.findall(r"`([^`]+)`", line)]
TOLD_WHOLE = ("labels", "weights", "cls", "align", "mask", "lg_align", "ema", "augment", "optimizer")
TOLD_WHOLE += ("pretrain", "crosspoint", "supervised", "parts", "clip2point", "adapter")
OF_A_RECIPE = ("Pre-training of points",)  # sections whose second column is a recipe's and not the default


def keys_of(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


DEFAULTS = {
    method: dict(keys_of(parse_recipe(kind, {"method": method}, "defaults"))) for method, kind in RECIPE_OF.items()
}
KEYS = {name: value for defaults in DEFAULTS.values() for name, value in defaults.items()}
SETTING = re.compile(r"(?<![.\w])([a-z][a-z0-9_]*(?:\.[a-z_]+)?)=(\S.*?)(?=\s+[a-z][a-z0-9_]*(?:\.[a-z_]+)?=|$)")


def settings_in(text: str) -> list[tuple[str, str]]:
    return [found for code in re.findall(r"`([^`]+)`", text) for found in SETTING.findall(code)]


def rows() -> Iterator[tuple[str, list[str]]]:
    """(section, cells) of every row of a table."""
    section = ""
    for line in PAGE.splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            if len(cells) > 2:
                yield section, cells


def test_every_key_is_a_key() -> None:
    tables = {name.partition(".")[0] for name in KEYS if "." in name}
    dotted = {code for code in CODE if re.fullmatch(r"[a-z0-9_]+\.[a-z_]+", code) and code.partition(".")[0] in tables}
    named = dotted | {name for name, _ in settings_in(PAGE)}
    assert len(named) > 50
    assert named <= set(KEYS), named - set(KEYS)


@pytest.mark.parametrize("change", sorted({f"{name}={value}" for name, value in settings_in(PAGE)}))
def test_every_setting_is_taken(change: str) -> None:
    """By the methods that read it, whose image tower has weights if it is to be frozen."""
    name, beside = change.partition("=")[0], ["init.image=a_tag"]
    beside += ["optimizer.schedule=cosine_epochs"] if name == "optimizer.ahead" else []
    values = parse_changes([*beside, change])
    for method in [method for method, defaults in DEFAULTS.items() if name in defaults]:
        saved_recipe({"method": method} | values, method)


def test_the_defaults_are_the_defaults() -> None:
    """The third column of every table but a recipe's, and the paragraph on the general defaults."""
    stated = [s for section, cells in rows() if not section.startswith(OF_A_RECIPE) for s in settings_in(cells[2])]
    stated += settings_in(PAGE[PAGE.index("The general defaults") : PAGE.index("## CrossPoint")])
    stated += settings_in(PAGE[PAGE.index("## Teacher") : PAGE.index("## Schedule")])
    stated = [(name, value) for name, value in stated if name != "data.objects" and not name.startswith("data.c")]
    assert len(stated) > 45
    for name, value in stated:
        given = {"method": "cross_most"} | parse_changes([f"{name}={value}"])
        for method in [method for method, defaults in DEFAULTS.items() if name in defaults]:
            same = given | {"method": given["method"] if name == "method" else method}
            assert dict(keys_of(parse_recipe(RECIPE_OF[method], same, "given"))) == DEFAULTS[method], (name, value)
    of_recipe = [s for section, cells in rows() if section.startswith(OF_A_RECIPE) for s in settings_in(cells[2])]
    assert len(of_recipe) > 6
    for name, value in of_recipe:
        changed = read_recipe("pretrain", parse_changes([f"{name}={value}"]))
        assert changed == read_recipe("pretrain", {}), (name, value)


def test_every_key_of_the_objective_is_told() -> None:
    told = {name for name, _ in settings_in(PAGE)} | set(CODE)
    wanted = {name for name in KEYS if name.partition(".")[0] in TOLD_WHOLE}
    assert len(wanted) > 40
    assert wanted <= told, wanted - told


def test_files_that_are_named_are_there() -> None:
    for code in CODE:
        if code.endswith(".py"):
            assert any(path.name == Path(code).name for path in REPOSITORY.glob("t*/**/*.py")), code


COLUMNS = {"paper": 1, "released": 3}  # which cell of a table's row


def assigned(values: dict[str, Any]) -> set[tuple[str, Any]]:
    """(dotted key, value) of plain values."""
    return {(key, reduce(lambda table, part: table[part], key.split("."), values)) for key in keys_in(values)}


@pytest.mark.parametrize("preset", COLUMNS)
def test_a_column_is_its_preset(preset: str) -> None:
    """Every key=value of the column is in the preset of some variant, and every one of a preset is in the column."""
    column = [cells[COLUMNS[preset]] for _, cells in rows() if len(cells) == 5]
    stated = [f"{name}={value}" for cell in column for name, value in settings_in(cell)]
    laid = [load_toml(path) for path in (PRESETS / preset).glob("*.toml")]
    assert set().union(*map(assigned, laid)) == set().union(*(assigned(parse_changes([each])) for each in stated))
    assert len(set(stated)) >= (5 if preset == "paper" else 15)
