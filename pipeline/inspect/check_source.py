"""Compares the raw dataset with what a build was made of: `check OUT --source DIR` reads all its bytes again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from manifests import store
from manifests.errors import Refused, Stopped, with_type
from manifests.layout import shapes_tar
from manifests.records import Asset
from pipeline.plan.from_build import whole_plan
from pipeline.plan.plan import Plan
from pipeline.sources.fingerprints import fingerprint_of, stored_values
from pipeline.sources.source_files import Fingerprint, SeenEnough, watched


@dataclass(frozen=True)
class Compared:
    """What became of the comparison. objects: that were compared. unknown: of those that are there, how many say
    nothing of their source, as in builds from before there were fingerprints. changed: key -> what differs, in words.
    """

    objects: int
    unknown: int
    changed: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """What `check --json` prints as `source`."""
        return {"objects": self.objects, "unknown": self.unknown, "changed": list(self.changed)}


def compare_source(out: str, source: str, on_object: Callable[[int, int], None] = lambda done, total: None) -> Compared:
    """Compares what the objects of a build were made of with what is in the source now; a difference does not end it.

    on_object: told (objects looked at, objects of the build). Raises Refused where OUT is no build, its dataset has no
    source, or there is no such folder.
    """
    out = store.absolute(out)
    plan, jobs = whole_plan(out, source)
    if plan.source is None:
        raise Refused(f"--source {source}: {plan.table.name} is made, it has no source")
    total, done, compared, unknown = sum(len(job.assets) for job in jobs), 0, 0, 0
    changed: dict[str, str] = {}
    for job in jobs:
        stored = dict(stored_values(shapes_tar(out, job.split, job.shard)))
        for asset in job.assets:
            values, done = stored.get(asset.key), done + 1
            before = None if values is None else fingerprint_of(values)
            if values is not None and before is not None:
                now = _now(asset, plan, before, spare=not values.get("warnings"))
                compared += 1
                if now != before:
                    changed[asset.key] = _difference(before, now)
            unknown += values is not None and before is None
            on_object(done, total)
    return Compared(compared, unknown, changed)


def _now(asset: Asset, plan: Plan, before: Fingerprint, spare: bool) -> Fingerprint | str | None:
    """What an object would be made of now, or why it cannot be read.

    spare: whether reading ends once the bytes are those of before. An object with warnings may have lacked a texture
    that is there now: its whole reader runs.
    """
    with watched(before if spare else None) as read:
        try:
            plan.dataset.read(asset, plan.root, plan.recipe.options())
        except SeenEnough:
            return before
        except (Refused, Stopped):
            raise
        except Exception as error:  # whatever a changed file makes a library raise
            return before if read.seen else with_type(error)
    return before if read.seen else read.fingerprint


def _difference(before: Fingerprint, now: Fingerprint | str | None) -> str:
    if not isinstance(now, Fingerprint):
        return f"cannot be read now ({now or 'nothing was read'})"
    return f"was {before.bytes:,} bytes, sha256 {before.sha256[:12]}, and is {now.bytes:,}, {now.sha256[:12]}"
