"""Damaged tars of a finished build made again: shapes and meshes from the raw dataset, views from the shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from manifests import store
from manifests.config import parse_toml
from manifests.dataset_info import load_table
from manifests.errors import Refused
from manifests.layout import (
    RECIPE,
    BuildManifest,
    meshes_tar,
    read_view_set,
    require_manifest,
    shapes_tar,
    view_set_names,
    views_tar,
)
from manifests.presets import is_files_preset, is_frames_preset, is_mesh_preset
from manifests.records import read_record, record_path
from pipeline.datasets import dataset_module
from pipeline.formats.fingerprints import known_fingerprints
from pipeline.jobs.build_lock import build_lock
from pipeline.jobs.driver import OnEvent, OnStart, Workers, finish, ready, run_missing, run_on
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.jobs.redraw import listed_assets, plan_of
from pipeline.plan.build_recipe import BuildRecipe, stored_recipe
from pipeline.plan.plan import Job, Plan, ViewSet, complete_table, cut_jobs, existing_folder
from pipeline.shards.build_shard import is_missing


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
    plan, jobs = plan_again(out, source)
    damaged = set(damaged)
    wanted = damaged & _reachable(plan, jobs)
    # views of a shard whose own shapes cannot be made wait for them
    stuck = {tar for job in jobs if (damaged - wanted) & set(_raw_tars(job, plan)) for tar in _tars(job, plan)}
    wanted -= stuck
    left = [_advice(plan, jobs, tar) for tar in sorted(damaged - wanted)]
    todo = [job for job in jobs if wanted & set(_tars(job, plan))]
    if not todo:
        return Repaired((), (), tuple(left))
    with ready(plan, workers, todo) as demand, build_lock(out) as lock:
        promised = {tar: _sha256(tar) for tar in wanted}
        for tar in sorted(wanted):
            store.remove(record_path(tar))
            if not known_fingerprints(tar):  # one that says what its objects were made of is looked at once more
                store.remove(tar)
        raw = [job for job in todo if wanted & set(_raw_tars(job, plan))]
        records = FinishedRecords()
        missing = [job for job in todo if is_missing(job, plan, records.is_done)]
        run_missing(jobs, missing, run_on(missing, plan, workers, demand), lock, on_start, on_event)
        if raw:
            finish(plan, jobs, FinishedRecords())
    same = {tar for tar in wanted if promised[tar] is not None and _sha256(tar) == promised[tar]}
    return Repaired(tuple(sorted(same)), tuple(sorted(wanted - same)), tuple(left))


def plan_again(out: str, source: str | None) -> tuple[Plan, list[Job]]:
    """The plan of a build with all its drawn view sets, from what OUT says of itself. Raises Refused where that is not
    enough."""
    manifest = require_manifest(out, out)
    recipe = _recipe(out, manifest)
    table = load_table(manifest.dataset)
    needs = dataset_module(table).NEEDS_SOURCE
    root = existing_folder(source, table.name) if needs and source is not None else None
    table = table if needs and root is None else complete_table(table, root)
    plan = plan_of(out, manifest, recipe, table, root)
    plan = replace(plan, view_sets=tuple(_view_sets(plan)))
    return plan, cut_jobs(listed_assets(out, manifest), recipe.seed, recipe.shard_size)


def _recipe(out: str, manifest: BuildManifest) -> BuildRecipe:
    """The recipe of a build with its limits, from OUT/recipe.toml; without them where that is gone or another's."""
    path = store.join(out, RECIPE)
    try:
        recipe = stored_recipe(parse_toml((store.read_bytes(path) or b"").decode()), path)
        if recipe.shapes_hash() == manifest.shapes_hash:
            return recipe
    except (ValueError, Refused):
        pass  # the manifest holds what changes bytes
    recipe = stored_recipe(manifest.recipe, f"{out}/manifest.json")
    if recipe.shapes_hash() != manifest.shapes_hash:
        raise Refused(f"{out} was made by another version of this program: it cannot make the same bytes")
    return recipe


def _view_sets(plan: Plan) -> Iterator[ViewSet]:
    """The view sets of OUT that are drawn from its shapes, or are frames; pictures of files come from elsewhere."""
    for name in view_set_names(plan.out):
        try:
            known = read_view_set(plan.out, name)
        except ValueError:
            continue  # `check` tells of it
        if known is not None and known.shapes_hash == plan.shapes_hash and not is_files_preset(known.preset):
            yield ViewSet(name, known.preset, known.hash)


def _reachable(plan: Plan, jobs: list[Job]) -> set[str]:
    """The tars that can be made with what there is: without the raw dataset only some views."""
    if plan.source is not None or not dataset_module(plan.table).NEEDS_SOURCE:
        return {tar for job in jobs for tar in _tars(job, plan)}
    stored = [s for s in plan.view_sets if not is_frames_preset(s.preset)]
    if not plan.recipe.store_meshes:
        stored = [s for s in stored if not is_mesh_preset(s.preset)]
    return {views_tar(plan.out, s.name, job.split, job.shard) for s in stored for job in jobs}


def _advice(plan: Plan, jobs: list[Job], tar: str) -> str:
    """What a person must do about a tar that cannot be made with what there is."""
    known = {tar for job in jobs for tar in _tars(job, plan)}
    if tar in known:
        return f"{tar}: python -m pipeline check {plan.out} --repair --source DIR (the raw {plan.table.name})"
    return f"{tar}: delete it and its record, and run the `views` command that made this set again, with its --source"


def _raw_tars(job: Job, plan: Plan) -> list[str]:
    meshes = [meshes_tar(plan.out, job.split, job.shard)] if plan.recipe.store_meshes else []
    return [shapes_tar(plan.out, job.split, job.shard), *meshes]


def _tars(job: Job, plan: Plan) -> list[str]:
    views = [views_tar(plan.out, s.name, job.split, job.shard) for s in plan.view_sets]
    return [*_raw_tars(job, plan), *views]


def _sha256(tar: str) -> str | None:
    try:
        record = read_record(record_path(tar))
    except ValueError:
        return None
    return None if record is None else record.sha256
