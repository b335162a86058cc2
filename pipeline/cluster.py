"""Jobs over Ray: a private one on this machine for `--workers N`, or a running cluster for `--ray ADDRESS`.

The only file that says ray. A worker takes a job and reports progress; arrays never travel through Ray. Ray's own
retries are off, or a crashing asset would run four times: a job whose worker died is run again the careful way.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from typing import Any

from manifests.errors import Refused, Stopped
from manifests.presets import RasterizedViews
from manifests.processes import environment
from pipeline.build import JobEvent
from pipeline.forecast import weigh
from pipeline.leftovers import MARK, delete_folder, driver_name, end_left_behind, new_folder
from pipeline.plan import Job, Plan
from pipeline.versions import CODE, difference, package_folders, versions_here
from pipeline.work import work
from renderers import backends

log = logging.getLogger(__name__)
ASSETS_PER_WORKER = 1000  # native libraries leak: a worker process is renewed after about so many
PENDING_PER_WORKER = 2  # one that runs and one that waits, so that no worker waits for the driver
MAX_LOSSES = 4  # times that one job may lose its machine, or its careful worker
_OBJECT_STORE_BYTES = 80 << 20  # records travel, arrays do not; 80 MB is near Ray's minimum
_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 300  # for the first worker of a machine: it fetches our packages and loads the libraries
_LOOK_SECONDS = 10  # between looks at the machines of a cluster, which come and go
_EMPTY_SECONDS = 600  # a cluster without a machine for a job is waited for so long
_HEAD_SECONDS = 30  # a head that does not answer for so long is lost; Ray ends this process after 60
_WORKER_MB = 150  # what a Ray worker takes beside the process that was weighed
_SPARE = 1.25  # on top of what was weighed: other objects are larger
# A private Ray: its ports and agents listen on 127.0.0.1 only. Without these Ray takes the machine's own address.
_PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


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

    Raises Refused with the command to type where it is missing.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if private:
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

    Raises Refused where the cluster cannot be joined.
    """
    ray = require(private=address is None)
    if ray.is_initialized():
        yield ray
        return
    with _private(ray, workers) if address is None else _joined(ray, address):
        try:
            yield ray
        finally:
            ray.shutdown()


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
    try:
        try:
            with chdir(folder):  # Ray's workers would run modules of the current folder
                ray.init(
                    address="local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _temp_dir=folder,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise Refused(f"Ray does not start here: {_short(error)}; --workers 0 works without it") from error
        yield
    finally:
        delete_folder(folder)


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    """Joins a running cluster; our packages travel with the jobs."""
    _refuse_unreachable(address)
    try:
        packages = {"py_modules": package_folders()}
        ray.init(address=address, runtime_env=packages, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        raise Refused(
            f"--ray {address}: {_short(error)}; every node and this command need the same RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN"
        ) from error
    except RuntimeError as error:  # Ray compares its own version and Python's
        raise Refused(f"--ray {address}: {_short(error)}") from error
    yield


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def start_once() -> None:
    """Starts a private Ray, lets one worker answer and ends it: whether `--workers N` can work here."""
    with connected(1, None) as ray:
        ray.get(ray.remote(max_retries=0)(_answer).remote())


def _answer() -> int:
    return os.getpid()


def _refuse_unreachable(address: str) -> None:
    """Raises Refused at once where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    if address == "auto":
        return
    if "://" in address:
        raise Refused(f"--ray {address}: give HOST:PORT of the head, and run this command on a machine of the cluster")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
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
        _refuse_other_versions(ray, address)
        gpus = int(any(isinstance(s.preset, RasterizedViews) and s.preset.device == "cuda" for s in plan.view_sets))
        demand = Demand(gpus)
        _refuse_too_small(ray, address, demand)
        demand = Demand(gpus, _memory_mb(ray, demand, plan, jobs[0]))
        _refuse_too_small(ray, address, demand)
        yield demand


def _memory_mb(ray: Any, demand: Demand, plan: Plan, job: Job) -> int:
    """What a job is to ask for: the memory of a few objects that a worker makes, at most what an object may take.

    Raises Refused where the worker lacks a library or device.
    """
    most = plan.recipe.asset_memory_mb
    try:
        weighed = ray.get(ray.remote(max_retries=1, **demand.options)(_weigh).remote(job, plan))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (Refused, Stopped)):
            raise Refused(str(error.cause)) from error
        raise
    except ray.exceptions.RayError:
        return most  # its worker died: these objects are large
    return min(most, math.ceil(weighed * _SPARE) + _WORKER_MB) if weighed else most


def _weigh(job: Job, plan: Plan) -> float:
    for view_set in plan.view_sets:
        backends.require(view_set.preset)
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
            reason = _short(getattr(error, "cause", None) or error)
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

    Raises Refused when the cluster cannot be joined, Stopped when a disk is full, a job is lost too often or no
    machine is left.
    """
    demand = demand or Demand()
    with connected(workers, address) as ray:
        calls = max(1, ASSETS_PER_WORKER // plan.recipe.shard_size)
        task = ray.remote(max_retries=0, max_calls=calls, **demand.options)(work)
        slots = _Slots(ray, None if address else workers, demand)
        yield from _Running(ray, task, plan, slots, versions_here() if address else None).run(jobs)


class _Slots:
    """How many jobs may be handed out at a time; looked up again now and then, as machines come and go."""

    def __init__(self, ray: Any, workers: int | None, demand: Demand) -> None:
        self._ray, self._workers, self._demand = ray, workers, demand
        self._looked = self._full = -math.inf
        self._there = 0
        self._head = ray.get_runtime_context().gcs_address if workers is None else ""
        self._answered = time.monotonic()

    def count(self) -> int:
        """Slots at this moment. Raises Stopped when there has been no machine for a job for ten minutes."""
        if self._workers is not None:
            return PENDING_PER_WORKER * self._workers
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS and self._head_answers(now):
            self._looked = now
            self._there = sum(self._demand.fits(node["Resources"]) for node in _nodes(self._ray))
            if self._there or self._full == -math.inf:
                self._full = now
            if now - self._full > _EMPTY_SECONDS:
                raise Stopped(
                    f"no machine of the cluster has had {self._demand} for {_EMPTY_SECONDS} s; "
                    "what is finished is kept, run the same again"
                )
        return max(1, PENDING_PER_WORKER * self._there)

    def _head_answers(self, now: float) -> bool:
        """Whether the head can be reached. Raises Stopped where it has not been for a while.

        Ray itself would end this process, with an exit code of its own, after a minute.
        """
        try:
            host, _, port = self._head.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_LOOK_SECONDS / 2).close()
        except OSError as error:
            if now - self._answered > _HEAD_SECONDS:
                raise Stopped(
                    f"the head of the cluster ({self._head}) does not answer any more ({error}); what is finished is "
                    "kept: start the cluster and run the same again"
                ) from error
            return False
        self._answered = now
        return True


class _Running:
    """Jobs on their way: handed out a few at a time, taken back when they end or when their worker is lost.

    versions: what every worker must have, or None where that cannot differ.
    """

    def __init__(self, ray: Any, task: Any, plan: Plan, slots: _Slots, versions: dict[str, str] | None) -> None:
        self._ray, self._task, self._slots = ray, task, slots
        self._plan, self._versions = ray.put(plan), versions
        self._running: dict[Any, tuple[Job, bool]] = {}
        self._losses: Counter[tuple[str, int]] = Counter()

    def run(self, jobs: Iterable[Job]) -> Iterator[JobEvent]:
        """Runs all jobs to their ends; also tells of one that still runs when nothing else happens for a while."""
        waiting = [(job, False) for job in reversed(list(jobs))]
        while waiting or self._running:
            slots = self._slots.count()
            while waiting and len(self._running) < slots:
                job, careful = waiting.pop()
                stream = self._task.options(num_returns="streaming").remote(job, self._plan, careful, self._versions)
                self._running[stream] = (job, careful)
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_LOOK_SECONDS)
            if not ready:
                yield JobEvent(next(iter(self._running.values()))[0])
            for stream in ready:
                job, careful = self._running[stream]
                event, again = self._take(stream, job, careful)
                if event.state != "running":
                    del self._running[stream]
                if event.state == "again":
                    waiting.append((job, again))
                yield event

    def _take(self, stream: Any, job: Job, careful: bool) -> tuple[JobEvent, bool]:
        """What a stream gives next, and whether the job is to be run again the careful way."""
        exceptions = self._ray.exceptions
        try:
            return JobEvent(job, self._ray.get(next(stream))), careful
        except StopIteration:
            return JobEvent(job, state="done"), careful
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, (Refused, Stopped)):
                raise error.cause from None
            raise
        except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError) as error:
            if careful:
                self._note_loss(job, error)
            return JobEvent(job, state="again"), True
        except exceptions.RayError as error:  # its machine died, or could not start a worker
            self._note_loss(job, error)
            return JobEvent(job, state="again"), careful

    def _note_loss(self, job: Job, error: Exception) -> None:
        self._losses[job.split, job.shard] += 1
        lost = self._losses[job.split, job.shard]
        if lost >= MAX_LOSSES:
            raise Stopped(
                f"shard {job.split}-{job.shard:05d} lost its worker or machine {lost} times ({_short(error)}); "
                "what is finished is kept, run the same again"
            ) from error
