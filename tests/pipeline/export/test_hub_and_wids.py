"""Exports are read by the tools that they are for: datasets, pyarrow, wids, webdataset and COLMAP's own reader."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders import SMALL, stored, tar_hashes
from co3d_release import write_category
from PIL import Image

from manifests import store
from manifests.install import missing
from manifests.samples import decode_array, decode_picture, read_samples
from pipeline.__main__ import main
from pipeline.export.colmap import quaternion
from pipeline.export.dataset_card import card, hub_splits
from pipeline.export.finished_build import open_build, survey
from renderers.cameras import orbit_rotation

OBJECTS = ("parametric.objects=38", "parametric.test_fraction=0.5", "shard_size=8", *SMALL, "views.rgb12.image_size=64")


@pytest.fixture(scope="module")
def built(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "out"
    pipeline("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
    return out


@pytest.fixture
def out(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "out"))


def front_matter(folder: Path) -> dict:
    """What YAML makes of a card's front matter."""
    _, front, _ = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front)


def export(pipeline, out: Path, form: str, *arguments: object) -> dict:
    return json.loads(pipeline("export", out, "--format", form, "--json", *arguments).stdout)


LOAD = """
import json, sys
import numpy as np
from datasets import load_dataset
folder, cache = sys.argv[1:]
load = lambda name, split: load_dataset(folder, name, split=split, cache_dir=cache)
shapes, views = load("shapes", "train"), load("rgb12", "train")
assert len(load("depth10", "test")[0]["json"]["views"]) == 10
assert load_dataset(folder, split="test", cache_dir=cache).column_names == shapes.column_names
index = load_dataset("parquet", data_files=folder + "/index/train.parquet", split="train", cache_dir=cache)
meshes = load_dataset(folder, "meshes", split="test", streaming=True)
print(json.dumps({
    "index": list(index["key"]),
    "shapes": {row["json"]["key"]: [row["json"]["class"], row["json"]["label"],
                                    np.float32(row["points.npy"]).sum().item()] for row in shapes},
    "colors": np.asarray(shapes[0]["colors.npy"]).shape,
    "views": {row["__key__"]: [np.asarray(row["v03.depth.png"]).astype(int).sum().item(), row["v03.rgb.jpg"].size,
                               row["json"]["views"][3]["near"]] for row in views},
    "mesh": next(iter(meshes))["mesh.glb"][:4].decode(),
}))
"""


