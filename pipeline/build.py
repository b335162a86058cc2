"""Building one shard: Asset -> Shape -> Views -> tars. Pure Python, no Ray.

One pass an asset: read, sample, write GLB bytes, read them back, draw every view set, encode. Views are drawn from the
mesh as read back from its own GLB bytes, so pictures redrawn later from the shards are the same bytes.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import TypeAdapter
from pydantic_core import from_json

from manifests import store
from manifests.errors import Refused, Stopped
from manifests.presets import is_files_preset, is_frames_preset, is_mesh_preset, needs_colors
from manifests.records import Asset, Failure, Skipped, record_path
from manifests.samples import (
    COLORS,
    FORMAT,
    JSON,
    MESH,
    PARTS,
    POINTS,
    Sample,
    decode_array,
    encode_array,
    encode_json,
    read_samples,
)
from manifests.shards import meshes_tar, shapes_tar, views_tar
from pipeline.fingerprints import fingerprint_of, fingerprint_values, known_fingerprints, require_unchanged
from pipeline.frames import frame_members
from pipeline.gates import judge, require_seen
from pipeline.load import Shape, decode_mesh, encode_mesh, make_shape
from pipeline.members import view_members
from pipeline.pictures import picture_members
from pipeline.plan import Job, Plan, ViewSet, dataset_module
from pipeline.shard import Members, is_done, open_writer, write_records
from pipeline.source import Fingerprint, watched
from renderers import backends
from renderers.geometry import Mesh

NO_MESH = "no mesh"
NO_COLORS = "no colours"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20  # the most that glibc takes


@dataclass(frozen=True)
class BuiltObject:
    """The members of one object, tar by tar.

    mesh: None where the object has none or meshes are not stored. views: view set name -> its members, or why there
    are none.
    """

    key: str
    shape: Members
    mesh: Members | None
    views: dict[str, Members | Failure | Skipped]


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


Outcome = BuiltObject | Failure
_Stored = tuple[Sample, bytes | None]
_ASSET: TypeAdapter[Asset] = TypeAdapter(Asset)
ViewResults = dict[str, Members | Failure | Skipped]
Report = Callable[[str, BuiltObject | None], None]


def _no_report(stage: str, built: BuiltObject | None) -> None:
    """Nobody listens in the plain way."""


def keep_freed_memory() -> None:
    """Tells glibc to reuse freed pictures rather than give them back: fresh pages cost more than drawing a depth map.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. Elsewhere than on glibc it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(option, _KEPT_BYTES)


def one_line(error: BaseException) -> str:
    """An error as one line of at most 300 characters, naming its type unless it is a plain ValueError."""
    text = " ".join(str(error).split())[:300]
    return text if type(error) is ValueError and text else f"{type(error).__name__}: {text}".rstrip(": ")


def make_object(asset: Asset, plan: Plan, report: Report = _no_report) -> Outcome:
    """Everything of one asset. A bad asset is a Failure with its stage; Refused and Stopped pass through.

    report: told each stage as it begins, and what is built by then once that is a whole shape.
    """
    stage = "load"
    try:
        report(stage, None)
        with watched() as source:
            raw = dataset_module(plan.table).read(asset, plan.root, plan.recipe.options())
        stage = "sample"
        report(stage, None)
        recipe = plan.recipe
        shape = make_shape(
            asset,
            raw,
            axes=plan.axes,
            seed=recipe.seed,
            num_points=recipe.num_points,
            fps_prefix=recipe.fps_prefix,
            normalize=recipe.normalize,
        )
        stage = "mesh"
        report(stage, None)
        glb = encode_mesh(shape.mesh) if shape.mesh is not None and _wants_mesh(plan) else None
        stage = "encode"
        members = shape_members(shape, plan, source.fingerprint)
    except (Refused, Stopped):
        raise
    except MemoryError as error:
        return Failure(asset.key, asset.id, stage, f"memory: {one_line(error)}")
    except Exception as error:  # whatever a bad file makes a library raise is that file's Failure
        return Failure(asset.key, asset.id, stage, one_line(error))
    mesh_members = {MESH: glb} if glb is not None and plan.recipe.store_meshes else None
    report("render", BuiltObject(asset.key, members, mesh_members, {}))
    drawn = tuple(s for s in plan.view_sets if not is_frames_preset(s.preset))
    views = draw_view_sets(asset.key, asset.id, shape.points, shape.colors, glb, drawn)
    views |= _frame_results(asset, shape.world_from_source, plan, plan.view_sets)
    return BuiltObject(asset.key, members, mesh_members, views)


def _wants_mesh(plan: Plan) -> bool:
    return plan.recipe.store_meshes or _any_mesh(plan.view_sets)


def shape_members(shape: Shape, plan: Plan, source: Fingerprint | None) -> Members:
    """Members of an object in a tar of shapes. source: what it was made of, None where it was not read."""
    asset = shape.asset
    values = {
        "format": FORMAT,
        "key": asset.key,
        "id": asset.id,
        "dataset": plan.table.name,
        "split": asset.split,
        "label": plan.label(asset.class_name),
        "class": asset.class_name,
        "source": asset.source,
        **fingerprint_values(source),
        "world_from_source": shape.world_from_source.tolist(),
        "num_points": len(shape.points),
        "num_faces": 0 if shape.mesh is None else len(shape.mesh.faces),
        "warnings": [{"type": kind, "count": n} for kind, n in sorted(shape.warnings.items())],
    }
    members = {JSON: encode_json(values), POINTS: encode_array(shape.points)}
    if shape.colors is not None:
        members[COLORS] = encode_array(shape.colors)
    if shape.parts is not None:
        members[PARTS] = encode_array(shape.parts)
    return members


