"""`check` knows whose shards these are: right tars with right records in the wrong place are found, and mended."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from builders import miniature, tar_hashes

from manifests.layout import BuildManifest, read_manifest
from manifests.records import record_path
from pipeline.__main__ import main
from pipeline.inspect.expected_objects import expected_objects

SMALL = 'views={depth10={image_size=16, name="small"}}'
OBJECTS = ("parametric.objects=12", "shard_size=3", "num_points=32", "fps_prefix=8", SMALL)
ONE, TWO = "train-00001", "train-00002"
FOLDERS = ("shapes", "meshes", "views/small")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return miniature(tmp_path_factory.mktemp("built") / "out", *OBJECTS)


@pytest.fixture
def out(built, tmp_path) -> Path:
    shutil.copytree(built, tmp_path / "out")
    return tmp_path / "out"


def exchange(out: Path, folder: str, one: str, two: str) -> None:
    """A tar and its record in the place of another, and the other way round."""
    for end in ("tar", "json"):
        a, b, aside = (out / folder / f"{name}.{end}" for name in (one, two, "aside"))
        a.rename(aside)
        b.rename(a)
        aside.rename(b)


def problems(out: Path, capsys) -> list[str]:
    """What `check` says, exit 1."""
    capsys.readouterr()
    assert main(["check", str(out), "--json"]) == 1
    return json.loads(capsys.readouterr().out)["problems"]


def repaired(out: Path, capsys) -> bool:
    main(["check", str(out), "--repair", "--workers", "0"])
    capsys.readouterr()
    return main(["check", str(out), "--json"]) == 0


@pytest.mark.parametrize("folders", [FOLDERS, ("shapes",), ("meshes",), ("views/small",)], ids=lambda f: "+".join(f))
def test_two_shards_that_are_exchanged(built, out, capsys, folders) -> None:
    """Also in every folder alike, where each still fits the other: a rerun would take one for the other."""
    for folder in folders:
        exchange(out, folder, ONE, TWO)
    found = problems(out, capsys)
    for name in (ONE, TWO):
        assert any(problem.startswith(f"{out}/{folders[0]}/{name}.tar: ") for problem in found), found
    assert repaired(out, capsys)
    assert tar_hashes(out) == tar_hashes(built)


def test_a_shard_of_another_build_with_its_record(out, tmp_path, capsys) -> None:
    """Of other objects under the same hash, and of another seed."""
    other = tmp_path / "other"
    common = ("build", "parametric", "--out", str(other), "--workers", "0", *OBJECTS)
    main([*common, "seed=1"])
    for end in ("tar", "json"):
        shutil.copy(other / f"shapes/{ONE}.{end}", out / f"shapes/{ONE}.{end}")
    assert f"{out}/shapes/{ONE}.tar: made with other settings than the manifest says" in problems(out, capsys)
    record = json.loads((out / f"shapes/{ONE}.json").read_text())
    record["hash"] = read_manifest(str(out)).shapes_hash
    (out / f"shapes/{ONE}.json").write_text(json.dumps(record))
    (found,) = (p for p in problems(out, capsys) if "its objects are not those of this shard" in p)
    assert found.startswith(f"{out}/shapes/{ONE}.tar: ")
    assert any(key in found for key in record["keys"])
    assert repaired(out, capsys)


def test_an_object_of_another_name_under_a_key(out, capsys) -> None:
    """The same key of a build of other files: the list of assets says what it is."""
    lines = (out / "assets.jsonl").read_text().splitlines()
    split, key, id, class_name, _ = json.loads(lines[0])
    lines[0] = json.dumps([split, key, id, class_name, "parametric:elsewhere"])
    (out / "assets.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert any("assets.jsonl: damaged (sha256 differs)" in problem for problem in problems(out, capsys))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["assets_hash"] = hashlib.sha256((out / "assets.jsonl").read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    words = f"{key}: its id, split, class or source are not those of assets.jsonl"
    assert any(words in problem for problem in problems(out, capsys))
    (out / "assets.jsonl").unlink()
    assert any("assets.jsonl: missing" in problem for problem in problems(out, capsys))


def test_views_that_leave_out_objects_of_another_shard(out, capsys) -> None:
    """A set that fits no object has tars without samples: only what they leave out tells them apart."""
    for name in (ONE, TWO):
        path = Path(record_path(str(out / f"views/small/{name}.tar")))
        record = json.loads(path.read_text())
        skipped = [{"key": key, "reason": "no mesh"} for key in record["keys"]]
        empty = {"keys": [], "offsets": [], "sizes": {}, "checks": {}, "count": 0, "skipped": skipped}
        tar = path.with_suffix(".tar")
        tar.write_bytes(bytes(10240))
        values = {**record, **empty, "bytes": 10240, "sha256": hashlib.sha256(bytes(10240)).hexdigest(), "gates": {}}
        path.write_text(json.dumps(values))
    capsys.readouterr()
    assert main(["check", str(out), "--json"]) == 0
    exchange(out, "views/small", ONE, TWO)
    found = problems(out, capsys)
    for name in (ONE, TWO):
        assert any(p.startswith(f"{out}/views/small/{name}.tar: leaves out ") for p in found)


def test_tars_of_another_view_set_of_the_same_preset(out, capsys) -> None:
    """Such sets have one hash; each view says whose it is."""
    command = ["views", "depth10", "--shards", str(out), "--workers", "0", "image_size=16", "name=twin"]
    assert main(command) == 0
    hashes = {json.loads((out / f"views/{name}/{ONE}.json").read_text())["hash"] for name in ("small", "twin")}
    assert len(hashes) == 1
    for end in ("tar", "json"):
        a, b, aside = out / f"views/small/{ONE}.{end}", out / f"views/twin/{ONE}.{end}", out / f"aside.{end}"
        a.rename(aside)
        b.rename(a)
        aside.rename(b)
    found = problems(out, capsys)
    for name in ("small", "twin"):
        assert any(p.startswith(f"{out}/views/{name}/{ONE}.tar: ") and "the view set" in p for p in found)
    assert repaired(out, capsys)


def test_a_set_of_another_preset_in_the_place_of_one(out, capsys) -> None:
    assert main(["views", "depth10", "--shards", str(out), "--workers", "0", "image_size=24", "name=large"]) == 0
    for tar in sorted((out / "views/large").glob("train-*")):
        shutil.copy(tar, out / "views/small" / tar.name)
    assert any("made with other settings" in problem for problem in problems(out, capsys))


def test_every_shard_is_expected_as_it_was_cut(built) -> None:
    """The order of sha256(seed, key), as the shards have it."""
    manifest: BuildManifest = read_manifest(str(built))
    expected = expected_objects(str(built), manifest)
    for split, shards in manifest.num_shards.items():
        for shard in range(shards):
            record = json.loads((built / f"shapes/{split}-{shard:05d}.json").read_text())
            assert list(expected.of_shard(split, shard)) == [hash(key) for key in record["keys"]]
