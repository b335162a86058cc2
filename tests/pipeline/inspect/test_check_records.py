"""What `check` holds against each other: records and manifest, tars of one shard, sums of shards, another build."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import stored, write_off

from manifests.records import write_json
from manifests.samples import decode_array, decode_picture, encode_array, encode_json, encode_picture, read_samples
from pipeline.inspect.check import check
from pipeline.inspect.compare_builds import compare
from pipeline.jobs.build import build
from pipeline.jobs.driver import Workers
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan
from pipeline.shards.writer import ShardWriter

VIEWS = {
    "rgb12": {"image_size": 16, "name": "rgb12", "rgb_format": "png"},
    "depth10": {"image_size": 16, "name": "depth10"},
}
SMALL = {"num_points": 64, "fps_prefix": 16, "shard_size": 3, "views": VIEWS}
Objects = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Five solids of two classes and two clouds in three shards: of three objects, of three, and of one."""
    folder = tmp_path_factory.mktemp("checked")
    for number in range(5):
        write_off(folder / "mine" / ("a", "b")[number % 2] / f"solid{number}.off", 1 + number)
    corners = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    for number in range(2):
        rows = "".join(f"{x} {y} {z} {200 + number} 7 9\n" for x, y, z in corners)
        fields = "".join(f"property float {axis}\n" for axis in "xyz")
        fields += "".join(f"property uchar {color}\n" for color in ("red", "green", "blue"))
        head = f"ply\nformat ascii 1.0\nelement vertex 4\n{fields}end_header\n"
        (folder / "mine" / "a" / f"cloud{number}.ply").write_text(head + rows)
    plan, jobs = make_plan(read_recipe("meshes", SMALL), str(folder / "mine"), str(folder / "out"))
    build(plan, jobs, Workers(0), lambda *_: None, lambda _: None)
    assert [len(job.assets) for job in jobs] == [3, 3, 1]
    return folder / "out"


@pytest.fixture
def out(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "out"))


def rewrite(tar: Path, change: Callable[[Objects], Objects | None]) -> None:
    """Writes a tar with other objects in it, and a record that is right about it."""
    record = json.loads(tar.with_suffix(".json").read_text())
    with open(tar, "rb") as file:
        objects: Objects = {sample.key: dict(sample.members) for _, sample in read_samples(file)}
    objects = change(objects) or objects
    file = io.BytesIO()
    writer = ShardWriter(str(tar), file, record["hash"])
    for key, members in objects.items():
        writer.add(key, members)
    writer.close()
    tar.write_bytes(file.getvalue())
    made = writer.record(record["versions"], record["seconds"]).to_json()
    write_json(str(tar.with_suffix(".json")), made | {"skipped": record["skipped"], "failures": record["failures"]})


def change_json(objects: Objects, **values: object) -> None:
    """Changes the json of the first object."""
    members = next(iter(objects.values()))
    members["json"] = encode_json(json.loads(members["json"]) | values)


def spoil_point(objects: Objects) -> None:
    members = next(iter(objects.values()))
    points = decode_array(members["points.npy"]).copy()
    points[3, 1] = np.nan
    members["points.npy"] = encode_array(points)


def without_first(objects: Objects) -> Objects:
    return dict(list(objects.items())[1:])


def reversed_order(objects: Objects) -> Objects:
    return dict(reversed(objects.items()))


