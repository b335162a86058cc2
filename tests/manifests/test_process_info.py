"""Processes of this machine, real ones: running, ended and not taken note of, gone, named oddly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.process_info import peak_resident_mb, started

REPOSITORY = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="told from /proc")


def waited_for(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)
    return happened()


def python(code: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_a_process_runs_ends_and_is_gone() -> None:
    """One that has ended holds no lock, also while its parent has not waited for it (a zombie)."""
    process = subprocess.Popen(["sleep", "60"])
    began = started(process.pid)
    try:
        assert began is not None
        assert began == started(process.pid)
        assert started(os.getpid()) not in (None, began)
    finally:
        process.kill()
    assert waited_for(lambda: started(process.pid) is None)
    if Path("/proc").is_dir():
        assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    process.wait()
    assert started(process.pid) is None


def test_a_stopped_process_still_runs() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        began = started(process.pid)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        assert started(process.pid) == began
    finally:
        process.kill()
        process.wait()


@linux
@pytest.mark.parametrize("name", ["sleep", "a) R (b", "c d) 1"])
def test_processes_are_told_apart_by_when_they_began(tmp_path, name: str) -> None:
    """A number is given again to another process: it passes for the first one only if it began at the same moment.

    Whatever the process is called: its name stands in the same line.
    """
    shutil.copy(shutil.which("sleep"), tmp_path / name)
    processes, boot = [], time.monotonic()
    try:
        for _ in range(2):
            processes.append(subprocess.Popen([tmp_path / name, "60"]))
            assert waited_for(lambda: Path(f"/proc/{processes[-1].pid}/comm").read_text() == f"{name}\n")
            time.sleep(0.05)
        first, second = (int(started(process.pid)) / os.sysconf("SC_CLK_TCK") for process in processes)
        assert 0.04 < second - first < time.monotonic() - boot + 0.02
        assert boot - 1 < first < time.monotonic()  # seconds since the machine began, as monotonic's on Linux
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_numbers_that_are_no_process() -> None:
    assert [started(pid) for pid in (0, -1, 1 << 40)] == [None] * 3


MEMORY = """
from manifests.process_info import peak_resident_mb
before = peak_resident_mb()
block = b"x" * (200 << 20)
del block
print(before, peak_resident_mb())
"""


@linux
def test_the_most_memory_of_a_process_is_in_mb_and_its_own() -> None:
    """A build's manifest tells it: 200 MB that were held and given back, and not what the parent held before."""
    held = b"x" * (300 << 20)
    process = python(MEMORY)
    before, after = map(float, process.communicate(timeout=60)[0].split())
    assert peak_resident_mb() > 300
    del held
    assert before < 200
    assert 195 < after - before < 230


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), end="", flush=True)
time.sleep(60)
"""
CHILD = """
import os, signal, time
from manifests.process_info import end_with_parent
end_with_parent(signal.SIGTERM)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@linux
def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    parent = python(PARENT, CHILD)
    try:
        child = int(parent.stdout.readline())
        assert started(child) is not None
    finally:
        parent.kill()
        parent.communicate(timeout=60)
    assert waited_for(lambda: started(child) is None)
