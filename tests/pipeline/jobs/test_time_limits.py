"""Waits that end: calls that never return, workers and children that are stopped, a Ray that hangs.

A stopped process (SIGSTOP) does what a frozen machine, a debugger or a full swap does: it neither works nor dies.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from builders import SMALL, Commands, tar_hashes
from planted import plant, processes_of, wait_for

from manifests.errors import Stopped
from manifests.process_info import started
from pipeline.jobs import isolated_worker
from pipeline.jobs.isolated_worker import CarefulMaker, ChildDied
from pipeline.jobs.ray_jobs import RunningJobs, _RunningJob
from pipeline.jobs.time_limits import AwakeClock, LimitedThread
from pipeline.jobs.worker import WorkerProcess
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan


def test_a_call_that_does_not_return_is_left_and_the_process_ends_with_its_code() -> None:
    thread = LimitedThread()
    assert thread.call("a sum", 5, sum, [1, 2]) == 3
    with pytest.raises(ZeroDivisionError):
        thread.call("a division", 5, divmod, 1, 0)
    ours = {thread.call("its name", 5, threading.get_ident) for _ in range(3)}
    assert len(ours) == 1  # what a thread starts may end with it
    assert not thread.is_stuck
    program = (
        "import atexit, sys, time\n"
        "from pipeline.jobs.time_limits import LimitedThread, TooLong, leaving\n"
        "atexit.register(time.sleep, 60)\n"
        "thread = LimitedThread()\n"
        "for what in ('the first', 'another'):\n"
        "    try:\n"
        "        thread.call(what, 0.2, time.sleep, 60)\n"
        "    except TooLong as error:\n"
        "        print(error)\n"
        "sys.exit(leaving(3))\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (3, "the first takes more than 0.2 s\n" * 2), done.stderr
    assert time.monotonic() - began < 40


def test_a_driver_that_was_stopped_itself_blames_nobody(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pipeline.jobs.time_limits.time.monotonic", lambda: now[0])
    clock = AwakeClock()
    now[0] += 2
    assert clock.seconds() == 2
    now[0] += 3600
    assert clock.seconds() == 12


class _Streams:
    """Only what is asked about streams: which have something to say, and which are to be ended."""

    def __init__(self) -> None:
        self.ready: set[str] = set()
        self.ended: list[str] = []

    def wait(self, streams: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return [s for s in streams if s in self.ready], []

    def cancel(self, stream: str, force: bool) -> None:
        assert force
        self.ended.append(stream)


def test_who_has_been_silent_for_too_long(tmp_path) -> None:
    """A job that waits in a queue may do so while others run; one that runs has its limit, one that ends another."""
    _, jobs = make_plan(read_recipe("parametric", {"parametric": {"objects": 3}}), None, str(tmp_path))
    jobs_running = RunningJobs.__new__(RunningJobs)
    ray = jobs_running._ray = _Streams()
    jobs_running._silence, jobs_running._begin_seconds = {False: 35.0, True: 280.0}, 120.0
    here = WorkerProcess("node7", 4711)
    runs = jobs_running._running = {
        "plain": _RunningJob(jobs[0], False, 0.0, here),
        "careful": _RunningJob(jobs[0], True, 0.0, here),
        "waits": _RunningJob(jobs[0], False, 0.0),
    }
    jobs_running._end_silent(35.0)
    assert ray.ended == []
    ray.ready = {"plain"}  # it has said something that the driver has not heard yet
    jobs_running._end_silent(36.0)
    assert ray.ended == []
    ray.ready = set()
    jobs_running._end_silent(37.0)
    assert ray.ended == ["plain"]
    jobs_running._end_silent(97.0)
    with pytest.raises(
        Stopped, match=r"shard \w+-00000: its worker \(process 4711 on node7\) .* does not end; what is"
    ):
        jobs_running._end_silent(98.0)
    del runs["plain"]
    jobs_running._end_silent(280.0)
    assert ray.ended == ["plain"]  # "careful" runs, so nobody knows how long "waits" has to wait
    jobs_running._end_silent(281.0)
    assert ray.ended == ["plain", "careful"]
    jobs_running._end_silent(282.0)
    assert ray.ended == ["plain", "careful", "waits"]


def test_a_child_that_is_stopped_costs_one_try(tmp_path) -> None:
    """While it works, and while it takes in more than a socket holds: a write would wait for ever."""
    changes = {"parametric": {"objects": 3}, "num_points": 64, "fps_prefix": 16, "views": ["depth10"]}
    plan, jobs = make_plan(read_recipe("parametric", changes | {"asset_seconds": 60.0}), None, str(tmp_path / "out"))
    asset = jobs[0].assets[0]
    with CarefulMaker(plan) as maker:
        expected = maker.build(asset)
        child = maker._child
        child._seconds = 1.0
        isolated_worker._limit_waits(child._connection, 1.0)
        os.kill(child._process.pid, signal.SIGSTOP)
        with pytest.raises(ChildDied, match=r"timeout: no progress for asset_seconds=1"):
            child.call("redraw", (b"x" * (4 << 20), None, ()))
        assert maker.build(asset) == expected
        assert started(child._process.pid) is None
        assert maker._child is not child


def short_limits(tree: Path) -> None:
    """Makes a copy's limits short: a test has no minutes."""
    for file, pairs in {
        "ray_jobs": {"_SILENT_SECONDS = 30": "_SILENT_SECONDS = 2", "LOOK_SECONDS = 10": "LOOK_SECONDS = 1"},
        "isolated_worker": {"return ATTEMPTS * (": "return 0.1 * ("},
        "ray_cluster": {"_START_SECONDS = 120": "_START_SECONDS = 15", "_CONNECT_SECONDS = 10": "_CONNECT_SECONDS = 1"},
    }.items():
        path = tree / f"pipeline/jobs/{file}.py"
        text = path.read_text()
        for old, new in pairs.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path.write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3])
