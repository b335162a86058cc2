"""Makes one object: the members of its samples from its asset, or a Failure that says what went wrong."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from manifests.errors import Refused, Stopped, with_type
from manifests.presets import DrawnViews
from manifests.records import Asset, Failure, Skipped
from manifests.samples import (
    COLORS,
    FORMAT,
    JSON,
    MESH,
    PARTS,
    POINTS,
    encode_array,
    encode_json,
)
from pipeline.formats.glb import decode_mesh, encode_mesh
from pipeline.plan.plan import Plan, ViewSet, require_frames
from pipeline.shards.encode_views import view_members
from pipeline.shards.shape import Shape, make_shape
from pipeline.shards.view_quality import judge, require_seen
from pipeline.shards.views_from_frames import frame_members
from pipeline.shards.writer import Members
from pipeline.sources.fingerprints import fingerprint_values
from pipeline.sources.source_files import Fingerprint, watched
from renderers import backend_table
from renderers.geometry import Mesh

NO_MESH = "no mesh"


NO_COLORS = "no colours"


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20  # the most that glibc takes


@dataclass(frozen=True)
class BuiltObject:
    """The members of one object, tar by tar.

    mesh: None where the object has no mesh or meshes are not stored. views: view set name -> its members, or why it
    has no views.
    """

    key: str
    shape: Members
    mesh: Members | None
    views: dict[str, Members | Failure | Skipped]


Outcome = BuiltObject | Failure


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


def failure_of(error: Exception, key: str, id: str, stage: str) -> Failure:
    """The Failure of an object whose data raised an error; `--retry memory` finds a lack of memory by its word."""
    return Failure(key, id, stage, f"{'memory: ' if isinstance(error, MemoryError) else ''}{with_type(error)}")


def make_object(asset: Asset, plan: Plan, report: Report = _no_report) -> Outcome:
    """Everything of one asset. A bad asset is a Failure with its stage; Refused and Stopped pass through.

    report: told each stage as it begins, and what is built by then once that is a whole shape.
    """
    stage = "load"
    try:
        report(stage, None)
        with watched() as source:
            raw = plan.dataset.read(asset, plan.root, plan.recipe.options())
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
    except Exception as error:  # whatever a bad file makes a library raise is that file's Failure
        return failure_of(error, asset.key, asset.id, stage)
    mesh_members = {MESH: glb} if glb is not None and plan.recipe.store_meshes else None
    report("render", BuiltObject(asset.key, members, mesh_members, {}))
    drawn = tuple(s for s in plan.view_sets if s.preset.draws)
    views = draw_view_sets(asset.key, asset.id, shape.points, shape.colors, glb, drawn)
    views |= frame_results(asset, shape.world_from_source, plan, plan.view_sets)
    return BuiltObject(asset.key, members, mesh_members, views)


def _wants_mesh(plan: Plan) -> bool:
    return plan.recipe.store_meshes or any_mesh(plan.view_sets)


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
        if view_set.preset.needs_mesh and glb is None:
            results[view_set.name] = Skipped(key, NO_MESH)
            continue
        if view_set.preset.needs_colors and colors is None:
            results[view_set.name] = Skipped(key, NO_COLORS)
            continue
        stage = "render"
        try:
            preset = cast(DrawnViews, view_set.preset)  # the others are read from files, not drawn
            if mesh is None and preset.needs_mesh and glb is not None:
                mesh = decode_mesh(glb)
            views = backend_table.draw(preset, mesh=mesh, points=points, colors=colors)
            judged = [judge(view, preset, points) for view in views]
            require_seen(judged, preset)
            stage = "encode"
            results[view_set.name] = view_members(key, view_set.name, preset, views, judged)
        except (Refused, Stopped):
            raise
        except Exception as error:  # as in make_object: data that breaks a renderer is that object's Failure
            results[view_set.name] = failure_of(error, key, id, stage)
    return results


def any_mesh(view_sets: tuple[ViewSet, ...]) -> bool:
    return any(s.preset.needs_mesh for s in view_sets)


def frame_results(
    asset: Asset, world_from_source: np.ndarray, plan: Plan, view_sets: tuple[ViewSet, ...]
) -> ViewResults:
    """Members of those view sets that are frames of the object's own sequence; a Failure where no frame can be used."""
    results: ViewResults = {}
    for name, preset in ((s.name, s.preset) for s in view_sets):
        if preset.reads != "frames":
            continue
        try:
            open_frames = require_frames(plan.table, name)
            with open_frames(asset, plan.root, plan.recipe.options()) as frames:
                results[name] = frame_members(asset, frames, world_from_source, preset, name, plan.recipe.seed)
        except (Refused, Stopped):
            raise
        except Exception as error:  # as in make_object: a broken sequence is that object's Failure
            results[name] = failure_of(error, asset.key, asset.id, "load")
    return results
