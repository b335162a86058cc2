"""Builds: the same bytes whatever the workers, views redrawn from shards, objects without a mesh, refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import trimesh
from builders import SMALL, tar_hashes, write_off

from manifests.layout import meshes_tar, read_manifest, shapes_tar, views_tar
from manifests.records import read_record, record_path
from manifests.samples import decode_array, decode_picture, depth_of_codes, read_samples

OBJECTS = ("parametric.objects=24", "shard_size=8", *SMALL)


@pytest.fixture(scope="module")
def built(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    pipeline("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
    return out


def samples_of(path: str) -> dict:
    with open(path, "rb") as file:
        return {sample.key: sample for _, sample in read_samples(file)}


def test_what_a_build_holds(built) -> None:
    manifest = read_manifest(str(built))
    assert manifest.complete
    assert sum(counts.samples for counts in manifest.splits.values()) == 24
    tar = shapes_tar(str(built), "train", 0)
    record = read_record(record_path(tar))
    shapes = samples_of(tar)
    assert tuple(shapes) == record.keys
    views, meshes = (
        samples_of(views_tar(str(built), "rgb12", "train", 0)),
        samples_of(meshes_tar(str(built), "train", 0)),
    )
    for key, shape in shapes.items():
        values = shape.json
        assert manifest.classes[values["label"]] == values["class"]
        assert decode_array(shape.members["points.npy"]).shape == (256, 3)
        assert decode_array(shape.members["colors.npy"]).dtype == np.uint8
        assert key in meshes
        assert len([m for m in views[key].members if m.endswith("rgb.jpg")]) == 12
        view = views[key].json["views"][3]
        depth = depth_of_codes(decode_picture(views[key].members["v03.depth.png"]), view["near"], view["far"])
        assert np.isfinite(depth).mean() == pytest.approx(view["coverage"], abs=1e-3)
        assert 1.0 < np.nanmin(depth) < 2.2
    assert len(samples_of(views_tar(str(built), "depth10", "train", 0))) == len(shapes)


def test_depth_and_picture_show_the_same_pixels(built) -> None:
    for sample in samples_of(views_tar(str(built), "rgb12", "train", 0)).values():
        empty = decode_picture(sample.members["v00.depth.png"]) == 0
        rgb = decode_picture(sample.members["v00.rgb.jpg"]).astype(int)
        assert rgb[empty].mean() > 240
        return


def test_ray_workers_change_no_byte(pipeline, built, tmp_path) -> None:
    pipeline("build", "parametric", "--out", tmp_path / "out", "--workers", 2, *OBJECTS)
    assert tar_hashes(tmp_path / "out") == tar_hashes(built)


def test_views_redrawn_from_shards_are_the_same_bytes(pipeline, built, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built, out)
    shutil.rmtree(out / "views")
    for preset in ("rgb12", "depth10"):
        pipeline("views", preset, "--shards", out, "--workers", 0, "image_size=32", f"name={preset}")
    assert tar_hashes(out) == tar_hashes(built)
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]


def test_views_with_new_settings_get_a_name_of_their_own(pipeline, built, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built, out)
    pipeline("views", "rgb12", "--shards", out, "--workers", 0, "image_size=16", "elevation_deg=[10]")
    names = sorted(p.name for p in (out / "views").iterdir())
    assert len(names) == 3
    assert names[2].startswith("rgb12-")
    shutil.rmtree(out / "views" / "depth10")
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]
    err = pipeline("views", "rgb12", "--shards", out, "--workers", 0, "name=depth10", "fov_deg=50", code=0).stderr
    assert "24 objects" in err
    err = pipeline("views", "rgb12", "--shards", out, "--workers", 0, "name=depth10", "fov_deg=40", code=2).stderr
    assert "fov_deg: 50 -> 40" in err.replace("50.0", "50").replace("40.0", "40")


def test_without_stored_meshes_views_need_the_source(pipeline, tmp_path) -> None:
    for number in range(3):
        write_off(tmp_path / "mine" / "thing" / f"t{number}.off", 1 + number)
    common = ("--workers", 0, *SMALL)
    pipeline("build", "meshes", "--source", tmp_path / "mine", "--out", tmp_path / "with", *common)
    pipeline(
        "build", "meshes", "--source", tmp_path / "mine", "--out", tmp_path / "without", "store_meshes=false", *common
    )
    assert not (tmp_path / "without" / "meshes").exists()
    shutil.rmtree(tmp_path / "without" / "views" / "rgb12")
    views = ("views", "rgb12", "--shards", tmp_path / "without", "image_size=32", "name=rgb12", "--workers", 0)
    assert "--source" in pipeline(*views, code=2).stderr
    pipeline(*views, "--source", tmp_path / "mine")
    first, second = tar_hashes(tmp_path / "with"), tar_hashes(tmp_path / "without")
    assert second["views/rgb12/all-00000.tar"] == first["views/rgb12/all-00000.tar"]


def test_points_without_faces_are_skipped_by_mesh_presets(pipeline, tmp_path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    write_off(source / "solid.off")
    cloud = trimesh.PointCloud(np.random.default_rng(0).normal(size=(90, 3)))
    (source / "cloud.ply").write_bytes(cloud.export(file_type="ply"))
    pipeline("build", "meshes", "--source", source, "--out", tmp_path / "out", "--workers", 0, *SMALL)
    found = json.loads(pipeline("check", tmp_path / "out", "--json").stdout)
    assert (found["ok"], found["samples"], found["failures"]) == (True, 2, [])
    assert found["view_sets"]["rgb12"] == {"samples": 1, "failures": 0, "skipped": 1}
    assert found["view_sets"]["depth10"]["samples"] == 2
    (source / "solid.off").unlink()
    pipeline("build", "meshes", "--source", source, "--out", tmp_path / "points", "--workers", 0, "views=['depth10']")
    message = pipeline("views", "rgb12", "--shards", tmp_path / "points", "--workers", 0, code=1).stderr
    assert "fits no object" in message
    assert "depth10" in message


def test_another_recipe_or_source_is_refused_naming_the_difference(pipeline, built, tmp_path) -> None:
    before = tar_hashes(built)
    again = pipeline("build", "parametric", "--out", built, "--workers", 0, *OBJECTS, "num_points=300", code=2)
    assert "num_points: 256 -> 300" in again.stderr
    assert "\n" not in again.stderr.strip()
    source = tmp_path / "mine"
    write_off(source / "a.off")
    common = ("build", "meshes", "--source", source, "--out", tmp_path / "out", "--workers", 0, *SMALL)
    pipeline(*common)
    write_off(source / "b.off")
    assert "b.off is new" in pipeline(*common, code=2).stderr
    (source / "b.off").unlink()
    (source / "a.off").rename(source / "c.off")
    assert "c.off is new" in pipeline(*common, code=2).stderr
    assert tar_hashes(built) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").touch()
    message = pipeline("build", "parametric", "--out", tmp_path / "notes", "--workers", 0, *OBJECTS, code=2).stderr
    assert "is not empty and no build" in message
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["diary.txt"]


def test_a_second_run_does_nothing_and_a_new_view_set_is_added(pipeline, tmp_path) -> None:
    out = tmp_path / "out"
    few = ("build", "parametric", "--out", out, "--workers", 0, "parametric.objects=6", *SMALL)
    pipeline(*few)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert "6 objects are already there" in pipeline(*few).stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")} == before
    pipeline(*few, "views.depth10_release.image_size=32", "views.depth10_release.name=release")
    assert {p.name for p in (out / "views").iterdir()} == {"rgb12", "depth10", "release"}
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_place_that_cannot_be_written_is_one_line(pipeline, tmp_path) -> None:
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "out"
    message = pipeline("build", "parametric", "--out", inside, "--workers", 0, *OBJECTS, code=2).stderr
    assert "cannot be written: Not a directory" in message.splitlines()[-1]
    assert "'-1' is no number" in pipeline("build", "parametric", "--out", inside, "--workers", -1, code=2).stderr


def test_dry_run_writes_nothing(pipeline, tmp_path) -> None:
    message = pipeline("build", "parametric", "--out", tmp_path / "out", "--dry-run").stderr
    assert "240 objects (test 57, train 183)" in message
    assert not (tmp_path / "out").exists()


def test_a_live_build_is_refused_and_a_stale_lock_taken_over(pipeline, built, tmp_path) -> None:
    import os
    import socket

    from pipeline.jobs.build_lock import started

    out = tmp_path / "out"
    shutil.copytree(built, out)
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid()), "renewed": 0}
    (out / "build.lock").write_text(json.dumps(holder))
    command = ("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
    assert "is being built by process" in pipeline(*command, code=2).stderr
    (out / "build.lock").write_text(json.dumps({**holder, "started": "1"}))
    pipeline(*command)
    assert not (out / "build.lock").exists()
    (out / "build.lock").write_text(json.dumps({**holder, "host": "elsewhere"}))
    pipeline(*command)
