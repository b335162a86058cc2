"""A recipe holds the keys that its method reads: every other key is refused, or dropped from what was saved before."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import pytest
from builders import REPOSITORY
from pydantic import BaseModel

from manifests.config import first_difference, load_toml, names_in, parse_changes, to_toml
from manifests.errors import Refused
from training.settings.fit_recipe import (
    EVERY_KEY,
    READ_BY,
    RECIPE_OF,
    RECIPES,
    FitRecipe,
    read_recipe,
    saved_recipe,
)
from training.settings.fit_recipe import read_by as read_by_backbone
from training.settings.from_plugins import SHIPPED_METHODS

LEAVES = sorted(key for key in EVERY_KEY if not any(other.startswith(f"{key}.") for other in EVERY_KEY))
PAGE = (REPOSITORY / "docs" / "method.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Keys of each method") : PAGE.index("## What no key brings back")]
ROWS = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| ")]
OWN = {method: re.findall(r"`([^`]+)`", keys) for method, keys in ROWS[1:]}  # of the page; `*` is what begins so
SHARED = {head: OWN.pop(head) for head in [head for head in OWN if head.startswith("every method")]}


def read_by(method: str) -> set[str]:
    """The dotted keys that the page says a method reads."""
    shared = [key for head, keys in SHARED.items() if f"`{method}`" not in head for key in keys]
    patterns = [*shared, *OWN[method]]
    return {
        key for key in LEAVES for name in patterns if key == name or (name[-1] == "*" and key.startswith(name[:-1]))
    }


def value_of(recipe: FitRecipe, key: str) -> Any:
    """The value of a dotted key."""
    found: Any = recipe
    for name in key.split("."):
        found = getattr(found, name)
    return found


def annotation_of(key: str) -> Any:
    """The type of a dotted key, of the first method that has it."""
    kind: Any = next(RECIPE_OF[method] for method, keys in READ_BY.items() if key in keys)
    for name in key.split("."):
        kind = kind.model_fields[name].annotation
    return kind


def another(key: str, value: Any) -> Any:
    """A valid value of a key, as plain data, that is not this one."""
    choices = [each for each in typing.get_args(annotation_of(key)) if isinstance(each, (str, int))]
    if choices and not isinstance(value, bool):
        return next(each for each in choices if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return [f"{value[0]}!"] if value and isinstance(value[0], str) else [each / 2 for each in value] or ["mug"]
    if isinstance(value, (int, float)):
        return value * 2 if isinstance(value, int) and value else value / 2 or 1
    return "other" if value is not None else 0.5


def nested(key: str, value: Any) -> dict[str, Any]:
    """The changes `key=value`."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def read_or_why(name: str, changes: dict[str, Any]) -> FitRecipe | str:
    """The recipe with changes, or the line that refuses them."""
    try:
        return read_recipe(name, changes)
    except Refused as error:
        return str(error)


def test_the_page_says_what_recipes_hold() -> None:
    assert set(OWN) == set(RECIPE_OF)
    for method, keys in READ_BY.items():
        assert keys & set(LEAVES) == read_by(method), method


