"""A whole build: OUT is compared with the plan, missing jobs are run, the manifest is finished."""

from __future__ import annotations

from dataclasses import replace

from manifests.layout import read_manifest, read_view_set, view_set_names, views_tar
from pipeline.jobs.build_manifest import write_build_manifest, write_unfinished
from pipeline.jobs.driver import OnEvent, OnStart, Task, Workers, execute
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.jobs.summary import Summary, summed_up
from pipeline.plan.from_build import drawn_sets
from pipeline.plan.plan import Job, Plan
from pipeline.plan.same_build import refuse_other_build
from pipeline.shards.build_shard import missing_tars


def build(
    plan: Plan,
    jobs: list[Job],
    workers: Workers,
    on_start: OnStart,
    on_event: OnEvent,
    retry: frozenset[str] = frozenset(),
) -> Summary:
    """Runs the missing jobs of a plan and finishes the manifest.

    retry: kinds of failures (timeout, memory, crash, data) whose shards are built anew, and drawn anew in all view sets
    of OUT. Raises Refused (OUT of another recipe or source, a live build) before anything is written, Stopped midway.
    """
    refuse_other_build(plan, jobs)
    if retry:
        plan = replace(plan, view_sets=tuple({s.name: s for s in (*plan.view_sets, *drawn_sets(plan))}.values()))

    def prepare(records: FinishedRecords) -> None:
        write_unfinished(plan, jobs)
        if retry:
            _forget_files(plan, jobs, records, retry)

    task = Task(
        jobs,
        again=lambda job, records: records.with_failures(plan.tars(job), retry),
        prepare=prepare,
        finish=lambda records: write_build_manifest(plan, jobs, records),
        needed=not _is_whole(plan),
    )
    return summed_up(plan, jobs, execute(plan, jobs, task, workers, on_start, on_event))


def _is_whole(plan: Plan) -> bool:
    """Whether the manifests of a build and of the plan's view sets say that they are finished."""
    manifest = read_manifest(plan.out)
    sets = all(read_view_set(plan.out, view_set.name) is not None for view_set in plan.view_sets)
    return manifest is not None and manifest.complete and sets


def _forget_files(plan: Plan, jobs: list[Job], records: FinishedRecords, retry: frozenset[str]) -> None:
    """Removes the records of sets of files where shapes are built anew: `views` with their --source fills them in."""
    for name in view_set_names(plan.out):
        known = read_view_set(plan.out, name)
        if known is not None and known.preset.reads == "files":
            for job in jobs:
                if missing_tars(job, plan, records.is_done)[0] or records.with_failures(plan.raw_tars(job), retry):
                    records.forget([views_tar(plan.out, name, job.split, job.shard)])


def estimate_bytes(plan: Plan, num_assets: int) -> int:
    """A rough size of the build: measured averages of one object (a point, a coloured point, a view by pixels)."""
    pixels = sum(
        s.preset.num_views * s.preset.image_size**2 * (0.95 if s.preset.needs_mesh else 0.35) for s in plan.view_sets
    )
    meshes = 250_000 if plan.recipe.store_meshes else 0
    return int(num_assets * (plan.recipe.num_points * 15 + pixels + meshes + 4096))
