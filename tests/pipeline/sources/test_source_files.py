"""Links of a source through the commands: what they may lead to, what is refused before any work, and circles."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import h5py
import pytest
from builders import stored, tar_hashes, write_off
from PIL import Image
from releases import modelnet40_h5, shapenetpart

from pipeline.__main__ import main

FEW = ("num_points=32", "fps_prefix=8", "views=[]")
TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\n"
RED = (200, 10, 10)


@pytest.fixture
def build(tmp_path, capsys):
    """Builds a source into OUT in this process: what it says."""

    def run(source: Path, *more: object, code: int = 0, recipe: str = "meshes", keys: tuple = FEW) -> str:
        command = ["build", recipe, "--source", source, "--out", tmp_path / "out", "--workers", 0, *keys, *more]
        assert main([str(part) for part in command]) == code, capsys.readouterr().err
        return capsys.readouterr().err

    return run


@pytest.fixture
def ids(tmp_path):
    """The ids of OUT's objects, sorted."""
    return lambda: sorted(sample.json["id"] for sample in stored(tmp_path / "out").values())


def failures(out: Path, capsys) -> dict[str, str]:
    main(["check", str(out), "--json"])
    return {f["id"]: f["reason"] for f in json.loads(capsys.readouterr().out)["failures"]}


def snapshot(root: Path) -> Path:
    """A cache as of the Hugging Face hub: a textured OBJ and an OFF, all of them links to files without a suffix."""
    snap, blobs = root / "snapshots" / "abc", root / "blobs"
    (snap / "chair").mkdir(parents=True)
    blobs.mkdir()
    Image.new("RGB", (4, 4), RED).save(blobs / "0c", "PNG")
    (blobs / "0a").write_text(f"mtllib a.mtl\n{TRIANGLE}usemtl m\nf 1/1 2/2 3/3\n")
    (blobs / "0b").write_text("newmtl m\nKd 1 1 1\nmap_Kd a.png\n")
    write_off(root / "b.off").rename(blobs / "0d")
    for blob, name in (("0a", "a.obj"), ("0b", "a.mtl"), ("0c", "a.png"), ("0d", "b.off")):
        (snap / "chair" / name).symlink_to(f"../../../blobs/{blob}")
    return snap


def test_a_hubs_cache_is_refused_with_the_flag_and_read_with_it(tmp_path, build, ids) -> None:
    """The link's name decides what a file is and what lies beside it; the blobs have no names."""
    snap, blobs = snapshot(tmp_path / "hub"), tmp_path / "hub" / "blobs"
    told = build(snap, code=2)
    assert told.count("\n") == 1
    assert f"for 4 of 4 files and linked folders, such as chair/a.mtl into {blobs}: " in told
    assert told.endswith(f"add --follow-links {blobs}\n")
    assert not (tmp_path / "out").exists()
    build(snap, "--follow-links", blobs)
    assert ids() == ["chair/a.obj", "chair/b.off"]
    objects = {sample.json["id"]: sample for sample in stored(tmp_path / "out").values()}
    assert {sample.json["class"] for sample in objects.values()} == {"chair"}
    assert objects["chair/a.obj"].json["warnings"] == []


def test_pictures_of_linked_textures_are_those_of_plain_files(tmp_path, build) -> None:
    """The same bytes as of a copy, whatever the flag: it is in no hash."""
    snap = snapshot(tmp_path / "hub")
    keys = (*FEW[:2], 'views={rgb12={image_size=32, name="rgb"}}')
    build(snap, "--follow-links", tmp_path / "hub", keys=keys)
    linked = tar_hashes(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "before")
    plain = tmp_path / "plain" / "chair"
    plain.mkdir(parents=True)
    for link in (snap / "chair").iterdir():
        (plain / link.name).write_bytes(link.read_bytes())
    build(plain.parent, keys=keys)
    assert tar_hashes(tmp_path / "out") == linked


