"""The work of one worker: a job made the plain way under guard, or the careful way in a child process."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from manifests.errors import Stopped
from pipeline.jobs.isolated_worker import CarefulMaker, resident_mb
from pipeline.plan.environment import difference, versions_here
from pipeline.plan.plan import Job, Plan
from pipeline.shards.build_shard import PlainMaker, Progress, run_job
from pipeline.sources.source_files import following

_WATCH_SECONDS = 0.1
_TELL_SECONDS = 1.0  # a driver takes in some thousand reports a second, and may have a thousand workers


@dataclass(frozen=True)
class WorkerProcess:
    """The process that runs a job."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def work(job: Job, plan: Plan, careful: bool, versions: dict[str, str] | None) -> Iterator[WorkerProcess | Progress]:
    """Makes one shard; yields its process, and then its progress about every second.

    versions: the driver's, where this may be another machine, which may have joined after the versions were compared.
    Raises Stopped where they differ, and when the disk is full.
    """
    differs = None if versions is None else difference(versions, versions_here())
    if differs is not None:
        raise Stopped(f"a machine that joined the cluster has other versions: {differs}; its bytes could differ")
    import_tar_writer()
    yield WorkerProcess(socket.gethostname(), os.getpid())
    if careful:
        with CarefulMaker(plan) as maker:
            yield from summed(run_job(job, plan, maker))
        return
    with _guarded(plan.recipe.asset_memory_mb), following(plan.followed):
        seconds = plan.recipe.asset_seconds
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield from summed(_timed(run_job(job, plan, PlainMaker(plan)), seconds))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def import_tar_writer() -> None:
    """Imports webdataset without torch, which would cost each new worker 2 s and 0.5 GB.

    webdataset works without it; a renderer that draws with torch imports it itself.
    """
    if "webdataset" in sys.modules or "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails, as where it is not installed
    try:
        import webdataset  # noqa: F401
    finally:
        del sys.modules["torch"]


def summed(reports: Iterable[Progress]) -> Iterator[Progress]:
    """Adds up the reports of each second. A job that makes nothing reports nothing."""
    objects = failures = 0
    said = time.monotonic()
    for progress in reports:
        objects, failures = objects + progress.objects, failures + progress.failures
        if time.monotonic() - said >= _TELL_SECONDS:
            yield Progress(objects, failures)
            objects, failures, said = 0, 0, time.monotonic()
    if objects or failures:
        yield Progress(objects, failures)


def _timed(reports: Iterable[Progress], seconds: float) -> Iterator[Progress]:
    """Passes reports on; each one starts the time of the next object."""
    for progress in reports:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield progress


@contextmanager
def _guarded(memory_mb: int) -> Iterator[None]:
    """Ends this process when it hangs (by SIGALRM, even with the GIL held) or swells (by a thread)."""
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            if resident_mb(os.getpid()) > memory_mb:
                os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
        signal.signal(signal.SIGALRM, before)
