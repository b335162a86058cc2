"""Redwood: a miniature release through real builds; colour and depth paired by time; archives that are traps."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from builders import stored, tar_hashes
from PIL import Image
from redwood_release import STEP_US, color_of, depth_frame, png, rgb_frame, write_release
from shapes import chair

from manifests.dataset_info import load_table
from manifests.frame_views import FrameViews
from manifests.records import Asset
from manifests.samples import decode_array, decode_picture, depth_of_codes
from pipeline.datasets.redwood import RedwoodOptions, assets, depth_metres, frames, nearest_time
from pipeline.datasets.seeded_split import seeded_split
from pipeline.shards.views_from_frames import frame_members

SCANS = {"chair": [f"0000{n}" for n in range(1, 6)], "trash container": ["00011", "00012"]}
SMALL = ("num_points=512", "fps_prefix=64", "allow_partial=true")
ONLY_FRAMES = (*SMALL, "views={frames20={name='frames20',rgb_format='png',channels=['rgb','depth']}}")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    mesh = chair()
    vertices = mesh.vertices * [0.5, -0.5, -0.5] + [0.1, 0.2, 2.0]  # metres, y down as the first camera has it
    return write_release(tmp_path_factory.mktemp("redwood") / "in", SCANS, (vertices, mesh.faces))


def build(pipeline, source: Path, out: Path, *keys: object, code: int = 0, workers: int = 0) -> str:
    command = ("build", "redwood", "--source", source, "--out", out, "--workers", workers)
    return pipeline(*command, *keys, code=code).stderr


def test_a_build_holds_meshes_and_frames_with_the_depth_of_their_own_time(pipeline, release, tmp_path) -> None:
    out = tmp_path / "out"
    build(pipeline, release, out, *ONLY_FRAMES)
    found = json.loads(pipeline("check", out, "--json").stdout)
    assert found["ok"]
    assert found["classes"] == {"train": {"chair": 4, "trash container": 1}, "test": {"chair": 1, "trash container": 1}}
    lists = {split: (out / "splits" / f"{split}.txt").read_text().split() for split in ("train", "test")}
    assert {split: len(ids) for split, ids in lists.items()} == {"train": 5, "test": 2}
    assert sorted(lists["train"] + lists["test"]) == sorted(id for ids in SCANS.values() for id in ids)
    shapes, views = stored(out), stored(out, "frames20")
    assert sorted(views) == sorted(id for ids in SCANS.values() for id in ids)
    for key, sample in views.items():
        world = np.array(shapes[key].json["world_from_source"])
        scale = np.cbrt(np.linalg.det(world[:3, :3]))
        np.testing.assert_allclose(world[:3, :3] / scale, np.diag([1, -1, -1]), atol=1e-9)
        back = decode_array(shapes[key].members["points.npy"])  # the chair's back stands over its seat
        assert back[back[:, 1] > 0.3][:, 2].min() > 0.15
        frames = []
        for number, view in enumerate(sample.json["views"]):
            frame, micros = map(int, Path(view["frame"]).stem.split("-"))
            frames.append(frame)
            assert micros == (frame - 1) * STEP_US
            picture = decode_picture(sample.members[f"v{number:02d}.rgb.png"])
            assert picture.shape == (256, 341, 3)
            assert np.abs(picture[128, 60].astype(int) - color_of(frame - 1)).max() <= 6
            depth = depth_of_codes(
                decode_picture(sample.members[f"v{number:02d}.depth.png"]), view["near"], view["far"]
            )
            assert np.isinf(depth[:, 180:]).all()
            metres = np.unique(depth[:, :160]) / scale
            nearest = {4: 2, 5: 5}.get(frame, frame - 1)  # frames 4 and 5 lost theirs
            assert metres == pytest.approx((1000 + nearest) / 1000, abs=1e-5)
            assert view["camera_from_world"] is None
            assert view["coverage"] is None
            np.testing.assert_allclose(view["K"][0], [525 * 341 / 640, 0, 319.5 * 341 / 640])
        assert frames == sorted(set(frames))
        assert len(frames) == 20


@pytest.mark.slow
def test_frames_are_drawn_again_beside_depth_maps_and_resumed(pipeline, release, tmp_path) -> None:
    out, common = tmp_path / "out", ("views.depth10.image_size=32", "views.depth10.name=depth10", *SMALL)
    build(pipeline, release, out, *common)
    before = tar_hashes(out)
    assert {Path(name).parts[1] for name in before if name.startswith("views")} == {"frames20", "depth10"}
    for name in ("frames20", "depth10"):  # both at once, and in the plan's order, from the stored shapes
        shutil.rmtree(out / "views" / name)
    build(pipeline, release, out, *common)
    assert tar_hashes(out) == before
    shutil.rmtree(out / "views" / "frames20")
    pipeline("views", "frames20", "--shards", out, "--source", release, "--workers", 0)
    assert tar_hashes(out) == before
    build(pipeline, release, tmp_path / "two", *common, workers=2)
    assert tar_hashes(tmp_path / "two") == before
    pipeline("inspect", out, "--png", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


TRAPS = {
    "..": ("../../evil.jpg", b"x", "names a path outside itself: '../../evil.jpg'"),
    "absolute": ("/tmp/evil.jpg", b"x", "names a path outside itself: '/tmp/evil.jpg'"),
    "backslash": ("rgb\\..\\..\\evil.jpg", b"x", "names a path outside itself"),
    "drive": ("C:\\evil.jpg", b"x", "names a path outside itself"),
    "bomb": ("rgb/0000999-000099999999.jpg", bytes(3 << 20), "more than picture_mb=2"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_archives_that_are_traps_are_failures(pipeline, release, tmp_path, trap: str) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(release, root)
    name, data, words = TRAPS[trap]
    with zipfile.ZipFile(root / "data" / "rgbd" / "00001.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    build(pipeline, root, out, *ONLY_FRAMES, "redwood.picture_mb=2", code=1)
    line = next(x for x in pipeline("check", out).stdout.splitlines() if "00001: load: " in x)
    assert words in line
    assert len(stored(out, "frames20")) == 6
    assert not (tmp_path / "evil.jpg").exists()
    assert len(stored(out)) == 7


def test_broken_archives_are_failures_and_broken_frames_are_passed_over(pipeline, release, tmp_path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(release, root)
    scans = root / "data" / "rgbd"
    (scans / "00001.zip").write_bytes((scans / "00001.zip").read_bytes()[:5000])
    (scans / "00002.zip").unlink()
    (scans / "00003.zip").unlink()
    (scans / "00003.zip").symlink_to(release / "data" / "rgbd" / "00003.zip")
    with zipfile.ZipFile(scans / "00004.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with zipfile.ZipFile(scans / "00005.zip", "w") as archive:
        for frame in range(6):
            archive.writestr(
                f"00005/rgb/{frame:07d}-{frame * STEP_US:012d}.jpg", rgb_frame(frame)[: 900 if frame < 2 else None]
            )
            archive.writestr(f"00005/depth/{frame:07d}-{frame * STEP_US:012d}.png", depth_frame(frame))
    data = bytearray((scans / "00011.zip").read_bytes())
    start = data.find(b"rgb/0000001") + 200
    data[start : start + 50] = bytes(50)  # one member's bytes are damaged: its checksum says so
    (scans / "00011.zip").write_bytes(data)
    many = scans / "00012.zip"
    (root / "data" / "mesh" / "00012.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    build(pipeline, root, out, *ONLY_FRAMES, "redwood.zip_members=60", code=1)
    lines = pipeline("check", out).stdout.splitlines()
    reasons = {
        id: next((x for x in lines if f"{id}: load: " in x), "") for id in ("00001", "00002", "00003", "00004", "00012")
    }
    assert "00001.zip is no readable archive" in reasons["00001"]
    assert "00002.zip: cannot be read" in reasons["00002"]
    assert "leads out of the source" in reasons["00003"]
    assert "holds no rgb/" in reasons["00004"]
    assert "failure: 00012" in reasons["00012"]
    views = stored(out, "frames20")
    assert sorted(views) == ["00005", "00011"]
    assert len(views["00005"].json["views"]) == 4
    assert views["00005"].json["warnings"] == [{"type": "frame passed over", "count": 2}]
    assert all("0000001-" not in view["frame"] for view in views["00011"].json["views"])
    assert many.exists()
    build(pipeline, release, tmp_path / "few", *ONLY_FRAMES, "redwood.zip_members=10", code=1)
    assert "more than zip_members=10" in pipeline("check", tmp_path / "few").stdout


def test_parts_and_broken_indices_are_refused(pipeline, release, tmp_path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(release, root)
    assert "7 of 398 meshes" in build(pipeline, root, out, code=2)
    for text, words in (
        ("[1, 2]", "not the index"),
        ('{"chair": ["../x"]}', "no scan of five digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"chair": 3}', "not the index"),
        ("{", "broken"),
    ):
        (root / "categories.json").write_text(text)
        (root / "meshes.json").write_text('["../x"]')
        message = build(pipeline, root, out, *SMALL, code=2)
        assert words in message, message
        assert len(message.strip().splitlines()) == 1
    (root / "categories.json").unlink()
    assert "no categories.json in" in build(pipeline, root, out, *SMALL, code=2)
    assert not out.exists()


def test_colour_and_depth_are_paired_by_the_nearest_time() -> None:
    assert [nearest_time([10, 20, 30], time) for time in (-5, 14, 15, 16, 29, 99)] == [0, 0, 0, 1, 2, 2]
    assert nearest_time([], 3) is None
    np.testing.assert_allclose(
        depth_metres(png(np.array([[0, 1234]], np.uint16))), np.array([[np.inf, 1.234]]), rtol=1e-6
    )
    with pytest.raises(ValueError, match="depth of mode"):
        depth_metres(png(np.zeros((2, 2), np.uint8)))


def test_the_official_index_gives_the_papers_counts(shared, tmp_path) -> None:
    """398 meshes of 9 classes; 84 test objects are what the paper's percentages imply."""
    index = shared / "samples" / "Redwood" / "3dscan"
    if not index.is_dir():
        pytest.skip("no Redwood sample")
    for name in ("categories.json", "meshes.json"):
        shutil.copy(index / name, tmp_path)
    (tmp_path / "data" / "mesh").mkdir(parents=True)
    for id in json.loads((index / "meshes.json").read_text()):
        (tmp_path / "data" / "mesh" / f"{id}.ply").touch()
    table = load_table("redwood")
    found = list(assets(tmp_path, table, RedwoodOptions()))
    counts = {split: sum(asset.split == split for asset in found) for split in ("train", "test")}
    assert counts == table.counts == {"train": 314, "test": 84}
    assert {asset.class_name for asset in found} == set(table.classes)
    (tmp_path / "data" / "mesh" / f"{found[0].id}.ply").unlink()
    assert list(assets(tmp_path, table, RedwoodOptions())) == found[1:]  # a part is divided as the whole
    other = {a.id for a in assets(tmp_path, table, RedwoodOptions(split_seed=1)) if a.split == "test"}
    assert other != {asset.id for asset in found if asset.split == "test"}


