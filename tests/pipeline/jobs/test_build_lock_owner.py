"""OUT/build.lock: who may take it over, that a long build keeps it fresh, and that it goes with its owner only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manifests import store
from manifests.errors import Refused
from manifests.process_info import started
from pipeline.jobs.build_lock import build_lock
from pipeline.jobs.driver import Task, Workers, execute
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan
from pipeline.shards.build_shard import JobEvent


def lay(out: Path, seconds_ago: float = 0.0, **changes: object) -> Path:
    """A lock of this process, changed, that was renewed so long ago."""
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}
    path = out / "build.lock"
    path.write_text(json.dumps({**holder, "renewed": time.time() - seconds_ago, **changes}))
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def is_taken(out: Path) -> bool:
    """Whether a build gets the lock; where it does not, it says who has it."""
    try:
        with build_lock(str(out)):
            return True
    except Refused as error:
        if "is being built by process" not in str(error):
            raise
        return False


def test_a_long_build_keeps_its_lock_fresh(tmp_path, monkeypatch) -> None:
    """Another machine takes a lock over that was not renewed for ten minutes."""
    now, ages = [time.time()], []
    monkeypatch.setattr("pipeline.jobs.build_lock.time.time", lambda: now[0])
    changes = {"parametric": {"objects": 60}, "num_points": 16, "fps_prefix": 4, "views": [], "store_meshes": False}
    plan, jobs = make_plan(read_recipe("parametric", changes), None, str(tmp_path))

    def look(_: JobEvent) -> None:
        ages.append(now[0] - json.loads((tmp_path / "build.lock").read_text())["renewed"])
        now[0] += 15

    task = Task(jobs, again=lambda job, records: [], prepare=lambda records: None)
    execute(plan, jobs, task, Workers(0), lambda *_: None, look)
    assert len(ages) >= 60
    assert max(ages) < 120
    assert not (tmp_path / "build.lock").exists()


@pytest.mark.parametrize("owner", ["another machine", "another process", "an earlier process of this number"])
def test_the_lock_of_another_build_stays_when_this_one_ends(tmp_path, owner: str) -> None:
    """It took over while this one was taken for dead; a third one must not start beside it."""
    other = {
        "another machine": {"host": "elsewhere"},
        "another process": {"pid": os.getppid(), "started": started(os.getppid())},
        "an earlier process of this number": {"started": "1"},
    }[owner]
    with build_lock(str(tmp_path)):
        held = lay(tmp_path, **other).read_bytes()
    assert (tmp_path / "build.lock").read_bytes() == held


def test_of_two_that_find_a_stale_lock_one_gets_it(tmp_path, monkeypatch) -> None:
    """The other build is faster: it takes over after this one has looked and before this one takes over."""
    path = lay(tmp_path, 10_000, host="elsewhere")
    read_bytes, mine = store.read_bytes, []

    def read_then_wait(of: str) -> bytes | None:
        data = read_bytes(of)
        if of == str(path) and not mine:
            lay(tmp_path, pid=os.getppid(), started=started(os.getppid()))
            mine.append(path.read_bytes())
        return data

    monkeypatch.setattr(store, "read_bytes", read_then_wait)
    assert not is_taken(tmp_path)
    assert [path.read_bytes()] == mine


def test_a_lock_of_another_machine_is_live_for_minutes_and_not_for_days(tmp_path) -> None:
    """It is renewed every half minute, but a store may be slow and clocks differ."""
    for seconds, taken in ((0, False), (90, False), (3600, True)):
        path = lay(tmp_path, seconds, host="elsewhere", pid=1)
        assert is_taken(tmp_path) is taken
        path.unlink(missing_ok=True)


def test_a_lock_of_this_machine_is_live_as_long_as_its_process(tmp_path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for changes, taken in (
        ({"renewed": 0}, False),
        ({"started": "1"}, True),
        ({"pid": dead.pid, "started": "1"}, True),
        ({"pid": dead.pid, "started": None}, True),
        ({"pid": "no number"}, True),
    ):
        path = lay(tmp_path, **changes)
        assert is_taken(tmp_path) is taken, changes
        path.unlink(missing_ok=True)


def test_a_lock_that_is_cut_is_taken_over(tmp_path) -> None:
    for data in (b"", b"{", b"[]", b"[" * 100_000):
        (tmp_path / "build.lock").write_bytes(data)
        assert is_taken(tmp_path)
        assert not (tmp_path / "build.lock").exists()
