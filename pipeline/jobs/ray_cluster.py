"""Runs jobs on Ray: a private one on this machine for `--workers N`, or a running cluster for `--ray ADDRESS`.

The only file that says ray. A worker takes a job and reports progress; arrays never travel through Ray. Ray's own
retries are off, or a crashing asset would run four times: a job whose worker died is run again the careful way.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from typing import Any

from manifests.errors import Refused, Stopped, one_line, with_type
from manifests.install import missing
from manifests.process_info import environment, handling
from pipeline.jobs.cluster_machines import EMPTY_SECONDS, Demand, Slots, demand_of, looking_seconds
from pipeline.jobs.ray_cleanup import (
    MARK,
    delete_folder,
    driver_name,
    end_left_behind,
    end_own,
    folder_of_ray,
    new_folder,
    refuse_temporary_folder,
)
from pipeline.jobs.ray_jobs import CALL_SECONDS, KEPT, RunningJobs
from pipeline.jobs.time_limits import LimitedThread, TooLong, leaving
from pipeline.jobs.worker import work
from pipeline.plan.environment import package_folders, versions_here
from pipeline.plan.plan import Job, Plan
from pipeline.shards.build_shard import JobEvent

log = logging.getLogger(__name__)
ASSETS_PER_WORKER = 1000  # native libraries leak: after about as many a worker process is renewed
_OBJECT_STORE_BYTES = 80 << 20  # records travel, arrays do not; 80 MB is near Ray's minimum
_START_SECONDS = 120  # for a private Ray, which takes 4; Ray's own limits leave out some of its waits
_JOIN_SECONDS = 60
_LEAVE_SECONDS = 30
_CONNECT_SECONDS = 10
# A private Ray: its ports and agents listen on 127.0.0.1 only. Without these Ray takes the machine's own address.
# Its workers are as nice as this process: Ray adds 15, with which others on a shared machine take nearly all its time.
_PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and no settings of ours
# Everything that may wait for Ray's processes is called here. The kernel ends those with the thread that started them.
_RAY = LimitedThread()


def require(private: bool) -> Any:
    """Ray, with a token of its own for a private cluster.

    Raises Refused with the command to type where it is missing, and where it has no place for temporary files.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if private:
        refuse_temporary_folder()
        for name, value in _PRIVATE.items():
            os.environ.setdefault(name, value)
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    try:
        import ray
    except ImportError as error:
        raise missing("ray", "build", "use --workers 0") from error
    return ray


@contextmanager
def connected(workers: int, address: str | None) -> Iterator[Any]:
    """Ray, connected to a private cluster of `workers` or to the one at `address`; an open connection is used again.

    Raises Refused where the cluster cannot be joined, Stopped where a private one does not start.
    """
    ray = require(private=address is None)
    if ray.is_initialized():
        yield ray
        return
    # SIGTERM as Ctrl-C: `finally` blocks then end a private Ray and delete its folder
    ended = handling(signal.SIGTERM, signal.default_int_handler)
    with ended, _private(ray, workers) if address is None else _joined(ray, address):
        yield ray


