"""Presets of recipes: every variant has them, typed keys go over them, and a run keeps what they came to."""

from __future__ import annotations

import tomllib

import pytest
from training_runs import ONE_STEP, typed

from manifests.config import load_toml
from training.__main__ import main
from training.settings.fit_recipe import keys_in, read_recipe
from training.settings.recipe_presets import PRESETS, preset_names, read_preset, recipes_with

VARIANTS = {"modelnet10", "modelnet40", "modelnet40_d", "redwood", "co3d"}
VARIANTS |= {"scanobjectnn_obj", "scanobjectnn_bg", "scanobjectnn_hardest"}
SMALL = (
    "mask.image_cell=16",
    "init.image=",
    "image.model=cross_most_small",
    "image.stem=conv",
    "data.objects=",
    "data.workers=0",
    *ONE_STEP,
)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_every_variant_has_the_presets(preset: str) -> None:
    """Each with what all variants share, over its recipe and below what is typed."""
    assert preset_names() == ["paper", "released"]
    stages = {"cross_modal_generator", "pointcmt", "adapter"}
    stages |= {"clip2point", "crosspoint", "multiview"} if preset == "released" else set()
    assert set(recipes_with(preset)) == VARIANTS | {"pretrain"} | stages
    for name in recipes_with(preset):
        plain = read_recipe(name, {})
        laid = read_preset(preset, name, plain.method)
        resolved = read_recipe(name, {}, preset)
        assert resolved == read_recipe(name, laid) != plain
        if name in VARIANTS:
            shared = load_toml(PRESETS / preset / "cross_most.toml")
            assert set(keys_in(shared)) <= set(keys_in(laid))
    released = read_recipe("redwood", {"weights": {"mpm": 1.5}}, "released")
    assert (released.weights.mpm, released.weights.align, released.data.num_views) == (1.5, 2.0, 10)
    assert len(released.prompts) == 64
    assert read_recipe("modelnet40", {}, "released").labels.points_weight == 0.9
    other = read_recipe("modelnet40", {"method": "self_training"}, "released")  # without what that method does not read
    assert (other.weights.mpm, other.cls.divisor) == (3.0, "selected")


@pytest.mark.parametrize(
    ("recipe", "preset", "words"),
    [
        ("modelnet40", "relased", "unknown preset relased; did you mean released?"),
        (
            "small_cross_most",
            "released",
            "the recipe small_cross_most has none; these have: adapter, clip2point, co3d, ",
        ),
        ("my/modelnet40.toml", "paper", "has none; these have: adapter"),
    ],
)
def test_a_preset_that_is_not_there(recipe: str, preset: str, words: str, tmp_path, monkeypatch, capsys) -> None:
    """As a person types it; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my/modelnet40.toml").write_text("seed = 1\n")
    assert main(["fit", recipe, "--preset", preset, "--shards", "none", "--run", "run"]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_what_its_preset_came_to(shards, tmp_path) -> None:
    """The keys are in its recipe, below those that were typed; without the preset it is another recipe."""
    command = ("fit", "modelnet40", *SMALL, "precision=fp32", "weights.mpm=2", "--shards", shards, "--device", "cpu")
    run = ("--run", tmp_path / "run")
    typed(*command, *run, "--preset", "released")
    saved = tomllib.loads((tmp_path / "run/recipe.toml").read_text())
    assert (saved["weights"]["align"], saved["weights"]["mpm"], saved["labels"]["points_weight"]) == (2.0, 2.0, 0.9)
    assert (saved["align"]["temperature"], saved["align"]["gather"], saved["lg_align"]["points"]) == (1.0, False, "own")
    assert len(saved["prompts"]) == 64
    assert "of another recipe: align.gather: False -> True" in typed(*command, *run, code=2)[1]