@pytest.mark.parametrize("where", ["child", pytest.param("ray", marks=pytest.mark.slow)])
def test_workers_and_their_children_follow_links_too(tmp_path, pipeline, where) -> None:
    more = ("--dry-run", "--json") if where == "child" else ("--workers", 1)
    command = ("build", "meshes", "--source", snapshot(tmp_path / "hub"), "--out", tmp_path / "out", *FEW, *more)
    told = pipeline(*command, "--follow-links", tmp_path / "hub" / "blobs")
    if where == "child":
        found = json.loads(told.stdout)
        assert (len(found["trials"]), found["failures"]) == (2, [])
    else:
        assert "2 objects, 0 failures" in told.stderr


def test_linked_class_folders_and_sources_are_folders_and_no_objects(tmp_path, build, ids) -> None:
    for name in ("chair/a.off", "chair/deep/b.off", "table/c.off"):
        write_off(tmp_path / "disk2" / name)
    snap = tmp_path / "snap"
    snap.mkdir()
    write_off(snap / "mug" / "d.off")
    for name in ("chair", "table"):
        (snap / name).symlink_to(tmp_path / "disk2" / name)
    told = build(snap, code=2)
    assert "for 2 of 3 files and linked folders, such as chair into" in told
    assert told.endswith(f"--follow-links {tmp_path / 'disk2'}\n")
    (tmp_path / "source").symlink_to(snap)
    build(tmp_path / "source", "--follow-links", tmp_path / "disk2")
    assert ids() == ["chair/a.off", "chair/deep/b.off", "mug/d.off", "table/c.off"]


def test_several_folders_by_commas_or_flags_and_folders_that_are_none(tmp_path, build, ids) -> None:
    for disk in ("disk a", "disk,b", "c"):
        write_off(tmp_path / disk / "x.off")
        (tmp_path / "snap" / disk[-1]).parent.mkdir(exist_ok=True)
        (tmp_path / "snap" / disk[-1]).symlink_to(tmp_path / disk)
    told = build(tmp_path / "snap", "--follow-links", tmp_path / "nowhere", code=2)
    assert told == f"--follow-links {tmp_path / 'nowhere'}: no such folder\n"
    both = f"{tmp_path / 'disk a'},{tmp_path / 'c'}"
    assert "for 1 of 3 files" in build(tmp_path / "snap", "--follow-links", both, code=2)
    (tmp_path / "alias").symlink_to(tmp_path / "disk,b")
    build(tmp_path / "snap", "--follow-links", both, "--follow-links", tmp_path / "alias")
    assert ids() == ["a/x.off", "b/x.off", "c/x.off"]


def test_circles_end_and_say_so(tmp_path, build, ids, capsys) -> None:
    source, disk = tmp_path / "source", tmp_path / "disk"
    for path in (source / "a.off", disk / "one" / "b.off", disk / "two" / "c.off"):
        write_off(path)
    (source / "one").symlink_to(disk / "one")
    (source / "up").symlink_to(source)
    (source / "self.off").symlink_to("self.off")
    (disk / "one" / "again").symlink_to(disk / "two")
    (disk / "two" / "again").symlink_to(disk / "one")
    (disk / "two" / "above").symlink_to(disk)
    build(source, "--follow-links", f"{disk},{source}", "max_failed_fraction=1")
    assert ids() == ["a.off", "one/again/c.off", "one/b.off"]
    found = failures(tmp_path / "out", capsys)
    assert found["up"] == found["one/again/above"] == "a link to a folder above it: links in a circle"
    assert found["one/again/again"] == "a link to a folder that another link leads to: read there"
    assert found["self.off"].startswith("cannot be read: ")
    assert len(found) == 4


def test_links_inside_the_source_are_as_before(tmp_path, build, ids, capsys) -> None:
    write_off(tmp_path / "source" / "deep" / "a.off")
    (tmp_path / "source" / "b.off").symlink_to("deep/a.off")
    (tmp_path / "source" / "folder").symlink_to("deep")
    (tmp_path / "source" / "gone.off").symlink_to(tmp_path / "nowhere" / "x.off")
    build(tmp_path / "source", "max_failed_fraction=1")
    assert ids() == ["b.off", "deep/a.off"]
    found = failures(tmp_path / "out", capsys)
    assert found["gone.off"] == "cannot be read: No such file or directory"
    assert found["folder"].startswith("a link to a folder is not followed (--follow-links ")