def test_a_stopped_worker_costs_time_only(planted_tree, tmp_path, times: int) -> None:
    """The second and third are careful ones. The kernel's alarm does not end a process that is stopped.

    The shard is told of once, however often it loses a worker.
    """
    short_limits(planted_tree)
    commands, out = plant(planted_tree, shard_size=40), tmp_path / "out"
    commands("build", "planted", "--out", tmp_path / "unbroken", "--workers", 0, "asset_seconds=5")
    commands.environment["ASSET_TAKES"] = "0.1"
    command = ("build", "planted", "--out", out, "--workers", 1, "asset_seconds=5")
    process = commands.start(*command, stderr=subprocess.PIPE, text=True)
    stopped: set[int] = set()

    def stop_one() -> bool:
        """Whether a worker that runs a job was found; it is stopped while it does."""
        assert process.poll() is None, process.stderr.read()
        for pid, line in processes_of(process.pid).items():
            if line == "ray::work" and pid not in stopped:
                time.sleep(0.5)
                os.kill(pid, signal.SIGSTOP)
                stopped.add(pid)
                return True
        return False

    for _ in range(times):
        wait_for(stop_one, 90)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert err.count("again, an asset at a time") == 1
    assert all(started(pid) is None for pid in stopped)
    assert tar_hashes(out) == tar_hashes(tmp_path / "unbroken")
    assert json.loads(commands("check", out, "--json").stdout)["ok"]


def stop_as_it_starts(driver: int, program: str, after: float) -> int:
    """Stops the process of a driver's Ray that runs a program of Ray's, a while after it has begun; its number."""
    found: list[int] = []

    def begun() -> bool:
        found.extend(pid for pid, line in processes_of(driver).items() if line.split(" ")[0].endswith(f"/{program}"))
        return bool(found)

    wait_for(begun)
    time.sleep(after)
    os.kill(found[0], signal.SIGSTOP)
    return found[0]


@pytest.mark.slow
def test_a_ray_that_hangs_as_it_starts_is_one_line(planted_tree, tmp_path) -> None:
    """Ray itself would wait for ever: its server has opened its port and says nothing."""
    short_limits(planted_tree)
    commands, out = plant(planted_tree), tmp_path / "out"
    process = commands.start("build", "planted", "--out", out, "--workers", 1, stderr=subprocess.PIPE, text=True)
    stopped = stop_as_it_starts(process.pid, "gcs_server", 0.3)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert err.splitlines()[-1] == (
        "Ray does not start here: its start takes more than 15 s; what is finished is kept, run the same again, or use "
        "--workers 0, which needs none"
    )
    assert "Traceback" not in err
    wait_for(lambda: started(stopped) is None, 10)
    commands("build", "planted", "--out", out, "--workers", 0)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["gcs_server", "raylet"])
def test_a_ray_that_hangs_midway_stops_the_build(planted_tree, tmp_path, program: str) -> None:
    """Without an answer of the one, and with the other given up by the first, no job would ever come back."""
    commands, out = plant(planted_tree), tmp_path / "out"
    commands.environment["ASSET_TAKES"] = "0.5"
    process = commands.start("build", "planted", "--out", out, "--workers", 1, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(out.glob("shapes/*.json")), 90)
    stopped = stop_as_it_starts(process.pid, program, 0)
    _, err = process.communicate(timeout=250)
    assert process.returncode == 3, err
    assert "what is finished is kept, run the same again" in err.splitlines()[-1]
    assert "Traceback" not in err
    wait_for(lambda: started(stopped) is None, 10)
    done = {path: path.stat().st_mtime_ns for path in out.glob("shapes/*.json")}
    del commands.environment["ASSET_TAKES"]
    commands("build", "planted", "--out", out, "--workers", 0)
    assert all(path.stat().st_mtime_ns == at for path, at in done.items())
    assert json.loads(commands("check", out, "--json").stdout)["ok"]


@pytest.mark.slow
def test_doctor_says_that_ray_hangs(planted_tree) -> None:
    short_limits(planted_tree)
    commands = Commands(planted_tree)
    process = commands.start("doctor", "--json", stdout=subprocess.PIPE, text=True)
    ray: list[int] = []

    def begun() -> bool:
        ray.extend(int(p.name) for p in Path("/proc").glob("[0-9]*") if is_child_of(p, process.pid))
        return bool(ray)

    wait_for(begun, 120)
    stop_as_it_starts(ray[0], "gcs_server", 0.3)
    out, _ = process.communicate(timeout=120)
    (finding,) = [f for f in json.loads(out)["findings"] if f["name"] == "ray starts"]
    assert (process.returncode, finding["state"]) == (1, "missing")
    assert finding["detail"].startswith("Ray does not start here: its start takes more than 15 s")


def is_child_of(process: Path, parent: int) -> bool:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent
    except OSError:
        return False


def test_an_address_that_takes_connections_and_says_nothing_is_refused(planted_tree, tmp_path) -> None:
    short_limits(planted_tree)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        command = ("build", "parametric", "--out", tmp_path / "out", *SMALL, "--ray", address)
        message = Commands(planted_tree)(*command, code=2).stderr
    assert message.strip() == (
        f"--ray {address}: no Ray head answers there (timed out); give HOST:PORT of `ray start --head`"
    )
    assert not (tmp_path / "out").exists()
