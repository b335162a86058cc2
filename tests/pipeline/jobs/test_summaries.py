"""What a build says of itself at its end: counts, shares, exit codes, and what was there before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import write_off
from redwood_release import write_release
from shapes import chair

from manifests.records import Failure
from pipeline.__main__ import main
from pipeline.jobs.build import build
from pipeline.jobs.driver import Workers
from pipeline.jobs.summary import Summary
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan
from pipeline.shards.build_shard import JobEvent

SMALL = {"num_points": 64, "fps_prefix": 16, "shard_size": 2}
FEW = ("num_points=64", "fps_prefix=16")
PLATE = "OFF\n4 2 0\n0 -1 -1\n0 1 -1\n0 1 1\n0 -1 1\n3 0 1 2\n3 0 2 3\n"
EDGE_ON = {"azimuth_deg": [0, 90], "elevation_deg": [0], "thin_px": 0, "image_size": 16}


def meshes(folder: Path, good: int, broken: int = 0) -> Path:
    for number in range(good):
        write_off(folder / f"good{number:02d}.off", 1 + number)
    for number in range(broken):
        write_off(folder / f"broken{number}.off").write_text("OFF\n9 9 0\n")
    return folder


def built(tmp_path: Path, **changes: object) -> Summary:
    recipe = read_recipe("meshes", {**SMALL, "views": ["depth10"], **changes})
    plan, jobs = make_plan(recipe, str(tmp_path / "mine"), str(tmp_path / "out"))
    return build(plan, jobs, Workers(0), lambda *_: None, lambda _: None)


def command(tmp_path: Path, *keys: str) -> int:
    source, out = str(tmp_path / "mine"), str(tmp_path / "out")
    return main(["build", "meshes", "--source", source, "--out", out, "--workers", "0", *FEW, *keys])


def test_expected_failures_are_in_neither_number_of_the_share() -> None:
    failures = tuple(Failure(str(n), str(n), "load", "broken") for n in range(3))
    summary = Summary(samples=7, failures=failures, skipped={}, attempted=10, expected=1)
    assert summary.failed_fraction == pytest.approx(2 / 9)
    assert Summary(7, failures, {}, 10, 3).failed_fraction == 0
    assert Summary(0, failures, {}, 3, 3).failed_fraction == 0


def test_a_share_of_failures_at_the_bound_passes_and_one_above_fails(tmp_path, capsys) -> None:
    meshes(tmp_path / "mine", 3, 1)
    assert command(tmp_path, "views=[]", "max_failed_fraction=0.25") == 0
    assert command(tmp_path, "views=[]", "max_failed_fraction=0.249") == 1
    assert "failures: 25.0%, more than max_failed_fraction=0.249" in capsys.readouterr().err
    assert command(tmp_path, "views=['depth10']", "max_failed_fraction=0.25") == 0  # its views failed in none
    out = str(tmp_path / "out")
    assert main(["views", "depth10_release", "--shards", out, "--workers", "0", "image_size=16"]) == 0


def test_one_failure_of_forty_is_too_many_unless_asked_for(tmp_path) -> None:
    meshes(tmp_path / "mine", 39, 1)
    assert command(tmp_path, "views=[]") == 1


def test_a_build_of_nothing_is_no_success(tmp_path, capsys) -> None:
    meshes(tmp_path / "mine", 0, 2)
    assert command(tmp_path, "views=[]", "max_failed_fraction=1") == 1
    assert "no object was made" in capsys.readouterr().err


def test_an_object_that_fails_in_several_view_sets_counts_once(tmp_path) -> None:
    meshes(tmp_path / "mine", 3, 1)
    (tmp_path / "mine" / "plate.off").write_text(PLATE)
    twice = {"rgb12": EDGE_ON | {"name": "a"}, "rgb10": EDGE_ON | {"rotations": [], "name": "b"}}
    views = twice | {"depth10": {"image_size": 16}}
    summary = built(tmp_path, views=views)
    assert (summary.samples, summary.attempted) == (4, 5)
    assert sorted(failure.key for failure in summary.failures) == ["broken0_off", "plate_off"]
    assert summary.failed_fraction == pytest.approx(2 / 5)


def test_the_last_line_counts_failures_of_assets_and_of_views_apart(tmp_path, capsys) -> None:
    meshes(tmp_path / "mine", 3, 1)
    for name in ("plate", "other"):
        (tmp_path / "mine" / f"{name}.off").write_text(PLATE)
    edge_on = [f"views.rgb12.{name}={value}" for name, value in EDGE_ON.items()]
    assert command(tmp_path, 'views=["rgb12"]', *edge_on, "max_failed_fraction=1") == 0
    out = str(tmp_path / "out")
    assert f"{out}: 5 objects, 3 failures: 1 of assets, 2 of views\n" in capsys.readouterr().err
    keys = [f"{name}={value}" for name, value in EDGE_ON.items()]
    main(["views", "rgb12", "--shards", out, "--workers", "0", "name=again", *keys])
    assert f"{out}/views/again: 3 objects, 2 failures of views\n" in capsys.readouterr().err


def test_the_share_of_a_view_set_is_of_the_objects_that_it_could_show(tmp_path, capsys) -> None:
    """Of three solids, a plate and a cloud, one fails and one has no mesh to draw: 1 of 4 is 25 %."""
    meshes(tmp_path / "mine", 3)
    (tmp_path / "mine" / "plate.off").write_text(PLATE)
    write_off(tmp_path / "mine" / "cloud.off", faces=False)
    assert command(tmp_path, "views=[]", "max_failed_fraction=0.25") == 0
    out = str(tmp_path / "out")
    edge_on = [f"{name}={value}" for name, value in EDGE_ON.items()]
    assert main(["views", "rgb12", "--shards", out, "--workers", "0", "--json", "name=edge", *edge_on]) == 1
    said = capsys.readouterr()
    assert "failures: 25.0%" in said.err
    values = json.loads(said.out)
    assert (values["samples"], values["skipped"], len(values["failures"])) == (3, {"no mesh": 1}, 1)


def test_the_manifest_sums_its_records_up(tmp_path) -> None:
    meshes(tmp_path / "mine" / "thing" / "train", 3, 2)
    meshes(tmp_path / "mine" / "thing" / "test", 1, 1)
    write_off(tmp_path / "mine" / "thing" / "test" / "cloud.off", faces=False)
    built(tmp_path, max_failed_fraction=1, views={"rgb12": {"image_size": 16}})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["splits"] == {
        "test": {"assets": 3, "samples": 2, "failures": 1, "shards": 2},
        "train": {"assets": 5, "samples": 3, "failures": 2, "shards": 3},
    }
    for number, path in enumerate(sorted((tmp_path / "out" / "shapes").glob("*.json"))):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"seconds": 10.0 + number, "max_rss_mb": 1000.0 - 10 * abs(number - 2)}))
    built(tmp_path, max_failed_fraction=1, views={"rgb12": {"image_size": 16}})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["seconds"], manifest["max_rss_mb"]) == (60.0, 1000.0)


def test_a_rerun_tells_how_many_objects_are_there_already_and_what_fails(tmp_path) -> None:
    meshes(tmp_path / "mine", 4, 1)
    recipe = read_recipe("meshes", {**SMALL, "views": ["depth10"], "max_failed_fraction": 1})
    plan, jobs = make_plan(recipe, str(tmp_path / "mine"), str(tmp_path / "out"))
    told: list[tuple[int, int]] = []
    failures: list[int] = []

    def run() -> None:
        made: list[JobEvent] = []
        build(plan, jobs, Workers(0), lambda *counts: told.append(counts), made.append)
        told_of = [event.progress for event in made if event.progress]
        assert sum(one.objects + one.failures for one in told_of) == told[-1][0]
        failures.append(sum(one.failures for one in told_of))

    run()
    (tmp_path / "out" / "shapes" / "all-00001.json").unlink()
    run()
    run()
    assert told == [(5, 0), (2, 3), (0, 5)]
    broken = any(asset.id == "broken0.off" for asset in jobs[1].assets)
    assert failures == [1, int(broken), 0]


def test_the_lists_of_a_division_hold_each_object_once(tmp_path) -> None:
    """OUT/splits says who is in train and who in test where the division is the recipe's own."""
    mesh = chair()
    ids = [f"{number:05d}" for number in range(1, 6)]
    write_release(tmp_path / "mine", {"chair": ids}, (mesh.vertices, mesh.faces), frames=1)
    recipe = read_recipe("redwood", {**SMALL, "views": [], "allow_partial": True, "redwood": {"train_fraction": 0.6}})
    plan, jobs = make_plan(recipe, str(tmp_path / "mine"), str(tmp_path / "out"))
    build(plan, jobs, Workers(0), lambda *_: None, lambda _: None)
    lists = {path.stem: path.read_text().split() for path in (tmp_path / "out" / "splits").iterdir()}
    assert {split: len(found) for split, found in lists.items()} == {"train": 3, "test": 2}
    assert sorted(lists["train"] + lists["test"]) == ids
    for job in jobs:
        assert {asset.id for asset in job.assets} <= set(lists[job.split])
