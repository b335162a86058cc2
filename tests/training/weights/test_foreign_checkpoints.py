"""A checkpoint of somebody else: what its recipe and run.json say never aims what this machine reads or writes."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from builders import write_off
from pydantic import BaseModel
from training_runs import ONE_STEP, typed

import training
from manifests import remote
from manifests.config import load_toml, merge, to_toml
from manifests.errors import Refused
from training.evaluation.evaluate import settings_of
from training.settings.fit_recipe import RECIPE_OF
from training.weights.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "own"
    cache = tmp_path_factory.mktemp("cache")
    typed("fit", "small_cross_most", "--shards", shards, "--run", folder, *ONE_STEP, f"data.cache={cache}")
    return folder


@pytest.fixture(scope="module")
def url(shards) -> str:
    """The shards in a store, so that a cache would be made."""
    fs, _ = remote.filesystem("memory://x")
    for path in shards.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"/foreign/{path.relative_to(shards)}", path.read_bytes())
    return "memory://foreign"


def aimed(run: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A copy of a run whose checkpoints' recipes were edited by hand."""
    shutil.copytree(run, folder)
    for path in folder.glob("checkpoints/*/recipe.toml"):
        path.write_text(to_toml(merge(load_toml(path), changes)))
    return folder


def asking(checkpoint: Path, shards: str, out: Path) -> list[tuple[object, ...]]:
    return [
        ("evaluate", checkpoint, "--shards", shards, "--json"),
        ("embed", checkpoint, "--shards", shards, "--out", out / "features.npz"),
        ("predict", checkpoint, "--shards", shards, "--json"),
    ]


def test_a_saved_checkpoint_holds_nothing_of_the_machine(run) -> None:
    """RUN/recipe.toml keeps what was asked for; the checkpoint, which travels, does not."""
    (path, *_) = sorted(run.glob("checkpoints/*/recipe.toml"))
    assert load_toml(run / "recipe.toml")["data"]["cache"]
    data = load_toml(path)["data"]
    assert (data["cache"], data["workers"], data["cache_gb"]) == ("", 0, 100.0)
    assert all("{}" in prompt for prompt in load_toml(path)["prompts"])


def test_a_foreign_recipe_makes_and_reads_no_file(run, url, tmp_path) -> None:
    """A cache, readers, weights to begin with and a list of objects are named at canary places: none is touched."""
    canary = tmp_path / "canary"
    one = tmp_path / "one.txt"
    one.write_text("parametric-00000\n")
    weights = {name: str(canary / name) for name in ("all", "image", "points")} | {"image": "s3://canary/weights.pt"}
    data = {"cache": str(canary), "cache_gb": 1e-6, "workers": 3, "objects": str(one)}
    changes = {"data": data, "init": weights, "image": {"pretrained": str(canary / "clip.pt")}}
    foreign = aimed(run, tmp_path / "foreign", changes)
    whole = json.loads(typed("evaluate", run, "--shards", url, "--json")[0])
    for command in asking(foreign, url, tmp_path):
        out, err = typed(*command)
        assert f"data.cache='{canary}' is not used" in err
        assert f"data.objects='{one}' is not read" in err
        if command[0] == "evaluate":
            assert json.loads(out)["n"] == whole["n"] > 1
    assert training.load(foreign).classes == training.load(run).classes
    assert settings_of(open_checkpoint(str(foreign)), "test", {}).workers == 0
    assert settings_of(open_checkpoint(str(foreign)), "test", {"workers": 2, "cache": "here"}).cache == "here"
    assert not canary.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": "FILE"}, "names a file, and a saved recipe has its prompts written out"),
        ({"data": {"views": "../../elsewhere"}}, "data.views"),
    ],
)
def test_a_foreign_recipe_that_names_a_file_is_refused(run, shards, tmp_path, changes, words) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a {}.\n")
    changes = {name: str(prompts) if value == "FILE" else value for name, value in changes.items()}
    foreign = aimed(run, tmp_path / "foreign", changes)
    for command in asking(foreign, str(shards), tmp_path):
        _, err = typed(*command, code=2)
        assert words in err
        assert len(err.splitlines()) == 1
    with pytest.raises(Refused, match=words):
        training.load(foreign)


