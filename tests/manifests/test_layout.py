"""Files of a build: where they lie, what a view set's identity covers, and manifests that are not ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manifests import layout
from manifests.errors import Refused
from manifests.presets import load_preset


def manifest(**changes: object) -> layout.BuildManifest:
    values = {
        "dataset": "modelnet40",
        "classes": ("chair", "night_stand"),
        "prompt_names": ("chair", "night stand"),
        "splits": {"train": {"assets": 70, "samples": 69, "failures": 1, "shards": 3}},
        "shapes_hash": "a" * 64,
        "assets_hash": "b" * 64,
        "recipe": {"seed": 0},
        "complete": True,
        "versions": {"python": "3.11.0"},
    }
    return layout.BuildManifest(**{**values, **changes})


def view_set(name: str) -> layout.ViewSetManifest:
    preset = load_preset("depth10")[1]
    return layout.ViewSetManifest(name=name, preset=preset, hash="c", shapes_hash="a", versions={})


def test_every_file_has_its_place() -> None:
    """docs/format.md: other readers find them by these names."""
    assert layout.shapes_tar("out", "train", 17) == "out/shapes/train-00017.tar"
    assert layout.meshes_tar("out/", "my-split", 0) == "out/meshes/my-split-00000.tar"
    assert layout.views_tar("s3://b/out", "rgb12", "test", 123456) == "s3://b/out/views/rgb12/test-123456.tar"


def test_views_of_other_shapes_presets_or_meaning_are_another_set(monkeypatch: pytest.MonkeyPatch) -> None:
    preset, other = load_preset("depth10")[1], load_preset("depth10", {"dilation": 1})[1]
    found = {
        layout.view_set_hash(preset, "a"),
        layout.view_set_hash(other, "a"),
        layout.view_set_hash(preset, "b"),
    }
    monkeypatch.setattr(layout, "CONTENT", layout.CONTENT + 1)
    found.add(layout.view_set_hash(preset, "a"))
    assert len(found) == 4
    assert layout.view_set_hash(preset, "a") == layout.view_set_hash(load_preset("depth10", {"title": "x"})[1], "a")


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    assert layout.read_manifest(str(tmp_path)) is None
    layout.write_manifest(str(tmp_path), manifest())
    back = layout.read_manifest(str(tmp_path))
    assert back == manifest()
    assert back.num_shards == {"train": 3}
    assert layout.require_manifest(str(tmp_path), "OUT") == back


def test_view_sets_are_the_folders_with_a_manifest(tmp_path: Path) -> None:
    out = str(tmp_path)
    assert layout.view_set_names(out) == []
    for name in ("rgb12", "depth10"):
        layout.write_view_set(out, view_set(name))
    (tmp_path / "views" / "begun").mkdir()
    assert layout.view_set_names(out) == ["depth10", "rgb12"]
    assert layout.read_view_set(out, "depth10") == view_set("depth10")
    assert layout.read_view_set(out, "begun") is None


def test_a_renamed_view_set_is_not_taken_for_another(tmp_path: Path) -> None:
    """Else a run trains on other pictures than its recipe says."""
    layout.write_view_set(str(tmp_path), view_set("depth10_r1"))
    (tmp_path / "views" / "depth10_r1").rename(tmp_path / "views" / "depth10")
    with pytest.raises(ValueError, match=r"views/depth10/manifest.json: it is of the view set depth10_r1"):
        layout.read_view_set(str(tmp_path), "depth10")


def test_a_folder_without_a_build_is_refused_by_the_name_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^mine holds no build \(no manifest.json\)$"):
        layout.require_manifest(str(tmp_path), "mine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format '2', this version reads 1"),
        ({"format": 0}, "format '0', this version reads 1"),
        ({"format": None}, "format 'None', this version reads 1"),
        ({"splits": {"train": {"assets": 1, "samples": -1, "failures": 0, "shards": 1}}}, "splits.train.samples: "),
        ({"splits": {"a/b": {"assets": 1, "samples": 1, "failures": 0, "shards": 1}}}, "splits.a/b"),
        ({"splits": {"train": {"assets": 1, "samples": 1, "failures": 0, "shards": 10**7}}}, "splits.train.shards: "),
        ({"more": 1}, "more: "),
    ],
)
def test_a_manifest_that_is_none_of_ours_says_where(tmp_path: Path, change: dict, words: str) -> None:
    values = {**manifest().model_dump(mode="json"), **change}
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(Refused) as caught:
        layout.require_manifest(str(tmp_path), "OUT")
    assert str(tmp_path / "manifest.json") in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_versions_are_of_what_is_installed() -> None:
    found = layout.library_versions("numpy", "no-such-library")
    assert found.keys() == {"python", "numpy"}
    assert all(version[0].isdigit() for version in found.values())
