"""What a rerun looks at: records, each read once, folders listed once; and what a running build tells meanwhile."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from builders import REPOSITORY
from object_store import FailingProxy, ObjectStore, reached
from rich.console import Console

from manifests.layout import meshes_tar, shapes_tar
from manifests.records import Asset, Failure, Record, Skipped, record_path
from pipeline.jobs.progress import BuildProgress
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.jobs.worker import summed
from pipeline.plan.plan import Job
from pipeline.shards.build_shard import JobEvent, Progress

RECORD = Record(
    format=1,
    count=2,
    bytes=10240,
    sha256="0" * 64,
    hash="right",
    keys=("a", "b"),
    offsets=(0, 1024),
    failures=(Failure("c", "C", "load", "timeout: 3 s"),),
    skipped=(Skipped("d", "no mesh"),),
    versions={"numpy": "2"},
    seconds=3.0,
    max_rss_mb=100.5,
    warnings={"repaired": 2},
    gates={"coverage_min": 0.5},
    sizes={"json": (3, None)},
)


def write(out: Path, shard: int, record: Record = RECORD, tar_of: Callable[..., str] = shapes_tar) -> str:
    tar = tar_of(str(out), "train", shard)
    Path(tar).parent.mkdir(parents=True, exist_ok=True)
    Path(tar).touch()
    Path(record_path(tar)).write_text(json.dumps(record.to_json(), indent=1))
    return tar


def test_records_are_kept_without_what_grows_with_objects(tmp_path) -> None:
    tar = write(tmp_path, 0)
    assert FinishedRecords()[tar] == replace(RECORD, keys=(), offsets=(), sizes={})


def test_a_record_that_is_forgotten_is_gone_and_its_tar_is_to_be_made_again(tmp_path) -> None:
    tars = [write(tmp_path, shard) for shard in range(3)]
    write(tmp_path, 1, replace(RECORD, failures=()))
    records = FinishedRecords()
    assert records.with_failures(tars, frozenset()) == []
    assert records.with_failures([*tars, f"{tmp_path}/no.tar"], frozenset({"timeout"})) == [tars[0], tars[2]]
    records.forget([tars[2]])
    assert not Path(record_path(tars[2])).exists()
    assert [records.is_done(tar, "right") for tar in tars] == [True, True, False]


def test_what_is_not_finished(tmp_path) -> None:
    tars = [write(tmp_path, shard) for shard in range(6)]
    Path(tars[1]).unlink()
    Path(record_path(tars[2])).unlink()
    record = Path(record_path(tars[3]))
    record.write_text(record.read_text()[:-30])
    record = Path(record_path(tars[4]))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"count": "two"}))
    write(tmp_path, 5, replace(RECORD, hash="other"))
    records = FinishedRecords()
    assert [records.is_done(tar, "right") for tar in tars] == [True, False, False, False, False, False]
    assert not records.is_done(shapes_tar(str(tmp_path / "nowhere"), "train", 0), "right")
    with pytest.raises(ValueError, match=r"train-00002.tar has no record"):
        records[tars[2]]
    with pytest.raises(ValueError, match=r"train-00003.json: not a record"):
        records[tars[3]]
    with pytest.raises(ValueError, match=r"train-00004.json: not a record: count"):
        records[tars[4]]


def test_an_object_store_is_asked_once_for_each_record_and_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.jobs.record_cache._AT_ONCE", 8)
    for shard in range(20):
        write(tmp_path / "out", shard)
        write(tmp_path / "out", shard, tar_of=meshes_tar)
    Path(shapes_tar(str(tmp_path / "out"), "train", 7)).unlink()
    Path(record_path(shapes_tar(str(tmp_path / "out"), "train", 12))).unlink()
    server = ObjectStore()
    proxy = FailingProxy(server.port)
    try:
        url = server.put_folder(tmp_path / "out", "out")
        with reached(proxy.environment):
            records = FinishedRecords()
            done = [  # one folder and the other by turns, as a rerun asks
                [records.is_done(tar_of(url, "train", shard), "right") for tar_of in (shapes_tar, meshes_tar)]
                for shard in range(20)
            ]
            assert [shard for shard in range(20) if not done[shard][0]] == [7, 12]
            assert all(meshes for _, meshes in done)
            assert records[shapes_tar(url, "train", 19)].failures == RECORD.failures
    finally:
        proxy.close()
        server.close()
    lists = [path for method, path, _ in proxy.seen if "list-type" in path]
    records = [path for method, path, _ in proxy.seen if method == "GET" and path.endswith(".json")]
    assert len(lists) == 2
    assert len(records) == len(set(records)) == 39
    assert len(proxy.seen) == 41


def test_progress_counts_a_job_that_is_run_again_once() -> None:
    said = io.StringIO()
    jobs = [Job("train", shard, (Asset("a", "a", "train"),)) for shard in range(2)]
    with BuildProgress(Console(file=said)) as progress:
        progress.start(40, 0)
        progress.event(JobEvent(jobs[0], Progress(10, 1)))
        progress.event(JobEvent(jobs[1], Progress(5, 0)))
        progress.event(JobEvent(jobs[0], state="again"))
        progress.event(JobEvent(jobs[0], Progress(20, 3)))
        progress.event(JobEvent(jobs[0], state="done"))
        progress._said = -1e9
        progress.event(JobEvent(jobs[1], Progress(5, 0)))
    assert "30 of 40 objects" in said.getvalue()
    assert "3 failures" in said.getvalue()


def test_nobody_is_told_how_long_it_takes_before_the_first_object() -> None:
    said = io.StringIO()
    job = Job("train", 0, (Asset("a", "a", "train"),))
    with BuildProgress(Console(file=said, width=200)) as progress:
        progress.start(190, 0)
        for done in (Progress(0, 0), Progress(0, 1), Progress(1, 0)):
            progress._said = -1e9
            progress.event(JobEvent(job, done))
    first, failed, made = said.getvalue().splitlines()
    assert first == "0 of 190 objects, 0.0 objects/s, 0 failures"
    assert failed == "0 of 190 objects, 0.0 objects/s, 1 failure"
    assert re.fullmatch(r"1 of 190 objects, .*, 1 failure, \d+ s left", made)


def test_reports_of_a_second_are_one(monkeypatch) -> None:
    times = iter(range(1000))
    monkeypatch.setattr("pipeline.jobs.worker.time.monotonic", lambda: next(times) / 10)
    reports = list(summed(Progress(1, i % 2) for i in range(95)))
    assert 2 < len(reports) < 15
    assert sum(r.objects for r in reports) == 95
    assert sum(r.failures for r in reports) == 47
    assert list(summed(iter(()))) == []


def test_a_worker_writes_tars_without_loading_torch() -> None:
    program = """
import sys
from pipeline.jobs.worker import import_tar_writer
import_tar_writer()
assert "webdataset" in sys.modules and "torch" not in sys.modules, sorted(sys.modules)
import io, webdataset
tar = webdataset.TarWriter(io.BytesIO(), encoder=False, mtime=0)
tar.write({"__key__": "a", "json": b"{}"})
import importlib.util
assert importlib.util.find_spec("torch") is not None
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)
