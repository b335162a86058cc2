"""Recipes, changes and presets: what a person types, and the one line that they see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import Refused
from manifests.presets import load_preset, preset_hash, preset_names
from manifests.recipes import digest, first_difference, merge, parse_changes, parse_toml, to_toml


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


def test_first_difference_names_the_key() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b: 1 -> 2"
    assert first_difference({"a": 1}, {"a": 1}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_sise": 64}, ["image_sise", "image_size"]),
        ({"image_size": "big"}, ["image_size", "integer", "'big'"]),
        ({"dilation": 0}, ["dilation"]),
        ({"merge": "disc"}, ["orthographic"]),
        ({"rotations": [[[1, 0, 0], [0, 1, 0], [0, 0, -1]]]}, ["rotations[0]", "determinant"]),
        ({"rotations": [], "azimuth_deg": [0], "elevation_deg": [90]}, ["rotation matrix"]),
    ],
)
def test_a_wrong_key_of_a_preset_is_one_line(changes: dict, words: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        load_preset("depth10", changes)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


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


def test_shipped_presets_hold_their_numbers() -> None:
    rgb = load_preset("rgb12")[1]
    assert rgb.azimuth_deg == list(range(0, 360, 30))
    assert (rgb.elevation_deg, rgb.fov_deg, rgb.distance) == ([30], 60, 2.2)
    depth = load_preset("depth10")[1]
    assert (depth.num_views, depth.dilation, depth.points, depth.mapping) == (10, 2, 1024, "clip2point")
    release = load_preset("depth10_release")[1]
    assert (release.merge, release.disc_radius, release.projection) == ("disc", 0.02, "orthographic")