def test_real_frames_in_an_archive_become_views(shared, tmp_path) -> None:
    """Five frames of the same sensor, packed as the scans are: 640 x 480, millimetres, depth where colour is."""
    folder = shared / "samples" / "Redwood" / "Open3D_TestData" / "RGBD"
    if not folder.is_dir():
        pytest.skip("no Redwood sample")
    (tmp_path / "data" / "rgbd").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "data" / "rgbd" / "00004.zip", "w") as archive:
        for number in range(5):
            for kind, source, suffix in (("rgb", "color", "jpg"), ("depth", "depth", "png")):
                name = f"{kind}/{number + 1:07d}-{number * STEP_US:012d}.{suffix}"
                archive.write(folder / source / f"{number:05d}.{suffix}", name)
    asset = Asset("00004", "data/mesh/00004.ply", "train", "chair", "00004")
    preset = FrameViews(backend="frames", channels=["rgb", "depth"], image_size=0)
    world = np.diag([0.5, 0.5, 0.5, 1.0]) @ np.diag([1.0, -1.0, -1.0, 1.0])
    with frames(asset, tmp_path, RedwoodOptions()) as found:
        members = frame_members(asset, found, world, preset, "frames20", 0)
    views = json.loads(members["json"])["views"]
    assert len(views) == 5
    for number, view in enumerate(views):
        with Image.open(folder / "depth" / f"{number:05d}.png") as image:
            millimetres = np.asarray(image)
        depth = depth_of_codes(decode_picture(members[f"v{number:02d}.depth.png"]), view["near"], view["far"])
        known = millimetres > 0
        assert 0.1 < known.mean() < 1
        np.testing.assert_array_equal(np.isfinite(depth), known)
        np.testing.assert_allclose(depth[known], millimetres[known] / 2000, atol=1e-4)
        assert decode_picture(members[f"v{number:02d}.rgb.jpg"]).shape == (480, 640, 3)
        assert view["K"] == [[525.0, 0.0, 319.5], [0.0, 525.0, 239.5], [0.0, 0.0, 1.0]]


