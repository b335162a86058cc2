"""`check --repair`: damaged tars and records made again to the bytes of before, and no others touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from builders import SMALL, Commands, miniature, tar_hashes, write_off

OBJECTS = ("shard_size=4", *SMALL)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return miniature(tmp_path_factory.mktemp("built") / "out", *OBJECTS)


@pytest.fixture
def out(built, tmp_path) -> Path:
    shutil.copytree(built, tmp_path / "out")
    return tmp_path / "out"


def flip(path: Path, at: int = 5000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def times(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}


def repair(pipeline: Commands, out: Path, *options: object, code: int = 0) -> tuple[dict, str]:
    done = pipeline("check", out, "--repair", "--json", "--workers", 0, *options, code=code)
    return json.loads(done.stdout), done.stderr


def test_only_what_is_damaged_is_made_again(pipeline, built, out) -> None:
    """A flipped byte in a tar of shapes, a cut tar of views, a missing one and half a record."""
    flip(out / "shapes/train-00000.tar")
    cut = out / "views/rgb12/train-00001.tar"
    cut.write_bytes(cut.read_bytes()[:-2000])
    (out / "views/depth10/train-00001.tar").unlink()
    record = out / "views/depth10/train-00002.json"
    record.write_text(record.read_text()[:300])
    kept = ("shapes/train-00001", "meshes/train-00001", "shapes/train-00002", "meshes/train-00002")
    untouched = {out / f"{name}.tar" for name in (*kept, "views/rgb12/train-00002")}
    before = times(out)
    found = json.loads(pipeline("check", out, "--json", code=1).stdout)
    assert len(found["problems"]) == 4
    found, said = repair(pipeline, out)
    assert (found["ok"], found["complete"], found["samples"]) == (True, True, 12)
    assert "4 damaged tars" in said
    assert said.count("made again, the same bytes") == 3
    assert said.count("not with the bytes of its record") == 1  # that record was lost
    assert tar_hashes(out) == tar_hashes(built)
    now = times(out)
    assert {path for path in before if now[path] == before[path]} == untouched
    assert not (out / "build.lock").exists()
    found, said = repair(pipeline, out)
    assert found["ok"]
    assert "damaged" not in said


@pytest.mark.slow
def test_shapes_of_files_need_the_source_and_views_do_not(pipeline, tmp_path) -> None:
    for number in range(1, 5):
        write_off(tmp_path / "mine" / f"a{number}.off", size=float(number))
    out = tmp_path / "out"
    common = ("--workers", 0, "shard_size=2", "num_points=256", "fps_prefix=64", "views.rgb12.image_size=32")
    pipeline("build", "meshes", "--source", tmp_path / "mine", "--out", out, *common)
    unbroken = tar_hashes(out)
    view_set = next(path for path in (out / "views").iterdir() if path.name.startswith("rgb12"))
    splits = sorted(path.stem for path in (out / "shapes").glob("*.tar"))
    flip(out / f"meshes/{splits[0]}.tar", 700)
    flip(view_set / f"{splits[0]}.tar", 700)
    flip(view_set / f"{splits[1]}.tar", 700)
    found, said = repair(pipeline, out, code=1)
    assert len(found["problems"]) == 2  # the other view set's tar was made from what is stored
    assert f"check {out} --repair --source DIR (the raw meshes)" in " ".join(said.split())
    assert f"{splits[1]}.tar: made again, the same bytes" in said
    assert "no such folder" in pipeline("check", out, "--repair", "--source", tmp_path / "no", code=2).stderr
    found, _ = repair(pipeline, out, "--source", tmp_path / "mine")
    assert found["ok"]
    assert tar_hashes(out) == unbroken


def test_what_repair_cannot_begin_with_is_refused(pipeline, out) -> None:
    flip(out / "shapes/train-00000.tar")
    assets = out / "assets.jsonl"
    assets.write_bytes(assets.read_bytes()[:-20])
    message = pipeline("check", out, "--repair", "--workers", 0, code=2).stderr
    assert "assets.jsonl is damaged" in message
    assert (out / "shapes/train-00000.tar").exists()  # nothing was deleted


def test_a_lost_recipe_is_read_from_the_manifest(pipeline, built, out) -> None:
    (out / "recipe.toml").write_text("dataset = ")
    flip(out / "meshes/train-00002.tar")
    found, said = repair(pipeline, out)
    assert found["ok"]
    assert "the same bytes" in said
    assert tar_hashes(out) == tar_hashes(built)


def test_the_recipe_of_another_build_repairs_nothing(pipeline, built, out) -> None:
    """OUT/recipe.toml is a person's to edit; what was built stands in the manifest."""
    text = (out / "recipe.toml").read_text()
    assert "num_points = 256" in text
    (out / "recipe.toml").write_text(text.replace("num_points = 256", "num_points = 99"))
    flip(out / "shapes/train-00001.tar")
    found, said = repair(pipeline, out)
    assert found["ok"]
    assert "the same bytes" in said
    assert tar_hashes(out) == tar_hashes(built)
