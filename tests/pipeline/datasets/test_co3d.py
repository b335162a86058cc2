"""CO3D: a miniature release after the official schema through real builds; cameras proven by projecting into masks."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import stored, tar_hashes
from co3d_release import jgz, polygons, turned_chair, write_category

from manifests.layout import read_manifest
from manifests.records import Asset
from manifests.samples import decode_array, decode_picture, depth_of_codes
from pipeline.datasets.co3d import Co3dV2Options, Viewpoint, camera_from_source, decode_depth, pixel_K, upright
from pipeline.datasets.co3d import frames as co3d_frames
from pipeline.shards.views_from_frames import stretches, world_camera
from pipeline.sources.json_stream import JsonLimits, load_records

NAMES = [f"{10 + n}_{n}_{n}" for n in range(5)]
SMALL = ("num_points=512", "fps_prefix=64", "allow_partial=true")
FRAMES = ("views.frames20.name=frames20", "views.frames20.rgb_format=png", "views.frames20.image_size=120")
ONLY_FRAMES = (*SMALL, 'views=["frames20"]')
ALL_FRAMES = (*SMALL, "views={frames20={num_frames=24}}")


def build(pipeline, source: Path, out: Path, version: int, *keys: object, code: int = 0, workers: int = 0) -> str:
    command = ("build", f"co3d_v{version}", "--source", source, "--out", out, "--workers", workers)
    return pipeline(*command, *keys, code=code).stderr


def objects_in(picture: np.ndarray) -> np.ndarray:
    """bool (H, W), where a frame of the miniature release shows the dark object."""
    return picture[..., 0] < 145


def overlap(sample, shape, number: int, vertices: np.ndarray, faces: np.ndarray) -> tuple[float, float]:
    """(IoU of the mesh projected by the stored camera and the frame's mask, share of the cloud inside that mask)."""
    view = sample.json["views"][number]
    mask = objects_in(decode_picture(sample.members[f"v{number:02d}.rgb.png"]))
    pose, K = np.array(view["camera_from_world"]), np.array(view["K"])

    def project(points: np.ndarray) -> np.ndarray:
        seen = (points @ pose[:3, :3].T + pose[:3, 3]) @ K.T
        assert (seen[:, 2] > 0).all()
        return seen[:, :2] / seen[:, 2:]

    world = np.array(shape.json["world_from_source"])
    drawn = polygons(project(vertices @ world[:3, :3].T + world[:3, 3]), faces, view["width"], view["height"])
    pixels = np.floor(project(decode_array(shape.members["points.npy"]))).astype(int)
    inside = (pixels >= 0).all(axis=1) & (pixels < (view["width"], view["height"])).all(axis=1)
    clipped = np.clip(pixels, 0, (view["width"] - 1, view["height"] - 1))
    near = np.pad(mask, 1)  # a point on the edge may fall on the pixel beside it
    near = near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:] | mask
    share = float((inside & near[clipped[:, 1], clipped[:, 0]]).mean())
    return np.count_nonzero(drawn & mask) / np.count_nonzero(drawn | mask), share