def test_paths_in_files_lead_into_named_folders_and_nowhere_else(tmp_path, build) -> None:
    """Of materials, textures and listings, relative ones and absolute ones."""
    source, disk = tmp_path / "source", tmp_path / "disk2"
    source.mkdir()
    disk.mkdir()
    Image.new("RGB", (4, 4), RED).save(disk / "red.png")
    (disk / "m.mtl").write_text("newmtl m\nKd 0 1 0\n")
    write_off(disk / "x.off")
    for name, material in {"a": "../disk2/red.png", "b": str(disk / "red.png")}.items():
        (source / f"{name}.mtl").write_text(f"newmtl m\nmap_Kd {material}\n")
        (source / f"{name}.obj").write_text(f"mtllib {name}.mtl\n{TRIANGLE}usemtl m\nf 1/1 2/2 3/3\n")
    (source / "c.obj").write_text(f"mtllib ../disk2/m.mtl\n{TRIANGLE}usemtl m\nf 1/1 2/2 3/3\n")
    build(source)
    outside = [{"type": "path outside the folder", "count": 1}]
    assert [sample.json["warnings"] for sample in stored(tmp_path / "out").values()] == [outside] * 3
    (tmp_path / "out").rename(tmp_path / "before")
    build(source, "--follow-links", disk)
    assert [sample.json["warnings"] for sample in stored(tmp_path / "out").values()] == [[]] * 3
    (tmp_path / "out").rename(tmp_path / "between")
    for number, path in enumerate(("../disk2/x.off", str(disk / "x.off"))):
        (source / "list.jsonl").write_text(json.dumps({"path": path, "id": "x"}))
        listing = f"listing={source / 'list.jsonl'}"
        assert f"row 1: {path} leads out of the source" in build(source, listing, code=2)
        build(source, listing, "--follow-links", disk)
        (sample,) = stored(tmp_path / "out").values()
        assert sample.json["source"] == "../disk2/x.off"
        (tmp_path / "out").rename(tmp_path / str(number))


@pytest.mark.parametrize("linked", ["files", "folder"])
def test_a_linked_release_is_refused_and_read(tmp_path, build, ids, linked) -> None:
    release = modelnet40_h5(tmp_path / "disk")
    source = tmp_path / "source"
    source.mkdir()
    if linked == "folder":
        (source / "h5").symlink_to(release)
    else:
        for file in release.iterdir():
            (source / file.name).symlink_to(file)
    keys = ("allow_partial=true", *FEW)
    told = build(source, code=2, recipe="modelnet40_d", keys=keys)
    assert ("1 of 1 folders" if linked == "folder" else "5 of 5 files") in told
    assert re.search(r"--follow-links (\S+)", told)[1] == str(release)
    build(source, "--follow-links", release, recipe="modelnet40_d", keys=keys)
    assert len(ids()) == 7


def test_an_archive_of_rows_is_read_through_its_link_by_views_and_check(tmp_path, build, capsys) -> None:
    """Commands that read the source again take the flag, and without it refuse as the build does."""
    snap, out = snapshot(tmp_path / "hub"), tmp_path / "out"
    build(snap, "store_meshes=false", "--follow-links", tmp_path / "hub")
    commands = (
        ["views", "rgb12", "--shards", out, "--source", snap, "--workers", 0, "image_size=32", "name=mine"],
        ["check", out, "--source", snap],
    )
    for command in commands:
        assert main([str(part) for part in command]) == 2
        assert "for 2 of 2 objects, such as chair/a.obj into" in capsys.readouterr().err
        assert main([str(part) for part in [*command, "--follow-links", tmp_path / "hub"]]) == 0
        capsys.readouterr()
    assert set(stored(out, "mine")) == set(stored(out))


def test_h5_files_do_not_link_out_by_themselves(tmp_path, build) -> None:
    """A link inside an HDF5 file is none of the file system's: the flag does not allow it."""
    source, other = shapenetpart(tmp_path), shapenetpart(tmp_path / "other")
    path = source / "ply_data_train0.h5"
    with h5py.File(path, "a") as file:
        del file["data"]
        file["data"] = h5py.ExternalLink(os.fspath(other / "ply_data_train0.h5"), "data")
    told = build(source, "--follow-links", tmp_path, code=2, recipe="shapenetpart", keys=("allow_partial=true", *FEW))
    assert "data is a link (ExternalLink), not data of the file itself" in told
