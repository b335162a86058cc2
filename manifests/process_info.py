"""Processes of this machine: whether one still runs, told by when it began; this one's memory and its parent's end; the
environment of those that we start.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import sysconfig
from pathlib import Path

_ENDED = ("Z", "X", "x")  # proc(5), states of a process
_HOME = str(Path(__file__).resolve().parents[1])  # of our packages
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a process that was forked loads nothing
_PR_SET_PDEATHSIG = 1  # prctl(2)


def started(pid: int) -> str | None:
    """When a process of this machine began (its 22nd /proc field), None where there is no such process.

    One that has ended and that its parent has not taken note of is none.
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

    From /proc where there is one: getrusage also counts what its parent held when it started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, ValueError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def end_with_parent(number: signal.Signals) -> None:
    """Lets the kernel send this process a signal when its parent dies; nothing where it is not Linux's."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def environment() -> dict[str, str]:
    """The environment of a Python of ours, in which no module of the current folder is run in place of a real one.

    `python -m` and `-c` look there first. PYTHONSAFEPATH, which those that it starts inherit, leaves that folder out;
    then our packages are named by PYTHONPATH, unless they are installed.
    """
    named = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]  # an empty one is that folder
    if _HOME not in (*named, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        named.insert(0, _HOME)
    return dict(os.environ, PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join(named))