@pytest.mark.parametrize(
    ("version", "convention", "size", "crop"),
    [
        (1, "ndc_norm_image_bounds", (480, 640), "none"),
        (1, "ndc_isotropic", (640, 480), "none"),
        (2, "ndc_isotropic", (480, 640), "none"),
        (2, "ndc_norm_image_bounds", (640, 480), "none"),
        (2, "ndc_isotropic", (640, 480), "mask"),
    ],
)
def test_stored_cameras_project_the_object_into_its_masks(pipeline, tmp_path, version, convention, size, crop) -> None:
    write_category(tmp_path / "in", "apple", version, NAMES[:2], convention=convention, size=size)
    changed = (*FRAMES[:2], "views.frames20.image_size=360", f"views.frames20.crop={crop}")
    build(pipeline, tmp_path / "in", tmp_path / "out", version, *SMALL, *changed)
    shapes, views = stored(tmp_path / "out"), stored(tmp_path / "out", "frames20")
    assert sorted(views) == [f"apple-{name}" for name in NAMES[:2]]
    worst = []
    for seed, name in enumerate(NAMES[:2]):
        mesh, up = turned_chair(seed)
        sample, shape = views[f"apple-{name}"], shapes[f"apple-{name}"]
        assert len(sample.json["views"]) == 20
        for number, view in enumerate(sample.json["views"]):
            assert min(view["width"], view["height"]) == 360
            worst.append(overlap(sample, shape, number, mesh.vertices, mesh.faces))
        world = np.array(shape.json["world_from_source"])[:3, :3]
        turned = world @ up / np.linalg.norm(world @ up)
        assert turned[1] > 0.99
    assert np.min(worst, axis=0)[0] >= 0.95, worst
    assert np.min(worst, axis=0)[1] >= 0.98, worst
    pipeline("check", tmp_path / "out")
    pipeline("inspect", tmp_path / "out", "--png", tmp_path / "sheet.png")


def test_the_two_conventions_differ_where_a_picture_is_not_square() -> None:
    values = {"R": np.eye(3).tolist(), "T": [0, 0, 1], "focal_length": [2, 2], "principal_point": [0.1, -0.2]}
    isotropic = pixel_K(Viewpoint(**values, intrinsics_format="ndc_isotropic"), 100, 200)
    bounds = pixel_K(Viewpoint(**values), 100, 200)
    assert isotropic.tolist() == [[100, 0, 45], [0, 100, 110], [0, 0, 1]]
    assert bounds.tolist() == [[100, 0, 45], [0, 200, 120], [0, 0, 1]]


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("co3d")
    write_category(root, "apple", 2, NAMES)
    write_category(root, "cup", 2, NAMES[:3], size=(160, 120), num_frames=7)
    write_category(root, "kite", 2, NAMES[:1], num_frames=4)
    return root


def test_a_build_says_and_holds_what_the_recipe_promises(pipeline, release, tmp_path) -> None:
    out = tmp_path / "out"
    build(pipeline, release, out, 2, *SMALL, "views.depth10.image_size=32", "views.depth10.name=depth10", *FRAMES)
    found = json.loads(pipeline("check", out, "--json").stdout)
    assert found["ok"]
    assert found["view_sets"] == {name: {"samples": 8, "failures": 0, "skipped": 0} for name in ("frames20", "depth10")}
    assert found["classes"] == {"train": {"apple": 4, "cup": 2}, "test": {"apple": 1, "cup": 1}}
    lists = {split: (out / "splits" / f"{split}.txt").read_text().split() for split in ("train", "test")}
    assert {key: s.json["split"] for key, s in stored(out).items()} == {i: s for s, ids in lists.items() for i in ids}
    shape = stored(out)["apple-10_0_0"]
    assert shape.json["label"] == 14
    assert decode_array(shape.members["colors.npy"]).shape == (512, 3)
    views = stored(out, "frames20")
    assert {key: len(s.json["views"]) for key, s in views.items()} == {
        **{f"apple-{name}": 20 for name in NAMES},
        **{f"cup-{name}": 7 for name in NAMES[:3]},
    }
    names = [view["frame"] for view in views["apple-10_0_0"].json["views"]]
    assert names == sorted(names)
    assert len(set(names)) == 20
    everything = build(pipeline, release, tmp_path / "all", 2, *ONLY_FRAMES, "classes=[]")
    assert "9 objects" in everything
    assert len(read_manifest(str(tmp_path / "all")).classes) == 51


