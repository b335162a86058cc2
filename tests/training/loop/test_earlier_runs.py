"""A run that was begun before a key was there goes on as it began: no default of today reaches it."""

from __future__ import annotations

import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import REPOSITORY, Commands
from pydantic import BaseModel
from tiny_towers import config_in
from training_runs import typed

from manifests.config import load_toml, parse_changes, to_toml
from training.models import clip
from training.settings.fit_recipe import EARLIER, READ_BY, RECIPE_OF, keys_in

sys.path.insert(0, str(REPOSITORY / "tests/stored"))
import make

SINCE = {  # keys that the stored run's recipe does not have yet, and what runs did before they were there
    "image.normalize": "preset",
    "image.backbone": "clip",
    "augment.weak_crop": "middle",
    "augment.points_fill": "repeat",
    "labels.image_threshold": None,
    "labels.points_threshold": None,
    "optimizer.clip_norm": 0.0,
    "optimizer.accumulate": 1,
    "activation_checkpointing": False,
    "eval_every": 0,
    "points.backbone": "point_bert",
    "data.fraction": 1.0,
    "data.shots": 0,
    "optimizer.kind": "adamw",
    "optimizer.momentum": 0.9,
    "optimizer.lr_scaled": True,
    "optimizer.decayed": "matrices",
    "optimizer.schedule": "cosine",
    "optimizer.ahead": 0,
    "optimizer.restart_epochs": 0,
    "optimizer.decay": 0.7,
    "optimizer.decay_every": 20,
    "optimizer.norm_momentum": 0.0,
    "optimizer.norm_decay": 0.5,
    "optimizer.norm_floor": 0.01,
    "optimizer.norm_ahead": 0,
    "init.other_neighbours": "refuse",
    "supervised.head": "text",
    "supervised.towers": "both",
    "supervised.smoothing": 0.0,
    "supervised.smoothing_form": "upstream",
    "parts.smoothing": 0.2,
    "parts.dropout": 0.5,
    "augment.cloud_scale": 1.0,
    "augment.cloud_shift": 0.0,
    "augment.cloud_order": "shuffled",
    "augment.image_jitter": 0.0,
    "augment.points_elastic": 0.0,
    "augment.first_cloud": "weak",
    "crosspoint.images": 1,
    "crosspoint.heads": "projection",
    "crosspoint.passes": 2,
}
NEWER = {"multiview", "cross_modal_generator", "pointcmt", "clip2point", "adapter"}  # methods without earlier runs
LAST = "checkpoints/step-00000006"
FEW = (
    *("data.views=realistic10", "data.channel=gray", "data.num_points=64", "data.shuffle=4"),
    *("optimizer.batch_size=4", "optimizer.steps=6", "save_every=4", "log_every=1", "tensorboard=false"),
    *("points.depth=1", "points.width=16", "points.heads=2", "points.tokenizer_widths=[8, 8, 8]"),
    *("points.tokenizer_width=8", "points.drop_path=0.3", "mask.image_cell=8", "augment.points_fill=first"),
)


@pytest.fixture(scope="module")
def stored_recipe(tmp_path_factory) -> dict[str, Any]:
    """The recipe that an older version saved with a run that was stopped (tests/stored)."""
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(make.ARCHIVE) as archive:
        archive.extract("stopped/recipe.toml", folder, filter="data")
    return load_toml(folder / "stopped/recipe.toml")


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Iterator[Path]:
    """Pictures that their own preset does not normalise; and the smallest towers."""
    out = tmp_path_factory.mktemp("build") / "out"
    keys = ("parametric.objects=16", "num_points=128", "fps_prefix=64", "views={realistic10={name='realistic10'}}")
    Commands(REPOSITORY)("build", "parametric", "--out", out, "--workers", 0, *keys)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(clip, "SMALL_CONFIG", config_in(out.parent))
        yield out


def defaults(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a recipe, dotted, with their defaults."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from defaults(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.get_default(call_default_factory=True)


def value_at(values: dict[str, Any], key: str, default: Any) -> Any:
    """The value of a dotted key, or the default."""
    table, _, name = key.rpartition(".")
    return (values.get(table, {}) if table else values).get(name, default)


@pytest.mark.parametrize("method", sorted(set(RECIPE_OF) - NEWER))
def test_a_key_that_came_later_does_to_earlier_runs_what_they_did(stored_recipe, method: str) -> None:
    """Who adds a key says in SINCE what runs did before; where its default is another, EARLIER holds that."""
    then = {*keys_in(stored_recipe)}
    later = {key: default for key, default in defaults(RECIPE_OF[method]) if key not in then}
    assert set(later) <= set(SINCE), f"{set(later) - set(SINCE)}: what did runs do before?"
    assert {key: value_at(EARLIER, key, default) for key, default in later.items()} == {
        key: SINCE[key] for key in later
    }


def without_later_keys(recipe: Path) -> None:
    """Makes a saved recipe one of before the keys in SINCE."""
    values = load_toml(recipe)
    for key in SINCE:
        table, _, name = key.rpartition(".")
        values.get(table, {}).pop(name, None)
    recipe.write_text(to_toml(values))


@pytest.mark.parametrize("method", ["cross_most", "self_training", "pretrain", "crosspoint"])
def test_an_earlier_run_ends_with_the_weights_that_it_would_have_had(build, tmp_path, method: str) -> None:
    """To the last bit, by the command that began it; a run of today has others."""

    def fit(run: str, *changes: str) -> tuple[str, list[bytes]]:
        read = [each for each in (*FEW, *changes) if {*keys_in(parse_changes([each]))} <= READ_BY[method]]
        said = typed("fit", f"small_{method}", "--shards", build, "--run", tmp_path / run, *read)[1]
        return said, [file.read_bytes() for file in sorted((tmp_path / run / LAST).glob("*.safetensors"))]

    whole = fit("whole", *(f"{key}={value}" for key, value in SINCE.items() if value is not None))[1]
    shutil.copytree(tmp_path / "whole", tmp_path / "earlier")
    shutil.rmtree(tmp_path / "earlier" / LAST)
    for recipe in (tmp_path / "earlier").rglob("recipe.toml"):
        without_later_keys(recipe)
    said, gone_on = fit("earlier")
    assert "was begun before image.normalize was a key: it goes on with preset" in said
    assert "step 3/" not in said  # it went on
    assert gone_on == whole
    assert fit("today")[1] != whole
