"""ModelNet's divisions and the aligned set: whose objects they are, what is counted, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from builders import REPOSITORY, Commands, write_off

from manifests.dataset_info import load_table
from manifests.errors import Refused
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan

pipeline = Commands(REPOSITORY)


def release(folder: Path, train: int, test: int, classes: tuple[str, ...] = ("bed", "night_stand")) -> Path:
    """OFF files numbered through train and test, as ModelNet's are; with what a Mac leaves in archives."""
    for name in classes:
        for number in range(1, train + test + 1):
            split = "train" if number <= train else "test"
            path = folder / name / split / f"{name}_{number:04d}.off"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("OFF3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
        (folder / name / "train" / f"._{name}_0001.off").write_bytes(b"\0\5\26\7")
    (folder / "__MACOSX").mkdir()
    return folder


def ids_of(source: Path, **changes: object) -> dict[str, str]:
    """id -> split of every object of a plan of modelnet40."""
    _, jobs = make_plan(read_recipe("modelnet40", changes), str(source), "unused")
    return {asset.id: asset.split for job in jobs for asset in job.assets}


def test_without_a_list_the_first_80_and_20_of_each_class_with_a_warning(tmp_path) -> None:
    source = release(tmp_path / "ModelNet40", 90, 25)
    found = ids_of(source, split="mvcnn80_20", allow_partial=True)
    assert Counter(found.values()) == {"train": 160, "test": 40}
    assert found["night_stand_0080"] == "train"
    assert found["bed_0110"] == "test"
    assert not {"bed_0081", "bed_0111"} & set(found)
    with pytest.raises(Refused, match=r"train 160 of 3,183, test 40 of 800; to build it all the same"):
        ids_of(source, split="mvcnn80_20")
    out = ("--out", tmp_path / "out", "--dry-run", "allow_partial=true")
    message = pipeline("build", "modelnet40", "--source", source, *out, "split=mvcnn80_20").stderr
    assert "warning: split=mvcnn80_20 without split_list: the first 80 train and 20 test objects" in message
    assert "200 objects (test 40, train 160)" in message
    assert "split_list" not in pipeline("build", "modelnet40", "--source", source, *out).stderr


def test_a_list_or_the_pictures_themselves_name_the_objects(tmp_path) -> None:
    source = release(tmp_path / "ModelNet40", 3, 2)
    expected = {"bed_0002": "train", "night_stand_0003": "train", "bed_0005": "test"}
    file = tmp_path / "list.txt"
    file.write_text("bed_0002\r\nnight_stand/train/night_stand_0003.off\nbed/test/bed_0005.off\n\n")
    patterns = {"v1": "{class}/{split}/{id}_{view:03d}.jpg", "new": "{class}/{split}/{id}.obj.shaded_v{view:03d}.png"}
    for folder, pattern in patterns.items():
        for id, split in expected.items():
            for view in (1, 12):
                name = pattern.format(**{"class": id[:-5], "split": split, "id": id, "view": view})
                (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / folder / name).touch()
    for split_list in (file, tmp_path / "v1", tmp_path / "new"):
        assert ids_of(source, split="mvcnn80_20", split_list=str(split_list)) == expected
        assert ids_of(source, split_list=str(split_list)) == expected
    plan, _ = make_plan(read_recipe("modelnet40", {"split": "mvcnn80_20", "split_list": str(file)}), str(source), "x")
    assert plan.notes == ()
    with open(file, "a") as more:
        more.write("bed_0099\nbathtub_1\nspaceship_0001\n")
    with pytest.raises(Refused, match="3 of 4 listed objects"):
        ids_of(source, split="mvcnn80_20", split_list=str(file))
    (tmp_path / "empty.txt").write_text("spaceship_0001\n")
    with pytest.raises(Refused, match="no id of modelnet40 in it, such as airplane_0001"):
        ids_of(source, split_list=str(tmp_path / "empty.txt"))
    with pytest.raises(Refused, match=r"not divided by mvcnn; known: mvcnn80_20"):
        ids_of(source, split="mvcnn")


def test_a_division_is_another_build(tmp_path) -> None:
    plain = read_recipe("modelnet40", {})
    assert read_recipe("modelnet40", {"split": "mvcnn80_20"}).shapes_hash() != plain.shapes_hash()
    assert read_recipe("modelnet40", {"split_list": "x"}).shapes_hash() == plain.shapes_hash()
    source, out = release(tmp_path / "ModelNet40", 3, 2, ("bed",)), tmp_path / "out"
    (tmp_path / "list.txt").write_text("bed_0001\nbed_0005\n")
    common = ("build", "modelnet40", "--source", source, "--out", out, "--workers", 0, "views=[]", "num_points=16")
    pipeline(*common, f"split_list={tmp_path / 'list.txt'}")
    assert json.loads(pipeline("check", out, "--json").stdout)["classes"] == {"train": {"bed": 1}, "test": {"bed": 1}}
    refusal = pipeline(*common, "allow_partial=true", code=2).stderr
    assert "was built from another source" in refusal


def test_the_aligned_set_is_a_dataset_of_its_own(tmp_path) -> None:
    aligned, plain = load_table("modelnet40_aligned"), load_table("modelnet40")
    assert (aligned.classes, aligned.counts, aligned.axes) == (plain.classes, plain.counts, plain.axes)
    source = tmp_path / "ModelNet40_manually_aligned"
    for split, number in (("train", 1), ("test", 2)):
        write_off(source / "tv_stand" / split / f"tv_stand_{number:04d}.off")
    common = ("build", "modelnet40_aligned", "--source", source, "--out", tmp_path / "out", "--workers", 0)
    small = ("num_points=64", "fps_prefix=16", "views.rgb12.image_size=32", "views.depth10.image_size=32")
    assert "train 1 of 9,843, test 1 of 2,468" in pipeline(*common, code=2).stderr
    pipeline(*common, "allow_partial=true", *small)
    found = json.loads(pipeline("check", tmp_path / "out", "--json").stdout)
    assert (found["ok"], found["classes"]) == (True, {"test": {"tv_stand": 1}, "train": {"tv_stand": 1}})
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["dataset"] == "modelnet40_aligned"