def test_hugging_face_loads_every_configuration(pipeline, out, tmp_path) -> None:
    export(pipeline, out, "hf", "--license", "cc-by-4.0")
    card = front_matter(out)
    assert card["license"] == "cc-by-4.0"
    assert [c["config_name"] for c in card["configs"]] == ["shapes", "meshes", "depth10", "rgb12"]
    environment = dict(os.environ, HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    command = [sys.executable, "-c", LOAD, str(out), str(tmp_path / "cache")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    shapes = {key: s for key, s in stored(out).items() if s.json["split"] == "train"}
    assert found["index"] == list(shapes) == list(found["shapes"])
    for key, (class_name, label, total) in found["shapes"].items():
        assert (class_name, label) == (shapes[key].json["class"], shapes[key].json["label"])
        assert total == decode_array(shapes[key].members["points.npy"]).sum().item()
    assert found["colors"] == [256, 3]
    views = stored(out, "rgb12")
    for key, (codes, size, near) in found["views"].items():
        assert codes == decode_picture(views[key].members["v03.depth.png"]).astype(int).sum()
        assert (size, near) == ([64, 64], views[key].json["views"][3]["near"])
    assert found["mesh"] == "glTF"


def test_the_table_says_where_every_sample_lies(pipeline, out) -> None:
    import pyarrow.parquet as parquet

    found = export(pipeline, out, "hf")
    assert found["files"] == [str(out / name) for name in ("README.md", "index/test.parquet", "index/train.parquet")]
    rows = [
        row for split in ("train", "test") for row in parquet.read_table(out / f"index/{split}.parquet").to_pylist()
    ]
    shapes, views, classes = (
        stored(out),
        stored(out, "depth10"),
        json.loads((out / "manifest.json").read_text())["classes"],
    )
    assert sorted(row["key"] for row in rows) == sorted(shapes)
    assert {row["split"] for row in rows} == {"train", "test"}
    for row in rows:
        assert classes[row["label"]] == row["class"]
        assert (row["num_points"], row["views_rgb12_num_views"], row["views_depth10_num_views"]) == (256, 12, 10)
        for what, expected in (("shapes", shapes), ("views_depth10", views)):
            with open(out / row[f"{what}_tar"], "rb") as file:
                file.seek(row[f"{what}_offset"])
                data = file.read(row[f"{what}_bytes"])
            ((_, sample),) = read_samples(io.BytesIO(data + bytes(1024)))
            assert sample == expected[row["key"]]


def test_the_table_of_records_without_sizes(pipeline, out) -> None:
    """Records of older builds do not tell the sizes of members; the card and the table come out alike."""
    import pyarrow.parquet as parquet

    export(pipeline, out, "hf")
    card, table = (out / "README.md").read_text(), parquet.read_table(out / "index/train.parquet").to_pylist()
    for path in [*out.glob("shapes/*.json"), *out.glob("meshes/*.json"), *out.glob("views/*/*-*.json")]:
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sizes"}))
    export(pipeline, out, "hf")
    assert (out / "README.md").read_text() == card
    for old, new in zip(table, parquet.read_table(out / "index/train.parquet").to_pylist(), strict=True):
        assert {k: v for k, v in old.items() if "_bytes" not in k} == {
            k: v for k, v in new.items() if "_bytes" not in k
        }
        assert all(new[k] >= old[k] for k in old if "_bytes" in k)  # the last one of a tar counts its end as well


def test_an_export_changes_no_shard_and_keeps_the_words_of_a_person(pipeline, out) -> None:
    before = tar_hashes(out)
    export(pipeline, out, "hf")
    export(pipeline, out, "wids")
    export(pipeline, out, "colmap")
    assert tar_hashes(out) == before
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]
    assert "already there" in pipeline("build", "parametric", "--out", out, "--workers", 0, *OBJECTS).stderr
    assert "# license: " in (out / "README.md").read_text()
    export(pipeline, out, "hf")  # the same words: nothing to refuse
    (out / "README.md").write_text("mine")
    assert "--overwrite" in pipeline("export", out, "--format", "hf", code=2).stderr
    assert (out / "README.md").read_text() == "mine"
    export(pipeline, out, "hf", "--overwrite", "--license", "mit")
    assert front_matter(out)["license"] == "mit"


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_of_its_own_is_a_build_with_the_wanted_views(pipeline, out, tmp_path, copy: bool) -> None:
    hub = tmp_path / "hub"
    export(pipeline, out, "hf", "--to", hub, "--views", "rgb12", *["--copy"] * copy)
    export(pipeline, out, "hf", "--to", hub, "--views", "rgb12", *["--copy"] * copy)  # again: no matter
    assert [c["config_name"] for c in front_matter(hub)["configs"]] == ["shapes", "meshes", "rgb12"]
    assert sorted(p.name for p in (hub / "views").iterdir()) == ["rgb12"]
    tars = list(hub.rglob("*.tar"))
    assert len(tars) == 3 * len(list(out.glob("shapes/*.tar")))
    assert all(tar.is_symlink() is not copy for tar in tars)
    assert not any(Path(os.readlink(tar)).is_absolute() for tar in tars if tar.is_symlink())
    assert json.loads(pipeline("check", hub, "--json").stdout)["ok"]
    assert not (out / "README.md").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").write_text("mine")
    assert "is not empty" in pipeline("export", out, "--format", "hf", "--to", tmp_path / "other", code=2).stderr


@pytest.mark.parametrize("how", [("--copy",), ()])
@pytest.mark.parametrize("place", ["recipe.toml", "splits/mine.txt", "shapes", "views/rgb12/manifest.json"])
def test_a_link_out_of_the_build_is_refused(out, tmp_path, monkeypatch, capsys, place: str, how: tuple) -> None:
    """A build of somebody else would hand on what its links name: a key, a password."""
    secret = tmp_path / "secret"
    if (out / place).is_dir():
        shutil.copytree(out / place, secret)
        shutil.rmtree(out / place)
    else:
        secret.write_text("of mine")
        (out / place).unlink(missing_ok=True)
    (out / place).parent.mkdir(exist_ok=True)
    (out / place).symlink_to(secret)
    if place.endswith("manifest.json"):
        secret.write_text((out / "views/depth10/manifest.json").read_text().replace("depth10", "rgb12"))
    targets = [str(tmp_path / "hub"), *(["memory://links/hub"] if how else [])]
    for target in targets:
        assert main(["export", str(out), "--format", "wids", "--to", target, *how]) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert f"{out / place} is a link to {secret}, out of the build" in message
        assert not store.list_names(target)


def test_a_link_inside_the_build_is_copied(out, tmp_path) -> None:
    (out / "splits").mkdir(exist_ok=True)
    (out / "splits" / "mine.txt").symlink_to("../assets.jsonl")
    assert main(["export", str(out), "--format", "wids", "--to", str(tmp_path / "hub"), "--copy"]) == 0
    assert (tmp_path / "hub" / "splits" / "mine.txt").read_bytes() == (out / "assets.jsonl").read_bytes()
    assert not (tmp_path / "hub" / "splits" / "mine.txt").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        (("inspect", "OUT", "--objects", "1", "--png", "URL/sheet.png"), "sheet.png"),
        (("inspect", "OUT", "--objects", "1", "--html", "URL/page.html"), "page.html"),
        (("export", "OUT", "--format", "colmap", "--to", "URL/model"), "model"),
        (("export", "OUT", "--format", "wids", "--copy", "--to", "URL/hub"), "hub"),
    ],
)
def test_a_url_is_no_local_folder(built, tmp_path, monkeypatch, arguments: tuple[str, ...], made: str) -> None:
    """What takes a URL writes there; no folder `memory:` appears beside it."""
    monkeypatch.chdir(tmp_path)
    url = f"memory://urls{hash(arguments)}"
    assert main([text.replace("OUT", str(built)).replace("URL", url) for text in arguments]) == 0
    assert store.list_names(url) == [made]
    assert not list(tmp_path.iterdir())


