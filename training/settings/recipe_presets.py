"""Presets of training recipes: the keys with which a recipe trains as the paper prints, or as the released code does.

recipes/presets/PRESET/RECIPE.toml is laid over a recipe, and below it METHOD.toml, which all recipes of a method share.
"""

from __future__ import annotations

from pathlib import Path

from manifests.config import Value, load_toml, merge, names_in, unknown_name
from manifests.errors import Refused

RECIPES = Path(__file__).parent.parent / "recipes"
PRESETS = RECIPES / "presets"


def preset_names() -> list[str]:
    """The shipped presets, sorted."""
    return sorted(path.name for path in PRESETS.iterdir() if path.is_dir())


def recipes_with(preset: str) -> list[str]:
    """The recipes that have a preset. Raises Refused where there is no such preset."""
    if preset not in preset_names():
        raise unknown_name("preset", preset, preset_names())
    return sorted(set(names_in(PRESETS / preset)) & set(names_in(RECIPES)))


def read_preset(preset: str, recipe: str, method: str) -> dict[str, Value]:
    """What a preset lays over a recipe. method: the recipe's own. Raises Refused where the recipe has none."""
    known = recipes_with(preset)
    if recipe not in known:
        raise Refused(f"preset {preset}: the recipe {recipe} has none; these have: {', '.join(known)}")
    values: dict[str, Value] = {}
    for path in dict.fromkeys(PRESETS / preset / f"{name}.toml" for name in (method, recipe)):
        values = merge(values, load_toml(path)) if path.is_file() else values
    return values
