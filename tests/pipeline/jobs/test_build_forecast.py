"""`build --dry-run`: what it counts, what it predicts against what is then built, and that it writes nothing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import SMALL, write_off

from manifests.records import Asset, Failure
from manifests.samples import encode_array
from pipeline.jobs import build_forecast as module
from pipeline.jobs.build import build
from pipeline.jobs.build_forecast import BuildForecast, Cost, Trial, forecast, lines, tar_bytes
from pipeline.jobs.driver import Workers
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import Job, make_plan
from pipeline.shards.object import BuiltObject


def plan_of(tmp_path: Path, name: str = "parametric", source: str | None = None, **changes: object):
    small = {"num_points": 64, "fps_prefix": 16, "views": ["depth10"], **changes}
    return make_plan(read_recipe(name, small), source, str(tmp_path / "out"))


def test_counts_bytes_and_three_objects(tmp_path) -> None:
    plan, jobs = plan_of(tmp_path, parametric={"objects": 40}, shard_size=20)
    found = forecast(plan, jobs)
    assert (found.objects, found.left, found.shards) == (40, 40, len(jobs))
    assert sum(found.splits.values()) == 40
    assert found.input_bytes is None
    assert len({trial.key for trial in found.trials}) == 3
    assert 50 < found.worker_memory_mb < 2000
    assert [cost.workers for cost in found.costs] == [1, 4, 16, 64]
    seconds = sum(trial.seconds for trial in found.trials) / 3
    assert found.costs[0].hours == pytest.approx(40 * seconds / 3600, abs=1e-6)
    assert found.costs[2].hours == pytest.approx(found.costs[0].hours / 16, abs=1e-6)
    assert found.costs[1].memory_gb == pytest.approx(4 * found.worker_memory_mb / 1000, abs=0.01)
    assert not (tmp_path / "out").exists()
    assert [t.key for t in forecast(plan, jobs).trials] == [t.key for t in found.trials]
    other, other_jobs = plan_of(tmp_path, parametric={"objects": 40}, shard_size=20, seed=1)
    assert {t.key for t in forecast(other, other_jobs).trials} != {t.key for t in found.trials}


def test_the_disk_is_what_the_build_then_takes_and_what_is_done_is_not_counted(tmp_path) -> None:
    plan, jobs = plan_of(tmp_path, parametric={"objects": 24}, shard_size=8)
    found = forecast(plan, jobs)
    build(plan, jobs[:1], Workers(0), lambda *_: None, lambda _: None)
    assert forecast(plan, jobs).left == 24 - len(jobs[0].assets)
    build(plan, jobs, Workers(0), lambda *_: None, lambda _: None)
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.tar"))
    assert found.costs[0].disk_gb * 1e9 == pytest.approx(written, rel=0.35)
    done = forecast(plan, jobs)
    assert (done.left, done.trials, done.costs) == (0, (), ())
    assert "nothing is left to do" in lines(done, 2000)


def test_bytes_of_an_object_in_its_tars() -> None:
    members = {"json": b"x" * 513, "points.npy": encode_array(np.zeros((2, 3), np.float32))}
    built = BuiltObject("k", members, None, {"a": {"json": b""}, "b": Failure("k", "k", "render", "no")})
    assert tar_bytes(built) == (512 + 1024) + (512 + 512) + 512


def test_files_are_summed_and_objects_that_fail_are_told(pipeline, tmp_path) -> None:
    source = tmp_path / "mine"
    sizes = 0
    for number in range(12):
        path = write_off(source / f"{number}.off")
        if number % 2:
            path.write_text("OFF\n9 9 0\n")
        sizes += path.stat().st_size
    command = ("build", "meshes", "--source", source, "--out", tmp_path / "out", "--dry-run", *SMALL)
    values = json.loads(pipeline(*command, "--json").stdout)
    assert values["objects"] == 12
    assert values["input_bytes"] == sizes
    assert len(values["trials"]) == 3
    assert all("cut" in failure["reason"] for failure in values["failures"])
    assert [cost["workers"] for cost in values["costs"]] == [1, 4, 16, 64]
    text = pipeline(*command).stdout
    assert text.count("tried ") == 3 + len(values["failures"])
    assert len([line for line in text.splitlines() if line.split()[0] in ("1", "4", "16", "64")]) == 4
    assert not (tmp_path / "out").exists()


def test_a_file_of_many_rows_is_counted_once(tmp_path) -> None:
    (tmp_path / "rows.h5").write_bytes(bytes(1000))
    (tmp_path / "own#1.npy").write_bytes(bytes(30))
    plan, _ = plan_of(tmp_path)
    sources = ["rows.h5#0", "rows.h5#1", "own#1.npy", "gone.npy", "gone.h5#7"]
    assets = tuple(Asset(source, source, "all", None, str(i)) for i, source in enumerate(sources))
    plan = replace(plan, source=str(tmp_path))
    assert module._input_bytes(plan, [Job("all", 0, assets)]) == 1030
    assert module._input_bytes(plan, [Job("all", 0, assets[3:])]) is None


def test_a_source_in_which_nothing_can_be_built_has_no_forecast(tmp_path) -> None:
    for number in range(20):
        path = write_off(tmp_path / "mine" / f"{number}.off")
        path.write_text("OFF\n9 9 0\n")
    plan, jobs = plan_of(tmp_path, "meshes", str(tmp_path / "mine"))
    found = forecast(plan, jobs)
    assert (found.trials, found.costs, len(found.failures)) == ((), (), module.ATTEMPTS)
    assert lines(found, 2000)[-1] == "no tried object could be built: no forecast"


def test_the_table_says_what_this_machine_cannot() -> None:
    cores = os.cpu_count()
    costs = tuple(Cost(n, 6.4 / n, 12.5, 0.7 * n) for n in (1, cores + 1))
    found = BuildForecast(
        9000, 9000, 36, {"train": 9000}, 3_000_000_000, (Trial("a", 2.5, 1_400_000),), (), 700.0, costs
    )
    told = lines(found, 2000)
    assert told[0] == "input: 3 GB of files"
    assert told[1] == "tried a: 2.50 s, 1.40 MB"
    assert told[3].split() == ["1", "6.4", "h", "12.5", "0.7", "2"]
    assert told[4].endswith(f"(this machine has {cores} cores)")
