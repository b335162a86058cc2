"""Jobs over Ray: a private one on this machine for `--workers N`, or a running cluster for `--ray ADDRESS`.

The only file that says ray. A worker takes a job and reports progress; arrays never travel through Ray. Ray's own
retries are off, or a crashing asset would run four times: a job whose worker died is run again the careful way.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from manifests.errors import Refused, Stopped, one_line, with_type
from manifests.process_info import environment
from pipeline.jobs.build_forecast import TRIALS, weigh
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
from pipeline.jobs.ray_jobs import CALL_SECONDS, KEPT, LOOK_SECONDS, RunningJobs
from pipeline.jobs.time_limits import LimitedThread, TooLong
from pipeline.jobs.worker import work
from pipeline.plan.environment import CODE, difference, package_folders, versions_here
from pipeline.plan.plan import Job, Plan
from pipeline.shards.build_shard import JobEvent
from renderers import backend_table

log = logging.getLogger(__name__)
ASSETS_PER_WORKER = 1000  # native libraries leak: a worker process is renewed after about so many
PENDING_PER_WORKER = 2  # one that runs and one that waits, so that no worker waits for the driver
_OBJECT_STORE_BYTES = 80 << 20  # records travel, arrays do not; 80 MB is near Ray's minimum
_START_SECONDS = 120  # for a private Ray, which takes 4; Ray's own limits leave out some of its waits
_JOIN_SECONDS = 60
_LEAVE_SECONDS = 30
_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 300  # for the first worker of a machine: it fetches our packages and loads the libraries
_EMPTY_SECONDS = 600  # a cluster without a machine for a job is waited for so long
_HEAD_SECONDS = 30  # a head that does not answer for so long is lost; Ray ends this process after 60
_WORKER_MB = 150  # what a Ray worker takes beside the process that was weighed
_SPARE = 1.25  # on top of what was weighed: other objects are larger
# A private Ray: its ports and agents listen on 127.0.0.1 only. Without these Ray takes the machine's own address.
_PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and no settings of ours
# Everything that may wait for Ray's processes is called here. The kernel ends those with the thread that started them.
_RAY = LimitedThread()


@dataclass(frozen=True)
class Demand:
    """What one job asks of a machine: a core, a GPU where it draws on one, and memory in MB (0: not asked for)."""

    gpus: int = 0
    memory_mb: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """As options of a Ray task."""
        asked = {"num_gpus": self.gpus, "memory": self.memory_mb << 20}
        return {"num_cpus": 1, **{name: value for name, value in asked.items() if value}}

    def fits(self, resources: dict[str, float]) -> int:
        """How many such jobs a machine with these resources (Ray's names) runs at a time."""
        room = [int(resources.get("CPU", 0))]
        if self.gpus:
            room.append(int(resources.get("GPU", 0)) // self.gpus)
        if self.memory_mb:
            room.append(int(resources.get("memory", 0)) // (self.memory_mb << 20))
        return min(room)

    def __str__(self) -> str:
        gpus = ", 1 GPU" if self.gpus else ""
        return f"1 core{gpus}, {self.memory_mb:,} MB"


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
        raise Refused("ray is missing: pip install 'cross-most[build]', or use --workers 0") from error
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
    with _ended_by_sigterm(), _private(ray, workers) if address is None else _joined(ray, address):
        yield ray


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Makes of SIGTERM what Ctrl-C is: `finally` blocks end a private Ray and delete its folder."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _private(ray: Any, workers: int) -> Iterator[None]:
    """Starts Ray on this machine, marked as this process's own, in a folder of its own.

    What killed drivers left of theirs is ended first.
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
    """Ends the connection. A Ray that does not let go of it is ended by the kernel, with this process."""
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
    """Starts a private Ray, lets one worker answer and ends it: whether `--workers N` can work here.

    Raises Stopped where it cannot.
    """
    with connected(1, None) as ray:
        try:
            _RAY.call("its first worker", _START_SECONDS, lambda: ray.get(ray.remote(max_retries=0)(_answer).remote()))
        except (TooLong, ray.exceptions.RayError) as error:
            raise Stopped(f"Ray starts, and no worker of it: {one_line(error)}") from error


def _answer() -> int:
    return os.getpid()


def _refuse_unreachable(address: str) -> None:
    """Raises Refused soon where nobody listens at HOST:PORT, or where who does says nothing; Ray would try for minutes.

    A head speaks HTTP/2 and answers its greeting at once (RFC 9113, 3.4); with TLS it refuses it, an answer as well.
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
        seconds = _ANSWER_SECONDS + _weighing_seconds(plan) + 2 * CALL_SECONDS
        try:
            demand = _RAY.call("a look at its machines", seconds, _demand, ray, address, plan, jobs[0])
        except TooLong as error:
            raise Refused(f"--ray {address}: {error}; `ray status` there tells more") from error
        yield demand


def _demand(ray: Any, address: str, plan: Plan, job: Job) -> Demand:
    """What each job asks for. Raises Refused where the machines of the cluster are not fit for it."""
    _refuse_other_versions(ray, address)
    gpus = int(any(s.preset.needs_gpu for s in plan.view_sets))
    _refuse_too_small(ray, address, Demand(gpus))
    demand = Demand(gpus, _memory_mb(ray, Demand(gpus), plan, job))
    _refuse_too_small(ray, address, demand)
    return demand


def _weighing_seconds(plan: Plan) -> float:
    """The limit of weighing a few objects, in a worker that may have to start."""
    return _ANSWER_SECONDS + TRIALS * plan.recipe.asset_seconds


def _memory_mb(ray: Any, demand: Demand, plan: Plan, job: Job) -> int:
    """What a job is to ask for: the memory of a few objects that a worker makes, at most what an object may take.

    Raises Refused where the worker lacks a library or device.
    """
    most = plan.recipe.asset_memory_mb
    weighing = ray.remote(max_retries=1, **demand.options)(_weigh).remote(job, plan)
    try:
        weighed = ray.get(weighing, timeout=_weighing_seconds(plan))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(weighing, force=True)
        return most  # its worker hangs, or the cluster is busy
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (Refused, Stopped)):
            raise Refused(str(error.cause)) from error
        raise
    except ray.exceptions.RayError:
        return most  # its worker died: these objects are large
    return min(most, math.ceil(weighed * _SPARE) + _WORKER_MB) if weighed else most


def _weigh(job: Job, plan: Plan) -> float:
    for view_set in plan.view_sets:
        backend_table.require(view_set.preset)
    return weigh(job, plan)


def _versions() -> dict[str, str]:
    return versions_here()


def _nodes(ray: Any) -> list[dict[str, Any]]:
    """Ray's descriptions of the machines that live and run jobs."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def _refuse_other_versions(ray: Any, address: str) -> None:
    """Raises Refused naming the first machine whose libraries or copy of our code are not this process's."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

    nodes = _nodes(ray)
    ask = ray.remote(num_cpus=0, max_retries=1)(_versions)
    asked = [ask.options(scheduling_strategy=OnNode(node["NodeID"], soft=False)).remote() for node in nodes]
    deadline = time.monotonic() + _ANSWER_SECONDS
    for node, reference in zip(nodes, asked, strict=True):
        name = f"--ray {address}: {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            there = ray.get(reference, timeout=max(1.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError as error:
            raise Refused(f"{name} starts no worker within {_ANSWER_SECONDS} s") from error
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue  # it has just died
        except ray.exceptions.RayError as error:
            reason = one_line(getattr(error, "cause", None) or error)
            raise Refused(f"{name} cannot run our code: {reason}; install cross-most[build] there") from error
        differs = difference(versions_here(), there)
        if differs is not None:
            how = "start its Ray in another folder" if differs.startswith(CODE) else "install the same there"
            raise Refused(f"{name} has other versions: {differs}; its bytes could differ: {how}")


def _refuse_too_small(ray: Any, address: str, demand: Demand) -> None:
    """Raises Refused where no machine has what a job needs: Ray would wait for one for ever."""
    nodes = _nodes(ray)
    if not any(demand.fits(node["Resources"]) for node in nodes):
        largest = max((int(node["Resources"].get("memory", 0)) >> 20 for node in nodes), default=0)
        gpus = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
        there = f"{len(nodes)} machines with cores, {gpus} GPUs, the largest with {largest:,} MB"
        raise Refused(f"--ray {address}: a job needs {demand} of one machine; the cluster has {there}")


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
    slots = _Slots(ray, workers, demand)
    begin_seconds, versions = (_START_SECONDS, None) if workers is not None else (_EMPTY_SECONDS, versions_here())
    yield from RunningJobs(ray, task, plan, slots.count, begin_seconds, versions).run(jobs)


class _Slots:
    """How many jobs may be handed out at a time; looked up again now and then, as machines come and go."""

    def __init__(self, ray: Any, workers: int | None, demand: Demand) -> None:
        self._ray, self._workers, self._demand = ray, workers, demand
        self._looked = self._full = -math.inf
        self._there = 0
        self._head = ray.get_runtime_context().gcs_address if workers is None else ""
        self._answered = time.monotonic()

    def count(self) -> int:
        """Slots at this moment. Raises Stopped when there has been no machine for a job for ten minutes.

        Of a private Ray the machine is this one: Ray takes one whose raylet says nothing for lost.
        """
        now = time.monotonic()
        if self._workers is not None:
            if now - self._looked > LOOK_SECONDS:
                self._looked = now
                if not _nodes(self._ray):
                    raise Stopped(f"Ray's processes on this machine have ended, or hang; {KEPT}")
            return PENDING_PER_WORKER * self._workers
        if now - self._looked > LOOK_SECONDS and self._head_answers(now):
            self._looked = now
            self._there = sum(self._demand.fits(node["Resources"]) for node in _nodes(self._ray))
            if self._there or self._full == -math.inf:
                self._full = now
            if now - self._full > _EMPTY_SECONDS:
                raise Stopped(f"no machine of the cluster has had {self._demand} for {_EMPTY_SECONDS} s; {KEPT}")
        return max(1, PENDING_PER_WORKER * self._there)

    def _head_answers(self, now: float) -> bool:
        """Whether the head can be reached. Raises Stopped where it has not been for a while.

        Ray itself would end this process, with an exit code of its own, after a minute.
        """
        try:
            host, _, port = self._head.rpartition(":")
            socket.create_connection((host, int(port)), timeout=LOOK_SECONDS / 2).close()
        except OSError as error:
            if now - self._answered > _HEAD_SECONDS:
                raise Stopped(
                    f"the head of the cluster ({self._head}) does not answer any more ({error}); what is finished is "
                    "kept: start the cluster and run the same again"
                ) from error
            return False
        self._answered = now
        return True
