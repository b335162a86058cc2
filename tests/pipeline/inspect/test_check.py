"""check finds every kind of damage; inspect draws a sheet."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zlib

import numpy as np
import pytest
from builders import SMALL
from PIL import Image

from manifests.samples import encode_picture
from pipeline.inspect.check import check
from pipeline.sources.image_header import read_head


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
    "a tar that goes on": (
        lambda out: (out / "shapes/train-00000.tar").write_bytes((out / "shapes/train-00000.tar").read_bytes() + b"x"),
        "damaged (sha256 differs)",
    ),
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
        "warning_examples",
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


def forge(tar, suffix: str, new: bytes) -> None:
    """Puts other bytes of the same length in the place of the first member so named, and mends the record."""
    with tarfile.open(tar) as file:
        member = next(m for m in file.getmembers() if m.name.endswith(suffix))
    data = bytearray(tar.read_bytes())
    assert len(new) <= member.size
    data[member.offset_data : member.offset_data + len(new)] = new
    tar.write_bytes(bytes(data))
    record_path = tar.with_suffix(".json")
    record = json.loads(record_path.read_text())
    record["sha256"] = hashlib.sha256(data).hexdigest()
    key, _, name = member.name.partition(".")
    whole = data[member.offset_data : member.offset_data + member.size]
    record["checks"][name][record["keys"].index(key)] = zlib.crc32(whole)
    record_path.write_text(json.dumps(record))


FORGED = {
    "no picture": ("v00.rgb.jpg", b"\x00" * 40, "unreadable (v00.rgb.jpg: damaged picture"),
    "too few bits": ("v00.depth.png", encode_picture(np.zeros((32, 32), np.uint8), "png"), "1 channels of 8 bits"),
}


def padded_png(data: bytes, size: int) -> bytes:
    """A PNG made longer by an ancillary chunk, so that it fits a member's place."""
    text = b"tEXt" + b"x" * (size - len(data) - 12)
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    return data[:-12] + chunk + data[-12:]


