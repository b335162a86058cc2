"""Makes one HTML page of a build: objects with their views and clouds, warnings and failures.

Nothing is loaded from anywhere: pictures are data URIs, and a content security policy forbids the rest. Filters
stand in the address as well (`page.html#class=chair&set=rgb12`), so a filtered page can be linked to.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from manifests import store
from manifests.errors import Refused
from manifests.layout import BuildManifest, require_manifest, shapes_tar, view_set_names, views_tar
from manifests.picture_mapping import part_colors
from manifests.plain_text import html_page, number_of
from manifests.records import Record, read_record, record_path
from manifests.samples import COLORS, JSON, PARTS, POINTS, Sample, decode_array, read_samples
from pipeline.inspect.findings import EXAMPLES
from pipeline.inspect.view_sheet import TILE, objects_of, view_tiles
from pipeline.sources.source_files import in_words

TEMPLATE = Path(__file__).with_name("gallery.html.j2")
CLOUD_POINTS = 1024
LARGEST = 224  # side of a picture in the page; it shows them half as large until one is clicked
QUALITY = 80
MAX_FAILURES = 500
_NO_CLASS = "no class"
_Object = tuple[Sample, dict[str, Sample]]


def gallery(out: str, num_objects: int = 60, num_views: int = 6, split: str | None = None) -> str:
    """The page's text: up to `num_objects` objects, shared evenly among the splits, and all failures up to 500.

    Objects are the first of each split's first shards: a random sample. Raises Refused where there is nothing to show.
    """
    out = store.absolute(out)
    manifest = require_manifest(out, out)
    if split and split not in manifest.num_shards:
        raise Refused(f"no split {split}; {out} has {', '.join(manifest.num_shards)}")
    splits = [split] if split else list(manifest.num_shards)
    names = view_set_names(out)
    found = [objects_of(out, name, manifest.num_shards[name], names) for name in splits]
    cards = [_card(shape, views, num_views) for shape, views in islice(_in_turn(found), num_objects)]
    tars = _finished(out, manifest, splits, names)
    failures = [(name or "shapes", f) for name, of_set in tars.items() for _, r in of_set for f in r.failures]
    if not cards and not failures:
        raise Refused(f"{out} has no finished shard to show")
    return html_page(
        TEMPLATE,
        title=f"{manifest.dataset}: {out.rstrip('/').rpartition('/')[2]}",
        complete=manifest.complete,
        total=sum(record.count for _, record in tars[""]),
        cards=cards,
        classes=sorted(Counter(card["class_name"] for card in cards).items()),
        view_sets=names,
        counts=_counts(manifest, tars),
        failures=failures,
        most_failures=MAX_FAILURES,
        tile=TILE,
        num_views=num_views,
        number_of=number_of,
    )


def _in_turn(iterators: list[Iterator[_Object]]) -> Iterator[_Object]:
    """One of each iterator, then the next of each, until all are at their end."""
    return (item for each in zip_longest(*iterators) for item in each if item is not None)


def _finished(
    out: str, manifest: BuildManifest, splits: list[str], names: list[str]
) -> dict[str, list[tuple[str, Record]]]:
    """Finished tars with their records, of the shapes ("") and of each view set."""
    found: dict[str, list[tuple[str, Record]]] = {"": [], **{name: [] for name in names}}
    for split in splits:
        for shard in range(manifest.num_shards[split]):
            for name, tars in found.items():
                tar = views_tar(out, name, split, shard) if name else shapes_tar(out, split, shard)
                record = read_record(record_path(tar))
                if record is not None:
                    tars.append((tar, record))
    return found


def _card(shape: Sample, views: dict[str, Sample], num_views: int) -> dict[str, object]:
    """What the page shows of one object. sets: (view set, number of its views, its pictures as (what, data URI))."""
    values = shape.json
    warned = [(w["type"], w["count"]) for w in values["warnings"]]
    for name, sample in views.items():
        warned += [(f"{name}: {w['type']}", w["count"]) for w in sample.json.get("warnings", [])]
    return {
        "key": shape.key,
        "class_name": values["class"] or _NO_CLASS,
        "warned": warned,
        "cloud": _cloud(shape),
        "sets": [(name, len(each.json["views"]), list(_tiles(each, num_views))) for name, each in views.items()],
        **{name: values[name] for name in ("id", "split", "num_faces", "num_points")},
    }


def _tiles(views: Sample, num_views: int) -> Iterator[tuple[str, str]]:
    """(`rgb 0`, a data URI) of the first views' pictures."""
    for what, tile in view_tiles(views, num_views, LARGEST):
        file = io.BytesIO()
        tile.save(file, "JPEG", quality=QUALITY)
        yield what, "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _cloud(shape: Sample) -> str:
    """Base64 of bytes x y z r g b (coordinates -1.1..1.1 as 0..255) of the first points."""
    points = decode_array(shape.members[POINTS])[:CLOUD_POINTS]
    colors = decode_array(shape.members[COLORS])[:CLOUD_POINTS] if COLORS in shape.members else None
    if colors is None and PARTS in shape.members:
        colors = part_colors(decode_array(shape.members[PARTS])[: len(points)])
    elif colors is None:
        colors = np.full(points.shape, 90, np.uint8)
    radius = max(1.1, float(np.abs(points).max(initial=0)))
    place = np.rint((points / radius + 1) * 127.5).astype(np.uint8)
    return base64.b64encode(np.concatenate([place, colors], axis=1).tobytes()).decode()


def _examples(tars: dict[str, list[tuple[str, Record]]]) -> dict[tuple[str, str], list[str]]:
    """(view set or "", type of warning) -> the first keys that have it. Of few tars, and of those the json alone."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, of_set in tars.items():
        for tar, record in of_set:
            if all(len(found.get((name, kind), ())) >= EXAMPLES for kind in record.warnings):
                continue
            with store.open_reading(tar) as file:
                for _, sample in read_samples(file, lambda sample, suffix: suffix == JSON):
                    for kind in {warning["type"] for warning in sample.json.get("warnings", [])}:
                        keys = found.setdefault((name, kind), [])
                        keys += [sample.key] if len(keys) < EXAMPLES else []
    return found


def _counts(manifest: BuildManifest, tars: dict[str, list[tuple[str, Record]]]) -> Iterator[tuple[str, str]]:
    """(where, what) of every count beside the objects: splits, skipped objects, warnings with examples."""
    for split, counts in manifest.splits.items():
        yield f"split {split}", f"{number_of(counts.samples, 'object')}, {number_of(counts.failures, 'failure')}"
    if manifest.passed_over:
        yield "source", in_words(manifest.passed_over)
    examples = _examples(tars)
    for name, found in tars.items():
        place = f"views/{name}" if name else "shapes"
        skipped = Counter(s.reason for _, record in found for s in record.skipped)
        warned: Counter[str] = Counter()
        for _, record in found:
            warned.update(record.warnings)
        for reason, n in sorted(skipped.items()):
            yield place, f"skipped: {reason}: {n:,}"
        for kind, n in sorted(warned.items(), key=lambda each: (-each[1], each[0])):
            keys = examples.get((name, kind))
            yield place, f"warning: {kind}: {n:,}" + (f" ({', '.join(keys)})" if keys else "")