@pytest.mark.parametrize("name", names_in(RECIPES))
def test_each_key_changes_a_shipped_recipe_or_is_refused(name: str) -> None:
    before = read_recipe(name, {})
    other = {"tokenizer_widths": [8, 8, 8], "heads": 3, "image_flip": 0.25, "objects": "a.txt", "eval_every": 100}
    changed = 0
    reads = read_by_backbone(before.points.backbone)[before.method]
    for key in LEAVES:
        if key in (
            "method",
            "points.backbone",
        ):  # another has other keys: test_extending_training.py
            continue
        if key not in reads:
            with pytest.raises(Refused, match=f"{key} is a key of "):
                read_recipe(name, nested(key, another(key, None)))
            continue
        value = other.get(key.rpartition(".")[2]) or another(key, value_of(before, key))
        after = read_or_why(name, nested(key, value))
        if isinstance(after, str):
            assert key.rpartition(".")[2] in after, (key, value, after)  # such as too few points for groups
            continue
        difference = first_difference(before.model_dump(mode="json"), after.model_dump(mode="json"))
        assert difference, key
        assert difference.startswith(f"{key}: "), key
        changed += 1
    assert changed > (40 if before.method != "parts" else 30)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "small_pretrain",
            "weights.mim=5",
            "weights.mim is a key of cross_most and self_training; method=pretrain reads",
        ),
        ("small_self_training", "weights.align=2", "weights.align is a key of cross_most"),
        ("small_self_training", "labels.mode=joint", "labels.mode is a key of cross_most"),
        ("small_cross_most", "pretrain.image=frozen", "pretrain.image is a key of pretrain"),
        ("small_cross_most", "text.freeze_tokens=false", "text.freeze_tokens is a key of pretrain"),
        ("small_pretrain", "augment.points_crop=1", "augment.points_crop is a key of cross_most and self_training and"),
        ("small_crosspoint", "mask.image_cell=16", "mask.image_cell is a key of cross_most and self_training"),
        ("small_pretrain", "classifier=own", "classifier is a key of"),
        ("small_pretrain", "ema={}", "ema is a key of cross_most and self_training"),
    ],
)
def test_a_key_of_another_method_is_refused(name: str, change: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        read_recipe(name, parse_changes([change]))
    assert str(refused.value).startswith(f"recipe {name}: {words}")
    assert len(str(refused.value).splitlines()) == 1


def test_the_refusal_names_the_keys_beside_it() -> None:
    with pytest.raises(Refused, match=r"method=self_training reads labels.image_threshold, labels.points_threshold, "):
        read_recipe("small_self_training", parse_changes(["labels.mode=joint"]))
    with pytest.raises(Refused, match=r"pretrain\.image is a key of pretrain; did you mean init\.image\?; method="):
        read_recipe("small_crosspoint", parse_changes(["pretrain.image=frozen"]))
    with pytest.raises(Refused, match=r"unknown key optimizer\.stebs; did you mean optimizer\.steps\?"):
        read_recipe("small_crosspoint", parse_changes(["optimizer.stebs=4"]))
    with pytest.raises(Refused, match=r"reads activation_checkpointing, augment, classifier, compile, crosspoint, "):
        read_recipe("small_crosspoint", parse_changes(["weights.mim=0"]))


def test_another_method_drops_the_keys_of_the_file_and_not_of_the_person() -> None:
    """The file was written for its own method; who types a key means it."""
    recipe = read_recipe("small_cross_most", parse_changes(["method=supervised"]))
    assert recipe.optimizer == read_recipe("small_cross_most", {}).optimizer
    assert set(recipe.model_dump()) == {key for key in READ_BY["supervised"] if "." not in key}
    with pytest.raises(Refused, match=r"labels\.threshold is a key of cross_most and self_training"):
        read_recipe("small_cross_most", parse_changes(["method=supervised", "labels.threshold=0.5"]))


def test_a_file_with_keys_of_another_method_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('method = "pretrain"\n[weights]\nmim = 5\n')
    with pytest.raises(Refused, match=r"weights\.mim is a key of"):
        read_recipe(str(path), {})
    path.write_text('method = "pretrained"\n')
    with pytest.raises(Refused, match=r"own\.toml: unknown method pretrained; did you mean pretrain\?"):
        read_recipe(str(path), {})


def whole(kind: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a recipe, as plain values."""
    return kind.model_validate({"method": next(m for m, k in RECIPE_OF.items() if k is kind)}).model_dump(mode="json")


@pytest.mark.parametrize("method", [name for name in RECIPE_OF if name != "supervised"])
def test_a_recipe_of_an_earlier_version_is_read_without_the_other_tables(method: str, tmp_path: Path) -> None:
    """It had the tables of every method, whatever was changed in them."""
    values: dict[str, Any] = {}
    for kind in RECIPE_OF.values():
        for name, value in whole(kind).items():
            values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    values |= {"method": method, "seed": 3, "weights": values["weights"] | {"align": 5.0}}
    found = saved_recipe(values, "a run")
    assert (found.method, found.seed) == (method, 3)
    assert {name: value for name, value in found.model_dump(mode="json").items() if name != "weights"} == {
        name: value for name, value in (whole(RECIPE_OF[method]) | {"seed": 3}).items() if name != "weights"
    }
    assert ("align" in found.model_dump().get("weights", {})) is (method == "cross_most")
    (tmp_path / "recipe.toml").write_text(to_toml(values))
    assert read_recipe(str(tmp_path / "recipe.toml"), {}) == found  # `fit RUN/recipe.toml`
    with pytest.raises(Refused, match="unknown key wieghts"):
        saved_recipe(values | {"wieghts": {}}, "a run")


def test_a_run_of_before_a_key_was_there_keeps_what_it_did() -> None:
    """Its pictures had the preset's mean, its clouds were filled by repeats, frames were cut in the middle."""
    values = whole(RECIPE_OF["cross_most"])
    assert (values["image"].pop("normalize"), values["augment"].pop("points_fill")) == ("tower", "first")
    assert values["augment"].pop("weak_crop") == "random"
    found = saved_recipe(values, "a run")
    assert (found.image.normalize, found.augment.points_fill, found.augment.weak_crop) == ("preset", "repeat", "middle")
    other = whole(RECIPE_OF["pretrain"])
    del other["image"]["normalize"]
    assert saved_recipe(other, "a run").image.normalize == "preset"


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    for name in names_in(RECIPES):
        recipe = read_recipe(name, {})
        (tmp_path / f"{name}.toml").write_text(to_toml(recipe.model_dump(mode="json")))
        assert saved_recipe(load_toml(tmp_path / f"{name}.toml"), name) == recipe
        assert read_recipe(str(tmp_path / f"{name}.toml"), {}) == recipe


def test_plugins_cannot_take_the_name_of_a_method_of_ours() -> None:
    assert set(SHIPPED_METHODS) == set(RECIPE_OF)
