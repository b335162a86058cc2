"""What an object was made of stands in its json: a source that changed under its old names is noticed at the next
reading of an object, and by `check --source`."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import SMALL, stored, tar_hashes, write_off
from PIL import Image

from manifests.records import Asset
from manifests.samples import encode_json
from pipeline.__main__ import main
from pipeline.datasets import meshes
from pipeline.datasets.options import CloudLimit
from pipeline.datasets.shapenetpart import read as read_part
from pipeline.sources.source_files import Fingerprint, watched

KEYS = ("shard_size=2", "num_points=32", "fps_prefix=8")
DRAWN = 'views={depth10={image_size=16, name="small"}}'


def typed(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    """A command in this process: what it says on stdout, and on stderr as one line."""
    capsys.readouterr()
    done = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert done == code, err
    return out, " ".join(err.split())


@pytest.fixture
def mine(tmp_path) -> Path:
    """Four tetrahedra."""
    for number in range(4):
        write_off(tmp_path / f"mine/thing/{number}.off", size=1 + number)
    return tmp_path / "mine"


@pytest.fixture
def build(mine, tmp_path):
    """The command that builds them."""
    out = tmp_path / "out"
    return out, ("build", "meshes", "--source", mine, "--out", out, "--workers", 0, *KEYS, "views=[]")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def shard_with(out: Path, key: str) -> str:
    """`all-00001` of the shard that holds an object."""
    (record,) = (path for path in (out / "shapes").glob("*.json") if key in json.loads(path.read_text())["keys"])
    return record.stem


def write_obj(folder: Path) -> Path:
    """A textured square, whose three files are read one after the other."""
    folder.mkdir(parents=True)
    (folder / "a.obj").write_text(
        "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nusemtl wood\n"
        "f 1/1 2/2 3/3\nusemtl wood2\nf 1/1 3/3 4/4\n"
    )
    (folder / "a.mtl").write_text("newmtl wood\nmap_Kd wood.png\nnewmtl wood2\nmap_Kd wood.png\n")
    Image.new("RGB", (4, 4), "brown").save(folder / "wood.png")
    return folder


def test_a_file_has_its_own_sha256(mine, build, capsys) -> None:
    out, command = build
    typed(capsys, *command)
    samples = stored(out)
    assert len(samples) == 4
    for sample in samples.values():
        data = (mine / sample.json["source"]).read_bytes()
        assert (sample.json["source_bytes"], sample.json["source_sha256"]) == (len(data), sha256(data))


def test_a_mesh_counts_with_its_materials_and_textures(tmp_path) -> None:
    """Each once, in the order of reading; of what was not read nothing."""
    folder = write_obj(tmp_path / "obj")
    (folder / "beside.png").write_bytes(b"of nobody")
    with watched() as found:
        meshes.read(Asset("a", "obj/a.obj", "train"), tmp_path)
    parts = [(folder / name).read_bytes() for name in ("a.obj", "a.mtl", "wood.png")]
    assert found.fingerprint == Fingerprint(sum(map(len, parts)), sha256("".join(map(sha256, parts)).encode()))


def test_a_row_counts_without_the_others(tmp_path) -> None:
    rng = np.random.default_rng(0)
    data, parts = rng.random((3, 2048, 3), np.float32), rng.integers(0, 50, (3, 2048), np.uint8)
    with h5py.File(tmp_path / "ply_data_train0.h5", "w") as file:
        file["data"], file["label"], file["pid"] = data, np.zeros((3, 1), np.uint8), parts
    with watched() as found:
        read_part(Asset("a", "ply_data_train0.h5#1", "train", "Airplane"), tmp_path, CloudLimit())
    expected = sha256((sha256(data[1].tobytes()) + sha256(parts[1].tobytes())).encode())
    assert found.fingerprint == Fingerprint(data[1].nbytes + parts[1].nbytes, expected)


def test_made_objects_have_no_source(tmp_path, capsys) -> None:
    out = tmp_path / "out"
    typed(capsys, "build", "parametric", "--out", out, "--workers", 0, "parametric.objects=2", *SMALL[:2], "views=[]")
    assert all("source_sha256" not in sample.json for sample in stored(out).values())
    _, said = typed(capsys, "check", out, "--source", tmp_path, code=2)
    assert "parametric is made, it has no source" in said


def test_a_build_that_was_killed_does_not_go_on_with_a_changed_source(mine, build, capsys) -> None:
    """The tar is in place, its record is not: a kill between the two."""
    out, command = build
    typed(capsys, *command)
    whole = tar_hashes(out)
    shard = shard_with(out, "thing_1_off")
    (out / "shapes" / f"{shard}.json").unlink()
    file = mine / "thing/1.off"
    old = file.read_bytes()
    write_off(file, size=2.5)
    _, said = typed(capsys, *command, code=3)
    assert (
        f"thing/1.off has changed since {out}/shapes/{shard}.tar was made (thing_1_off: its bytes are others)" in said
    )
    assert "put the old file back, or choose another --out" in said
    assert tar_hashes(out) == whole
    file.write_bytes(old)
    typed(capsys, *command)
    assert tar_hashes(out) == whole
    write_off(file, size=2.5)
    for folder in ("shapes", "meshes"):
        (out / folder / f"{shard}.json").unlink()
    (out / "shapes" / f"{shard}.tar").unlink()
    typed(capsys, *command)  # deleting the tar is what takes the new one in
    assert stored(out)["thing_1_off"].json["source_sha256"] == sha256(file.read_bytes())


def test_what_was_finished_of_a_shard_stays_so(mine, build, capsys) -> None:
    """A tar of meshes is lost: its shapes and views are made again with it, but not from another source."""
    out, command = build
    command = (*command[:-1], DRAWN)
    typed(capsys, *command)
    shard = shard_with(out, "thing_2_off")
    (out / "meshes" / f"{shard}.tar").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*-*.*") if shard in path.name}
    (mine / "thing/2.off").write_text("OFF\n0 0 0\n")
    _, said = typed(capsys, *command, code=3)
    assert "thing/2.off has changed since" in said
    assert "it fails now (" in said
    assert {path: path.read_bytes() for path in before} == before


def test_retry_does_not_mix(mine, build, capsys) -> None:
    out, command = build
    command = tuple("shard_size=5" if part == "shard_size=2" else part for part in command)
    bad = mine / "thing/bad.off"
    bad.write_text("OFF\nnothing\n")
    typed(capsys, *command, code=1)
    write_off(bad)
    old = (mine / "thing/0.off").read_bytes()
    write_off(mine / "thing/0.off", size=7)
    retry = (*command, "--retry", "data")
    assert "thing/0.off has changed since" in typed(capsys, *retry, code=3)[1]
    (mine / "thing/0.off").write_bytes(old)
    typed(capsys, *retry)  # one that failed may have been mended: that is what --retry is for
    assert len(stored(out)) == 5


def test_repair_does_not_mix(mine, build, capsys) -> None:
    out, command = build
    typed(capsys, *command)
    whole = tar_hashes(out)
    shard = shard_with(out, "thing_3_off")
    tar = out / "shapes" / f"{shard}.tar"
    data = bytearray(tar.read_bytes())
    data[-2000] ^= 1
    tar.write_bytes(data)
    old = (mine / "thing/3.off").read_bytes()
    write_off(mine / "thing/3.off", size=9)
    repair = ("check", out, "--repair", "--source", mine, "--workers", 0)
    assert "thing/3.off has changed since" in typed(capsys, *repair, code=3)[1]
    (mine / "thing/3.off").write_bytes(old)
    typed(capsys, *command)
    assert tar_hashes(out) == whole


def test_views_of_meshes_that_are_not_stored_are_of_the_same_meshes(mine, build, capsys) -> None:
    out, command = build
    typed(capsys, *command, "store_meshes=false")
    old = (mine / "thing/1.off").read_bytes()
    write_off(mine / "thing/1.off", size=5)
    views = ("views", "rgb12", "--shards", out, "--source", mine, "--workers", 0, "image_size=32", "name=new")
    assert f"thing/1.off has changed since {out}/shapes was made" in typed(capsys, *views, code=3)[1]
    (mine / "thing/1.off").write_bytes(old)
    typed(capsys, *views)


def test_check_lists_all_that_changed(mine, build, capsys) -> None:
    out, command = build
    write_obj(mine / "thing/square")
    typed(capsys, *command)
    check = ("check", out, "--source", mine)
    found = json.loads(typed(capsys, *check, "--json")[0])
    assert (found["ok"], found["source"]) == (True, {"objects": 5, "unknown": 0, "changed": []})
    assert "5 objects compared, 0 differ" in typed(capsys, *check)[0]
    write_off(mine / "thing/0.off", size=3)
    (mine / "thing/2.off").unlink()
    Image.new("RGB", (4, 4), "green").save(mine / "thing/square/wood.png")
    found = json.loads(typed(capsys, *check, "--json", code=1)[0])
    assert not found["ok"]
    assert sorted(found["source"]["changed"]) == ["thing_0_off", "thing_2_off", "thing_square_a_obj"]
    words = {problem.partition(": its source ")[0]: problem for problem in found["problems"]}
    assert "sha256" in words["thing_0_off"]
    assert "cannot be read now" in words["thing_2_off"]
    assert main(["check", str(out), "--json"]) == 0  # the build itself is right


def test_a_texture_that_came_later_is_a_change(mine, build, capsys) -> None:
    out, command = build
    folder = write_obj(mine / "thing/square")
    texture = (folder / "wood.png").read_bytes()
    (folder / "wood.png").unlink()
    typed(capsys, *command)
    (folder / "wood.png").write_bytes(texture)
    found = json.loads(typed(capsys, "check", out, "--source", mine, "--json", code=1)[0])
    assert found["source"]["changed"] == ["thing_square_a_obj"]


def test_a_build_of_before_says_nothing_and_is_gone_on_with(mine, build, tmp_path, capsys) -> None:
    """Shards of older versions have no fingerprints: they are valid, resumed, and nothing is claimed of them."""
    import webdataset as wds

    out, command = build
    typed(capsys, *command)
    old = tmp_path / "old"
    shutil.copytree(out, old)
    for tar in sorted((old / "shapes").glob("*.tar")):
        samples = stored_in(tar)
        with open(tar, "wb") as file:
            writer = wds.TarWriter(file, encoder=False, mtime=0, user="", group="")
            for key, sample in samples.items():
                values = {name: value for name, value in sample.json.items() if not name.startswith("source_")}
                writer.write({"__key__": key, **sample.members, "json": encode_json(values)})
            writer.close()
        tar.with_suffix(".json").unlink()
    found = json.loads(typed(capsys, "check", old, "--source", mine, "--json", code=1)[0])  # its records are gone
    assert found["source"] == {"objects": 0, "unknown": 4, "changed": []}
    write_off(mine / "thing/1.off", size=6)
    typed(capsys, *command[:5], old, *command[6:])
    found = json.loads(typed(capsys, "check", old, "--source", mine, "--json")[0])
    assert found["source"] == {"objects": 4, "unknown": 0, "changed": []}


def stored_in(tar: Path) -> dict:
    from manifests.samples import read_samples

    with open(tar, "rb") as file:
        return {sample.key: sample for _, sample in read_samples(file)}


def test_a_tar_that_is_cut_tells_as_far_as_it_goes(mine, build, capsys) -> None:
    out, command = build
    typed(capsys, *command)
    shard = shard_with(out, "thing_0_off")
    tar = out / "shapes" / f"{shard}.tar"
    keys = list(stored_in(tar))
    (tar.with_suffix(".json")).unlink()
    tar.write_bytes(tar.read_bytes()[:-1500])
    name = keys[0].removeprefix("thing_").removesuffix("_off")
    write_off(mine / f"thing/{name}.off", size=8)
    assert f"thing/{name}.off has changed since" in typed(capsys, *command, code=3)[1]
