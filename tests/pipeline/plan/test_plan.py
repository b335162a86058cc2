"""Recipes into plans: identity, order of jobs, counts, and refusals."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from builders import write_off
from co3d_release import write_category

from manifests.dataset_info import axes_matrix, load_table, table_names
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import cut_jobs, make_plan


def plan_of(tmp_path, name: str = "parametric", source: str | None = None, **changes: object):
    return make_plan(read_recipe(name, changes), source, str(tmp_path / "out"))


def test_policy_keys_and_views_are_in_no_hash(tmp_path) -> None:
    plain = read_recipe("parametric", {})
    for changes in ({"asset_seconds": 3}, {"allow_partial": True}, {"views": {"rgb12": {"image_size": 32}}}):
        assert read_recipe("parametric", changes).shapes_hash() == plain.shapes_hash()
    for changes in ({"seed": 1}, {"num_points": 9}, {"parametric": {"objects": 7}}, {"store_meshes": False}):
        assert read_recipe("parametric", changes).shapes_hash() != plain.shapes_hash()


def test_jobs_do_not_depend_on_the_order_of_assets(tmp_path) -> None:
    _, jobs = plan_of(tmp_path, shard_size=50)
    assets = [asset for job in jobs for asset in job.assets]
    assert cut_jobs(assets[::-1], 0, 50) == jobs
    assert cut_jobs(assets, 1, 50) != jobs
    assert [len(job.assets) for job in jobs if job.split == "train"] == [50, 50, 50, 33]
    first = Counter(asset.class_name for asset in jobs[-1].assets)
    assert len(first) > 8  # a shard is a random sample of its split


def test_view_sets_of_a_recipe(tmp_path) -> None:
    plan, _ = plan_of(tmp_path, views={"depth10": {"name": "small"}})
    assert [s.name for s in plan.view_sets] == ["rgb12", "small"]
    with pytest.raises(Refused, match="two view sets are named"):
        plan_of(tmp_path, views={"depth10": {"name": "rgb12"}})


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ("modelnet41", {}, ["modelnet41", "did you mean modelnet4"]),
        ("parametric", {"num_pints": 3}, ["num_pints", "did you mean num_points"]),
        ("parametric", {"num_points": "many"}, ["num_points", "many"]),
        ("parametric", {"views": {"depht10": {}}}, ["depht10", "did you mean depth10"]),
        ("parametric", {"parametric": {"object": 3}}, ["parametric.object", "objects"]),
        ("parametric", {"axes": ["x", "y", "-z"]}, ["axes", "mirror"]),
        ("parametric", {"classes": ["chair", "zebra"]}, ["zebra"]),
        ("parametric", {"splits": ["tets"]}, ["tets"]),
        ("parametric", {"dataset": "parametrik"}, ["parametrik", "did you mean parametric"]),
        ("modelnet40", {}, ["--source"]),
    ],
)
def test_refusals_are_one_line_that_names_the_key(tmp_path, recipe: str, changes: dict, words: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        plan_of(tmp_path, recipe, **changes)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_classes_choose_and_order_labels(tmp_path) -> None:
    plan, jobs = plan_of(tmp_path, classes=["mug", "bowl"])
    assert plan.classes == ("mug", "bowl")
    assert plan.label("bowl") == 1
    assert {asset.class_name for job in jobs for asset in job.assets} == {"mug", "bowl"}


def modelnet_folder(folder, train: int, test: int):
    for split, first, count in (("train", 1, train), ("test", train + 1, test)):
        for number in range(first, first + count):
            write_off(folder / "night_stand" / split / f"night_stand_{number:04d}.off")
    (folder / "night_stand" / "train" / ".DS_Store").touch()
    return folder


def test_a_partial_copy_is_refused_with_its_counts(tmp_path) -> None:
    source = str(modelnet_folder(tmp_path / "ModelNet40", 3, 2))
    with pytest.raises(Refused, match=r"train 3 of 9,843, test 2 of 2,468.*allow_partial=true"):
        plan_of(tmp_path, "modelnet40", source)
    plan, jobs = plan_of(tmp_path, "modelnet40", source, allow_partial=True)
    assert Counter(a.split for job in jobs for a in job.assets) == {"train": 3, "test": 2}
    assert plan.label(jobs[0].assets[0].class_name) == 23
    inside, _ = plan_of(tmp_path, "modelnet40", str(tmp_path), allow_partial=True)
    assert inside.classes == plan.classes


def test_a_folder_without_the_dataset_is_refused(tmp_path) -> None:
    with pytest.raises(Refused, match="no such folder"):
        plan_of(tmp_path, "modelnet40", str(tmp_path / "nowhere"))
    with pytest.raises(Refused, match="no modelnet40 in"):
        plan_of(tmp_path, "modelnet40", str(tmp_path))


def test_meshes_take_class_and_split_from_folders(tmp_path) -> None:
    source = tmp_path / "mine"
    for path in ("cup/train/a.off", "cup/deep/Test/b.OFF", "train/plate/c.off", "d.off", "cup/e.txt", ".git/f.off"):
        write_off(source / path)
    plan, jobs = plan_of(tmp_path, "meshes", str(source))
    found = {a.id: (a.split, a.class_name) for job in jobs for a in job.assets}
    assert found == {
        "cup/train/a.off": ("train", "cup"),
        "cup/deep/Test/b.OFF": ("test", "cup"),
        "train/plate/c.off": ("train", "plate"),
        "d.off": ("all", None),
    }
    assert plan.classes == ("cup", "plate")
    named, _ = plan_of(tmp_path, "meshes", str(source / "cup"), classes=["spoon"])
    assert named.classes == ("spoon",)


ORIENTATIONS = {  # dataset -> where up and the front lie in its files, and so in the world +Y and -Z
    "modelnet10": ("+z", "-x"),
    "modelnet40": ("+z", "-x"),
    "modelnet40_aligned": ("+z", "-x"),
    "modelnet40_d": ("+y", "-z"),
    "shapenet_v1": ("+y", "+x"),
    "shapenet_v2": ("+y", "-z"),
    "shapenetpart": ("+y", "-z"),
    "scanobjectnn_obj": ("+y", "-z"),
    "scanobjectnn_bg": ("+y", "-z"),
    "scanobjectnn_hardest": ("+y", "-z"),
    "objaverse_lvis": ("+y", "+z"),
    "redwood": ("-y", "+z"),
    "co3d_v1": ("+y", "-z"),
    "co3d_v2": ("+y", "-z"),
    "parametric": ("+y", "-z"),
    "meshes": ("+y", "-z"),
    "points": ("+y", "-z"),
}


@pytest.mark.parametrize("name", table_names())
def test_objects_of_every_dataset_stand_upright_and_look_the_same_way(name: str) -> None:
    def vector(words: str) -> np.ndarray:
        return np.eye(3)["xyz".index(words[1])] * (1 if words[0] == "+" else -1)

    turn = axes_matrix(load_table(name).axes)[:3, :3]
    up, front = map(vector, ORIENTATIONS[name])
    np.testing.assert_array_equal(turn @ up, [0, 1, 0])
    np.testing.assert_array_equal(turn @ front, [0, 0, -1])
    assert np.linalg.det(turn) == pytest.approx(1)


def test_axes_of_the_recipe_replace_those_of_the_dataset(tmp_path) -> None:
    write_off(tmp_path / "mine" / "a.off")
    assert plan_of(tmp_path, "meshes", str(tmp_path / "mine"))[0].axes == ("x", "y", "z")
    assert plan_of(tmp_path, "meshes", str(tmp_path / "mine"), axes=["y", "z", "x"])[0].axes == ("y", "z", "x")


def test_splits_keeps_these_only(tmp_path) -> None:
    _, jobs = plan_of(tmp_path, splits=["test"])
    assert {asset.split for job in jobs for asset in job.assets} == {"test"}


def test_labels_and_words_of_classes(tmp_path) -> None:
    """Of the recipe's order, the table's, or the names of folders sorted; words are the table's where it has some."""
    plan, _ = plan_of(tmp_path, classes=["table", "bowl"])
    assert [plan.label(name) for name in ("table", "bowl", "mug", None)] == [0, 1, None, None]
    for name in ("b", "a", "c"):
        write_off(tmp_path / "mine" / name / "x.off")
    plan, _ = plan_of(tmp_path, "meshes", str(tmp_path / "mine"))
    assert plan.classes == plan.prompt_names == ("a", "b", "c")
    write_category(tmp_path / "co3d", "hairdryer", 2, ["10_0_0"], num_frames=1)
    chosen = {"classes": ["toyplane", "hairdryer"], "allow_partial": True, "views": []}
    plan, _ = plan_of(tmp_path, "co3d_v2", str(tmp_path / "co3d"), **chosen)
    assert plan.prompt_names == ("toy plane", "hair dryer")


@pytest.mark.parametrize(("objects", "sizes"), [(1, [1]), (4, [4]), (5, [4, 1]), (8, [4, 4])])
def test_no_object_is_lost_where_shards_are_cut(objects: int, sizes: list[int]) -> None:
    assets = [Asset(str(n), str(n), "all", None, str(n)) for n in range(objects)]
    jobs = cut_jobs(assets, 0, 4)
    assert [len(job.assets) for job in jobs] == sizes
    assert [job.shard for job in jobs] == list(range(len(sizes)))
    assert sorted(asset.key for job in jobs for asset in job.assets) == sorted(asset.key for asset in assets)


def test_limits_of_a_dataset_are_in_no_hash(tmp_path) -> None:
    for name, limit in (("co3d_v2", "annotations_mb"), ("co3d_v2", "json_depth"), ("redwood", "zip_members")):
        plain = read_recipe(name, {})
        assert read_recipe(name, {name: {limit: 7}}).shapes_hash() == plain.shapes_hash()
        assert read_recipe(name, {name: {"split_seed": 7}}).shapes_hash() != plain.shapes_hash()
