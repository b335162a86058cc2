"""Recipes, changes and presets: what a person types, and the one line that they see."""

from __future__ import annotations

import argparse
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from manifests.cli import parse_arguments, recipe_titles
from manifests.config import (
    digest,
    find_recipe,
    first_difference,
    load_toml,
    merge,
    parse_changes,
    parse_recipe,
    parse_toml,
    to_toml,
)
from manifests.errors import Refused
from manifests.presets import load_preset, preset_hash, preset_names


def test_values_are_toml_and_bare_words_are_strings() -> None:
    changes = parse_changes(["a=1", "b.c=true", "b.d=word", "e=[1, 2]", "f='x y'", "g=1e-3", "h=s3://x/y"])
    assert changes == {
        "a": 1,
        "b": {"c": True, "d": "word"},
        "e": [1, 2],
        "f": "x y",
        "g": 1e-3,
        "h": "s3://x/y",
    }


@pytest.mark.parametrize("text", ["novalue", "=1", "a..b=1", "a b=1"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="is not key=value"):
        parse_changes([text])


def test_merge_reaches_inside_and_changes_nothing_else() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(old, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}
    assert old == {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(old, {"a": 5, "d": {"e": 6}, "f": 7}) == {"a": 5, "d": {"e": 6}, "f": 7}
    assert merge(old, {"a": {"c": {"x": 1}}})["a"] == {"b": 1, "c": {"x": 1}}
    changes = {"a": {"b": 8}}
    assert merge(old, changes) is not old
    assert (old["a"]["b"], changes) == (1, {"a": {"b": 8}})


def test_an_equals_sign_belongs_to_the_value() -> None:
    assert parse_changes(["a.b=x=y", "c='='"]) == {"a": {"b": "x=y"}, "c": "="}
    with pytest.raises(Refused, match=r"^a.b: a was already given a value$"):
        parse_changes(["a=1", "a.b=2"])
    assert parse_changes(["a.b=1", "a.c=2"]) == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = inf", "not a finite number"),
        ("a = [-inf]", "not a finite number"),
        ("a = nan", "not a finite number"),
        (f"a = {1 << 63}", "more than 64 bits"),
        (f"a.b = [{-(1 << 63)}]", "more than 64 bits"),
        ("a = " + "[" * 13 + "]" * 13, "nested deeper than 12"),
        ("a = " + "[" * 5000, "nested too deep"),
    ],
)
def test_what_toml_has_not_is_refused(text: str, words: str) -> None:
    """It could not be written into the recipe that is saved beside every output."""
    with pytest.raises(ValueError, match=words) as caught:
        parse_toml(text)
    assert "\n" not in str(caught.value)
    assert parse_toml(f"a = {(1 << 63) - 1}") == {"a": (1 << 63) - 1}


FLOATS = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)  # `fit` flushes those to zero
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | FLOATS | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)


@given(st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=3), max_size=4))
def test_toml_comes_back_as_it_was(values: dict) -> None:
    assert parse_toml(to_toml(values)) == values
    assert digest(values) == digest(dict(reversed(values.items())))


@pytest.mark.parametrize("turned", [False, True])
def test_a_list_of_names_and_keys_inside_one_of_them_go_together(turned: bool) -> None:
    typed = ['views=["rgb12", "depth10"]', "views.rgb12.image_size=64", "views.rgb30.fov_deg=50"]
    changes = parse_changes(reversed(typed) if turned else typed)
    assert changes == {"views": {"rgb12": {"image_size": 64}, "depth10": {}, "rgb30": {"fov_deg": 50}}}
    assert merge({"views": {"realistic10": {}}, "seed": 1}, changes) == changes | {"seed": 1}  # the list replaces
    assert merge({"views": {"realistic10": {}}}, parse_changes(typed[1:2]))["views"].keys() == {"realistic10", "rgb12"}


def test_of_two_values_of_a_key_the_later_counts() -> None:
    assert parse_changes(["a=1", "a=2"]) == {"a": 2}
    assert parse_changes(["a.b=1", "a={b=2, c=3}", "a.c=4"]) == {"a": {"b": 2, "c": 4}}
    assert parse_changes(["a=[1]", "a=[2]"]) == {"a": [2]}
    with pytest.raises(Refused, match=r"a\.b: a was already given a value"):
        parse_changes(["a=[1]", "a.b=2"])


