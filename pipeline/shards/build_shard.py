"""Building one shard: Asset -> Shape -> Views -> tars. Pure Python, no Ray.

One pass an asset: read, sample, write GLB bytes, read them back, draw every view set, encode. Views are drawn from the
mesh as read back from its own GLB bytes, so pictures redrawn later from the shards are the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from pydantic import TypeAdapter
from pydantic_core import from_json

from manifests import store
from manifests.errors import Stopped, with_type
from manifests.file_views import FileViews
from manifests.layout import meshes_tar, shapes_tar, views_tar
from manifests.records import Asset, Failure, record_path
from manifests.samples import (
    COLORS,
    JSON,
    MESH,
    POINTS,
    Sample,
    decode_array,
    read_samples,
)
from pipeline.formats.glb import encode_mesh
from pipeline.plan.plan import Job, Plan, ViewSet
from pipeline.shards.object import (
    Outcome,
    ViewResults,
    any_mesh,
    draw_view_sets,
    failure_of,
    frame_results,
    keep_freed_memory,
    make_object,
)
from pipeline.shards.views_from_files import picture_members
from pipeline.shards.writer import Members, is_done, open_writer, write_records
from pipeline.sources.fingerprints import fingerprint_of, known_fingerprints, require_unchanged
from pipeline.sources.source_files import Fingerprint, watched
from renderers import backend_table


@dataclass(frozen=True)
class Progress:
    """What a running job reports: objects and failures since its last report."""

    objects: int = 0
    failures: int = 0


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job: progress, its end, or its being run again after its worker died."""

    job: Job
    progress: Progress | None = None
    state: Literal["running", "again", "done"] = "running"


_Stored = tuple[Sample, bytes | None]
_ASSET: TypeAdapter[Asset] = TypeAdapter(Asset)


def missing_tars(job: Job, plan: Plan, is_done: Callable[[str, str], bool] = is_done) -> tuple[bool, list[ViewSet]]:
    """(whether shapes or meshes of a job are missing, the view sets that are missing).

    is_done: whether the tar at a path is finished with a hash.
    """
    shapes = [shapes_tar(plan.out, job.split, job.shard)]
    if plan.recipe.store_meshes:
        shapes.append(meshes_tar(plan.out, job.split, job.shard))
    views = [s for s in plan.view_sets if not is_done(views_tar(plan.out, s.name, job.split, job.shard), s.hash)]
    return not all(is_done(tar, plan.shapes_hash) for tar in shapes), views


def is_missing(job: Job, plan: Plan, is_done: Callable[[str, str], bool]) -> bool:
    """Whether any tar of a job is not finished."""
    return missing_tars(job, plan, is_done) != (False, [])


class Maker(Protocol):
    """How one object is made: here, or in a child process (`pipeline.jobs.isolated_worker`)."""

    def build(self, asset: Asset) -> Outcome:
        """Everything of one raw asset."""

    def redraw(self, shape: Sample, glb: bytes | None, view_sets: tuple[ViewSet, ...]) -> ViewResults:
        """View sets of one stored object."""