ODD = {
    "another object's json": ("shapes", lambda o: change_json(o, key="other"), "json is of another format or key"),
    "the label of another class": ("shapes", lambda o: change_json(o, label=1, **{"class": "a"}), "label 1 is not"),
    "a label beyond the last": ("shapes", lambda o: change_json(o, label=2), "label 2 is not class"),
    "a point that is none": ("shapes", spoil_point, "points are float32"),
    "fewer points than it says": ("shapes", lambda o: change_json(o, num_points=63), "points are float32"),
    "an object without its mesh": ("meshes", without_first, "keys are not those of the shapes ("),
    "an object without its views": ("views/depth10", without_first, "keys are not those of the shapes ("),
    "views in another order": ("views/depth10", reversed_order, "keys are not those of the shapes (another order)"),
    "fewer views than the preset has": (
        "views/depth10",
        lambda o: change_json(o, views=json.loads(next(iter(o.values()))["json"])["views"][:-1]),
        "9 views, the preset has 10",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_does_not_belong_together_is_found_behind_right_records(out, kind: str) -> None:
    folder, change, words = ODD[kind]
    (tar,) = (path for path in (out / folder).glob("*-00001.tar"))
    rewrite(tar, lambda objects: None)
    assert check(str(out)).problems == []  # only the change is found
    rewrite(tar, change)
    found = check(str(out))
    assert any(words in problem for problem in found.problems), found.problems
    assert str(tar) in found.damaged


def change_record(path: Path, change: Callable[[dict], None]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("folder", ["shapes", "meshes", "views/rgb12"])
def test_records_that_are_not_of_this_build_or_tar_are_found(out, built, folder: str) -> None:
    path = out / folder / "all-00000.json"
    for change, words in (
        (lambda r: r.update(hash="0" * 64), "made with other settings than the manifest says"),
        (lambda r: r["offsets"].__setitem__(-1, r["offsets"][-1] + 512), "its keys or offsets are not those"),
        (lambda r: r["keys"].__setitem__(-1, "another"), " are not those of "),  # this shard, or the tar's
        (lambda r: r.update(sha256="0" * 64), "damaged (sha256 differs)"),
        (lambda r: r.update(bytes=r["bytes"] + 1), "damaged (sha256 differs)"),
    ):
        change_record(path, change)
        problems = check(str(out)).problems
        assert any(words in problem and "all-00000.tar" in problem for problem in problems), problems
        shutil.copy(built / folder / path.name, path)
    assert check(str(out)).problems == []


def test_sums_are_over_all_shards(built) -> None:
    """Counts add up, and the mean of views is that of views and not of shards of different sizes."""
    found = check(str(built))
    assert (found.problems, found.samples, found.keys) == ([], 7, {"all": 7})
    assert {name: dict(counts) for name, counts in found.classes.items()} == {"all": {"a": 5, "b": 2}}
    assert found.view_sets["rgb12"] == {"samples": 5, "failures": 0, "skipped": 2}
    assert found.view_sets["depth10"] == {"samples": 7, "failures": 0, "skipped": 0}
    warned = 0
    for name in ("rgb12", "depth10"):
        views = [sample.json for sample in stored(built, name).values()]
        coverage = [view["coverage"] for values in views for view in values["views"]]
        gates = found.gates[name]
        assert gates["coverage_mean"] == pytest.approx(np.mean(coverage), abs=1e-5)
        assert (gates["coverage_min"], gates["coverage_max"]) == (min(coverage), max(coverage))
        ious = [view["mask_iou"] for values in views for view in values["views"] if "mask_iou" in view]
        assert gates.get("mask_iou_min") == min(ious, default=None)
        warned += sum(w["count"] for values in views for w in values["warnings"])
    assert sum(found.warnings.values()) == warned
    assert found.bytes == sum(path.stat().st_size for path in built.rglob("*.tar"))


def moved(out: Path, folder: str, member: str, change: Callable[[np.ndarray], None]) -> list[str]:
    """The differences that `compare` finds once one member of one object has changed, by its kind."""
    (tar,) = (out / folder).glob("*-00000.tar")

    def edit(objects: Objects) -> None:
        members = next(m for m in objects.values() if member in m)
        if member.endswith("npy"):
            array = decode_array(members[member]).copy()
            change(array)
            members[member] = encode_array(array)
        else:
            array = decode_picture(members[member]).copy()
            change(array)
            members[member] = encode_picture(array, "png")

    rewrite(tar, edit)
    return compare(str(out.parent / "built"), str(out))


def add(amount: float) -> Callable[[np.ndarray], None]:
    """Adds to one value that is well inside its range."""

    def change(array: np.ndarray) -> None:
        flat = array.reshape(-1)
        inside = np.flatnonzero((np.abs(flat) > 0.01) & (flat < (240 if flat.dtype == np.uint8 else 60_000)))
        flat[inside[0]] += flat.dtype.type(amount)

    return change


TOLERANCES = {  # folder, member -> a difference that another machine may make, one that it may not
    "points": ("shapes", "points.npy", 5e-7, 5e-6),
    "colours": ("shapes", "colors.npy", 1, 2),
    "pictures": ("views/rgb12", "v00.rgb.png", 1, 2),
    "depth": ("views/depth10", "v00.depth.png", 1, 4),
}


@pytest.mark.parametrize("kind", TOLERANCES)
def test_builds_are_the_same_up_to_what_machines_differ_in(out, built, kind: str) -> None:
    folder, member, allowed, too_much = TOLERANCES[kind]
    shutil.copytree(built, out.parent / "built")
    assert compare(str(built), str(out)) == []
    assert moved(out, folder, member, add(allowed)) == []
    (line,) = moved(out, folder, member, add(too_much))
    assert f".{member}: differs by" in line


def test_builds_of_other_objects_or_sets_are_told_apart(out, built) -> None:
    rewrite(out / "views/depth10/all-00001.tar", without_first)
    (line,) = compare(str(built), str(out))
    assert "only here: " in line
    shutil.rmtree(out / "views/depth10")
    assert "view sets: ['depth10', 'rgb12'] and ['rgb12']" in compare(str(built), str(out))
    (out / "shapes/all-00002.tar").unlink()
    assert any(line.endswith("all-00002.tar: missing") for line in compare(str(built), str(out)))
