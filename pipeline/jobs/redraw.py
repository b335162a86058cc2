"""View sets drawn from the shards of a finished build: new ones, and what is missing of old ones."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from manifests import store
from manifests.config import Value
from manifests.dataset_info import DatasetTable, load_table
from manifests.errors import Refused
from manifests.layout import (
    ASSETS,
    VIEWS,
    BuildManifest,
    library_versions,
    read_view_set,
    require_manifest,
    shapes_tar,
    view_set_hash,
    views_tar,
)
from manifests.presets import is_files_preset, is_frames_preset, is_mesh_preset, load_preset
from manifests.records import Asset, parse_assets
from pipeline.jobs.build_lock import build_lock
from pipeline.jobs.driver import (
    OnEvent,
    OnStart,
    Summary,
    Workers,
    failed,
    forget,
    ready,
    refuse_other_view_set,
    run_missing,
    run_on,
    view_set_summary,
    write_view_set_manifest,
)
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.plan.build_recipe import BuildRecipe, stored_recipe
from pipeline.plan.plan import LIBRARIES, Job, Plan, ViewSet, cut_jobs, existing_folder, refuse_frames, source_folder
from pipeline.shards.build_shard import is_missing, missing_tars
from pipeline.shards.views_from_files import resolved


def plan_views(preset_name: str, changes: dict[str, Value], out: str, source: str | None) -> tuple[Plan, list[Job]]:
    """The plan that draws one view set from the shards of a finished build.

    Raises Refused when OUT is no finished build, the preset is unknown, or the name is taken by another preset.
    """
    out = store.absolute(out)
    manifest = require_manifest(out, f"--shards {out}")
    if not manifest.complete:
        raise Refused(f"--shards {out} is not finished: run its build again first")
    recipe = stored_recipe(manifest.recipe, f"{out}/manifest.json")
    table = load_table(manifest.dataset)
    assets = listed_assets(out, manifest)
    name, preset = load_preset(preset_name, changes)
    root = None
    if is_files_preset(preset):
        root = existing_folder(source, name)
        preset = resolved(preset, assets, root)
    elif is_frames_preset(preset):
        refuse_frames(table, name)
        root = source_folder(table, source)
    elif is_mesh_preset(preset) and not recipe.store_meshes:
        root = source_folder(table, source)  # its meshes are read again
    view_set = ViewSet(name, preset, view_set_hash(preset, manifest.shapes_hash))
    refuse_other_view_set(out, view_set)
    plan = replace(plan_of(out, manifest, recipe, table, root), view_sets=(view_set,))
    return plan, cut_jobs(assets, recipe.seed, recipe.shard_size)


def plan_of(out: str, manifest: BuildManifest, recipe: BuildRecipe, table: DatasetTable, root: Path | None) -> Plan:
    """The plan of a finished build, without view sets. root: of the raw dataset, where it is needed."""
    return Plan(
        recipe=recipe,
        table=table,
        source=None if root is None else str(root),
        out=out,
        classes=manifest.classes,
        prompt_names=manifest.prompt_names,
        shapes_hash=manifest.shapes_hash,
        assets_hash=manifest.assets_hash,
        view_sets=(),
        versions=library_versions(*LIBRARIES),
    )


def listed_assets(out: str, manifest: BuildManifest) -> list[Asset]:
    """The assets of a build, from its own list. Raises Refused where that is missing or damaged."""
    path = store.join(out, ASSETS)
    try:
        data = store.read_bytes(path)
    except ValueError as error:
        raise Refused(str(error)) from error
    if data is None:
        raise Refused(f"{path} is missing: run the build again")
    if hashlib.sha256(data).hexdigest() != manifest.assets_hash:
        raise Refused(f"{path} is damaged: delete {out}/manifest.json and run the build again")
    try:
        return parse_assets(data)
    except ValueError as error:
        raise Refused(f"{path} is damaged ({error}): delete {out}/manifest.json and run the build again") from error


def draw_view_set(
    plan: Plan,
    jobs: list[Job],
    workers: Workers,
    on_start: OnStart,
    on_event: OnEvent,
    retry: frozenset[str] = frozenset(),
) -> Summary:
    """Draws what is missing of the plan's one view set. Raises Refused before, Stopped midway.

    Where nothing is missing, OUT may be read-only.
    retry: kinds of failures (timeout, memory, crash, data) whose shards are drawn anew.
    """
    (view_set,) = plan.view_sets
    records = FinishedRecords()
    tars = {(job.split, job.shard): views_tar(plan.out, view_set.name, job.split, job.shard) for job in jobs}
    again = [tar for tar in tars.values() if retry and failed(tar, records, retry)]
    missing = [job for job in jobs if tars[job.split, job.shard] in again or is_missing(job, plan, records.is_done)]
    needed = bool(missing) or read_view_set(plan.out, view_set.name) is None
    with ready(plan, workers, missing) if missing else nullcontext() as demand, build_lock(plan.out, needed) as lock:
        if lock is None:
            on_start(0, sum(len(job.assets) for job in jobs))
            return view_set_summary(plan, jobs, view_set, records)
        store.delete_temporaries(store.join(plan.out, VIEWS, view_set.name))
        records = FinishedRecords()
        states = [(job, *missing_tars(job, plan, records.is_done)) for job in jobs]
        unfinished = [job for job, shapes, _ in states if shapes]
        if unfinished:
            tar = shapes_tar(plan.out, unfinished[0].split, unfinished[0].shard)
            raise Refused(f"{tar} or its meshes or record are missing: run the build again first")
        write_view_set_manifest(plan, view_set)
        again = [tar for tar in again if failed(tar, records, retry)]
        forget(again)
        missing = [job for job, _, views in states if views or tars[job.split, job.shard] in again]
        run_missing(jobs, missing, run_on(missing, plan, workers, demand), lock, on_start, on_event)
    return view_set_summary(plan, jobs, view_set, FinishedRecords() if missing else records)
