"""When a shard counts as done, what a rerun makes of one that is not, and that it is then the shard of before."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import stored, tar_hashes, write_off
from redwood_release import write_release
from shapes import chair

from manifests.errors import Refused
from manifests.presets import load_preset
from manifests.records import Failure
from pipeline.__main__ import main
from pipeline.datasets import meshes
from pipeline.inspect.check import check
from pipeline.jobs.build import build
from pipeline.jobs.driver import Workers
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import Job, Plan, ViewSet, make_plan
from pipeline.shards.build_shard import JobEvent, PlainMaker, build_shard, redraw_shard
from pipeline.shards.object import draw_view_sets, make_object
from pipeline.shards.writer import ShardWriter, write_records

VIEWS = {"rgb12": {"image_size": 16, "name": "rgb12"}, "depth10": {"image_size": 16, "name": "depth10"}}
SMALL = {"num_points": 64, "fps_prefix": 16, "shard_size": 2, "views": VIEWS, "seed": 5}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Solids and clouds by turns: a cloud has no mesh, and no views in a set that draws meshes."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(4):
        write_off(folder / f"solid{number}.off", 1 + number)
        write_off(folder / f"cloud{number}.off", 1 + number, faces=False)
    return folder


def planned(source: Path, out: Path, **changes: object) -> tuple[Plan, list[Job]]:
    return make_plan(read_recipe("meshes", {**SMALL, **changes}), str(source), str(out))


def run(plan: Plan, jobs: list[Job], retry: frozenset[str] = frozenset()) -> int:
    """Builds what is missing; the number of objects that were made or drawn."""
    made: list[JobEvent] = []
    build(plan, jobs, Workers(0), lambda *_: None, made.append, retry)
    return sum(event.progress.objects for event in made if event.progress)


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    assert run(*planned(source, out)) == 8
    assert check(str(out)).problems == []
    return out


@pytest.fixture
def out(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "out"))


def change_record(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


LOST: dict[str, Callable[[Path], None]] = {
    "a tar": lambda tar: tar.unlink(),
    "a record": lambda tar: tar.with_suffix(".json").unlink(),
    "both": lambda tar: (tar.unlink(), tar.with_suffix(".json").unlink()),
    "half a record": lambda tar: tar.with_suffix(".json").write_text('{"format": 1'),
    "the settings": lambda tar: change_record(tar.with_suffix(".json"), hash="0" * 64),
}


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("folder", ["shapes", "meshes", "views/depth10", "views/rgb12"])
def test_a_shard_that_lost_something_is_made_again_and_no_other(source, built, out, folder: str, lost: str) -> None:
    LOST[lost](out / folder / "all-00001.tar")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("all-*.tar")}
    assert run(*planned(source, out)) == 2
    assert tar_hashes(out) == tar_hashes(built)
    assert check(str(out)).problems == []
    others = {path: at for path, at in before.items() if path.name != "all-00001.tar"}
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_views_drawn_again_are_those_of_their_own_object(source, built, out) -> None:
    """Also where some objects have no mesh: each mesh belongs to the shape of its key."""
    shutil.rmtree(out / "views")
    assert run(*planned(source, out)) == 8
    assert tar_hashes(out) == tar_hashes(built)
    drawn = stored(out, "rgb12")
    assert sorted(drawn) == [f"solid{number}_off" for number in range(4)]
    assert all(sample.json["key"] == key for key, sample in drawn.items())


def test_no_old_record_vouches_for_a_new_tar(source, out, monkeypatch) -> None:
    """Tars are put in place before their records are written: a build that is killed between the two must not look
    done with bytes that no record promised."""
    plan, jobs = planned(source, out)
    stood: list[set[str]] = []

    def look_then_write(*arguments: object) -> None:
        stood.append({path.parent.name for path in out.rglob("all-00000.json")})
        write_records(*arguments)

    monkeypatch.setattr("pipeline.shards.build_shard.write_records", look_then_write)
    list(build_shard(jobs[0], plan, PlainMaker(plan)))
    list(redraw_shard(jobs[0], plan, PlainMaker(plan), plan.view_sets[:1]))
    assert stood == [set(), {"shapes", "meshes", "depth10"}]
    assert check(str(out)).problems == []


def test_an_object_that_is_mended_is_built_and_drawn_in_every_view_set(source, tmp_path) -> None:
    """`--retry data`: also in the set that `views` added later, which the recipe does not name."""
    mine, out = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(source, mine)
    (mine / "solid2.off").write_text("OFF\n9 9 0\n")
    plan, jobs = planned(mine, out, views={"depth10": VIEWS["depth10"]}, max_failed_fraction=1)
    run(plan, jobs)
    assert main(["views", "rgb12", "--shards", str(out), "--workers", "0", "image_size=16", "name=later"]) == 0
    write_off(mine / "solid2.off", 3)
    assert run(plan, jobs) == 0
    assert run(plan, jobs, frozenset({"timeout", "memory", "crash"})) == 0
    assert run(plan, jobs, frozenset({"data"})) == 2
    assert "solid2_off" in stored(out)
    assert "solid2_off" in stored(out, "depth10")
    assert "solid2_off" in stored(out, "later")
    assert check(str(out)).problems == []


def test_retry_refuses_a_view_set_whose_manifest_is_damaged(source, out) -> None:
    """Its views would stay those of the shapes of before."""
    (out / "views/rgb12/manifest.json").write_text("{")
    with pytest.raises(Refused, match=r"views/rgb12/manifest.json.*delete its folder to draw it again"):
        run(*planned(source, out, views={"depth10": VIEWS["depth10"]}), frozenset({"data"}))


def test_views_that_failed_for_lack_of_time_are_drawn_again_when_asked(source, built, out) -> None:
    path = out / "views/depth10/all-00002.json"
    whole = json.loads(path.read_text())
    failure = {"key": whole["keys"][1], "id": "x", "stage": "render", "reason": "timeout: no progress"}
    change_record(path, failures=[failure])
    command = ["views", "depth10", "--shards", str(out), "--workers", "0", "image_size=16", "name=depth10"]
    assert main(command) == 1
    assert main([*command, "--retry", "memory,data"]) == 1
    assert main([*command, "--retry", "timeout"]) == 0
    again = json.loads(path.read_text())
    assert (again["failures"], again["sha256"]) == ([], whole["sha256"])


def test_views_of_half_a_build_are_refused(out, capsys) -> None:
    change_record(out / "manifest.json", complete=False)
    assert main(["views", "depth10_release", "--shards", str(out), "--workers", "0"]) == 2
    assert "is not finished: run its build again first" in " ".join(capsys.readouterr().err.split())
    assert not (out / "views/depth10_release").exists()


def test_a_new_view_set_has_the_keys_of_the_shapes_whatever_the_seed(out) -> None:
    assert main(["views", "depth10", "--shards", str(out), "--workers", "0", "image_size=24", "name=more"]) == 0
    assert stored(out, "more").keys() == stored(out).keys()
    assert check(str(out)).problems == []


def test_running_out_of_memory_is_told_from_bad_data(source, tmp_path, monkeypatch) -> None:
    """`--retry memory` looks for such objects."""
    plan, jobs = planned(source, tmp_path / "out")

    def starve(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(meshes, "read", starve)
    outcome = make_object(jobs[0].assets[0], plan)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.stage) == ("memory", "load")
    monkeypatch.setattr(meshes, "read", lambda *_: [].pop())
    outcome = make_object(jobs[0].assets[0], plan)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "data"
    monkeypatch.setattr("pipeline.shards.object.backend_table.draw", lambda *_, **__: starve())
    points = np.zeros((8, 3), np.float32)
    results = draw_view_sets("k", "k", points, None, None, plan.view_sets[1:])
    assert [result.kind for result in results.values()] == ["memory"]


def test_depth_that_is_cut_off_is_counted(source, tmp_path) -> None:
    name, preset = load_preset("depth10", {"image_size": 32, "depth_range": 0.2, "name": "near"})
    plan, _ = planned(source, tmp_path / "out")
    points = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1).max()
    members = draw_view_sets("k", "k", points, None, None, (ViewSet(name, preset, ""),))[name]
    counts = {w["type"]: w["count"] for w in json.loads(members["json"])["warnings"]}
    assert counts["depth outside near..far"] > 100
    limits = (preset.distance - preset.depth_range, preset.distance + preset.depth_range)
    assert {(view["near"], view["far"]) for view in json.loads(members["json"])["views"]} == {limits}
    members = draw_view_sets("k", "k", points, None, None, plan.view_sets[1:])["depth10"]
    assert "depth outside near..far" not in {w["type"] for w in json.loads(members["json"])["warnings"]}


def test_a_set_of_views_is_not_mixed_with_another_preset(source, built, out) -> None:
    plan, jobs = planned(source, out, views={**VIEWS, "depth10": {**VIEWS["depth10"], "image_size": 32}})
    with pytest.raises(Refused, match=r"depth10 holds another preset: .*image_size: 16 -> 32"):
        run(plan, jobs)
    assert tar_hashes(out) == tar_hashes(built)


def test_the_json_of_an_object_counts_its_points_and_faces(tmp_path) -> None:
    """A plate has four corners and two faces."""
    (tmp_path / "mine").mkdir()
    text = "OFF\n4 2 0\n0 -1 -1\n0 1 -1\n0 1 1\n0 -1 1\n3 0 1 2\n3 0 2 3\n"
    (tmp_path / "mine" / "plate.off").write_text(text)
    plan, jobs = planned(tmp_path / "mine", tmp_path / "out", views={})
    made = make_object(jobs[0].assets[0], plan)
    values = json.loads(made.shape["json"])
    assert (values["num_points"], values["num_faces"]) == (64, 2)


def test_a_tar_says_nothing_of_when_and_by_whom_it_was_made(built) -> None:
    """Or the same build would have other bytes every time."""
    for path in built.rglob("*.tar"):
        with tarfile.open(path) as tar:
            assert all((m.mtime, m.uname, m.gname) == (0, "", "") for m in tar.getmembers())


def test_a_record_sums_the_views_of_its_objects_up() -> None:
    writer = ShardWriter("a.tar", io.BytesIO(), "hash")
    for key, views, warned in (("a", [(0.2, 0.9), (0.6, 1.0)], 3), ("b", [(0.1, 0.95), (0.4, 0.97)], 4)):
        described = [{"coverage": coverage, "mask_iou": iou} for coverage, iou in views]
        values = {"views": described, "warnings": [{"type": "low coverage", "count": warned}]}
        writer.add(key, {"json": json.dumps(values).encode()})
    writer.close()
    record = writer.record({}, 1.0)
    assert record.gates == {"coverage_min": 0.1, "coverage_mean": 0.325, "coverage_max": 0.6, "mask_iou_min": 0.9}
    assert record.warnings == {"low coverage": 7}


def test_views_of_two_kinds_that_are_drawn_again_at_once_are_not_exchanged(tmp_path) -> None:
    """Frames come from the source, depth maps from the stored shapes: each goes into its own set's tar."""
    mesh = chair()
    release = write_release(tmp_path / "in", {"chair": ["00001", "00002"]}, (mesh.vertices, mesh.faces), frames=2)
    changes = {"num_points": 64, "fps_prefix": 16, "allow_partial": True, "max_failed_fraction": 0}
    for views in (["depth10", "frames20"], ["frames20", "depth10"]):
        out = tmp_path / views[0]
        plan, jobs = make_plan(read_recipe("redwood", {**changes, "views": views}), str(release), str(out))
        assert [view_set.name for view_set in plan.view_sets] == views
        run(plan, jobs)
        before = tar_hashes(out)
        shutil.rmtree(out / "views")
        run(plan, jobs)
        assert tar_hashes(out) == before
        assert check(str(out)).problems == []
