"""The machines of a Ray cluster: whether they are fit for a plan's jobs, and how many jobs they take at a time.

Ray itself is given (its home is `pipeline.jobs.ray_cluster`).
"""

from __future__ import annotations

import math
import socket
import time
from dataclasses import dataclass
from typing import Any

from manifests.errors import Refused, Stopped, one_line
from pipeline.jobs.build_forecast import TRIALS, weigh
from pipeline.jobs.ray_jobs import CALL_SECONDS, KEPT, LOOK_SECONDS
from pipeline.plan.environment import CODE, difference, versions_here
from pipeline.plan.plan import Job, Plan
from renderers import backend_table

PENDING_PER_WORKER = 2  # one that runs and one that waits, so that no worker waits for the driver
EMPTY_SECONDS = 600  # how long to wait for a machine that has room for a job
_ANSWER_SECONDS = 300  # for the first worker of a machine: it fetches our packages and loads the libraries
_HEAD_SECONDS = 30  # a head that does not answer for longer is lost; Ray ends this process after 60
_WORKER_MB = 150  # what a Ray worker takes beside the process that was weighed
_SPARE = 1.25  # on top of what was weighed: other objects are larger


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


def demand_of(ray: Any, address: str, plan: Plan, job: Job) -> Demand:
    """What each job asks for. Raises Refused where the machines of the cluster are not fit for it."""
    _refuse_other_versions(ray, address)
    gpus = int(any(s.preset.needs_gpu for s in plan.view_sets))
    _refuse_too_small(ray, address, Demand(gpus))
    demand = Demand(gpus, _memory_mb(ray, Demand(gpus), plan, job))
    _refuse_too_small(ray, address, demand)
    return demand


def looking_seconds(plan: Plan) -> float:
    """The limit of `demand_of`."""
    return _ANSWER_SECONDS + _weighing_seconds(plan) + 2 * CALL_SECONDS


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
    on_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    nodes = _nodes(ray)
    ask = ray.remote(num_cpus=0, max_retries=1)(_versions)
    asked = [ask.options(scheduling_strategy=on_node(node["NodeID"], soft=False)).remote() for node in nodes]
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
            raise Refused(
                f"{name} cannot run our code: {reason}; install the role build there, as docs/cluster.md says"
            ) from error
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


class Slots:
    """How many jobs may be handed out at a time; looked up every few seconds, as machines come and go."""

    def __init__(self, ray: Any, workers: int | None, demand: Demand) -> None:
        self._ray, self._workers, self._demand = ray, workers, demand
        self._looked = self._full = -math.inf
        self._there = 0
        self._head = ray.get_runtime_context().gcs_address if workers is None else ""
        self._answered = time.monotonic()

    def count(self) -> int:
        """Slots at this moment. Raises Stopped when there has been no machine for a job for ten minutes.

        A private Ray has this machine only, which Ray counts as lost when its raylet is silent.
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
            if now - self._full > EMPTY_SECONDS:
                raise Stopped(f"no machine of the cluster has had {self._demand} for {EMPTY_SECONDS} s; {KEPT}")
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