class PlainMaker:
    """The plain way: a call in this process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        keep_freed_memory()
        for view_set in plan.view_sets:
            backend_table.require(view_set.preset)

    def build(self, asset: Asset) -> Outcome:
        """See Maker."""
        return make_object(asset, self._plan)

    def redraw(self, shape: Sample, glb: bytes | None, view_sets: tuple[ViewSet, ...]) -> ViewResults:
        """See Maker."""
        return redraw_object(shape, glb, self._plan, view_sets)


def run_job(job: Job, plan: Plan, maker: Maker) -> Iterator[Progress]:
    """Makes whatever of one shard is missing, reporting each object. Raises Stopped when the disk is full."""
    shapes_missing, view_sets = missing_tars(job, plan)
    if shapes_missing:
        yield from build_shard(job, plan, maker)
    elif view_sets:
        yield from redraw_shard(job, plan, maker, tuple(view_sets))


def build_shard(job: Job, plan: Plan, maker: Maker) -> Iterator[Progress]:
    """Writes all tars of one shard from the raw assets; their records come last.

    Raises Stopped, and leaves what is there, where a tar of before was made of other bytes of the source.
    """
    paths = {"shapes": shapes_tar(plan.out, job.split, job.shard)}
    hashes = {"shapes": plan.shapes_hash, "meshes": plan.shapes_hash}
    if plan.recipe.store_meshes:
        paths["meshes"] = meshes_tar(plan.out, job.split, job.shard)
    for view_set in plan.view_sets:
        paths[f"views/{view_set.name}"] = views_tar(plan.out, view_set.name, job.split, job.shard)
        hashes[f"views/{view_set.name}"] = view_set.hash
    before = known_fingerprints(paths["shapes"])
    start = time.monotonic()
    with ExitStack() as stack:
        writers = {name: open_writer(stack, path, hashes[name]) for name, path in paths.items()}
        for asset in job.assets:
            outcome = maker.build(asset)
            _require_unchanged(asset, outcome, before, paths["shapes"])
            if isinstance(outcome, Failure):
                writers["shapes"].add(outcome.key, outcome)
                yield Progress(failures=1)
                continue
            writers["shapes"].add(outcome.key, outcome.shape)
            if "meshes" in writers and outcome.mesh is not None:
                writers["meshes"].add(outcome.key, outcome.mesh)
            for name, result in outcome.views.items():
                writers[f"views/{name}"].add(outcome.key, result)
            yield Progress(objects=1, failures=any(isinstance(v, Failure) for v in outcome.views.values()))
        for path in paths.values():  # from here on the tars are others; until here what was finished stays so
            store.remove(record_path(path))
        for writer in writers.values():
            writer.close()
    write_records(list(writers.values()), plan.versions, time.monotonic() - start)


def _require_unchanged(asset: Asset, outcome: Outcome, before: dict[str, Fingerprint], tar: str) -> None:
    """Raises Stopped where an object of a tar that is made again was made of other bytes
    (`pipeline.sources.fingerprints`)."""
    if asset.key in before:
        now = outcome if isinstance(outcome, Failure) else fingerprint_of(from_json(outcome.shape[JSON]))
        require_unchanged(asset, before[asset.key], now, tar, "; deleting that tar takes the new one in")


def redraw_shard(job: Job, plan: Plan, maker: Maker, view_sets: tuple[ViewSet, ...]) -> Iterator[Progress]:
    """Draws view sets of one shard from its shapes and meshes; needs the raw dataset only where no mesh is stored."""
    start = time.monotonic()
    paths = [views_tar(plan.out, s.name, job.split, job.shard) for s in view_sets]
    for path in paths:
        store.remove(record_path(path))
    with ExitStack() as stack:
        writers = [open_writer(stack, path, s.hash) for path, s in zip(paths, view_sets, strict=True)]
        for shape, glb in _undamaged(stored_objects(job, plan, any_mesh(view_sets)), job, plan):
            results = maker.redraw(shape, glb, view_sets)
            for writer, result in zip(writers, results.values(), strict=True):
                writer.add(shape.key, result)
            yield Progress(objects=1, failures=any(isinstance(v, Failure) for v in results.values()))
        for writer in writers:
            writer.close()
    write_records(writers, plan.versions, time.monotonic() - start)


def _undamaged(objects: Iterator[_Stored], job: Job, plan: Plan) -> Iterator[_Stored]:
    """The stored objects of a shard. Raises Stopped where its tars are damaged."""
    try:
        yield from objects
    except (ValueError, KeyError, OSError) as error:
        tar = shapes_tar(plan.out, job.split, job.shard)
        words = with_type(error, 150)
        raise Stopped(f"{tar} or its meshes: {words}: python -m pipeline check {plan.out} --repair") from error


def redraw_object(shape: Sample, glb: bytes | None, plan: Plan, view_sets: tuple[ViewSet, ...]) -> ViewResults:
    """Members of view sets of one stored object; where no mesh is stored, its file is read again.

    Raises Stopped, naming the object, when what is stored of it is damaged.
    """
    try:
        values = shape.json
        asset = _ASSET.validate_python(
            {"key": shape.key, "class_name": values["class"]}
            | {name: values[name] for name in ("id", "source", "split")}
        )
        points = decode_array(shape.members[POINTS])
        colors = decode_array(shape.members[COLORS]) if COLORS in shape.members else None
        world_from_source = np.asarray(values["world_from_source"], np.float64)
        if world_from_source.shape != (4, 4) or not isinstance(values["num_faces"], int):
            raise ValueError("its json is of another form")
    except (ValueError, KeyError, TypeError) as error:
        what = f"{shape.key} is damaged in {plan.out}/shapes ({with_type(error, 150)})"
        raise Stopped(f"{what}: python -m pipeline check {plan.out} --repair") from error
    files: ViewResults = {s.name: _pictures_of(asset, s, plan) for s in view_sets if s.preset.reads == "files"}
    files |= frame_results(asset, world_from_source, plan, view_sets)
    if files:
        drawn = tuple(s for s in view_sets if s.name not in files)
        results = files | (redraw_object(shape, glb, plan, drawn) if drawn else {})
        return {s.name: results[s.name] for s in view_sets}
    if glb is None and values["num_faces"] and not plan.recipe.store_meshes and any_mesh(view_sets):
        try:
            glb = _read_again(asset, values, plan)
        except (ValueError, OSError) as error:
            failure = Failure(shape.key, values["id"], "load", with_type(error))
            points_only = tuple(s for s in view_sets if not s.preset.needs_mesh)
            others = redraw_object(shape, None, plan, points_only) if points_only else {}
            return {s.name: others.get(s.name, failure) for s in view_sets}
    return draw_view_sets(shape.key, values["id"], points, colors, glb, view_sets)


def stored_objects(job: Job, plan: Plan, with_meshes: bool) -> Iterator[tuple[Sample, bytes | None]]:
    """(shape sample, stored GLB bytes or None) of every object of a finished shard, in order."""
    with ExitStack() as stack:
        shapes = stack.enter_context(store.open_reading(shapes_tar(plan.out, job.split, job.shard)))
        meshes: Iterator[tuple[int, Sample]] = iter(())
        if with_meshes and plan.recipe.store_meshes:
            file = stack.enter_context(store.open_reading(meshes_tar(plan.out, job.split, job.shard)))
            meshes = read_samples(file)
        _, mesh = next(meshes, (0, None))
        for _, shape in read_samples(shapes):
            glb = None
            if mesh is not None and mesh.key == shape.key:
                glb = mesh.members[MESH]
                _, mesh = next(meshes, (0, None))
            yield shape, glb
        if mesh is not None:
            raise ValueError(f"{meshes_tar(plan.out, job.split, job.shard)}: {mesh.key} is not among the shapes")


def _read_again(asset: Asset, values: dict[str, Any], plan: Plan) -> bytes:
    """GLB bytes of an object whose mesh was not stored, read again from its source. values: of its shape's json.

    Raises Stopped where the source is not what the shape was made of.
    """
    with watched() as source:
        raw = plan.dataset.read(asset, plan.root, plan.recipe.options())
    require_unchanged(asset, fingerprint_of(values), source.fingerprint, f"{plan.out}/shapes")
    if raw.mesh is None:
        raise ValueError(f"{asset.source} has no mesh any more")
    return encode_mesh(raw.mesh.transformed(np.array(values["world_from_source"])))


def _pictures_of(asset: Asset, view_set: ViewSet, plan: Plan) -> Members | Failure:
    """The pictures that a person has of one object, from the source of a plan of a view set of files."""
    try:
        preset, root = cast(FileViews, view_set.preset), cast(Path, plan.root)  # such a plan has a source
        return picture_members(asset, preset, view_set.name, root)
    except (MemoryError, ValueError, OSError) as error:
        return failure_of(error, asset.key, asset.id, "load")