@contextmanager
def _private(ray: Any, workers: int) -> Iterator[None]:
    """Starts Ray on this machine, marked as this process's own, in a folder of its own.

    Processes that killed drivers left behind are ended first.
    """
    ended = end_left_behind()
    if ended:
        log.warning("ended %d processes that a killed run left behind", ended)
    os.environ.update(environment() | {MARK: driver_name()})
    folder = new_folder()
    options = {
        "address": "local",
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": folder_of_ray(folder),
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    try:
        try:
            with chdir(folder):  # Ray's workers would run modules of the current folder
                _RAY.call("its start", _START_SECONDS, ray.init, **options)
        except Exception as error:  # Ray raises plain ones, too
            why = str(error) if isinstance(error, TooLong) else with_type(error)
            raise Stopped(f"Ray does not start here: {why}; {KEPT}, or use --workers 0, which needs none") from error
        yield
    finally:
        _leave(ray)
        if not _RAY.is_stuck:  # else it is deleted by the next build, as a killed run's is
            end_own()
            delete_folder(folder)


def _leave(ray: Any) -> None:
    """Ends the connection. A Ray that hangs here is ended by the kernel, with this process."""
    try:
        _RAY.call("Ray's end", _LEAVE_SECONDS, ray.shutdown)
    except TooLong:
        atexit.unregister(ray.shutdown)  # it would wait for the same once more


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    """Joins a running cluster; our packages travel with the jobs."""
    _refuse_unreachable(address)
    packages = {"py_modules": package_folders()}
    options = {"address": address, "runtime_env": packages, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        _RAY.call("an answer of the head", _JOIN_SECONDS, ray.init, **options)
    except TooLong as error:
        atexit.unregister(ray.shutdown)
        raise Refused(f"--ray {address}: {error}; give HOST:PORT of `ray start --head`") from error
    except (ConnectionError, ValueError) as error:
        raise Refused(
            f"--ray {address}: {one_line(error)}; every node and this command need the same RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN"
        ) from error
    except RuntimeError as error:  # Ray compares its own version and Python's
        raise Refused(f"--ray {address}: {one_line(error)}") from error
    try:
        yield
    finally:
        _leave(ray)


def start_once() -> None:
    """Starts a private Ray, lets one worker answer and ends it. Raises Stopped where `--workers N` cannot work here."""
    with connected(1, None) as ray:
        try:
            _RAY.call("its first worker", _START_SECONDS, lambda: ray.get(ray.remote(max_retries=0)(_answer).remote()))
        except (TooLong, ray.exceptions.RayError) as error:
            raise Stopped(f"Ray starts, and no worker of it: {one_line(error)}") from error


def start_and_say() -> str | int:
    """`start_once` as a program: gives what SystemExit takes, 0 or why no Ray starts here."""
    try:
        start_once()
    except (Refused, Stopped) as error:
        leaving(1)
        return str(error)
    return 0


def _answer() -> int:
    return os.getpid()


def _refuse_unreachable(address: str) -> None:
    """Raises Refused within seconds where no process at HOST:PORT answers; Ray would try for minutes.

    A head speaks HTTP/2 and answers its greeting at once (RFC 9113, 3.4); with TLS it refuses it, which is an answer.
    """
    if address == "auto":
        return
    if "://" in address:
        raise Refused(f"--ray {address}: give HOST:PORT of the head, and run this command on a machine of the cluster")
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS) as head, suppress(ConnectionResetError):
            head.sendall(_GREETING)
            head.recv(1)
    except (OSError, ValueError, OverflowError) as error:
        raise Refused(
            f"--ray {address}: no Ray head answers there ({error}); give HOST:PORT of `ray start --head`"
        ) from error


@contextmanager
def joined(address: str, plan: Plan, jobs: list[Job]) -> Iterator[Demand]:
    """A running cluster that was found fit for a plan's jobs, and what each of them asks for.

    Raises Refused when it cannot be joined, when a machine has other versions than this one, and when no machine has
    what a job needs.
    """
    with connected(0, address) as ray:
        try:
            demand = _RAY.call("a look at its machines", looking_seconds(plan), demand_of, ray, address, plan, jobs[0])
        except TooLong as error:
            raise Refused(f"--ray {address}: {error}; `ray status` there tells more") from error
        yield demand


def run_jobs(
    jobs: list[Job], plan: Plan, workers: int, address: str | None, demand: Demand | None = None
) -> Iterator[JobEvent]:
    """Runs jobs on `workers` processes of this machine, or on a cluster; yields what happens as it happens.

    Raises Refused when the cluster cannot be joined, Stopped when a disk is full, a job is lost too often, no machine
    is left or Ray hangs.
    """
    with connected(workers, address) as ray:
        events = _events(ray, jobs, plan, None if address else workers, demand or Demand())
        while True:
            try:
                event = _RAY.call("an answer", CALL_SECONDS, next, events, None)
            except TooLong as error:
                raise Stopped(f"Ray hangs: {error}; {KEPT}") from error
            if event is None:
                return
            yield event


def _events(ray: Any, jobs: list[Job], plan: Plan, workers: int | None, demand: Demand) -> Iterator[JobEvent]:
    """What happens to jobs; each step takes seconds at most. workers: None on a cluster."""
    calls = max(1, ASSETS_PER_WORKER // plan.recipe.shard_size)
    task = ray.remote(max_retries=0, max_calls=calls, **demand.options)(work)
    slots = Slots(ray, workers, demand)
    begin_seconds, versions = (_START_SECONDS, None) if workers is not None else (EMPTY_SECONDS, versions_here())
    yield from RunningJobs(ray, task, plan, slots.count, begin_seconds, versions).run(jobs)