def test_wids_and_webdataset_read_the_shards(pipeline, out, tmp_path) -> None:
    import webdataset
    import wids

    files = export(pipeline, out, "wids")["files"]
    assert sorted(Path(f).name for f in files) == sorted(
        f"{what}-{split}.json"
        for what in ("shapes", "meshes", "views-rgb12", "views-depth10")
        for split in ("train", "test")
    )
    shapes, views = stored(out), stored(out, "rgb12")
    for name, expected in (("shapes", shapes), ("views-rgb12", views)):
        index = out / f"wids/{name}-train.json"
        train = [key for key in expected if shapes[key].json["split"] == "train"]
        (tmp_path / name).mkdir()
        dataset = wids.ShardListDataset(str(index), cache_dir=str(tmp_path / name), transformations=[])
        assert len(dataset) == len(train)
        for number, key in enumerate(train):
            sample = dataset[number]
            assert sample["__key__"] == key
            members = {s.removeprefix("."): data.read() for s, data in sample.items() if s.startswith(".")}
            assert members == expected[key].members
        urls = [str((index.parent / s["url"]).resolve()) for s in json.loads(index.read_text())["shardlist"]]
        read = list(webdataset.WebDataset(urls, shardshuffle=False))
        assert [sample["__key__"] for sample in read] == train
        assert all(sample["json"] == expected[sample["__key__"]].members["json"] for sample in read)


def parsed_model(folder: Path) -> tuple[dict, dict, np.ndarray]:
    """A COLMAP text model, parsed by its documentation: cameras, images and points with colours (N, 6)."""
    lines = {
        name: [line for line in (folder / f"sparse/0/{name}.txt").read_text().split("\n") if not line.startswith("#")]
        for name in ("cameras", "images", "points3D")
    }
    cameras = {}
    for line in filter(None, lines["cameras"]):
        number, model, width, height, *parameters = line.split()
        assert model == "PINHOLE"
        cameras[int(number)] = (int(width), int(height), *map(float, parameters))
    images = {}
    for line, observations in zip(lines["images"][:-1:2], lines["images"][1::2], strict=True):
        number, *pose, camera, name = line.split()
        assert observations == ""
        images[name] = (int(number), np.array(pose, float), int(camera))
    return cameras, images, np.array([line.split()[1:7] for line in filter(None, lines["points3D"])], float)