def test_a_file_that_was_saved_names_no_file_either(run, tmp_path) -> None:
    """Classifier.save writes the recipe into the header: what is read there is held to the same."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    training.load(run).save(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        header = opened.metadata()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a {}.\n")
    recipe = json.dumps(json.loads(header["recipe"]) | {"prompts": str(prompts)})
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "foreign.safetensors", header | {"recipe": recipe})
    with pytest.raises(Refused, match="names a file"):
        training.load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("preset", {"backend": "files", "pattern": "{id}/{view}.png", "num_views": 3}, "predict --shards"),
        ("preset", {"source": "/etc"}, "preset: unknown key source"),
        ("view_set", "../../elsewhere", "name='../../elsewhere'"),
        ("shapes", {"seed": {"listing": "/etc/passwd"}}, "shapes.seed"),
        ("shapes", {"num_points": [None]}, "shapes.num_points"),
        ("shapes", {"normalize": "none\nlisting = 1"}, "shapes.normalize"),
        ("shapes", {"axes": ["x", "y", "/etc"]}, "axes"),
    ],
)
def test_what_files_are_drawn_by_names_no_file(run, tmp_path, key, value, words) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(run, foreign)
    about = json.loads((foreign / "run.json").read_text())
    about[key] = {**about[key], **value} if isinstance(value, dict) else value
    if "pattern" in about["preset"]:
        about["preset"] = value
    (foreign / "run.json").write_text(json.dumps(about))
    _, err = typed("predict", foreign, write_off(tmp_path / "mesh.off"), code=2)
    assert words in err
    assert len(err.splitlines()) == 1


def test_listings_of_shapes_are_not_taken_over(run, tmp_path) -> None:
    """Keys of a build's recipe that name files, put into run.json, reach no build."""
    foreign = tmp_path / "foreign"
    shutil.copytree(run, foreign)
    about = json.loads((foreign / "run.json").read_text())
    about["shapes"] |= {"listing": "/nowhere.csv", "split_list": "/nowhere.txt", "source": "/nowhere"}
    (foreign / "run.json").write_text(json.dumps(about))
    (row,) = json.loads(typed("predict", foreign, write_off(tmp_path / "mesh.off"), "--json")[0])
    assert row["label"]


def test_resume_compares_what_the_run_began_with(run, shards, tmp_path) -> None:
    """The checkpoints' recipes hold no policy, and a run goes on by RUN/recipe.toml, with any policy."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    typed("fit", "small_cross_most", "--shards", shards, "--run", copy, *ONE_STEP, "data.workers=1")
    _, err = typed("fit", "small_cross_most", "--shards", shards, "--run", copy, *ONE_STEP, "seed=3", code=2)
    assert "holds a run of another recipe: seed: 0 -> 3" in err


def words_of(kind: type[BaseModel], prefix: str = "") -> set[str]:
    """Keys of a recipe whose value may be any text."""
    found: set[str] = set()
    for name, field in kind.model_fields.items():
        kinds = [field.annotation]
        for each in kinds:
            if get_origin(each) in (tuple, types.UnionType, Annotated):
                kinds += get_args(each)
        if any(isinstance(each, type) and issubclass(each, BaseModel) for each in kinds):
            found |= words_of(field.annotation, f"{prefix}{name}.")
        elif str in kinds:
            found.add(prefix + name)
    return found


def test_every_key_that_may_hold_a_path_is_known() -> None:
    """A new key of text must be thought of: here, and in training.settings.fit_recipe.checkpoint_recipe where it names
    a file."""
    towers = {"init.all", "init.image", "init.points", "init.teacher", "init.generator"}
    weights = {"image.pretrained", *towers}  # never read for a checkpoint
    names = {"image.model", "data.split", "data.classes"}  # of a list, or held to a pattern
    names |= {"data.views", "clip2point.depth", "clip2point.maps"}
    words = set().union(*map(words_of, RECIPE_OF.values()))
    assert words == weights | names | {"prompts", "data.cache", "data.objects"}
