"""Releases of clouds in rows: each in its owners' layout, built by the command, and refused where it is another one."""

from __future__ import annotations

import numpy as np
import pytest
import releases
from releases import NUM_POINTS, cloud, write_h5, write_scan

from manifests.errors import Refused
from manifests.layout import read_manifest, shapes_tar, views_tar
from manifests.records import Asset, read_record, record_path
from manifests.samples import decode_array, decode_picture, read_samples
from pipeline.__main__ import main
from pipeline.datasets import shapenetpart
from pipeline.datasets.options import CloudLimit
from pipeline.datasets.scanobjectnn import main_instance
from pipeline.datasets.splits import compare_counts
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan

SMALL_DEPTH = ("views.depth10.image_size=32", "views.depth10.name=depth10")


def samples_of(path: str) -> dict:
    with open(path, "rb") as file:
        return {sample.key: sample for _, sample in read_samples(file)}


def listed(name: str, source, tmp_path, **changes) -> dict:
    """key -> Asset of a partial copy."""
    recipe = read_recipe(name, {"allow_partial": True, **changes})
    _, jobs = make_plan(recipe, str(source), str(tmp_path / "out"))
    return {asset.key: asset for job in jobs for asset in job.assets}


def refusal(name: str, source, tmp_path, **changes) -> str:
    with pytest.raises(Refused) as caught:
        make_plan(read_recipe(name, changes), str(source), str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def normalised(points: np.ndarray) -> np.ndarray:
    moved = points.astype(np.float64) - points.astype(np.float64).mean(axis=0)
    return moved / np.linalg.norm(moved, axis=1).max()


def same_cloud(stored: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(stored[np.lexsort(stored.T)], expected[np.lexsort(expected.T)], atol=1e-5)


def test_modelnet40_h5(pipeline, tmp_path) -> None:
    source, out = releases.modelnet40_h5(tmp_path), tmp_path / "out"
    told = pipeline("build", "modelnet40_d", "--source", tmp_path, "--out", out, "--workers", 0, code=2)
    assert "train 5 of 9,840, test 2 of 2,468" in told.stderr
    assert not out.exists()
    pipeline(
        "build", "modelnet40_d", "--source", source, "--out", out, "--workers", 0, "allow_partial=true", *SMALL_DEPTH
    )
    train, test = (samples_of(shapes_tar(str(out), split, 0)) for split in ("train", "test"))
    assert {key: sample.json["class"] for key, sample in (train | test).items()} == {
        "ply_data_train0-00000": "airplane",
        "ply_data_train0-00001": "xbox",
        "ply_data_train0-00002": "chair",
        "ply_data_train1-00000": "chair",
        "ply_data_train1-00001": "night_stand",
        "ply_data_test0-00000": "chair",
        "ply_data_test0-00001": "bottle",
    }
    sample = train["ply_data_train0-00002"]
    assert sample.json["label"] == 8
    assert same_cloud(decode_array(sample.members["points.npy"]), normalised(cloud(2)))
    views = samples_of(views_tar(str(out), "realistic10", "train", 0))
    assert set(views) == set(train)
    assert decode_picture(views["ply_data_train0-00002"].members["v09.gray.png"]).std() > 10
    assert not (out / "meshes").exists()


def test_modelnet40_text_is_recognised_from_its_files(pipeline, tmp_path) -> None:
    source, out = releases.modelnet40_text(tmp_path), tmp_path / "out"
    assert "train 2 of 9,843, test 1 of 2,468" in refusal("modelnet40_d", source, tmp_path)
    pipeline(
        "build", "modelnet40_d", "--source", source, "--out", out, "--workers", 0, "allow_partial=true", *SMALL_DEPTH
    )
    train = samples_of(shapes_tar(str(out), "train", 0))
    assert {key: sample.json["class"] for key, sample in train.items()} == {
        "night_stand_0001": "night_stand",
        "chair_0001": "chair",
    }
    points = decode_array(train["chair_0001"].members["points.npy"])
    assert points.shape == (2048, 3)
    assert "colors.npy" not in train["chair_0001"].members
    assert train["chair_0001"].json["warnings"] == []
    releases.modelnet40_h5(tmp_path)
    assert "several copies of modelnet40_d" in refusal("modelnet40_d", tmp_path, tmp_path, allow_partial=True)
    assert set(listed("modelnet40_d", tmp_path, tmp_path, split="normal_resampled")) == {*train, "chair_0890"}


def test_scanobjectnn_variants(pipeline, tmp_path) -> None:
    source, out = releases.scanobjectnn_h5(tmp_path), tmp_path / "out"
    hardest = ("build", "scanobjectnn_hardest", "--source", source, "--out", out, "--workers", 0)
    told = pipeline(*hardest, code=2)
    assert "train 4 of 11,416, test 3 of 2,882" in told.stderr
    pipeline(*hardest, "allow_partial=true", *SMALL_DEPTH)
    manifest = read_manifest(str(out))
    assert manifest.classes[4] == "chair"
    train = samples_of(shapes_tar(str(out), "train", 0))
    test = read_record(record_path(shapes_tar(str(out), "test", 0)))
    assert set(train) == {f"hardest-{row:05d}" for row in range(4)}
    assert set(test.keys) == {"hardest-11416", "hardest-11417", "hardest-11418"}
    assert [train[f"hardest-{row:05d}"].json["class"] for row in range(4)] == ["chair", "chair", "table", "toilet"]
    points = decode_array(train["hardest-00001"].members["points.npy"])
    assert same_cloud(points, normalised(cloud(1)))  # not centred in the file
    assert "parts.npy" not in train["hardest-00001"].members
    for name, short, folder in (
        ("scanobjectnn_obj", "obj", "main_split_nobg"),
        ("scanobjectnn_bg", "bg", "main_split"),
    ):
        found = listed(name, source, tmp_path)
        assert found[f"{short}-00001"].source == f"{folder}/training_objectdataset.h5#1"
        assert found[f"{short}-02310"].source == f"{folder}/test_objectdataset.h5#1"
        assert found[f"{short}-02310"].class_name == "chair"
    first = listed("scanobjectnn_obj", source, tmp_path, split="split1")
    assert first["obj-00000"].source == "split1_nobg/training_objectdataset.h5#0"
    assert "train and test 5 of 2,890" in refusal("scanobjectnn_obj", source, tmp_path, split="split1")
    assert "known: split1, split2, split3, split4" in refusal("scanobjectnn_obj", source, tmp_path, split="split5")


def test_the_wrong_file_of_scanobjectnn_is_named(tmp_path) -> None:
    source = releases.scanobjectnn_h5(tmp_path)
    partial = {"allow_partial": True}
    only_hard = tmp_path / "hard"
    folder = only_hard / "main_split"
    write_h5(folder / "training_objectdataset_augmentedrot_scale75.h5", [4], "i8", column=False)
    told = refusal("scanobjectnn_bg", only_hard, tmp_path, **partial)
    assert "this is PB_T50_RS: use scanobjectnn_hardest" in told
    write_h5(tmp_path / "moved" / "test_objectdataset_augmented25rot.h5", [4], "i8", column=False)
    assert "this is PB_T25_R: no recipe reads it" in refusal(
        "scanobjectnn_hardest", tmp_path / "moved", tmp_path, **partial
    )
    told = refusal("scanobjectnn_obj", source / "main_split", tmp_path, **partial)
    assert "this is OBJ_BG: use scanobjectnn_bg" in told
    assert "use scanobjectnn_obj split=split1" in refusal(
        "scanobjectnn_obj", source / "split1_nobg", tmp_path, **partial
    )

    tiny = np.zeros((11_416, 1, 3), np.float32)
    renamed = tmp_path / "renamed" / "main_split" / "training_objectdataset.h5"
    write_h5(renamed, np.zeros(11_416), "i8", column=False, data=tiny)
    told = refusal("scanobjectnn_bg", tmp_path / "renamed", tmp_path, **partial)
    assert "has 11,416 objects, not 2,309: this is PB_T50_RS: use scanobjectnn_hardest" in told

    loose = tmp_path / "loose"
    mask = np.full((1, releases.NUM_POINTS), -1)
    write_h5(loose / "training_objectdataset.h5", [4], "i8", column=False, mask=mask)
    assert "this is OBJ_BG: use scanobjectnn_bg" in refusal("scanobjectnn_obj", loose, tmp_path, **partial)
    assert set(listed("scanobjectnn_bg", loose, tmp_path)) == {"bg-00000"}
    write_h5(loose / "training_objectdataset.h5", [4], "i8", column=False)
    assert "put it into a folder main_split" in refusal("scanobjectnn_bg", loose, tmp_path, **partial)


def test_raw_scans_of_scanobjectnn(pipeline, tmp_path) -> None:
    source = releases.scanobjectnn_raw(tmp_path)
    write_scan(source / "object_dataset" / "bag" / "025_00011.bin", cloud(6, 10), np.full(10, 40), announced=3000)
    arguments = ("--workers", 0, "allow_partial=true", "max_failed_fraction=0.5", *SMALL_DEPTH)
    for short in ("obj", "bg"):
        out = tmp_path / short
        pipeline("build", f"scanobjectnn_{short}", "--source", source, "--out", out, *arguments)
        record = read_record(record_path(shapes_tar(str(out), "train", 0)))
        assert [(f.key, f.stage, f.reason) for f in record.failures] == [
            (f"{short}-00003", "load", "3,000 points announced, 10.0 are there: cut, or lying")
        ]
        sample = samples_of(shapes_tar(str(out), "train", 0))[f"{short}-00000"]
        assert sample.json["class"] == "chair"
        assert sample.json["source"] == "object_dataset/chair/scene0000_00_00032.bin"
        centre = sample.json["world_from_source"]
        scanned = -np.array(centre)[:3, 3] / centre[0][0]
        near = np.linalg.norm(scanned - cloud(1, 2500).mean(axis=0)) < 0.1
        assert near == (short == "obj")  # the wall and the second object are in OBJ_BG only
        assert samples_of(shapes_tar(str(out), "test", 0)).keys() == {f"{short}-00002"}  # 00001 is too small
    assert "train 2 of 2,309, test 1 of 581" in refusal("scanobjectnn_bg", source, tmp_path)
    assert "is read from h5 files" in refusal("scanobjectnn_hardest", source, tmp_path)


def test_the_object_of_a_scan_is_its_most_frequent_label() -> None:
    assert main_instance(np.array([0, 0, 0, 0, 5, 7, 7, 2, 2, 2])) == 7
    assert main_instance(np.array([9.0, 5.0, 9.0, 5.0])) == 5
    with pytest.raises(ValueError, match="no point of the object"):
        main_instance(np.array([0, 1, 2]))


@pytest.mark.parametrize(
    "line", ["../../a.bin\t0", "a.bin\t15", "a.bin\tchair", "a.bin\t0\tt\tx", "a.bin\t0\tv", "a.bin"]
)
def test_a_bad_line_of_a_raw_list_is_refused(tmp_path, line: str) -> None:
    source = releases.scanobjectnn_raw(tmp_path)
    (source / "training_data" / "main_split.txt").write_text(f"005_00020.bin\t0\n{line}\n")
    assert "main_split.txt, line 2" in refusal("scanobjectnn_obj", source, tmp_path, allow_partial=True)


def test_shapenetpart_has_parts(pipeline, tmp_path) -> None:
    source, out = releases.shapenetpart(tmp_path), tmp_path / "out"
    assert "train 3 of 12,137, val 1 of 1,870, test 1 of 2,874" in refusal("shapenetpart", source, tmp_path)
    pipeline(
        "build", "shapenetpart", "--source", tmp_path, "--out", out, "--workers", 0, "allow_partial=true", *SMALL_DEPTH
    )
    sample = samples_of(shapes_tar(str(out), "train", 0))["ply_data_train0-00001"]
    assert sample.json["class"] == "Table"
    points, parts = decode_array(sample.members["points.npy"]), decode_array(sample.members["parts.npy"])
    assert parts.dtype == np.uint8
    assert parts.shape == (2048,)
    expected = {tuple(np.round(p, 4)): 47 + i % 3 for i, p in enumerate(normalised(cloud(1)))}
    found = [expected.get(tuple(np.round(p.astype(np.float64), 4))) for p in points]
    known = [(f, p) for f, p in zip(found, parts, strict=True) if f is not None]
    assert len(known) > 1900  # the others differ in a last digit
    assert all(f == p for f, p in known)
    assert read_manifest(str(out)).splits.keys() == {"train", "val", "test"}
    assert "use shapenetpart" in refusal("modelnet40_d", source, tmp_path, allow_partial=True)
    other = releases.modelnet40_h5(tmp_path / "other")
    assert "use modelnet40_d" in refusal("shapenetpart", other, tmp_path, allow_partial=True)


def test_another_order_of_classes_is_refused(tmp_path) -> None:
    source = releases.modelnet40_h5(tmp_path)
    names = list(make_plan(read_recipe("modelnet40_d", {"allow_partial": True}), str(source), "o")[0].classes)
    (source / "shape_names.txt").write_text("\n".join(names) + "\n")
    assert len(listed("modelnet40_d", source, tmp_path)) == 7
    (source / "shape_names.txt").write_text("\n".join(names[::-1]))
    assert "in another order" in refusal("modelnet40_d", source, tmp_path, allow_partial=True)


MODELNET, SCANS, PARTS = "modelnet40_d", "scanobjectnn_bg", "shapenetpart"


@pytest.mark.parametrize(
    ("recipe", "labels", "dtype", "others", "words"),
    [
        (MODELNET, [1, 8, 40], "u1", {}, "its labels are 1..40: counted from 1; 0..39 are expected"),
        (MODELNET, [0, 40], "u1", {}, "its labels are 0..40; 0..39 are expected"),
        (MODELNET, [-1, 0, 39], "i4", {}, "its labels are -1..39; 0..39 are expected"),
        (MODELNET, [2**63, 3], "u8", {}, "0..39 are expected"),
        (MODELNET, [1.0, 3.0], "f4", {}, "label of float32 and shape (2, 1); an array of whole numbers is expected"),
        (SCANS, [15, 1], ">i8", {}, "its labels are 1..15: counted from 1; 0..14 are expected"),
        (PARTS, [16, 1], "u1", {"parts": 49}, "its labels are 1..16: counted from 1; 0..15 are expected"),
        (PARTS, [0, 15], "u1", {"parts": 50}, "its part labels are 0..50; 0..49 are expected"),
        (PARTS, [0, 15], "u1", {"parts": -1}, "its part labels are -1..0; 0..49 are expected"),
    ],
)
def test_labels_out_of_range_refuse_the_file(tmp_path, capsys, recipe, labels, dtype, others, words) -> None:
    """Of (N, 1) and of (N,). A label of -1 is not the last class, as Python's own counting would have it."""
    name = {SCANS: "main_split/training_objectdataset.h5"}.get(recipe, "ply_data_train0.h5")
    if others:
        others = {"pid": np.zeros((len(labels), NUM_POINTS), np.int16)} | {"part": others["parts"]}
        others["pid"][-1, 7] = others.pop("part")
    for column in (True, False):
        told = words if column else words.replace("(2, 1)", "(2,)")
        write_h5(tmp_path / "in" / name, labels, dtype, column, **others)
        command = ["build", recipe, "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "0"]
        assert main([*command, "allow_partial=true"]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith(f"{name}: ")
        assert told in line
        assert not (tmp_path / "out").exists()


def test_the_last_labels_are_in_range(tmp_path) -> None:
    write_h5(tmp_path / "one" / "ply_data_test0.h5", [0, 39], "<i4")
    found = listed(MODELNET, tmp_path / "one", tmp_path)
    assert [found[f"ply_data_test0-{row:05d}"].class_name for row in range(2)] == ["airplane", "xbox"]
    pid = np.full((1, NUM_POINTS), 49, np.uint8)
    write_h5(tmp_path / "two" / "ply_data_train0.h5", [15], pid=pid)
    (asset,) = listed(PARTS, tmp_path / "two", tmp_path).values()
    assert shapenetpart.read(asset, tmp_path / "two", CloudLimit()).parts[7] == 49


def test_names_that_contradict_refuse_the_file_that_says_so(tmp_path) -> None:
    """Lists of classes that are not the table's, and raw scans that lie in another class than their label says."""
    part, scans = releases.shapenetpart(tmp_path), releases.scanobjectnn_raw(tmp_path)
    for text, words in (
        ("Airplane 0269\nBag 0277\n", "its 2 classes are not those known: number 2 is missing, cap is expected"),
        ("Airplane\nMug\n", "number 1 is mug, bag is expected"),
    ):
        (part / "all_object_categories.txt").write_text(text)
        told = refusal(PARTS, part, tmp_path, allow_partial=True)
        assert told.startswith(f"{part / 'all_object_categories.txt'}: ")
        assert words in told
    names = scans / "training_data" / "shape_names_ext.txt"
    names.write_text("bin\nbag\n")
    assert f"{names}: its 2 classes" in refusal(SCANS, scans, tmp_path, allow_partial=True)
    names.unlink()
    path = scans / "training_data" / "main_split.txt"
    for line, words in (
        ("scene0000_00_00032.bin\t5", "the label 5 is desk, and scene0000_00_00032.bin lies in chair"),
        ("005_00020.bin\t15", "the label 15; 0..14 are expected"),
    ):
        path.write_text(f"{line}\n")
        assert f"{path}, line 1: {words}" in refusal(SCANS, scans, tmp_path, allow_partial=True)


def test_a_raw_object_has_as_many_points_as_the_release_asks_for(tmp_path) -> None:
    """2,048 points of the object itself are enough; of one point less, or of walls and floor, it is left out."""
    source = releases.scanobjectnn_raw(tmp_path)
    for name, points in (("014_00018", 2048), ("005_00020", 2047)):
        labels = np.repeat([0, 1, 2, 33], [3000, 3000, 3000, points])
        write_scan(source / "object_dataset" / "bag" / f"{name}.bin", cloud(5, len(labels)), labels)
    assert set(listed("scanobjectnn_obj", source, tmp_path)) == {"obj-00000", "obj-00001"}


def test_a_source_with_more_objects_than_the_dataset_is_not_it() -> None:
    assets = [Asset(str(n), str(n), "train") for n in range(3)]
    assert compare_counts({"train": 3}, assets, ()) == []
    assert compare_counts({"train": 2, "test": 1_000}, assets, ()) == ["train 3 of 2", "test 0 of 1,000"]
    assert compare_counts({"train": 4, "test": 1}, assets, ("test",)) == ["test 0 of 1"]


def test_lists_lead_nowhere_else(tmp_path) -> None:
    source = releases.modelnet40_h5(tmp_path)
    write_h5(tmp_path / "secret.h5", [1])
    absolute = f"/somewhere/data/ply_data_train0.h5\r\n../secret.h5\n{tmp_path}/secret.h5.h5\n"
    (source / "train_files.txt").write_text(absolute)
    found = listed("modelnet40_d", source, tmp_path, splits=["train"])
    assert {asset.source.partition("#")[0] for asset in found.values()} == {"ply_data_train0.h5"}
    (source / "ply_data_train9.h5").symlink_to(tmp_path / "secret.h5")
    (source / "train_files.txt").write_text("ply_data_train9.h5\n")
    assert "leads out of the source" in refusal("modelnet40_d", source, tmp_path, allow_partial=True)
    (source / "ply_data_train9.h5").unlink()
    (source / "train_files.txt").write_text("ply_data_train0.h5\nx/ply_data_train0.h5\n")
    assert "names ply_data_train0.h5 twice" in refusal("modelnet40_d", source, tmp_path, allow_partial=True)


def test_without_lists_files_come_in_the_order_of_their_numbers(tmp_path) -> None:
    for number in (10, 2, 0):
        write_h5(tmp_path / f"ply_data_train{number}.h5", [number])
    from pipeline.datasets.release_files import listed_files

    names = listed_files(tmp_path, tmp_path, "train_files.txt", "ply_data_train*.h5")
    assert names == [f"ply_data_train{number}.h5" for number in (0, 2, 10)]


def test_the_sample_of_the_h5_layout(pipeline, shared, tmp_path) -> None:
    source, out = shared / "samples" / "ModelNet40_h5_layout_only", tmp_path / "out"
    if not source.is_dir():
        pytest.skip(f"no sample at {source}")
    pipeline(
        "build", "modelnet40_d", "--source", source, "--out", out, "--workers", 0, "allow_partial=true", *SMALL_DEPTH
    )
    counts = {split: c.samples for split, c in read_manifest(str(out)).splits.items()}
    assert counts == {"train": 24, "test": 16}


def test_the_official_list_of_scanobjectnn(shared, tmp_path) -> None:
    folder = shared / "samples" / "ScanObjectNN" / "training_data"
    if not folder.is_dir():
        pytest.skip(f"no sample at {folder}")
    (tmp_path / "training_data").mkdir()
    text = (folder / "main_split.txt").read_text()
    (tmp_path / "training_data" / "main_split.txt").write_text(text)
    names = (folder / "shape_names_ext.txt").read_text().split()
    for line in text.splitlines():
        name, label, *_ = line.split("\t")
        write_scan(tmp_path / "object_dataset" / names[int(label)] / name, np.zeros((2048, 3)), np.full(2048, 3))
    found = listed("scanobjectnn_obj", tmp_path, tmp_path)
    splits = [asset.split for asset in found.values()]
    assert (splits.count("train"), splits.count("test")) == (2315, 587)
    told = refusal("scanobjectnn_obj", tmp_path, tmp_path)
    assert "train 2,315 of 2,309, test 587 of 581" in told
