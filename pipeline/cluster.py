"""Jobs over Ray: a private one on this machine for `--workers N`, or a running cluster for `--ray ADDRESS`.

The only file that says ray. A worker takes a job and reports progress; arrays never travel through Ray. Ray's own
retries are off, or a crashing asset would run four times: a job whose worker died is run again the careful way.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import manifests
import pipeline
import renderers
from manifests.errors import Refused, Stopped
from pipeline.build import JobEvent, PlainMaker, Progress, run_job
from pipeline.careful import CarefulMaker, resident_mb
from pipeline.plan import Job, Plan

ASSETS_PER_WORKER = 1000  # native libraries leak: a worker process is renewed after about so many
MAX_LOST_NODES = 3
_OBJECT_STORE_BYTES = 80 << 20  # records travel, arrays do not; 80 MB is near Ray's minimum
_WATCH_SECONDS = 0.1
_CONNECT_SECONDS = 10


def require(private: bool) -> Any:
    """Ray, with a token of its own for a private cluster: its ports listen on every interface.

    Raises Refused with the command to type where Ray is missing.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if private and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    try:
        import ray
    except ImportError as error:
        raise Refused("ray is missing: pip install 'cross-most[build]', or use --workers 0") from error
    return ray


@contextmanager
def connected(workers: int, address: str | None) -> Iterator[Any]:
    """Ray, connected to a private cluster of `workers` or to the one at `address`; an open connection is used again.

    Raises Refused where the cluster cannot be joined.
    """
    ray = require(private=address is None)
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            _refuse_unreachable(address)
            folders = [str(Path(package.__file__).parent) for package in (manifests, renderers, pipeline)]
            ray.init(address=address, runtime_env={"py_modules": folders}, **quiet)
    except (ConnectionError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise Refused(
            f"--ray {address}: {text}; every node and this command need the same RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def start_once() -> None:
    """Starts a private Ray, lets one worker answer and ends it: whether `--workers N` can work here."""
    with connected(1, None) as ray:
        ray.get(ray.remote(max_retries=0)(_answer).remote())


def _answer() -> int:
    return os.getpid()


def _refuse_unreachable(address: str) -> None:
    """Raises Refused at once where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise Refused(
            f"--ray {address}: no Ray head answers there ({error}); give HOST:PORT of `ray start --head`"
        ) from error


def run_jobs(jobs: list[Job], plan: Plan, workers: int, address: str | None) -> Iterator[JobEvent]:
    """Runs jobs on `workers` processes of this machine, or on a cluster; yields what happens as it happens.

    Raises Refused when the cluster cannot be joined, Stopped when a disk is full or too many machines are lost.
    """
    with connected(workers, address) as ray:
        calls = max(1, ASSETS_PER_WORKER // plan.recipe.shard_size)
        task = ray.remote(num_cpus=1, max_retries=0, max_calls=calls)(_work)
        shared_plan = ray.put(plan)
        slots = 2 * (workers if address is None else max(1, int(ray.cluster_resources().get("CPU", 1))))
        waiting = [(job, False) for job in reversed(jobs)]
        running: dict[Any, tuple[Job, bool]] = {}
        lost = 0
        while waiting or running:
            while waiting and len(running) < slots:
                job, careful = waiting.pop()
                running[task.options(num_returns="streaming").remote(job, shared_plan, careful)] = (job, careful)
            ready, _ = ray.wait(list(running), num_returns=1)
            for stream in ready:
                job, careful = running[stream]
                try:
                    yield JobEvent(job, ray.get(next(stream)))
                except StopIteration:
                    del running[stream]
                    yield JobEvent(job, state="done")
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                    del running[stream]
                    lost += careful
                    _give_up(lost, error)
                    waiting.append((job, True))
                    yield JobEvent(job, state="again")
                except ray.exceptions.NodeDiedError as error:
                    del running[stream]
                    lost += 1
                    _give_up(lost, error)
                    waiting.append((job, careful))
                    yield JobEvent(job, state="again")
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, (Refused, Stopped)):
                        raise error.cause from None
                    raise
                except ray.exceptions.RayError as error:
                    raise Stopped(f"Ray stopped: {' '.join(str(error).split())[:200]}") from error


def _give_up(lost: int, error: Exception) -> None:
    if lost > MAX_LOST_NODES:
        text = " ".join(str(error).split())[:200]
        raise Stopped(f"{lost} workers or machines were lost ({text}); what is finished is kept, run the same again")


def _work(job: Job, plan: Plan, careful: bool) -> Iterator[Progress]:
    """What a worker runs: the plain way under guard, or the careful way."""
    if careful:
        with CarefulMaker(plan) as maker:
            yield from run_job(job, plan, maker)
        return
    with _guarded(plan.recipe.asset_memory_mb):
        seconds = plan.recipe.asset_seconds
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            for progress in run_job(job, plan, PlainMaker(plan)):
                signal.setitimer(signal.ITIMER_REAL, seconds)
                yield progress
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _guarded(memory_mb: int) -> Iterator[None]:
    """Lets the kernel end this process when it hangs (SIGALRM, also with the GIL held), and a thread when it swells."""
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
