"""check finds every kind of damage; inspect draws a sheet."""

from __future__ import annotations

import json
import shutil

import pytest
from builders import SMALL
from PIL import Image


@pytest.fixture(scope="module")
def built(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("checked") / "out"
    pipeline("build", "parametric", "--out", out, "--workers", 0, "parametric.objects=8", *SMALL)
    return out


def flip_a_byte(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def drop_last_sample(path) -> None:
    record = json.loads(path.with_suffix(".json").read_text())
    path.write_bytes(path.read_bytes()[: record["offsets"][-1]])


DAMAGE = {
    "a flipped byte": (lambda out: flip_a_byte(out / "shapes/train-00000.tar"), "damaged (sha256 differs)"),
    "a tar cut between samples": (lambda out: drop_last_sample(out / "views/rgb12/train-00000.tar"), "damaged"),
    "a missing tar": (lambda out: (out / "meshes/train-00000.tar").unlink(), "missing"),
    "a missing record": (lambda out: (out / "shapes/train-00000.json").unlink(), "no record"),
    "a damaged record": (lambda out: (out / "shapes/train-00000.json").write_text("{"), "damaged JSON"),
    "a view set of other shapes": (
        lambda out: (out / "views/rgb12/manifest.json").write_text(
            (out / "views/rgb12/manifest.json").read_text().replace('"shapes_hash": "', '"shapes_hash": "0')
        ),
        "drawn from other shapes",
    ),
}


def test_a_good_build_is_right(pipeline, built) -> None:
    found = json.loads(pipeline("check", built, "--json").stdout)
    assert found["ok"] is True
    assert found["complete"] is True
    assert found["samples"] == 8
    assert found["failures"] == found["problems"] == []
    assert set(found) == {
        "ok",
        "complete",
        "samples",
        "failures",
        "view_sets",
        "classes",
        "warnings",
        "gates",
        "hashes",
        "keys",
        "problems",
    }
    assert sum(n for counts in found["classes"].values() for n in counts.values()) == 8
    assert sum(found["keys"].values()) == 8
    assert set(found["hashes"]) == {"shapes", "assets", "views/rgb12", "views/depth10"}
    gates = found["gates"]["rgb12"]
    assert 0 < gates["coverage_min"] <= gates["coverage_mean"] <= gates["coverage_max"] < 1
    text = pipeline("check", built, "--against", built).stdout
    assert "every byte is right" in text
    assert f"shapes {found['hashes']['shapes'][:12]}" in text
    assert "coverage_mean" in text
    for split, counts in found["classes"].items():
        assert f"  {split}: {sum(counts.values())} objects, {len(counts)} classes" in text
        assert all(f"    {name:24} {n:>8} #" in text for name, n in counts.items())


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_named(pipeline, built, tmp_path, kind: str) -> None:
    damage, words = DAMAGE[kind]
    shutil.copytree(built, tmp_path / "out")
    damage(tmp_path / "out")
    result = pipeline("check", tmp_path / "out", "--json", code=1)
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert any(words in problem and str(tmp_path) in problem for problem in found["problems"])


def test_comparison_with_another_build(pipeline, built, tmp_path) -> None:
    pipeline("build", "parametric", "--out", tmp_path / "o", "--workers", 0, "parametric.objects=8", *SMALL, "seed=1")
    result = pipeline("check", built, "--against", tmp_path / "o", code=1)
    assert "differs: " in result.stdout
    assert ".points.npy: differs by" in result.stdout


def test_no_build_is_refused(pipeline, tmp_path) -> None:
    assert "holds no build" in pipeline("check", tmp_path, code=2).stderr
    assert "holds no build" in pipeline("inspect", tmp_path, "--png", tmp_path / "x.png", code=2).stderr


def test_contact_sheet(pipeline, built, tmp_path) -> None:
    pipeline("inspect", built, "--png", tmp_path / "sheet.png", "--objects", 3, "--views", 2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 4 + 3 * 2 * (112 + 26 + 4)  # a row for each of two view sets
        assert sheet.width == 4 + (1 + 2 + 2) * (112 + 4)
        colors = sheet.getcolors(1 << 20)
        assert len(colors) > 500
    assert (
        "no split nosuch" in pipeline("inspect", built, "--png", tmp_path / "y.png", "--split", "nosuch", code=2).stderr
    )


def test_lists(pipeline) -> None:
    assert "modelnet40" in pipeline("recipes").stdout
    assert "depth10_release" in pipeline("presets").stdout
    assert 'backend = "raycast"' in pipeline("presets", "rgb12").stdout
    assert "ok  open3d" in pipeline("doctor").stdout
    message = pipeline("build", "parametric", "--out", "x", "--workers", "1", "nonsense", code=2).stderr
    assert "unrecognized arguments: nonsense" in message