def turned(q: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of a unit quaternion w x y z."""
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def share_inside(points: np.ndarray, pose: np.ndarray, camera: tuple, mask: np.ndarray) -> float:
    """Share of points that fall on a mask made one pixel larger."""
    width, height, fx, fy, cx, cy = camera
    x, y, z = (points @ turned(pose[:4]).T + pose[4:]).T
    u, v = np.floor(fx * x / z + cx).astype(int), np.floor(fy * y / z + cy).astype(int)
    padded = np.pad(mask, 2)
    near = np.zeros_like(padded)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            near |= np.roll(padded, (down, right), (0, 1))
    inside = (u >= -1) & (u <= width) & (v >= -1) & (v <= height) & (z > 0)
    return float(near[v.clip(-2, height + 1) + 2, u.clip(-2, width + 1) + 2][inside].sum() / len(points))


def test_a_cloud_falls_into_the_masks_by_a_colmap_model(pipeline, out, tmp_path) -> None:
    key = next(key for key, sample in stored(out).items() if sample.json["class"] == "chair")
    found = export(pipeline, out, "colmap", "--key", key, "--to", tmp_path / "model")
    assert (found["key"], found["views"], found["folder"]) == (key, "rgb12", str(tmp_path / "model"))
    cameras, images, points = parsed_model(tmp_path / "model")
    assert (len(cameras), len(images), points.shape) == (1, 12, (256, 6))
    wrong = []
    for name, (_, pose, camera) in images.items():
        with (
            Image.open(tmp_path / "model/images" / name) as image,
            Image.open(tmp_path / "model/masks" / f"{name}.png") as mask,
        ):
            assert image.size == mask.size == cameras[camera][:2] == (64, 64)
            shown = np.asarray(mask) > 0
        assert 0.02 < shown.mean() < 0.9
        assert share_inside(points[:, :3], pose, cameras[camera], shown) > 0.99
        wrong.append(share_inside(points[:, :3] * (1, -1, 1), pose, cameras[camera], shown))
    assert np.mean(wrong) < 0.9, "the test could not tell an object on its head"
    sample = stored(out)[key]
    np.testing.assert_array_equal(np.float32(points[:, :3]), decode_array(sample.members["points.npy"]))
    np.testing.assert_array_equal(points[:, 3:], decode_array(sample.members["colors.npy"]))
    views = stored(out, "rgb12")[key]
    assert (tmp_path / "model/images/v007.jpg").read_bytes() == views.members["v07.rgb.jpg"]


def test_colmap_itself_reads_the_model(pipeline, out) -> None:
    import pycolmap

    found = export(pipeline, out, "colmap")
    model = pycolmap.Reconstruction(f"{found['folder']}/sparse/0")
    views = stored(out, "rgb12")[found["key"]].json["views"]
    assert (model.num_cameras(), model.num_images(), model.num_points3D()) == (1, 12, 256)
    point = np.array([0.1, -0.2, 0.3])
    for image in model.images.values():
        view = views[int(image.name[1:4])]
        pose = np.array(view["camera_from_world"])
        np.testing.assert_allclose(image.cam_from_world().matrix(), pose[:3], atol=1e-12)
        projected = np.array(view["K"]) @ (pose[:3, :3] @ point + pose[:3, 3])
        np.testing.assert_allclose(image.project_point(point), projected[:2] / projected[2], atol=1e-9)


def test_real_frames_with_cameras_of_their_own(pipeline, tmp_path) -> None:
    """Sequences of several lengths: the table tells each object's views, the model a camera for every K."""
    import pyarrow.parquet as parquet

    write_category(tmp_path / "in", "apple", 2, ["10_0_0", "11_1_1"])
    write_category(tmp_path / "in", "cup", 2, ["12_2_2"], size=(160, 120), num_frames=7)
    out = tmp_path / "out"
    keys = (
        "num_points=256",
        "fps_prefix=64",
        "allow_partial=true",
        "views={frames20={image_size=0}}",
    )
    pipeline("build", "co3d_v2", "--source", tmp_path / "in", "--out", out, "--workers", 0, *keys)
    (view_set,) = [p.name for p in (out / "views").glob("frames20*")]
    drawn = stored(out, view_set)
    export(pipeline, out, "hf", "--to", tmp_path / "hub")
    assert sorted(p.name for p in (tmp_path / "hub/splits").iterdir()) == sorted(
        p.name for p in (out / "splits").iterdir()
    )
    tables = [parquet.read_table(path).to_pylist() for path in (tmp_path / "hub/index").iterdir()]
    counts = {row["key"]: row[f"views_{view_set}_num_views"] for rows in tables for row in rows}
    assert counts == {key: len(sample.json["views"]) for key, sample in drawn.items()}
    key = next(key for key in drawn if key.startswith("cup"))
    assert counts[key] == 7
    export(pipeline, out, "colmap", "--key", key, "--to", tmp_path / "model")
    cameras, images, points = parsed_model(tmp_path / "model")
    assert len(images) == 7
    for name, (_, pose, camera) in images.items():
        with Image.open(tmp_path / "model/images" / name) as image:
            assert image.size == cameras[camera][:2] == (160, 120)
            shown = np.asarray(image.convert("RGB"))[..., 0] < 145  # the dark object of the miniature release
        assert share_inside(points[:, :3], pose, cameras[camera], shown) > 0.97


def test_quaternions_at_every_angle() -> None:
    for azimuth in range(0, 360, 15):
        for elevation in (-80, 0, 35, 80, 100, 180, 225):
            rotation = orbit_rotation(azimuth, elevation)
            q = quaternion(rotation)
            assert q[0] >= 0
            np.testing.assert_allclose(turned(q), rotation, atol=1e-12)


def test_splits_get_names_that_the_hub_takes() -> None:
    assert hub_splits(["train", "test"]) == {"train": "train", "test": "test"}
    assert hub_splits(["all"]) == {"all": "train"}
    assert hub_splits(["all", "train", "my-val"]) == {"all": "everything", "train": "train", "my-val": "my_val"}


REFUSED = {
    "no build": (("hf",), lambda out: out / "nowhere", "holds no build"),
    "no view set": (("hf", "--views", "rgb13"), lambda out: out, "did you mean rgb12?"),
    "among the shards": (("wids", "--to", "{out}/views/mine"), lambda out: out, "nothing is written among the shards"),
    "a model among the shards": (("colmap", "--to", "{out}/shapes"), lambda out: out, "among the shards"),
    "no key": (("colmap", "--key", "nosuch"), lambda out: out, "--key nosuch: no such object"),
    "orthographic": (("colmap", "--views", "depth10"), lambda out: out, "depth10 has no RGB"),
    "copy to nowhere": (("wids", "--copy"), lambda out: out, "give --to DIR"),
    "a key of another format": (("hf", "--key", "x"), lambda out: out, "--key is for --format colmap"),
    "a link to a store": (("wids", "--to", "s3://b/c"), lambda out: out, "add --copy"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_name_what_mends_them(pipeline, built, kind: str) -> None:
    (form, *arguments), folder, words = REFUSED[kind]
    before = sorted(built.rglob("*"))
    given = [a.replace("{out}", str(built)) for a in arguments]
    assert words in pipeline("export", folder(built), "--format", form, *given, code=2).stderr
    assert sorted(built.rglob("*")) == before


def test_an_unfinished_or_damaged_build_is_refused(pipeline, out) -> None:
    record = next(out.glob("views/rgb12/*-*.json"))
    record.write_text("{")
    assert "pipeline check" in pipeline("export", out, "--format", "wids", code=2).stderr
    record.unlink()
    assert "has no record" in pipeline("export", out, "--format", "wids", code=2).stderr
    manifest = json.loads((out / "manifest.json").read_text()) | {"complete": False}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "is not finished" in pipeline("export", out, "--format", "wids", code=2).stderr


def test_views_of_other_shapes_are_not_exported(pipeline, out) -> None:
    path = out / "views/rgb12/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shapes_hash": "0" * 64}))
    message = pipeline("export", out, "--format", "wids", code=2).stderr
    assert "views/rgb12 was drawn from other shapes" in " ".join(message.split())
    assert not (out / "wids").exists()


def test_the_card_counts_what_could_not_be_made(out) -> None:
    path = out / "manifest.json"
    values = json.loads(path.read_text())
    values["splits"]["train"] |= {"assets": 1_200, "failures": 3}
    values["splits"]["test"] |= {"assets": 34, "failures": 4}
    path.write_text(json.dumps(values))
    build = open_build(str(out))
    assert "7 of 1,234 objects could not be made" in card(build, survey(build), None)


def test_without_pyarrow_the_command_is_named(pipeline, out) -> None:
    code = (
        "import runpy, sys\nsys.modules['pyarrow'] = None\n"
        "sys.argv = ['pipeline', 'export', sys.argv[1], '--format', 'hf']\n"
        "runpy.run_module('pipeline', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, str(out)]
    result = subprocess.run(command, env=pipeline.environment, cwd=pipeline.tree, capture_output=True, text=True)
    assert (result.returncode, result.stderr.strip()) == (2, str(missing("pyarrow", "export")))
    assert not (out / "README.md").exists()
