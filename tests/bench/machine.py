"""What every benchmark says about the machine, and how it repeats."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np


def describe_machine() -> str:
    """Core count and load, so that a figure can be read."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def one_core() -> None:
    """Pins this process to one core and its libraries to one thread (call before importing them)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def repeat(call: Callable[[], object], times: int) -> tuple[float, float]:
    """(minimum, median) milliseconds of a call, after one that is not counted."""
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return min(taken), float(np.median(taken))
