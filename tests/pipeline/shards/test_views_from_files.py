"""Pictures of one's own as a view set: matched by name, kept as they are, every defect a Failure with its reason."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import SMALL, Commands, tar_hashes, write_off
from PIL import Image

from manifests.errors import Refused
from manifests.file_views import FileViews, parse_name
from manifests.layout import read_manifest, read_view_set, views_tar
from manifests.presets import load_preset, preset_names
from manifests.records import Asset, read_record, record_path
from manifests.samples import Sample, decode_picture, read_samples
from pipeline.shards.views_from_files import picture_members, resolved
from pipeline.sources.source_files import following

PATTERN = "pattern={class}/{split}/{id}_{view:03d}.png"
OBJECTS = ("parametric.objects=24", "shard_size=8", *SMALL)


@pytest.fixture(scope="module")
def built(pipeline, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    pipeline("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
    return out


@pytest.fixture
def out(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "out"))


def assets_of(out: Path) -> list[Asset]:
    lines = [json.loads(line) for line in (out / "assets.jsonl").read_text().splitlines()]
    return [Asset(id, source, split, class_name, key) for split, key, id, class_name, source in lines]


def picture(asset: Asset, view: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    """uint8 (H, W, 4): a rectangle on transparent black, whose colour tells the object and the view."""
    array = np.zeros((*size, 4), np.uint8)
    array[5:15, 5:15] = [view * 20, sum(asset.id.encode()) % 251, 7, 255]
    return array


def paint(folder: Path, assets: list[Asset], name: str = "{c}/{s}/{i}_{v:03d}.png", views: int = 4) -> Path:
    for asset in assets:
        for view in range(1, views + 1):
            path = folder / name.format(c=asset.class_name, s=asset.split, i=asset.id, v=view)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(asset, view)).save(path)
    return folder


def stored(out: Path, name: str) -> dict[str, Sample]:
    samples = {}
    for split, shards in read_manifest(str(out)).num_shards.items():
        for shard in range(shards):
            with open(views_tar(str(out), name, split, shard), "rb") as file:
                samples |= {sample.key: sample for _, sample in read_samples(file)}
    return samples


def draw(pipeline: Commands, out: Path, source: Path, *keys: object, preset: str = "files", code: int = 0) -> str:
    command = ("views", preset, "--shards", out, "--source", source, "--workers", 0)
    return pipeline(*command, *keys, code=code).stderr


def test_every_object_gets_its_own_pictures_in_view_order_on_white(pipeline, out, tmp_path) -> None:
    assets = assets_of(out)
    draw(pipeline, out, paint(tmp_path / "mine", assets[::-1]), PATTERN, "name=mine")
    samples = stored(out, "mine")
    assert set(samples) == {asset.key for asset in assets}
    for asset in assets:
        views = samples[asset.key].json["views"]
        assert len(views) == 4
        for number, view in enumerate(views):
            found = decode_picture(samples[asset.key].members[f"v{number:02d}.rgb.png"])
            expected = picture(asset, number + 1)
            np.testing.assert_array_equal(found[5:15, 5:15], expected[5:15, 5:15, :3])
            assert (found[:5] == 255).all()
            assert (view["width"], view["height"], view["coverage"]) == (30, 20, round(100 / 600, 6))
            assert [view[name] for name in ("model", "camera_from_world", "K", "near", "far")] == [None] * 5
    manifest = read_view_set(str(out), "mine")
    assert (manifest.preset.match, manifest.preset.view_numbers) == ("id", [1, 2, 3, 4])
    found = json.loads(pipeline("check", out, "--json").stdout)
    assert found["ok"]
    assert found["view_sets"]["mine"] == {"samples": 24, "failures": 0, "skipped": 0}
    pipeline("inspect", out, "--png", tmp_path / "sheet.png", "--objects", 2)
    pipeline("check", out, "--against", out)


@pytest.mark.slow
def test_ray_workers_and_a_second_run_change_no_byte(pipeline, out, tmp_path) -> None:
    source = paint(tmp_path / "mine", assets_of(out))
    draw(pipeline, out, source, PATTERN, "name=mine")
    before = tar_hashes(out)
    assert "24 objects are already there" in draw(pipeline, out, source, PATTERN, "name=mine")
    shutil.rmtree(out / "views" / "mine")
    pipeline("views", "files", "--shards", out, "--source", source, "--workers", 2, PATTERN, "name=mine")
    assert tar_hashes(out) == before
    assert "pattern" in draw(pipeline, out, source, PATTERN.replace(".png", ".{ext}"), "name=mine", code=2)
    assert "image_size: 0 -> 16" in draw(pipeline, out, source, PATTERN, "name=mine", "image_size=16", code=2)


def test_defects_are_failures_that_say_which_view(pipeline, out, tmp_path) -> None:
    assets = assets_of(out)
    source = paint(tmp_path / "mine", assets)

    def path(number: int, view: int) -> Path:
        asset = assets[number]
        return source / asset.class_name / asset.split / f"{asset.id}_{view:03d}.png"

    secret = Path(shutil.copy(path(4, 2), tmp_path / "secret.png"))
    path(0, 2).unlink()
    path(1, 3).write_bytes(path(1, 3).read_bytes()[:60])
    path(2, 1).write_bytes(b"not a picture")
    Image.new("RGB", (20, 20), "black").save(path(3, 4))
    path(4, 2).unlink()
    path(4, 2).symlink_to(secret)
    message = draw(pipeline, out, source, PATTERN, "name=mine", code=2)
    assert f"such as {path(4, 2).relative_to(source)} into {tmp_path}: to read them add --follow-links" in message
    path(4, 2).unlink()
    path(5, 1).unlink()
    path(5, 1).mkdir()
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(path(6, 1))
    path(7, 1).write_bytes(b"")
    message = draw(pipeline, out, source, PATTERN, "name=mine", code=1)
    assert "33.3%, more than max_failed_fraction=0.01" in message
    found = pipeline("check", out).stdout
    reasons = (
        "view 2 is missing: ",
        "view 3 (",
        "view 1 (",
        "is blank: it is of one colour",
        "view 2 is missing: ",
        "view 1 is no file: ",
        "is no colour picture",
        "is broken: UnidentifiedImageError",
    )
    for number, reason in enumerate(reasons):
        line = next(x for x in found.splitlines() if f"failure: views/mine: {assets[number].key}: load: " in x)
        assert reason in line
    assert len(stored(out, "mine")) == 16
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]


def test_pictures_are_kept_as_they_are_or_brought_to_a_size(tmp_path) -> None:
    asset = Asset("a", "a.off", "all", "thing", "a")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a_1.jpg", quality=60)
    Image.fromarray(noise).save(tmp_path / "a_2.png")
    Image.fromarray(noise[..., 0]).save(tmp_path / "a_3.PNG")
    Image.fromarray(noise).quantize(16).save(tmp_path / "a_4.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    Image.fromarray(noise).save(tmp_path / "a_5.jpg", exif=turned)
    Image.fromarray(noise).convert("CMYK").save(tmp_path / "a_6.jpg")

    def members(**keys: object) -> dict[str, bytes]:
        preset = FileViews(backend="files", pattern="{id}_{view}.{ext}", **keys)
        return picture_members(asset, resolved(preset, [asset], tmp_path), "mine", tmp_path)

    kept = members()
    assert kept["v00.rgb.jpg"] == (tmp_path / "a_1.jpg").read_bytes()
    assert kept["v01.rgb.png"] == (tmp_path / "a_2.png").read_bytes()
    assert kept["v02.rgb.png"] == (tmp_path / "a_3.PNG").read_bytes()
    assert decode_picture(kept["v03.rgb.png"]).shape == (40, 60, 3)
    assert decode_picture(kept["v04.rgb.jpg"]).shape == (60, 40, 3)
    assert decode_picture(kept["v05.rgb.jpg"]).shape == (40, 60, 3)
    small = members(image_size=20, rgb_format="png")
    assert sorted(small) == ["json", *(f"v{n:02d}.rgb.png" for n in range(6))]
    assert decode_picture(small["v00.rgb.png"]).shape == (20, 30, 3)
    assert decode_picture(small["v04.rgb.png"]).shape == (30, 20, 3)


def test_as_many_blank_pictures_as_allowed_pass_and_one_more_fails(tmp_path) -> None:
    asset = Asset("a", "a.off", "all", "thing", "a")
    paint(tmp_path, [asset], "{i}_{v}.png")
    for view in (2, 4):
        Image.new("RGB", (20, 30), "white").save(tmp_path / f"a_{view}.png")

    def members(max_blank_views: int) -> dict[str, bytes]:
        preset = FileViews(backend="files", pattern="{id}_{view}.png", max_blank_views=max_blank_views)
        return picture_members(asset, resolved(preset, [asset], tmp_path), "mine", tmp_path)

    assert json.loads(members(2)["json"])["warnings"] == [{"type": "blank view", "count": 2}]
    with pytest.raises(ValueError, match=r"view 2 \(a_2.png\) is blank: it is of one colour \(and 1 more\)"):
        members(1)


LAYOUTS = {
    "mvcnn12": ("chair/test/chair_0890_{:03d}.jpg", range(1, 13), "chair_0890"),
    "mvcnn12_shaded": ("chair/test/chair_0890.obj.shaded_v{:03d}.png", range(1, 13), "chair_0890"),
    "rotationnet20": ("chair/test/chair_0890_{:03d}.png", range(1, 21), "chair_0890"),
    "r2n2_24": ("03001627/1a6-f/rendering/{:02d}.png", range(24), "03001627-1a6-f"),
    "ulip30": ("03001627-1a6-f/03001627-1a6-f_r_{:03d}.png", range(0, 360, 12), "03001627-1a6-f"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_known_sets_need_their_folder_only(tmp_path, name: str) -> None:
    """Files as those sets name them, with twins of another kind and strangers beside them; a missing one moves none."""
    layout, numbers, id = LAYOUTS[name]
    asset = Asset(id, f"{id}.off", "test", "chair", id)
    stranger = Asset(id + "9", f"{id}9.off", "test", "chair", id + "9")
    for owner in (asset, stranger):
        for number in numbers:
            path = tmp_path / layout.replace("1a6-f", owner.id.split("-", 1)[-1]).format(number)
            path = Path(str(path).replace("chair_0890", owner.id))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(asset, number % 12)).convert("RGBA").save(path.with_suffix(".png"))
            if path.suffix == ".jpg":
                Image.open(path.with_suffix(".png")).convert("RGB").save(path, quality=95, subsampling=0)
                path.with_suffix(".png").unlink()
            path.with_name(path.stem + "_depth0001.png").write_bytes(b"a twin")
    _, preset = load_preset(name)
    full = resolved(preset, [asset], tmp_path)
    assert full.view_numbers == list(numbers)
    members = picture_members(asset, full, name, tmp_path)
    assert len(members) == 1 + len(numbers)
    for view, number in enumerate(numbers):
        data = members.get(f"v{view:02d}.rgb.png") or members[f"v{view:02d}.rgb.jpg"]
        assert abs(int(decode_picture(data)[10, 10, 0]) - number % 12 * 20) < 10
    lost = Path(str(tmp_path / layout).format(numbers[3]))
    lost.unlink()
    assert resolved(preset, [asset, stranger], tmp_path) == full
    with pytest.raises(ValueError, match=f"view {numbers[3]} is missing"):
        picture_members(asset, resolved(preset, [asset], tmp_path), name, tmp_path)
    assert name in preset_names()


def test_ids_of_a_folder_of_meshes_are_found_by_the_name_of_the_file(pipeline, tmp_path) -> None:
    for number in range(2):
        write_off(tmp_path / "meshes" / "thing" / "train" / f"t.{number}.off", 1 + number)
    out = tmp_path / "out"
    pipeline("build", "meshes", "--source", tmp_path / "meshes", "--out", out, "--workers", 0, "views=[]", *SMALL[:2])
    for number in range(2):
        asset = Asset(f"t.{number}", "", "train", "thing")
        paint(tmp_path / "mine", [asset], views=12)
    draw(pipeline, out, tmp_path / "mine", preset="mvcnn12", code=2)
    draw(pipeline, out, tmp_path / "mine", "match=stem", "name=mvcnn12", preset="mvcnn12")
    draw(pipeline, out, tmp_path / "mine", PATTERN, "name=mine")
    assert read_view_set(str(out), "mine").preset.match == "stem"
    assert [len(s.json["views"]) for s in stored(out, "mine").values()] == [12, 12]


def test_what_cannot_be_matched_is_refused_before_work(pipeline, out, tmp_path) -> None:
    assets = assets_of(out)
    source = paint(tmp_path / "mine", assets[:3])
    before = sorted(p.name for p in (out / "views").iterdir())
    for pattern, words in (
        ("{class}/{id}.png", "it has no {view}"),
        ("{class}/{view}.png", "it has no {id}"),
        ("../{id}_{view}.png", "without .."),
        ("/{id}_{view}.png", "below --source"),
        ("{clas}/{id}_{view}.png", "no field {clas}"),
        ("{id}_{view:d}.png", "without a field"),
        ("{class}/{id}_{view:03d}.png", "no picture of these objects"),
        ("{synset}/{id}_{view:03d}.png", "has not all of these fields"),
    ):
        message = draw(pipeline, out, source, f"pattern={pattern}", "name=mine", code=2)
        assert words in message, message
        assert "\n" not in message.strip()
    assert "give --source" in pipeline("views", "files", "--shards", out, PATTERN, "--workers", 0, code=2).stderr
    assert "no such folder" in draw(pipeline, out, tmp_path / "nowhere", PATTERN, code=2)
    assert "numbers are 1, 2, 3, 4" in draw(pipeline, out, source, PATTERN, "num_views=3", code=2)
    message = pipeline("build", "parametric", "--out", tmp_path / "new", "views=['mvcnn12']", code=2).stderr
    assert "views.mvcnn12 are pictures of files" in message
    assert sorted(p.name for p in (out / "views").iterdir()) == before


def test_two_objects_never_share_pictures(tmp_path) -> None:
    assets = [Asset(f"{c}/t.off", f"{c}/t.off", "all", c, f"{c}_t_off") for c in ("a", "b")]
    paint(tmp_path / "flat", [Asset("t", "", "all", "a")], "{i}_{v}.png")
    with pytest.raises(Refused, match=r"two objects are \{'id': 't'\}: add \{class\}"):
        resolved(FileViews(backend="files", pattern="{id}_{view}.png"), assets, tmp_path / "flat")
    paint(tmp_path / "deep", [Asset("t", "", "all", c) for c in ("a", "b")], "{c}/{i}_{v}.png")
    preset = resolved(FileViews(backend="files", pattern="{class}/{id}_{view}.png"), assets, tmp_path / "deep")
    assert preset.match == "stem"


def test_links_inside_the_source_are_followed_and_loops_end(tmp_path) -> None:
    asset = Asset("a", "", "all", "thing", "a")
    paint(tmp_path / "mine" / "store", [asset], "{c}/{i}_{v}.png")
    (tmp_path / "mine" / "view").symlink_to("store")
    (tmp_path / "mine" / "store" / "loop").symlink_to("..")
    paint(tmp_path / "other", [asset], "{c}/{i}_{v}.png")
    (tmp_path / "mine" / "away").symlink_to(tmp_path / "other")
    preset = FileViews(backend="files", pattern="view/{class}/{id}_{view}.png")
    with following([str(tmp_path / "other")]):
        assert len(picture_members(asset, resolved(preset, [asset], tmp_path / "mine"), "x", tmp_path / "mine")) == 5
    away = FileViews(backend="files", pattern="away/{class}/{id}_{view}.png")
    with following([str(tmp_path / "other")]):
        assert len(picture_members(asset, resolved(away, [asset], tmp_path / "mine"), "x", tmp_path / "mine")) == 5
    with pytest.raises(Refused, match=r"1 of \d linked folders, such as away into .*/other: to read them add --follow"):
        resolved(away, [asset], tmp_path / "mine")


def test_parsing_is_exact() -> None:
    pattern = "{class}/{split}/{id}_{view:03d}.{ext}"
    fields = {"class": "night_stand", "split": "train", "id": "night_stand_0001"}
    assert parse_name(pattern, "night_stand/train/night_stand_0001_012.PNG") == (fields, 12)
    for other in ("a/b/c_12.png", "a/b/c_0012.png", "a/b/c_012.png.txt", "a/b/d/c_012.png", "a/b/c_012.mp4"):
        assert parse_name(pattern, other) is None
    assert parse_name(pattern, "a/b/c_1012.png") == ({"class": "a", "split": "b", "id": "c"}, 1012)
    assert parse_name("{id}/{id}_r_{view:03d}.png", "a/b_r_000.png") is None


def test_shapes_built_anew_leave_the_set_to_be_filled_in(pipeline, tmp_path) -> None:
    """`build --retry` draws every set anew but those of files, whose source it does not know."""
    for number in range(3):
        write_off(tmp_path / "meshes" / f"t{number}.off", 1 + number)
    (tmp_path / "meshes" / "t1.off").write_text("OFF\nbroken")
    out, common = tmp_path / "out", ("--workers", 0, *SMALL)
    build = ("build", "meshes", "--source", tmp_path / "meshes", "--out", out, *common)
    pipeline(*build, code=1)
    source = paint(tmp_path / "mine", [Asset(f"t{n}", "", "all", "x") for n in range(3)], "{i}_{v}.png")
    draw(pipeline, out, source, "pattern={id}_{view}.png", "name=mine")
    write_off(tmp_path / "meshes" / "t1.off", 2)
    pipeline(*build, "--retry", "data")
    found = json.loads(pipeline("check", out, "--json", code=1).stdout)
    assert any("views/mine" in problem and "no record" in problem for problem in found["problems"])
    draw(pipeline, out, source, "pattern={id}_{view}.png", "name=mine")
    found = json.loads(pipeline("check", out, "--json").stdout)
    assert found["view_sets"]["mine"]["samples"] == found["view_sets"]["rgb12"]["samples"] == 3


@pytest.mark.slow
def test_training_reads_pictures_of_ones_own(pipeline, out, tmp_path) -> None:
    draw(pipeline, out, paint(tmp_path / "mine", assets_of(out)), PATTERN, "name=mvcnn12")
    record = read_record(record_path(views_tar(str(out), "mvcnn12", "train", 0)))
    assert record.gates["coverage_min"] == pytest.approx(100 / 600, abs=1e-6)
    training = Commands(pipeline.tree, "training")
    keys = ("data.views=mvcnn12", "data.num_points=64", "optimizer.batch_size=4", "optimizer.steps=2")
    training("fit", "small_cross_most", "--shards", out, "--run", tmp_path / "run", *keys)
    training("evaluate", tmp_path / "run", "--shards", out, "--split", "train")
    assert os.path.getsize(tmp_path / "run" / "log.csv")
