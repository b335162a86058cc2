"""Damaged tars of a finished build made again: shapes and meshes from the raw dataset, views from the shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from manifests import store
from manifests.errors import Refused
from manifests.layout import require_manifest, views_tar
from manifests.records import read_record, record_path
from pipeline.jobs.build_manifest import write_build_manifest
from pipeline.jobs.driver import OnEvent, OnStart, Task, Workers, execute
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.plan.from_build import whole_plan
from pipeline.plan.plan import Job, Plan
from pipeline.sources.fingerprints import known_fingerprints


@dataclass(frozen=True)
class Repaired:
    """What became of damaged tars.

    same: made again with the bytes that their records promised. other: made again with other bytes, or where no record
    said which. left: what a person must do about the others, one line each.
    """

    same: tuple[str, ...]
    other: tuple[str, ...]
    left: tuple[str, ...]


def repair(
    out: str, damaged: Iterable[str], source: str | None, workers: Workers, on_start: OnStart, on_event: OnEvent
) -> Repaired:
    """Deletes damaged tars with their records and runs the jobs that make them, and no others.

    source: the raw dataset, where one is needed; without it what needs it is left. Raises Refused where OUT is no
    finished build or cannot be rebuilt, Stopped midway.
    """
    out = store.absolute(out)
    if not require_manifest(out, out).complete:
        raise Refused(f"{out} is not finished: run its build again")
    plan, jobs = whole_plan(out, source)
    damaged = set(damaged)
    wanted = damaged & _reachable(plan, jobs)
    # views of a shard whose own shapes cannot be made wait for them
    stuck = {tar for job in jobs if (damaged - wanted) & set(plan.raw_tars(job)) for tar in plan.tars(job)}
    wanted -= stuck
    left = [_advice(plan, jobs, tar) for tar in sorted(damaged - wanted)]
    todo = [job for job in jobs if wanted & set(plan.tars(job))]
    if not todo:
        return Repaired((), (), tuple(left))
    promised: dict[str, str | None] = {}

    def prepare(records: FinishedRecords) -> None:
        promised.update((tar, _sha256(tar)) for tar in wanted)
        for tar in wanted:
            if not known_fingerprints(tar):  # one that says what its objects were made of is looked at once more
                store.remove(tar)

    def finish(records: FinishedRecords) -> None:
        if any(wanted & set(plan.raw_tars(job)) for job in todo):
            write_build_manifest(plan, jobs, records)

    task = Task(todo, lambda job, records: [tar for tar in plan.tars(job) if tar in wanted], prepare, finish)
    execute(plan, jobs, task, workers, on_start, on_event)
    same = {tar for tar in wanted if promised[tar] is not None and _sha256(tar) == promised[tar]}
    return Repaired(tuple(sorted(same)), tuple(sorted(wanted - same)), tuple(left))


def _reachable(plan: Plan, jobs: list[Job]) -> set[str]:
    """The tars that can be made with what there is: without the raw dataset only some views."""
    if plan.source is not None or not plan.dataset.NEEDS_SOURCE:
        return {tar for job in jobs for tar in plan.tars(job)}
    stored = [s for s in plan.view_sets if not s.preset.needs_source(plan.recipe.store_meshes)]
    return {views_tar(plan.out, s.name, job.split, job.shard) for s in stored for job in jobs}


def _advice(plan: Plan, jobs: list[Job], tar: str) -> str:
    """What a person must do about a tar that cannot be made with what there is."""
    if any(tar in plan.tars(job) for job in jobs):
        return f"{tar}: python -m pipeline check {plan.out} --repair --source DIR (the raw {plan.table.name})"
    return f"{tar}: delete it and its record, and run the `views` command that made this set again, with its --source"


def _sha256(tar: str) -> str | None:
    try:
        record = read_record(record_path(tar))
    except ValueError:
        return None
    return None if record is None else record.sha256
