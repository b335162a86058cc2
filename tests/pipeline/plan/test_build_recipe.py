"""A build recipe holds the keys that its dataset reads, and refuses all others."""

from __future__ import annotations

import inspect
import pickle
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from manifests.config import load_toml, merge, names_in, to_toml
from manifests.dataset_info import load_table, table_names
from manifests.errors import Refused
from pipeline.datasets import DEFAULTS, Dataset, dataset_module
from pipeline.plan.build_recipe import RECIPES, read_recipe, recipe_kind, stored_recipe

READ = {  # dataset -> keys beside those of every dataset
    "co3d_v1": {"co3d_v1"},
    "co3d_v2": {"co3d_v2"},
    "meshes": {"listing"},
    "modelnet10": {"split", "split_list"},
    "modelnet40": {"split", "split_list"},
    "modelnet40_aligned": {"split", "split_list"},
    "modelnet40_d": {"split", "max_points"},
    "objaverse_lvis": set(),
    "parametric": {"parametric"},
    "points": {"listing"},
    "redwood": {"redwood"},
    "scanobjectnn_bg": {"split", "max_points"},
    "scanobjectnn_hardest": {"split", "max_points"},
    "scanobjectnn_obj": {"split", "max_points"},
    "shapenet_v1": {"split_list"},
    "shapenet_v2": {"split_list"},
    "shapenetpart": {"max_points"},
}
OWN = set().union(*READ.values())
OTHER_VALUES = {
    "axes": ["y", "z", "x"],
    "views": {"rgb30": {}},
    "listing": "mine.csv",
    "hidden": ["fewview_dev.test"],
    "scan": {"rays": 99},
    "scene": {"hue_shift": 0.01},
}


def keys_of(kind: type[BaseModel], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (annotation, default) of every key, tables of a dataset taken apart."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, field in kind.model_fields.items():
        if isinstance(field.default, BaseModel):
            found |= keys_of(type(field.default), f"{name}.")
        else:
            found[prefix + name] = (field.annotation, field.default)
    return found


ALL_KEYS = {key: of for name in READ for key, of in keys_of(recipe_kind(name)).items()}


def another(key: str, annotation: Any, value: Any) -> Any:
    """A value that fits the key and is not `value`."""
    name = key.rpartition(".")[2]
    if name == "dataset":
        return "points" if value == "meshes" else "meshes"
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if get_origin(annotation) is Literal:
        return next(each for each in get_args(annotation) if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (tuple, list)):
        return [*value, "another"]
    return {int: lambda: value + 1, float: lambda: value / 2 + 0.01, str: lambda: f"{value}x"}[type(value)]()


def refusal(name: str, changes: dict[str, Any]) -> str | None:
    try:
        read_recipe(name, changes)
    except Refused as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", names_in(RECIPES))
def test_every_key_changes_the_recipe_or_is_refused(name: str) -> None:
    plain = read_recipe(name, {})
    for key, (annotation, default) in ALL_KEYS.items():
        table, _, inner = key.rpartition(".")
        own: Any = plain.model_dump(mode="json").get(table, {}) if table else plain.model_dump(mode="json")
        value = another(key, annotation, own.get(inner, default))
        changes = {table: {inner: value}} if table else {key: value}
        first = key.partition(".")[0]
        read = first not in OWN or first in READ[plain.dataset]
        reason = refusal(name, changes)
        if reason is None:
            assert read, key
            assert read_recipe(name, changes) != plain, key
        elif read:
            of_another_domain = "is a key of domain=target" in reason
            of_another_dataset = key == "dataset" and "unknown key parametric" in reason
            assert of_another_domain or of_another_dataset, (key, reason)
        else:
            assert f"unknown key {first}" in reason
            assert f"({plain.dataset} reads " in reason


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "modelnet40",
            {"listing": "mine.csv"},
            "unknown key listing",
        ),
        ("objaverse_lvis", {"split": "x"}, "(objaverse_lvis reads no key beside the keys of every dataset)"),
        (
            "redwood",
            {"split_sed": 1},
            "did you mean redwood.split_seed? (redwood reads redwood.* ",
        ),
        ("parametric_target", {"parametric": {"range_noise": 1}}, "did you mean parametric.scan.range_noise?"),
        ("modelnet40", {"steps": 1}, "(modelnet40 reads split and split_list beside the keys of every dataset)"),
        ("meshes", {"parametric": {"objects": 240}}, "unknown key parametric"),
    ],
)
def test_a_refusal_names_what_the_dataset_reads(name: str, changes: dict, words: str) -> None:
    with pytest.raises(Refused) as caught:
        read_recipe(name, changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def of_0_1_0(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe.toml that version 0.1.0 stored: it held the keys of all datasets."""
    values: dict[str, Any] = {"split": "", "split_list": "", "max_points": 4_000_000}
    for other in ("parametric", "redwood", "co3d_v1", "co3d_v2"):
        values[other] = read_recipe(other, {}).options().model_dump(mode="json", exclude_none=True)
    return merge(values, read_recipe(name, changes).model_dump(mode="json", exclude_none=True))


@pytest.mark.parametrize("name", names_in(RECIPES))
def test_a_recipe_stored_with_the_keys_of_all_datasets_is_read(name: str, tmp_path) -> None:
    changes = {"asset_seconds": 7}
    (tmp_path / "old.toml").write_text(to_toml(of_0_1_0(name, changes)))
    assert stored_recipe(load_toml(tmp_path / "old.toml"), "old") == read_recipe(name, changes)
    assert read_recipe(str(tmp_path / "old.toml"), {}) == read_recipe(name, changes)


def test_a_stored_key_of_another_dataset_that_was_changed_is_refused() -> None:
    for changed in ({"split_list": "x"}, {"redwood": {"split_seed": 1}}):
        with pytest.raises(Refused, match="unknown key"):
            stored_recipe(merge(of_0_1_0("meshes", {}), changed), "old")


@pytest.mark.parametrize("name", names_in(RECIPES))
def test_a_worker_gets_the_recipe_as_it_is(name: str) -> None:
    recipe = read_recipe(name, {"seed": 5})
    again = pickle.loads(pickle.dumps(recipe))
    assert again == recipe
    assert again.shapes_hash() == recipe.shapes_hash()


@pytest.mark.parametrize("name", table_names())
def test_every_dataset_has_the_hooks_of_the_protocol(name: str) -> None:
    """Each hook takes the arguments that it is called with; a hook that is not defined has its default."""
    module = dataset_module(load_table(name))
    for hook in ("assets", "read", "complete", "shortfalls", "notes"):
        expected = list(inspect.signature(getattr(Dataset, hook)).parameters)[1:]
        assert list(inspect.signature(getattr(module, hook)).parameters)[: len(expected)] == expected, hook
    assert all(hasattr(module, hook) for hook in DEFAULTS)
    assert (module.frames is not None) == (name in ("redwood", "co3d_v1", "co3d_v2"))
    assert (module.frames is not None) == module.SAVES_SPLITS
    assert (name != "parametric") == module.NEEDS_SOURCE