@pytest.mark.slow
def test_frames_are_drawn_again_from_the_source_to_the_same_bytes(pipeline, release, tmp_path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    build(pipeline, release, out, 2, *ONLY_FRAMES)
    before = tar_hashes(out)
    build(pipeline, release, again, 2, *ONLY_FRAMES, workers=2)
    assert tar_hashes(again) == before
    shutil.rmtree(out / "views" / "frames20")
    redraw = ("views", "frames20", "--shards", out, "--workers", 0)
    assert "give --source" in pipeline(*redraw, code=2).stderr
    pipeline(*redraw, "--source", release)
    assert tar_hashes(out) == before
    shutil.rmtree(out / "views" / "frames20")
    build(pipeline, release, out, 2, *ONLY_FRAMES)
    assert tar_hashes(out) == before
    pipeline(*redraw, "--source", release, "num_frames=5", "name=frames5")
    assert {len(s.json["views"]) for s in stored(out, "frames5").values()} == {5}
    other = build(pipeline, release, tmp_path / "other", 2, *ONLY_FRAMES, "seed=1")
    assert "8 objects" in other
    chosen = [
        [v["frame"] for v in stored(o, "frames20")["apple-10_0_0"].json["views"]] for o in (again, tmp_path / "other")
    ]
    assert chosen[0] != chosen[1]


def test_depth_is_stored_in_world_units(pipeline, release, tmp_path) -> None:
    keys = (*SMALL, *FRAMES[:2], 'views.frames20.channels=["rgb","depth"]', "views.frames20.image_size=120")
    build(pipeline, release, tmp_path / "out", 2, *keys, 'classes=["apple"]')
    shape, sample = stored(tmp_path / "out")["apple-10_0_0"], stored(tmp_path / "out", "frames20")["apple-10_0_0"]
    world = np.array(shape.json["world_from_source"])
    limits = {(view["near"], view["far"]) for view in sample.json["views"]}
    assert len(limits) == 1
    for number, view in enumerate(sample.json["views"]):
        codes = decode_picture(sample.members[f"v{number:02d}.depth.png"])
        depth = depth_of_codes(codes, view["near"], view["far"])
        mask = objects_in(decode_picture(sample.members[f"v{number:02d}.rgb.png"]))
        assert (np.isfinite(depth) == mask).mean() > 0.99
        # the release's depth maps hold the depth of the source's origin all over the object
        expected = np.array(view["camera_from_world"])[2] @ world[:, 3]
        assert depth[np.isfinite(depth)] == pytest.approx(expected, rel=2e-3)


def test_black_frames_are_passed_over_by_the_set_lists(pipeline, tmp_path) -> None:
    root = tmp_path / "in"
    write_category(root, "apple", 2, NAMES[:2], num_frames=12, black=(2, 3, 7))
    hidden = [[NAMES[0], 10 * n, f"apple/{NAMES[0]}/images/frame{n + 1:06d}.jpg"] for n in (2, 3, 7)]
    lists = root / "apple" / "set_lists" / "set_lists_manyview_test.json"
    lists.write_text(json.dumps({"train": [], "val": [], "test": hidden}))
    build(pipeline, root, tmp_path / "out", 2, *ONLY_FRAMES)
    views = stored(tmp_path / "out", "frames20")
    listed, unlisted = (views[f"apple-{name}"].json for name in NAMES[:2])
    black = {f"frame{n + 1:06d}.jpg" for n in (2, 3, 7)}
    for values in (listed, unlisted):
        assert not {Path(view["frame"]).name for view in values["views"]} & black
        assert len(values["views"]) == 9
    assert listed["warnings"] == []
    assert unlisted["warnings"] == [{"type": "frame passed over", "count": 3}]


def test_frames_come_in_the_order_of_their_time(tmp_path) -> None:
    """One is taken of each stretch of time; numbers and the order in the file are the annotators'."""
    write_category(tmp_path, "apple", 2, NAMES[:1], num_frames=4)
    path = tmp_path / "apple" / "frame_annotations.jgz"
    records = json.loads(gzip.decompress(path.read_bytes()))
    for record, time in zip(records, (3.0, 1.0, 0.0, 1.0), strict=True):
        record["frame_timestamp"] = time
    jgz(path, records)
    asset = Asset(f"apple-{NAMES[0]}", f"apple/{NAMES[0]}/pointcloud.ply", "train", "apple")
    with co3d_frames(asset, tmp_path, Co3dV2Options()) as found:
        assert [Path(frame.name).stem for frame in found] == [f"frame{n:06d}" for n in (3, 2, 4, 1)]


def test_set_lists_divide_sequences(pipeline, release, tmp_path) -> None:
    by = ("co3d_v2.split=set_lists", 'views=["frames20"]')
    build(pipeline, release, tmp_path / "two", 2, *SMALL, *by)
    assert (tmp_path / "two" / "splits" / "val.txt").read_text().split() == [
        "apple-11_1_1",
        "apple-14_4_4",
        "cup-11_1_1",
    ]
    assert "no set list fewview" in build(
        pipeline, release, tmp_path / "x", 2, *SMALL, *by, "co3d_v2.subset=fewview", code=2
    )
    write_category(tmp_path / "in", "apple", 1, NAMES[:3], num_frames=4)
    build(pipeline, tmp_path / "in", tmp_path / "one", 1, *SMALL, "co3d_v1.split=set_lists", 'views=["frames20"]')
    assert (tmp_path / "one" / "splits" / "test.txt").read_text().split() == ["apple-11_1_1"]
    assert (tmp_path / "one" / "splits" / "train.txt").read_text().split() == ["apple-10_0_0", "apple-12_2_2"]


def test_parts_other_versions_and_folders_of_nothing_are_refused(pipeline, release, tmp_path) -> None:
    root, keys = tmp_path / "in", ('views=["frames20"]', *SMALL[:2])
    shutil.copytree(release, root)
    message = build(pipeline, root, tmp_path / "out", 2, *keys, code=2)
    assert "not the whole co3d_v2: no bench, skateboard" in message
    assert "allow_partial=true" in message
    (root / "apple" / NAMES[0] / "pointcloud.ply").unlink()
    assert "8 of 9 point clouds" in build(pipeline, root, tmp_path / "out", 2, *keys, code=2)
    assert "of CO3D v2: build the recipe co3d_v2" in build(pipeline, root, tmp_path / "out", 1, *SMALL, code=2)
    write_category(tmp_path / "old", "apple", 1, NAMES[:1], num_frames=2)
    assert "of CO3D v1: build the recipe co3d_v1" in build(
        pipeline, tmp_path / "old", tmp_path / "out", 2, *SMALL, code=2
    )
    (tmp_path / "nothing").mkdir()
    assert "expected files such as" in build(pipeline, tmp_path / "nothing", tmp_path / "out", 2, code=2)
    assert (
        "parametric has no sequences"
        in pipeline("build", "parametric", "--out", tmp_path / "out", 'views=["frames20"]', code=2).stderr
    )
    assert not (tmp_path / "out").exists()


def test_annotations_that_are_bombs_or_broken_are_refused_in_one_line(pipeline, release, tmp_path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(release, root)
    path = root / "apple" / "sequence_annotations.jgz"
    whole = path.read_bytes()
    record = json.loads(gzip.decompress(whole))[0]
    traps = {
        "more than annotations_mb=1": gzip.compress(b"[" + b" " * (3 << 20)),
        "nested deeper than json_depth=32": gzip.compress(json.dumps([record | {"video": nested(40)}]).encode()),
        "nested too deeply": gzip.compress(b'[{"a":' + b"[" * 200_000),
        "is cut": gzip.compress(gzip.decompress(whole)[:-40]),
        "sequence_annotations.jgz: ": whole[: len(whole) // 2],
        "Not a gzipped file": b"[]",
        "no list of records": gzip.compress(b"[1, 2]"),
        "a record without its schema: category": gzip.compress(b'[{"sequence_name": "a"}]'),
        "is of the category 'cup'; 'apple' is expected": gzip.compress(
            json.dumps([record | {"category": "cup"}]).encode()
        ),
        "no name of a sequence": gzip.compress(json.dumps([record | {"sequence_name": "../a"}]).encode()),
    }
    for words, data in traps.items():
        path.write_bytes(data)
        message = build(pipeline, root, out, 2, *ONLY_FRAMES, "co3d_v2.annotations_mb=1", code=2)
        assert words in message, message
        assert len(message.strip().splitlines()) == 1
    assert not out.exists()


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def test_bad_sequences_are_failures_with_a_reason_and_the_others_are_built(pipeline, release, tmp_path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(release, root)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes((root / "cup" / NAMES[0] / "images" / "frame000001.jpg").read_bytes())
    frames = json.loads(gzip.decompress((root / "apple" / "frame_annotations.jgz").read_bytes()))
    for frame in frames:
        if frame["sequence_name"] == NAMES[0]:
            frame["image"]["path"] = "../secret.jpg"
        elif frame["sequence_name"] == NAMES[1]:
            frame["viewpoint"]["R"] = np.diag([1, 1, -1]).tolist()
        elif frame["sequence_name"] == NAMES[2]:
            frame["image"]["size"] = [7, 7]
    jgz(root / "apple" / "frame_annotations.jgz", frames)
    cloud = root / "apple" / NAMES[3] / "pointcloud.ply"
    shutil.copy(cloud, tmp_path / "cloud.ply")
    cloud.unlink()
    cloud.symlink_to(tmp_path / "cloud.ply")
    message = build(pipeline, root, out, 2, *ALL_FRAMES, code=2)
    assert f"apple/{NAMES[3]}/pointcloud.ply into {tmp_path}: to read them add --follow-links {tmp_path}" in message
    cloud.unlink()
    cloud.write_bytes(b"ply")
    cut = root / "apple" / NAMES[4] / "images" / "frame000005.jpg"
    cut.write_bytes(cut.read_bytes()[:100])
    build(pipeline, root, out, 2, *ALL_FRAMES, code=1)
    lines = pipeline("check", out).stdout.splitlines()

    def line(name: str) -> str:
        return next(x for x in lines if f"apple-{name}: load: " in x)

    assert "no frame can be used; ../secret.jpg: leads out of the source folder" in line(NAMES[0])
    assert "its camera has 7 x 7" in line(NAMES[2])
    assert f"apple-{NAMES[3]}: load: " in line(NAMES[3])
    set_name = next(p.name for p in (out / "views").iterdir())
    views, shapes = stored(out, set_name), stored(out)
    assert {view["K"] for view in views[f"apple-{NAMES[1]}"].json["views"]} == {None}
    assert {"type": "no camera tells up", "count": 1} in shapes[f"apple-{NAMES[1]}"].json["warnings"]
    assert len(views[f"apple-{NAMES[4]}"].json["views"]) == 23
    assert len(views) == 5
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]


def test_records_of_one_sequence_are_those_of_the_whole_file(tmp_path) -> None:
    """A file of several chunks, in the official order of keys and in another one, with brackets in strings."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(9000):
        name = f"s{number // 300}"
        noise = "".join(rng.choice(list('abc"{}[],\\ é'), 60))
        records.append({"sequence_name": name, "frame_number": number, "meta": {"text": noise, "n": [number, [1]]}})
    limits = JsonLimits(megabytes=16, depth=8)
    for values in (records, [dict(reversed(record.items())) for record in records]):
        jgz(tmp_path / "a.jgz", values)
        assert (tmp_path / "a.jgz").stat().st_size > 1 << 18
        for name in ("s0", "s13", "s29", "s1", "nobody"):
            assert list(load_records(tmp_path / "a.jgz", limits, name)) == [
                v for v in values if v["sequence_name"] == name
            ]
    assert list(load_records(tmp_path / "a.jgz", limits)) == values


def test_depth_is_a_float16_in_disguise() -> None:
    from redwood_release import png

    depth = np.array([[0, 1.5, 2.25], [np.inf, np.nan, -1]], np.float16)
    found = decode_depth(png(depth.view(np.uint16)), 2.0)
    np.testing.assert_array_equal(found, np.array([[np.inf, 3, 4.5], [np.inf] * 3], np.float32))


def test_frames_are_one_of_each_stretch() -> None:
    for count, wanted in ((100, 20), (25, 20), (20, 20), (7, 20), (1, 20), (0, 20)):
        found = list(stretches(count, wanted, np.random.default_rng(count)))
        assert len(found) == min(count, wanted)
        assert sorted(number for stretch in found for number in stretch) == list(range(count))
        assert [min(stretch) for stretch in found] == sorted(min(stretch) for stretch in found)
        assert not found or max(map(len, found)) - min(map(len, found)) <= 1
    chosen = [next(iter(s)) for s in stretches(200, 20, np.random.default_rng(0))]
    assert np.diff(chosen).max() < 20


def test_up_is_turned_by_the_smallest_rotation() -> None:
    for up in ([0, 1, 0], [0, -1, 0], [1, 0, 0], [0.3, -0.5, 0.8]):
        up = np.array(up) / np.linalg.norm(up)
        side = np.cross(up, [0.1, 0.2, 0.9])
        side /= np.linalg.norm(side)
        camera = np.eye(4)
        camera[:3, :3] = np.stack([side, -up, np.cross(side, -up)])
        turn = upright([camera])[:3, :3]
        np.testing.assert_allclose(turn @ up, [0, 1, 0], atol=1e-12)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)
        assert np.trace(turn) == pytest.approx(1 + 2 * up[1])
    assert upright([]) is None


def test_real_cameras_look_at_one_place_and_stand_upright(shared) -> None:
    """The sample's 20 cameras of a turntable sequence: what R and T mean is seen in where they look."""
    path = shared / "samples" / "CO3D_frames_only" / "apple" / "gt_cameras.npz"
    if not path.is_file():
        pytest.skip("no CO3D sample")
    values = np.load(path)
    poses, Ks = [], []
    for R, T, focal in zip(values["gtR"], values["gtT"], values["gtFL"], strict=True):
        pose = Viewpoint(
            R=R.tolist(),
            T=T.tolist(),
            focal_length=focal.tolist(),
            principal_point=(0, 0),
            intrinsics_format="ndc_isotropic",
        )
        poses.append(camera_from_source(pose))
        Ks.append(pixel_K(pose, 1066, 1896))
    ahead = np.array([pose[2, :3] for pose in poses])
    eyes = np.array([-pose[:3, :3].T @ pose[:3, 3] for pose in poses])
    across = np.eye(3) - ahead[:, :, None] * ahead[:, None, :]
    place = np.linalg.solve(across.sum(axis=0), (across @ eyes[:, :, None]).sum(axis=0)[:, 0])
    world = np.diag([0.1, 0.1, 0.1, 1.0]) @ upright(poses)
    world_place = world[:3, :3] @ place
    for pose, K, eye in zip(poses, Ks, eyes, strict=True):
        seen = pose[:3, :3] @ place + pose[:3, 3]
        u, v, w = K @ seen
        assert w > 0
        assert abs(u / w - 533) < 0.3 * 1066
        assert abs(v / w - 948) < 0.3 * 1896
        moved = world_camera(pose, world)
        np.testing.assert_allclose(moved[:3, :3] @ world_place + moved[:3, 3], 0.1 * seen, atol=1e-9)
        assert (world[:3, :3] @ (eye - place))[1] > 0  # people look down at an apple on a table
        assert -moved[1, 1] > 0.3
    assert (
        np.linalg.norm(across @ (place - eyes)[:, :, None], axis=1).max()
        < 0.3 * np.linalg.norm(eyes - place, axis=1).min()
    )