def test_first_difference_names_the_key() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b: 1 -> 2"
    assert first_difference({"a": 1}, {"a": 1}) is None
    assert first_difference({"a": 1, "b": 2}, {"a": 1}) == "b: 2 -> None"
    assert first_difference({"a": {}}, {"a": {"x": True}}) == "a.x: None -> True"
    assert first_difference({"b": 1, "a": 1}, {"b": 2, "a": 2}) == "a: 1 -> 2"
    assert first_difference({"a": {"b": 1}}, {"a": 2}) == "a: {'b': 1} -> 2"


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), st.data())
def test_every_value_and_every_key_is_in_the_hash(values: dict, data: st.DataObject) -> None:
    """A key that is left out lets a build go on with another recipe."""
    key = data.draw(st.sampled_from(sorted(values)))
    assert digest({**values, key: ["another"]}) != digest(values)
    assert digest({name: value for name, value in values.items() if name != key}) != digest(values)
    assert digest({"table": values}) != digest({"table": {**values, key: ["another"]}})


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    shuffle_buffer: int = 0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: Inner = Inner()
    parts: dict[str, Inner] = {}
    maybe: Inner | None = None
    batch_size: int = 8


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_sise": 1}, "unknown key batch_sise; did you mean batch_size?"),
        ({"data": {"shufle_buffer": 1}}, "unknown key data.shufle_buffer; did you mean data.shuffle_buffer?"),
        ({"parts": {"x": {"shufle_buffer": 1}}}, "did you mean parts.x.shuffle_buffer?"),
        ({"maybe": {"shufle_buffer": 1}}, "did you mean maybe.shuffle_buffer?"),
        ({"shuffle_buffer": 1}, "unknown key shuffle_buffer; did you mean data.shuffle_buffer?"),
        ({"shuffle_bufer": 1}, "did you mean data.shuffle_buffer?"),
        ({"zzzz": 1}, "unknown key zzzz"),
        ({"batch_size": "many"}, "batch_size: "),
    ],
)
def test_a_mistyped_key_names_the_nearest_one(values: dict, words: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_recipe(Outer, values, "recipe mine")
    assert str(caught.value).startswith("recipe mine: ")
    assert words in str(caught.value)
    assert ("did you mean" in str(caught.value)) == ("did you mean" in words)


def test_recipes_are_found_by_path_or_name(tmp_path) -> None:
    for name in ("modelnet40", "shapenet"):
        (tmp_path / f"{name}.toml").write_text(f"# What {name} is.\n# More of it.\nseed = 1")
    assert find_recipe("modelnet40", tmp_path) == tmp_path / "modelnet40.toml"
    assert find_recipe(str(tmp_path / "shapenet.toml"), tmp_path / "none") == tmp_path / "shapenet.toml"
    assert list(recipe_titles(tmp_path)) == [("modelnet40", "What modelnet40 is."), ("shapenet", "What shapenet is.")]
    with pytest.raises(Refused, match=r"^unknown recipe modelnet4; did you mean modelnet40\?$"):
        find_recipe("modelnet4", tmp_path)
    with pytest.raises(Refused, match=r"^unknown recipe qqq; known: modelnet40, shapenet$"):
        find_recipe("qqq", tmp_path)
    with pytest.raises(Refused, match=r"^no recipe file "):
        find_recipe(str(tmp_path / "none.toml"), tmp_path)
    (tmp_path / "broken.toml").write_text("a = ")
    with pytest.raises(Refused, match=r"^cannot read .*broken.toml: ") as caught:
        load_toml(tmp_path / "broken.toml")
    assert "\n" not in str(caught.value)


def test_changes_may_stand_anywhere_on_the_command_line(capsys) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("recipe")
    parser.add_argument("changes", nargs="*")
    found = parse_arguments(parser, ["mine", "a=1", "--out", "x", "b=2", "c=3"])
    assert (found.recipe, found.out, found.changes) == ("mine", "x", ["a=1", "b=2", "c=3"])
    for wrong in (["mine", "--uot=x"], ["mine", "a=1", "--out", "x", "b"], ["mine", "-x"]):
        with pytest.raises(SystemExit) as caught:
            parse_arguments(parser, wrong)
        assert caught.value.code == 2
        assert f"unrecognized arguments: {wrong[-1]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_sise": 64}, ["image_sise", "image_size"]),
        ({"image_size": "big"}, ["image_size", "integer", "'big'"]),
        ({"dilation": 0}, ["dilation"]),
        ({"merge": "disc"}, ["orthographic"]),
        ({"rotations": [[[1, 0, 0], [0, 1, 0], [0, 0, -1]]]}, ["rotations[0]", "determinant"]),
        ({"rotations": [], "azimuth_deg": [0], "elevation_deg": [90]}, ["rotation matrix"]),
        ({"rotations": [[[-1, 0, 0], [0, 1, 0], [0, 0, 1]]]}, ["rotations[0]", "determinant"]),
        ({"rotations": [[[2, 0, 0], [0, 1, 0], [0, 0, 1]]]}, ["rotations[0]"]),
        ({"azimuth_deg": [0], "elevation_deg": [0]}, ["either azimuth_deg with elevation_deg or rotations"]),
        ({"rotations": []}, ["either azimuth_deg with elevation_deg or rotations"]),
        ({"name": "../other"}, ["name='../other'"]),
        ({"name": "a/b"}, ["name='a/b'"]),
        ({"name": ""}, ["name=''"]),
        ({"name": ".hidden"}, ["name='.hidden'"]),
        ({"name": "n" * 81}, ["up to 80 letters"]),
    ],
)
def test_a_wrong_key_of_a_preset_is_one_line(changes: dict, words: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        load_preset("depth10", changes)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("preset", ["depth10", "rgb12", "realistic10"])
def test_a_wrong_key_of_a_preset_is_named_as_it_is_typed(preset: str) -> None:
    """Not as the checker of types has it, with the backend in front."""
    with pytest.raises(Refused, match=r"unknown key image_sise; did you mean image_size\?") as caught:
        load_preset(preset, {"image_sise": 64})
    assert "." not in str(caught.value).partition("unknown key ")[2].partition(";")[0]


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(Refused, match=r"did you mean rgb12_mvtn\?"):
        load_preset("rgb12_mvnt")


def test_names_of_changed_presets() -> None:
    assert {"depth10", "depth10_release", "rgb12"} <= set(preset_names())
    plain, preset = load_preset("rgb12", {"image_size": 224})
    assert plain == "rgb12"
    changed, other = load_preset("rgb12", {"image_size": 64})
    assert changed == f"rgb12-{preset_hash(other)[:6]}"
    assert load_preset("rgb12", {"image_size": 64, "name": "small"})[0] == "small"
    assert preset_hash(preset) != preset_hash(other)
    assert preset_hash(load_preset("rgb12", {"title": "x"})[1]) == preset_hash(preset)


@pytest.mark.parametrize("name", preset_names())
def test_every_key_of_a_preset_but_its_title_is_in_its_hash(name: str) -> None:
    """Else views that were drawn with another key are taken for those there are."""
    preset = load_preset(name)[1]
    for field in type(preset).model_fields:
        with warnings.catch_warnings(action="ignore"):  # a text is no value of most of them
            changed = preset_hash(preset.model_copy(update={field: "another"}))
        assert (changed == preset_hash(preset)) == (field == "title"), field


def test_a_key_given_at_its_own_value_changes_no_name() -> None:
    assert load_preset("depth10", {"dilation": 2})[0] == "depth10"
    assert load_preset("depth10", {"dilation": 3})[0].startswith("depth10-")


def test_shipped_presets_hold_their_numbers() -> None:
    rgb = load_preset("rgb12")[1]
    assert rgb.azimuth_deg == list(range(0, 360, 30))
    assert (rgb.elevation_deg, rgb.fov_deg, rgb.distance) == ([30], 60, 2.2)
    depth = load_preset("depth10")[1]
    assert (depth.num_views, depth.dilation, depth.points, depth.mapping) == (10, 2, 1024, "clip2point")
    release = load_preset("depth10_release")[1]
    assert (release.merge, release.disc_radius, release.projection) == ("disc", 0.02, "orthographic")