@pytest.mark.parametrize("kind", ["no picture", "too few bits"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_picture_that_is_none_is_found_behind_a_right_hash(pipeline, built, tmp_path, kind: str, deep: bool) -> None:
    suffix, new, words = FORGED[kind]
    shutil.copytree(built, tmp_path / "out")
    tar = tmp_path / "out/views/rgb12/train-00000.tar"
    if suffix.endswith("png"):
        with tarfile.open(tar) as file:
            size = next(m.size for m in file.getmembers() if m.name.endswith(suffix))
        new = padded_png(new, size)
    forge(tar, suffix, new)
    found = json.loads(pipeline("check", tmp_path / "out", "--json", *["--deep"] * deep, code=1).stdout)
    assert len(found["problems"]) == 1
    assert words in found["problems"][0]
    assert str(tar) in found["problems"][0]


ODD_JSON = (b"[1]", b"{}", b'{"format":1,"key":1,"num_points":[]}', b"null", b'{"views":[1]}', b"\xff{")


@pytest.mark.parametrize("values", ODD_JSON)
@pytest.mark.parametrize("folder", ["shapes", "views/depth10"])
def test_a_json_of_another_form_is_a_problem_and_no_crash(built, tmp_path, folder: str, values: bytes) -> None:
    shutil.copytree(built, tmp_path / "out")
    tar = tmp_path / "out" / folder / "train-00000.tar"
    with tarfile.open(tar) as file:
        name, size = next((m.name, m.size) for m in file.getmembers() if m.name.endswith(".json"))
    forge(tar, ".json", values.ljust(size))
    problems = check(str(tmp_path / "out")).problems
    assert any(f"{tar}: {name.removesuffix('.json')}: " in problem for problem in problems), problems


def test_a_picture_of_another_size_than_its_camera_is_found(pipeline, built, tmp_path) -> None:
    shutil.copytree(built, tmp_path / "out")
    tar = tmp_path / "out/views/depth10/train-00000.tar"
    with tarfile.open(tar) as file:
        member = next(m for m in file.getmembers() if m.name.endswith("v00.depth.png"))
    forge(tar, "v00.depth.png", padded_png(encode_picture(np.zeros((3, 3), np.uint16), "png"), member.size))
    (problem,) = json.loads(pipeline("check", tmp_path / "out", "--json", code=1).stdout)["problems"]
    assert "v00.depth.png is (3, 3), its camera (32, 32) (width, height)" in problem


def test_deep_decodes_what_lies_between_the_headers(pipeline, built, tmp_path) -> None:
    shutil.copytree(built, tmp_path / "out")
    tar = tmp_path / "out/views/rgb12/train-00000.tar"
    with tarfile.open(tar) as file:
        member = next(m for m in file.getmembers() if m.name.endswith("v00.depth.png"))
        data = bytearray(file.extractfile(member).read())
    place = data.index(b"IDAT") + 4
    data[place : place + 8] = b"\xff" * 8  # no zlib stream any more
    forge(tar, "v00.depth.png", bytes(data))
    assert "--deep decodes them" in pipeline("check", tmp_path / "out").stdout
    (problem,) = json.loads(pipeline("check", tmp_path / "out", "--json", "--deep", code=1).stdout)["problems"]
    assert "unreadable (v00.depth.png: damaged picture" in problem
    assert "every picture decoded" in pipeline("check", built, "--deep").stdout


def test_sizes_of_members_are_those_of_the_record(pipeline, built, tmp_path) -> None:
    shutil.copytree(built, tmp_path / "out")
    path = tmp_path / "out/shapes/train-00000.json"
    record = json.loads(path.read_text())
    record["sizes"]["points.npy"][1] += 1
    path.write_text(json.dumps(record))
    (problem,) = json.loads(pipeline("check", tmp_path / "out", "--json", code=1).stdout)["problems"]
    assert problem.endswith("train-00000.tar: its members' sizes are not those of its record")
    record["sizes"]["points.npy"][1] -= 1
    record["checks"]["points.npy"][1] ^= 1
    path.write_text(json.dumps(record))
    (problem,) = json.loads(pipeline("check", tmp_path / "out", "--json", code=1).stdout)["problems"]
    assert problem.endswith("train-00000.tar: its members' crc32 are not those of its record")


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "RGBA", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_heads_of_pictures(mode: str, form: str) -> None:
    file = io.BytesIO()
    try:
        Image.new(mode, (37, 23)).save(file, form, **({"progressive": True} if mode == "L" and form == "JPEG" else {}))
    except OSError:
        pytest.skip(f"no {form} of {mode}")
    data, head = file.getvalue(), read_head(file.getvalue())
    if form == "PNG" and mode == "P":
        assert head is None
        return
    channels = {"L": 1, "I;16": 1, "1": 1, "P": 1, "LA": 2, "RGB": 3}.get(mode, 4)
    bits = {"I;16": 16, "1": 1 if form == "PNG" else 8}.get(mode, 8)
    assert head == (37, 23, channels, bits)
    assert read_head(data[:-1]) is None
    assert read_head(data + b"x") is None
    for cut in range(60):
        assert read_head(data[:cut]) is None


def test_a_shard_that_stands_in_for_another_repeats_its_keys(pipeline, tmp_path) -> None:
    out = tmp_path / "out"
    objects = ("parametric.objects=4", "parametric.test_fraction=0", "shard_size=2", "views=[]", *SMALL[:2])
    pipeline("build", "parametric", "--out", out, "--workers", 0, *objects)
    keys = json.loads((out / "shapes/train-00000.json").read_text())["keys"]
    for path in out.rglob("*-00001.*"):
        shutil.copy(path.with_name(path.name.replace("00001", "00000")), path)
    (problem,) = check(str(out)).problems
    assert problem.startswith(f"{out}/shapes/train-00001.tar: its objects are not those of this shard ({min(keys)})")
    (out / "assets.jsonl").unlink()
    lost, *problems = check(str(out)).problems  # nothing says any more which objects are whose
    assert lost == f"{out}/assets.jsonl: missing; run the build again"
    assert problems == [f"{out}: the key {key} comes 2 times" for key in sorted(keys)]


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