def draw_view_sets(
    key: str,
    id: str,
    points: np.ndarray,
    colors: np.ndarray | None,
    glb: bytes | None,
    view_sets: tuple[ViewSet, ...],
) -> ViewResults:
    """Members of every view set of one object; a Failure or Skipped in place of those that cannot be drawn."""
    results: ViewResults = {}
    mesh: Mesh | None = None
    for view_set in view_sets:
        if is_mesh_preset(view_set.preset) and glb is None:
            results[view_set.name] = Skipped(key, NO_MESH)
            continue
        if needs_colors(view_set.preset) and colors is None:
            results[view_set.name] = Skipped(key, NO_COLORS)
            continue
        stage = "render"
        try:
            if mesh is None and is_mesh_preset(view_set.preset):
                mesh = decode_mesh(glb)
            views = backends.draw(view_set.preset, mesh=mesh, points=points, colors=colors)
            judged = [judge(view, view_set.preset, points) for view in views]
            require_seen(judged, view_set.preset)
            stage = "encode"
            results[view_set.name] = view_members(key, view_set, views, judged)
        except (Refused, Stopped):
            raise
        except MemoryError as error:
            results[view_set.name] = Failure(key, id, stage, f"memory: {one_line(error)}")
        except Exception as error:  # as in make_object: data that breaks a renderer is that object's Failure
            results[view_set.name] = Failure(key, id, stage, one_line(error))
    return results


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
    """How one object is made: here, or in a child process (`pipeline.careful`)."""

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
            backends.require(view_set.preset)

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
    """Raises Stopped where an object of a tar that is made again was made of other bytes (`pipeline.fingerprints`)."""
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
        for shape, glb in _undamaged(stored_objects(job, plan, _any_mesh(view_sets)), job, plan):
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
        words = " ".join(one_line(error).split())[:150]
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
        what = f"{shape.key} is damaged in {plan.out}/shapes ({' '.join(one_line(error).split())[:150]})"
        raise Stopped(f"{what}: python -m pipeline check {plan.out} --repair") from error
    files = {s.name: _pictures_of(asset, s, plan) for s in view_sets if is_files_preset(s.preset)}
    files |= _frame_results(asset, world_from_source, plan, view_sets)
    if files:
        drawn = tuple(s for s in view_sets if s.name not in files)
        results = files | (redraw_object(shape, glb, plan, drawn) if drawn else {})
        return {s.name: results[s.name] for s in view_sets}
    if glb is None and values["num_faces"] and not plan.recipe.store_meshes and _any_mesh(view_sets):
        try:
            glb = _read_again(asset, values, plan)
        except (ValueError, OSError) as error:
            failure = Failure(shape.key, values["id"], "load", one_line(error))
            points_only = tuple(s for s in view_sets if not is_mesh_preset(s.preset))
            drawn = redraw_object(shape, None, plan, points_only) if points_only else {}
            return {s.name: drawn.get(s.name, failure) for s in view_sets}
    return draw_view_sets(shape.key, values["id"], points, colors, glb, view_sets)


def _any_mesh(view_sets: tuple[ViewSet, ...]) -> bool:
    return any(is_mesh_preset(s.preset) for s in view_sets)


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
        raw = dataset_module(plan.table).read(asset, plan.root, plan.recipe.options())
    require_unchanged(asset, fingerprint_of(values), source.fingerprint, f"{plan.out}/shapes")
    if raw.mesh is None:
        raise ValueError(f"{asset.source} has no mesh any more")
    return encode_mesh(raw.mesh.transformed(np.array(values["world_from_source"])))


def _pictures_of(asset: Asset, view_set: ViewSet, plan: Plan) -> Members | Failure:
    """The pictures that a person has of one object, from the source of a plan of a view set of files."""
    try:
        return picture_members(asset, view_set.preset, view_set.name, plan.root)
    except MemoryError as error:
        return Failure(asset.key, asset.id, "load", f"memory: {one_line(error)}")
    except (ValueError, OSError) as error:
        return Failure(asset.key, asset.id, "load", one_line(error))


def _frame_results(
    asset: Asset, world_from_source: np.ndarray, plan: Plan, view_sets: tuple[ViewSet, ...]
) -> ViewResults:
    """Members of those view sets that are frames of the object's own sequence; a Failure where there is none to use."""
    results: ViewResults = {}
    for view_set in (s for s in view_sets if is_frames_preset(s.preset)):
        try:
            with dataset_module(plan.table).frames(asset, plan.root, plan.recipe.options()) as frames:
                members = frame_members(
                    asset, frames, world_from_source, view_set.preset, view_set.name, plan.recipe.seed
                )
            results[view_set.name] = members
        except (Refused, Stopped):
            raise
        except MemoryError as error:
            results[view_set.name] = Failure(asset.key, asset.id, "load", f"memory: {one_line(error)}")
        except Exception as error:  # as in make_object: a broken sequence is that object's Failure
            results[view_set.name] = Failure(asset.key, asset.id, "load", one_line(error))
    return results
