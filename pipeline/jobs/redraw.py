"""View sets drawn from the shards of a finished build: new ones, and what is missing of old ones."""

from __future__ import annotations

from dataclasses import replace

from manifests import store
from manifests.config import Value
from manifests.errors import Refused
from manifests.layout import VIEWS, read_view_set, require_manifest, shapes_tar, view_set_hash
from manifests.presets import load_preset
from pipeline.jobs.build_manifest import write_view_set_manifest
from pipeline.jobs.driver import OnEvent, OnStart, Task, Workers, execute
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.jobs.summary import Summary, view_set_summary
from pipeline.plan.build_recipe import stored_recipe
from pipeline.plan.from_build import of_build, require_plugins
from pipeline.plan.plan import Job, Plan, ViewSet, existing_folder, require_frames, source_folder
from pipeline.plan.same_build import refuse_other_view_set
from pipeline.shards.build_shard import missing_tars
from pipeline.shards.views_from_files import resolved
from pipeline.sources.source_files import refuse_links


def plan_views(preset_name: str, changes: dict[str, Value], out: str, source: str | None) -> tuple[Plan, list[Job]]:
    """The plan that draws one view set from the shards of a finished build.

    Raises Refused when OUT is no finished build, the preset is unknown, or the name is taken by another preset.
    """
    out = store.absolute(out)
    manifest = require_manifest(out, f"--shards {out}")
    if not manifest.complete:
        raise Refused(f"--shards {out} is not finished: run its build again first")
    require_plugins(out, manifest)
    recipe = stored_recipe(manifest.recipe, f"{out}/manifest.json")
    plan, jobs = of_build(out, manifest, recipe)
    name, preset = load_preset(preset_name, changes)
    root = None
    if preset.reads == "files":
        root = existing_folder(source, name)
        preset = resolved(preset, [asset for job in jobs for asset in job.assets], root)
    elif preset.needs_source(recipe.store_meshes):
        if preset.reads == "frames":
            require_frames(plan.table, name)
        root = source_folder(plan.table, source)
        if root is not None:
            refuse_links(root, [asset.source for job in jobs for asset in job.assets])
    view_set = ViewSet(name, preset, view_set_hash(preset, manifest.shapes_hash))
    refuse_other_view_set(out, view_set)
    return replace(plan, source=None if root is None else str(root), view_sets=(view_set,)), jobs


def draw_view_set(
    plan: Plan,
    jobs: list[Job],
    workers: Workers,
    on_start: OnStart,
    on_event: OnEvent,
    retry: frozenset[str] = frozenset(),
) -> Summary:
    """Draws what is missing of the plan's one view set. Raises Refused before, Stopped midway.

    retry: kinds of failures (timeout, memory, crash, data) whose shards are drawn anew.
    """
    (view_set,) = plan.view_sets

    def prepare(records: FinishedRecords) -> None:
        store.delete_temporaries(store.join(plan.out, VIEWS, view_set.name))
        for job in jobs:
            if missing_tars(job, plan, records.is_done)[0]:
                tar = shapes_tar(plan.out, job.split, job.shard)
                raise Refused(f"{tar} or its meshes or record are missing: run the build again first")
        write_view_set_manifest(plan, view_set)

    task = Task(
        jobs,
        again=lambda job, records: records.with_failures(plan.tars(job)[-1:], retry),
        prepare=prepare,
        needed=read_view_set(plan.out, view_set.name) is None,
    )
    return view_set_summary(plan, jobs, view_set, execute(plan, jobs, task, workers, on_start, on_event))
