"""Jobs on Ray's workers: handed out, followed, and run again where a worker is lost or silent.

Ray itself is given (its home is `pipeline.jobs.ray_cluster`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from manifests.errors import Refused, Stopped, with_type
from pipeline.jobs.isolated_worker import longest_silence
from pipeline.jobs.time_limits import AwakeClock
from pipeline.jobs.worker import WorkerProcess
from pipeline.plan.plan import Job, Plan
from pipeline.shards.build_shard import JobEvent

MAX_LOSSES = 4  # times that one job may lose its machine, or its careful worker
CALL_SECONDS = 45  # for what Ray answers at once; it ends this process itself after 60 of a head that hangs
LOOK_SECONDS = 10  # between looks at the machines of a cluster, which come and go, and at jobs that say nothing
_WAIT_SECONDS = 1  # for a job to report; Ctrl-C waits as long
_SILENT_SECONDS = 30  # beyond what a worker may need for an object: one that hangs ends itself, a stopped one does not
_ENDED_SECONDS = 60  # a worker that Ray was asked to end is gone after 5
KEPT = "what is finished is kept, run the same again"


@dataclass
class _RunningJob:
    """A job that was handed out.

    heard: the time of its last report, or of its handing out. process: where it runs, None until it begins. ending:
    since when its silent worker is being ended.
    """

    job: Job
    careful: bool
    heard: float
    process: WorkerProcess | None = None
    ending: float | None = None


class RunningJobs:
    """Hands jobs out a few at a time, and takes them back when they end or when their worker is lost.

    slots: how many may be handed out at a time. begin_seconds: for a job to begin while no other runs. versions: what
    every worker must have, or None where that cannot differ.
    """

    def __init__(
        self,
        ray: Any,
        task: Any,
        plan: Plan,
        slots: Callable[[], int],
        begin_seconds: float,
        versions: dict[str, str] | None,
    ) -> None:
        self._ray, self._task, self._slots = ray, task, slots
        self._plan, self._versions, self._begin_seconds = ray.put(plan), versions, begin_seconds
        seconds = plan.recipe.asset_seconds
        self._silence = {False: seconds + _SILENT_SECONDS, True: longest_silence(seconds) + _SILENT_SECONDS}
        self._running: dict[Any, _RunningJob] = {}
        self._losses: Counter[tuple[str, int]] = Counter()
        self._awake = AwakeClock()

    def run(self, jobs: Iterable[Job]) -> Iterator[JobEvent]:
        """Runs all jobs; where nothing happens for a while, it yields an event of a job that still runs."""
        waiting = [(job, False) for job in reversed(list(jobs))]
        looked = self._awake.seconds()
        while waiting or self._running:
            slots = self._slots()
            while waiting and len(self._running) < slots:
                job, careful = waiting.pop()
                stream = self._task.options(num_returns="streaming").remote(job, self._plan, careful, self._versions)
                self._running[stream] = _RunningJob(job, careful, self._awake.seconds())
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_WAIT_SECONDS)
            if not ready:
                yield JobEvent(next(iter(self._running.values())).job)
            for stream in ready:
                run = self._running[stream]
                event, again = self._take(stream, run)
                if event.state != "running":
                    del self._running[stream]
                if event.state == "again":
                    waiting.append((run.job, again))
                yield event
            if self._awake.seconds() - looked > LOOK_SECONDS:
                looked = self._awake.seconds()
                self._end_silent(looked)

    def _take(self, stream: Any, run: _RunningJob) -> tuple[JobEvent, bool]:
        """What a stream gives next, and whether the job is to be run again the careful way."""
        exceptions = self._ray.exceptions
        run.heard = self._awake.seconds()
        job, careful = run.job, run.careful
        try:
            said = self._ray.get(next(stream), timeout=CALL_SECONDS)
            if isinstance(said, WorkerProcess):
                run.process = said
                return JobEvent(job), careful
            return JobEvent(job, said), careful
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
        except exceptions.TaskCancelledError:  # see _end_silent
            self._note_loss(job, TimeoutError(f"{run.process or 'a worker'} said nothing for too long and was ended"))
            return JobEvent(job, state="again"), careful or run.process is not None
        except exceptions.RayError as error:  # its machine died, or could not start a worker
            self._note_loss(job, error)
            return JobEvent(job, state="again"), careful

    def _end_silent(self, now: float) -> None:
        """Lets Ray end workers that have been silent for longer than a job can take, such as stopped ones.

        A job that waits for a worker is silent, too: it counts only while no other job runs.
        Raises Stopped, naming the worker, where one does not end.
        """
        alive = [run for run in self._running.values() if run.process is not None and run.ending is None]
        for stream, run in self._running.items():
            if run.ending is not None:
                if now - run.ending > _ENDED_SECONDS:
                    raise Stopped(
                        f"shard {run.job.split}-{run.job.shard:05d}: its worker ({run.process or 'not begun'}) says "
                        f"nothing and does not end; {KEPT}"
                    )
                continue
            limit = self._begin_seconds if run.process is None else self._silence[run.careful]
            if now - run.heard <= limit or (run.process is None and alive):
                continue
            if not self._ray.wait([stream], timeout=0)[0]:
                run.ending = now
                self._ray.cancel(stream, force=True)

    def _note_loss(self, job: Job, error: Exception) -> None:
        self._losses[job.split, job.shard] += 1
        lost = self._losses[job.split, job.shard]
        if lost >= MAX_LOSSES:
            raise Stopped(
                f"shard {job.split}-{job.shard:05d} lost its worker or machine {lost} times "
                f"({with_type(error)}); {KEPT}"
            ) from error