def scan_of(root: Path, rgb: list[int], depth: list[int]) -> Path:
    """An archive of pictures at these times, microseconds; each depth map tells its own."""
    path = root / "data" / "rgbd" / "00001.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, time in enumerate(rgb):
            archive.writestr(f"rgb/{number:07d}-{time:012d}.jpg", rgb_frame(0))
        for number, time in enumerate(depth):
            archive.writestr(f"depth/{number:07d}-{time:012d}.png", png(np.full((480, 640), 1 + number, np.uint16)))
    return root


def test_depth_that_is_farther_in_time_than_allowed_is_not_taken(tmp_path) -> None:
    rgb, depth = [0, 100_000, 150_001, 400_000], [50_000, 100_000, 450_001]
    root, asset = scan_of(tmp_path, rgb, depth), Asset("00001", "data/mesh/00001.ply", "train", "chair", "00001")
    with frames(asset, root, RedwoodOptions(pair_us=50_000)) as found:
        taken = [None if frame.depth is None else round(1000 * float(frame.depth()[0, 0])) for frame in found]
    assert taken == [1, 2, None, None]
    with frames(asset, root, RedwoodOptions(pair_us=50_001)) as found:
        assert [frame.depth is not None for frame in found] == [True] * 4


def test_the_seeded_division() -> None:
    ids = [f"{number:05d}" for number in range(100)]
    for fraction, train in ((0.8, 80), (0.29, 29), (0.57, 57), (0.005, 0), (0.999, 99)):
        split = seeded_split(ids, fraction, 0)
        assert sorted(split) == ids
        assert sum(name == "train" for name in split.values()) == train, fraction
    first, again, other = (seeded_split(order, 0.5, seed) for order, seed in ((ids, 0), (ids[::-1], 0), (ids, 1)))
    assert first == again
    assert 20 < sum(first[id] != other[id] for id in ids) < 80
