"""ShapeNetCore v1 and v2 in their own layouts, to shards: classes, axes, splits, textures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import REPOSITORY, Commands
from shapenet_release import CAR, CHAIR, NO_FACES, RIFLE, box, write_v1, write_v2

from manifests.dataset_info import load_table
from manifests.errors import Refused
from manifests.layout import shapes_tar, views_tar
from manifests.samples import Sample, decode_array, decode_picture, read_samples
from pipeline.datasets.shapenet_lists import read_split_list
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan

pipeline = Commands(REPOSITORY)
SMALL = ("num_points=256", "fps_prefix=64", "views.rgb10.image_size=48", "views.rgb10.name=rgb10", "--workers", 0)
WOODEN, RED = "b718fe66075a7c952af70677c0b21b90", "1016f4debe988507589aae130c1f06fb"  # chairs of the samples
WITHOUT_PICTURES = "a0d3a490ee1b74762a4947824596dce3"
BLUE, ORANGE = (20, 40, 220), (230, 120, 10)
SYNSETS = load_table("shapenet_v2").synsets


def samples(tar: str) -> dict[str, Sample]:
    with open(tar, "rb") as file:
        return {sample.key: sample for _, sample in read_samples(file)}


def object_color(sample: Sample) -> np.ndarray:
    """Mean RGB of what is not white background, over all views."""
    pictures = [decode_picture(data) for name, data in sample.members.items() if name.endswith("rgb.jpg")]
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]).astype(float)
    return pixels[pixels.min(axis=1) < 235].mean(axis=0)


def ids_of(source: Path, name: str = "shapenet_v2", **changes: object) -> dict[str, str]:
    """id -> split of every object of a plan."""
    _, jobs = make_plan(read_recipe(name, {"allow_partial": True, **changes}), str(source), "unused")
    return {asset.id: asset.split for job in jobs for asset in job.assets}


def test_both_releases_become_the_same_objects_and_show_their_textures(tmp_path) -> None:
    corners = box(0.4, 0.6, 0.8)
    write_v2(tmp_path / "ShapeNetCore.v2", CHAIR, "abc", corners, BLUE)
    write_v2(tmp_path / "ShapeNetCore.v2", CAR, "u1-b2", corners, None)
    turned = corners[:, [2, 1, 0]] * [-1, 1, 1]  # world (x, y, z) lies in v1 at (-z, y, x)
    write_v1(tmp_path / "ShapeNetCore.v1", CHAIR, "abc", turned, ORANGE)
    points = {}
    for version, color in (("v1", ORANGE), ("v2", BLUE)):
        name, out = f"shapenet_{version}", tmp_path / version
        source = tmp_path / f"ShapeNetCore.{version}"
        message = pipeline("build", name, "--source", source, "--out", out, *SMALL, code=2).stderr
        assert ("1 of 57 synsets" if version == "v1" else "2 of 55 synsets") in message
        assert not out.exists()
        pipeline("build", name, "--source", source, "--out", out, *SMALL, "allow_partial=true")
        found = json.loads(pipeline("check", out, "--json").stdout)
        assert (found["ok"], found["failures"]) == (True, [])
        shape = samples(shapes_tar(str(out), "train", 0))[f"{CHAIR}-abc"]
        assert (shape.json["class"], shape.json["label"]) == ("chair", load_table(name).classes.index("chair"))
        assert shape.json["warnings"] == []
        points[version] = decode_array(shape.members["points.npy"])
        drawn = object_color(samples(views_tar(str(out), "rgb10", "train", 0))[f"{CHAIR}-abc"])
        np.testing.assert_allclose(drawn / drawn.sum(), np.array(color) / sum(color), atol=0.09)
    np.testing.assert_allclose(points["v1"], points["v2"], atol=1e-6)
    assert found["warnings"] == {"no texture": 1}
    assert found["classes"] == {"train": {"car": 1, "chair": 1}}


def test_one_version_is_refused_by_the_other_and_so_is_a_mixture(tmp_path) -> None:
    write_v1(tmp_path / "one", CHAIR, "abc", box(1, 1, 1), None)
    write_v2(tmp_path / "two", CHAIR, "abc", box(1, 1, 1), None)
    for source, wrong, right in (("one", "shapenet_v2", "shapenet_v1"), ("two", "shapenet_v1", "shapenet_v2")):
        refusal = pipeline("build", wrong, "--source", tmp_path / source, "--out", tmp_path / "out", code=2).stderr
        assert refusal.strip().count("\n") == 0
        assert f"python -m pipeline build {right}" in refusal
        assert not (tmp_path / "out").exists()
    write_v1(tmp_path / "two", CHAIR, "def", box(1, 1, 1), None)
    with pytest.raises(Refused, match=r"def is of shapenet_v1, not of shapenet_v2"):
        ids_of(tmp_path / "two")
    write_v2(tmp_path / "bicycle", "02834778", "abc", box(1, 1, 1), None)
    write_v2(tmp_path / "bicycle", CHAIR, "abc", box(1, 1, 1), None)
    with pytest.raises(Refused, match="shapenet_v2 has no synset 02834778"):
        ids_of(tmp_path / "bicycle")
    with pytest.raises(Refused, match=r"no shapenet_v2 in .*models/model_normalized.obj"):
        ids_of(tmp_path / "two" / CHAIR)


def test_a_whole_release_has_an_object_of_every_synset(tmp_path) -> None:
    for synset in SYNSETS:
        (tmp_path / "Core" / synset / "a" / "models").mkdir(parents=True)
        (tmp_path / "Core" / synset / "a" / "models" / "model_normalized.obj").touch()
    (tmp_path / "Core" / "taxonomy.json").write_text("[]")
    plan, jobs = make_plan(read_recipe("shapenet_v2", {}), str(tmp_path), "unused")
    assets = [asset for job in jobs for asset in job.assets]
    assert {asset.id.partition("-")[0]: asset.class_name for asset in assets} == SYNSETS
    assert plan.classes[plan.label("cellphone")] == SYNSETS["02992529"]
    assert plan.classes == tuple(SYNSETS[synset] for synset in sorted(SYNSETS))


def test_known_broken_objects_are_expected_and_other_failures_are_not(tmp_path) -> None:
    source = tmp_path / "ShapeNetCore.v2"
    for number in range(3):
        write_v2(source, CHAIR, f"good{number}", box(1, 1, 1), None)
    broken = write_v2(source, RIFLE, NO_FACES, box(1, 1, 1), None) / "models" / "model_normalized.obj"
    broken.write_text("v 0 0 0\n")
    common = ("build", "shapenet_v2", "--source", source, "allow_partial=true", "views=[]", *SMALL[:2], *SMALL[4:])
    message = pipeline(*common, "--out", tmp_path / "out").stderr
    assert "3 objects, 1 failure (1 expected)" in message
    assert "the file has no faces (expected: no faces)" in message
    (source / CAR / "without").mkdir(parents=True)
    message = pipeline(*common, "--out", tmp_path / "more", code=1).stderr
    assert "3 objects, 2 failures (1 expected)" in message
    assert "25.0%, more than max_failed_fraction=0.01" in message
    found = json.loads(pipeline("check", tmp_path / "more", "--json").stdout)
    assert found["ok"]
    assert "3 objects, 2 failures (1 expected)" in pipeline("check", tmp_path / "more").stdout
    failures = found["failures"]
    assert {f["id"]: f["reason"] for f in failures} == {
        f"{RIFLE}-{NO_FACES}": "the file has no faces",
        f"{CAR}-without": "cannot be read: No such file or directory",
    }


def test_objects_that_lead_out_of_the_source_are_built_where_a_person_names_the_folder(tmp_path) -> None:
    source = tmp_path / "ShapeNetCore.v2"
    write_v2(source, CHAIR, "good", box(1, 1, 1), None)
    outside = write_v2(tmp_path / "elsewhere", CHAIR, "bad", box(1, 1, 1), None)
    (source / CHAIR / "linked").symlink_to(outside)
    (source / CHAIR / "above").mkdir()
    (source / CHAIR / "above" / "models").symlink_to(outside / "models")
    out, policy = tmp_path / "out", ("allow_partial=true", "views=[]", *SMALL[:2], *SMALL[4:])
    build = ("build", "shapenet_v2", "--source", source, "--out", out, *policy)
    told = pipeline(*build, code=2).stderr
    assert f"leads out of the source for 2 of 3 objects, such as {CHAIR}/above/models/model_normalized.obj" in told
    assert f"--follow-links {outside}\n" in told
    assert not out.exists()
    pipeline(*build, "--follow-links", outside)
    ids = {sample.json["id"] for sample in samples(shapes_tar(str(out), "train", 0)).values()}
    assert ids == {f"{CHAIR}-{name}" for name in ("above", "good", "linked")}


def release(folder: Path) -> Path:
    """Eleven empty models; a plan reads none of them."""
    models = [(CHAIR, f"{n}") for n in range(8)] + [(CHAIR, "u6028f63e-4111"), (CAR, "0"), (RIFLE, "0")]
    for synset, model in models:
        (folder / synset / model / "models").mkdir(parents=True)
        (folder / synset / model / "models" / "model_normalized.obj").touch()
    return folder


def test_the_lists_of_shapenet55_split_at_the_first_hyphen(tmp_path) -> None:
    source, lists = release(tmp_path / "core"), tmp_path / "ShapeNet-55"
    lists.mkdir()
    (lists / "train.txt").write_text(f"{CHAIR}-0.npy\n{CHAIR}-u6028f63e-4111.npy\n{CHAIR}-.npy\n\n")
    (lists / "test.txt").write_text(f"{CAR}-0.npy\r\n{CAR}-gone.npy\r\n")
    expected = {f"{CHAIR}-0": "train", f"{CHAIR}-u6028f63e-4111": "train", f"{CAR}-0": "test"}
    assert ids_of(source, split_list=str(lists)) == expected
    assert ids_of(source, split_list=str(lists / "test.txt")) == {f"{CAR}-0": "test"}
    (lists / "val.txt").write_text(f"{CHAIR}-0.npy\n")  # in two lists: never moved out of train
    assert ids_of(source, split_list=str(lists)) == expected
    (lists / "val.txt").unlink()
    with pytest.raises(Refused, match=r"not the whole shapenet_v2: test 1 of 2; to build"):
        ids_of(source, split_list=str(lists), allow_partial=False)
    recipe = read_recipe("shapenet_v2", {"split_list": str(lists), "allow_partial": True})
    assert make_plan(recipe, str(source), "unused")[0].notes == ("split_list: 1 of its rows have a synset and no id",)
    (lists / "test.txt").write_text(f"{CAR}-0.npy\n")
    assert ids_of(source, split_list=str(lists), allow_partial=False) == expected
    assert recipe.shapes_hash() == read_recipe("shapenet_v2", {"allow_partial": True}).shapes_hash()


def test_the_shrec_csv_keeps_ids_as_text(tmp_path) -> None:
    source, file = release(tmp_path / "core"), tmp_path / "split.csv"
    rows = [f"000003,{CHAIR},{CHAIR},0,train", f"000004,{CHAIR.lstrip('0')},{CHAIR},1,val", f"5,{RIFLE},{RIFLE},0,test"]
    file.write_text("\n".join(["id,synsetId,subSynsetId,modelId,split", *rows]) + "\n")
    assert ids_of(source, split_list=str(file), allow_partial=False) == {
        f"{CHAIR}-0": "train",
        f"{CHAIR}-1": "val",
        f"{RIFLE}-0": "test",
    }


def test_both_kinds_of_r2n2_json(tmp_path) -> None:
    source, file = release(tmp_path / "core"), tmp_path / "split.json"
    file.write_text(json.dumps({"train": {CHAIR: {"0": [0, 1], "1": [2]}}, "test": {CHAIR: {"1": [3]}, CAR: ["0"]}}))
    expected = {f"{CHAIR}-0": "train", f"{CHAIR}-1": "train", f"{CAR}-0": "test"}
    assert ids_of(source, split_list=str(file), allow_partial=False) == expected
    file.write_text(json.dumps({CHAIR: {"id": CHAIR, "name": "chair"}, CAR: {"id": CAR, "name": "car,auto"}}))
    found = ids_of(source, split_list=str(file), allow_partial=False)
    assert [found[f"{CHAIR}-{n}"] for n in range(8)] == ["train"] * 7 + ["test"]
    assert found[f"{CHAIR}-u6028f63e-4111"] == "test"
    assert f"{RIFLE}-0" not in found
    file.write_text(json.dumps({CHAIR: {"id": CHAIR}, "bench": {"id": "02828884"}}))
    with pytest.raises(Refused, match="no object of 02828884"):
        ids_of(source, split_list=str(file), allow_partial=False)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("list.txt", f"{CHAIR}-0.npy\n", "train, val or test must be in its name"),
        ("train.txt", f"{CHAIR}-0.npy\nchair-1.npy\n", "row 2: 'chair' is no synset"),
        ("train.txt", "\n", "no object in it"),
        ("a.csv", "id,modelId,split\n", "no column synsetId"),
        ("a.csv", f"synsetId,modelId,split\n{CHAIR},0,dev\n", "row 2: the split 'dev'"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[1]", "not an object of objects"),
        ("a.json", '{"train": {"03001627": 3}}', "neither a list of ids"),
        ("a.csv", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_list_that_cannot_be_read_says_where(tmp_path, name: str, text: str | bytes, words: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Refused, match=words) as caught:
        read_split_list(str(tmp_path / name), SYNSETS, [])
    assert f"split_list={tmp_path / name}" in str(caught.value)


def test_a_missing_list_and_a_division_that_there_is_not_are_refused(tmp_path) -> None:
    with pytest.raises(Refused, match="split_list: no such file"):
        ids_of(release(tmp_path), split_list="nowhere.txt")
    with pytest.raises(Refused, match=r"unknown key split; .*shapenet_v2 reads split_list"):
        ids_of(tmp_path, split="mvcnn80_20")
    with pytest.raises(Refused, match="unknown key split_list"):
        make_plan(read_recipe("parametric", {"split_list": str(tmp_path)}), None, "unused")


def test_the_samples_show_their_textures(shared, tmp_path) -> None:
    """Colours of the sample chairs: a wooden one, a red one; an aeroplane with and one without pictures."""
    root = shared / "samples"
    for version in ("v1", "v2"):
        source = root / f"ShapeNetCore.{version}"
        pipeline(
            "build",
            f"shapenet_{version}",
            "--source",
            source,
            "--out",
            tmp_path / version,
            *SMALL,
            "allow_partial=true",
        )
        found = json.loads(pipeline("check", tmp_path / version, "--json").stdout)
        assert (found["ok"], found["failures"]) == (True, [])
        assert found["samples"] == len(list(source.glob("*/*")))
    drawn = samples(views_tar(str(tmp_path / "v2"), "rgb10", "train", 0))
    wooden, red = (object_color(drawn[f"{CHAIR}-{id}"]) for id in (WOODEN, RED))
    assert wooden[0] > 1.3 * wooden[2]
    assert red[0] > 2.5 * red[2]
    shapes = samples(shapes_tar(str(tmp_path / "v2"), "train", 0))
    kinds = {key: [w["type"] for w in sample.json["warnings"]] for key, sample in shapes.items()}
    assert [key for key, found in kinds.items() if "no texture" in found] == [f"02691156-{WITHOUT_PICTURES}"]
    assert not any("texture not found" in found for found in kinds.values())
    (v1,) = samples(views_tar(str(tmp_path / "v1"), "rgb10", "train", 0)).values()
    assert object_color(v1)[0] > 1.1 * object_color(v1)[2]
