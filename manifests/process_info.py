"""Processes of this machine: whether one still runs, its memory, its end with its parent, its environment."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_ENDED = ("Z", "X", "x")  # proc(5), states of a process
_HOME = str(Path(__file__).resolve().parents[1])  # of our packages
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a process that was forked loads nothing
_PR_SET_PDEATHSIG = 1  # prctl(2)


def started(pid: int) -> str | None:
    """When a process of this machine began (its 22nd /proc field), None where there is no such process.

    A process that has ended is gone, even while its parent has not collected it.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in _ENDED else fields[18]
    except (OSError, ValueError, IndexError):
        return _alive(pid)


def _alive(pid: int) -> str | None:
    """Where there is no /proc: whether a signal could be sent."""
    try:
        os.kill(pid, 0)
    except (OSError, ValueError, OverflowError):
        return None
    return "alive" if pid > 0 and not Path("/proc/self").exists() else None


def peak_resident_mb() -> float:
    """The most resident memory of this process so far.

    From /proc where that exists: getrusage also counts what its parent held when it started this one.
    """
    return peak_mb_of(os.getpid()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_mb_of(pid: int) -> float:
    """The most resident memory of a process so far in megabytes (proc(5), VmHWM), 0 where /proc does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, ValueError, StopIteration):
        return 0.0


def end_with_parent(number: signal.Signals) -> None:
    """Lets the kernel send this process a signal when its parent dies; on Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)


@contextmanager
def handling(number: signal.Signals, handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Gives a signal a handler while the block runs; not outside the main thread, which alone may do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def environment() -> dict[str, str]:
    """The environment of a Python of ours, in which no module of the current folder is run in place of a real one.

    `python -m` and `-c` look there first. PYTHONSAFEPATH, which child processes inherit, leaves that folder out;
    PYTHONPATH then names our packages, unless they are installed.
    """
    named = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]  # an empty one: that folder
    if _HOME not in (*named, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        named.insert(0, _HOME)
    return dict(os.environ, PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join(named))
