"""The one driver under `build`, `views` and `check --repair`: runs those jobs of a plan whose tars are missing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

from manifests.process_info import handling
from pipeline.jobs import ray_cluster
from pipeline.jobs.build_lock import build_lock
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.plan.plan import Job, Plan
from pipeline.shards.build_shard import JobEvent, PlainMaker, is_missing, run_job
from renderers import backend_table

OnStart = Callable[[int, int], None]  # (objects to make, objects already there)
OnEvent = Callable[[JobEvent], None]


@dataclass(frozen=True)
class Workers:
    """Where jobs run: `count` processes of this machine (0: this very process), or the Ray cluster at `address`."""

    count: int = 0
    address: str | None = None


@dataclass(frozen=True)
class Task:
    """What a command wants done with the jobs of a plan.

    jobs: those that may be run. again: tars of a job that are finished and made again all the same. prepare: called
    under the lock before anything is made. finish: called under the lock once everything is made. needed: whether OUT
    has to be writable even where nothing is missing.
    """

    jobs: list[Job]
    again: Callable[[Job, FinishedRecords], list[str]]
    prepare: Callable[[FinishedRecords], None]
    finish: Callable[[FinishedRecords], None] = lambda records: None
    needed: bool = True


def execute(
    plan: Plan, jobs: list[Job], task: Task, workers: Workers, on_start: OnStart, on_event: OnEvent
) -> FinishedRecords:
    """Looks what is missing, gets machines and lock, looks again and runs the missing jobs; returns the records then.

    jobs: all jobs of the plan. Where nothing is missing, no renderer and no Ray is loaded, and OUT may be read-only.
    Raises Refused where a machine or library is not fit, or while another build has the lock; Stopped midway.
    """
    records = FinishedRecords()
    missing = _missing(plan, task, records)
    machines = ready(plan, workers, missing) if missing else nullcontext()
    with machines as demand, build_lock(plan.out, bool(missing) or task.needed) as lock:
        if lock is None:
            on_start(0, num_objects(jobs))
            return records
        if missing:
            records = FinishedRecords()  # another build may have made some until the lock was ours
        task.prepare(records)
        if missing:
            records.forget(tar for job in missing for tar in task.again(job, records))
            missing = _missing(plan, task, records)
        todo = num_objects(missing)
        on_start(todo, num_objects(jobs) - todo)
        for event in run_on(missing, plan, workers, demand):
            lock.renew()
            on_event(event)
        if missing:
            records = FinishedRecords()
        task.finish(records)
    return records


def _missing(plan: Plan, task: Task, records: FinishedRecords) -> list[Job]:
    return [job for job in task.jobs if is_missing(job, plan, records.is_done) or task.again(job, records)]


def num_objects(jobs: Iterable[Job]) -> int:
    """The number of objects of all these jobs."""
    return sum(len(job.assets) for job in jobs)


@contextmanager
def ready(plan: Plan, workers: Workers, jobs: list[Job]) -> Iterator[ray_cluster.Demand | None]:
    """Checks what the jobs need; yields what each job asks of a machine of the cluster, or None without a cluster.

    Raises Refused, before anything is written, where a library is missing or the cluster is not fit for the jobs.
    """
    if workers.address is not None:
        with ray_cluster.joined(workers.address, plan, jobs) as demand:
            yield demand
        return
    for view_set in plan.view_sets:
        backend_table.require(view_set.preset)
    if workers.count:
        ray_cluster.require(private=True)
    yield None


def run_on(jobs: list[Job], plan: Plan, workers: Workers, demand: ray_cluster.Demand | None) -> Iterator[JobEvent]:
    """Runs jobs wherever they are to run; yields what happens."""
    if not jobs:
        return iter(())
    if workers.address is None and workers.count == 0:
        return run_here(jobs, plan)
    return ray_cluster.run_jobs(jobs, plan, workers.count, workers.address, demand)


def run_here(jobs: list[Job], plan: Plan) -> Iterator[JobEvent]:
    """Runs jobs one after the other in this process (`--workers 0`): for debuggers, without isolation."""
    maker, pressed = PlainMaker(plan), threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        pressed.set()  # mesh libraries catch BaseException, and with it the KeyboardInterrupt
        signal.default_int_handler(number, frame)

    with handling(signal.SIGINT, remember):
        for job in jobs:
            for progress in run_job(job, plan, maker):
                if pressed.is_set():
                    raise KeyboardInterrupt
                yield JobEvent(job, progress)
            yield JobEvent(job, state="done")
