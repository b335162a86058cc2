"""A page to look at a build with: objects with their views and clouds, warnings and failures, in one file.

Nothing is loaded from anywhere: pictures are data URIs, and a content security policy forbids the rest. Filters
stand in the address as well (`page.html#class=chair&set=rgb12`), so a filtered page can be linked to.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
from PIL import Image

from manifests import store
from manifests.errors import Refused
from manifests.layout import BuildManifest, require_manifest, shapes_tar, view_set_names, views_tar
from manifests.plain_text import for_html
from manifests.records import Failure, Record, read_record, record_path
from manifests.samples import COLORS, POINTS, Sample, decode_array
from pipeline.inspect.view_sheet import TILE, objects_of, view_tiles

CLOUD_POINTS = 1024
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
    cards, classes = [], Counter()
    found = [objects_of(out, name, manifest.num_shards[name], names) for name in splits]
    for shape, views in islice(_in_turn(found), num_objects):
        cards.append(_card(shape, views, num_views))
        classes[shape.json["class"] or _NO_CLASS] += 1
    records = _records(out, manifest, splits, names)
    if not cards and not any(record.failures for found in records.values() for record in found):
        raise Refused(f"{out} has no finished shard to show")
    return _page(out, manifest, cards, classes, names, records)


def _in_turn(iterators: list[Iterator[_Object]]) -> Iterator[_Object]:
    """One of each iterator, then the next of each, until all are at their end."""
    while iterators:
        still = []
        for iterator in iterators:
            for item in islice(iterator, 1):
                yield item
                still.append(iterator)
        iterators = still


def _records(out: str, manifest: BuildManifest, splits: list[str], names: list[str]) -> dict[str, list[Record]]:
    """Finished records of the shapes ("") and of each view set."""
    found: dict[str, list[Record]] = {"": [], **{name: [] for name in names}}
    for split in splits:
        for shard in range(manifest.num_shards[split]):
            for name, records in found.items():
                tar = views_tar(out, name, split, shard) if name else shapes_tar(out, split, shard)
                record = read_record(record_path(tar))
                if record is not None:
                    records.append(record)
    return found


def _card(shape: Sample, views: dict[str, Sample], num_views: int) -> str:
    values = shape.json
    name = values["class"] or _NO_CLASS
    warned = [(w["type"], w["count"]) for w in values["warnings"]]
    strips = []
    for set_name, sample in views.items():
        of_set = [(w["type"], w["count"]) for w in sample.json.get("warnings", [])]
        warned += [(f"{set_name}: {kind}", count) for kind, count in of_set]
        strips.append(
            f'<figure data-set="{for_html(set_name)}"><figcaption>{for_html(set_name)}</figcaption>'
            f'<img alt="views of {for_html(shape.key)}" src="{_strip(view_tiles(sample, num_views))}"></figure>'
        )
    notes = "".join(f"<li>{for_html(str(kind))}: {for_html(str(count))}</li>" for kind, count in warned)
    faces = f"{values['num_faces']:,} faces, " if values["num_faces"] else ""
    return (
        f'<article data-class="{for_html(name)}" data-warned="{int(bool(warned))}">'
        f"<h3>{for_html(shape.key)}</h3><p>{for_html(name)} · {for_html(values['split'])} · {faces}"
        f"{values['num_points']:,} points<br><small>{for_html(values['id'])}</small></p>"
        f'<div class="row"><canvas width="{TILE}" height="{TILE}" data-cloud="{_cloud(shape)}"></canvas>'
        f"{''.join(strips) or '<em>no views</em>'}</div>{f'<ul>{notes}</ul>' if notes else ''}</article>"
    )


def _strip(tiles: list[Image.Image]) -> str:
    """Tiles side by side as a data URI."""
    strip = Image.new("RGB", (max(1, len(tiles)) * TILE, TILE), "white")
    for number, tile in enumerate(tiles):
        strip.paste(tile, (number * TILE, 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _cloud(shape: Sample) -> str:
    """Base64 of bytes x y z r g b (coordinates -1.1..1.1 as 0..255) of the first points."""
    points = decode_array(shape.members[POINTS])[:CLOUD_POINTS]
    colors = decode_array(shape.members[COLORS])[:CLOUD_POINTS] if COLORS in shape.members else None
    if colors is None:
        colors = np.full(points.shape, 90, np.uint8)
    radius = max(1.1, float(np.abs(points).max(initial=0)))
    place = np.rint((points / radius + 1) * 127.5).astype(np.uint8)
    return base64.b64encode(np.concatenate([place, colors], axis=1).tobytes()).decode()


def _page(
    out: str,
    manifest: BuildManifest,
    cards: list[str],
    classes: Counter[str],
    names: list[str],
    records: dict[str, list[Record]],
) -> str:
    title = f"{manifest.dataset}: {out.rstrip('/').rpartition('/')[2]}"
    total = sum(record.count for record in records[""])
    failures = [(name or "shapes", f) for name, found in records.items() for r in found for f in r.failures]
    class_options = "".join(
        f'<option value="{for_html(name)}">{for_html(name)} ({n})</option>' for name, n in sorted(classes.items())
    )
    set_options = "".join(f'<option value="{for_html(name)}">{for_html(name)}</option>' for name in names)
    state = "" if manifest.complete else ' <strong class="bad">not finished</strong>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{for_html(title)}</title><style>{_STYLE}</style></head><body>
<header><h1>{for_html(title)}</h1>
<p>{total:,} objects, {len(failures):,} failures{state}. Shown: <output id="shown"></output> of {len(cards)}.</p>
<form><label>class <select id="class"><option value="">all</option>{class_options}</select></label>
<label>views <select id="set"><option value="">all</option>{set_options}</select></label>
<label><input type="checkbox" id="warned"> only with warnings</label></form></header>
<details><summary>counts and warnings</summary>{_counts(manifest, records)}</details>
<main>{"".join(cards)}</main>
{_failure_table(failures)}
<script>{_SCRIPT}</script></body></html>
"""


def _counts(manifest: BuildManifest, records: dict[str, list[Record]]) -> str:
    rows = []
    for split, counts in manifest.splits.items():
        rows.append((f"split {split}", f"{counts.samples:,} objects, {counts.failures:,} failures"))
    for name, found in records.items():
        skipped = Counter(s.reason for record in found for s in record.skipped)
        warned = Counter()
        for record in found:
            warned.update(record.warnings)
        for reason, n in sorted(skipped.items()):
            rows.append((f"views/{name}", f"skipped: {reason}: {n:,}"))
        for kind, n in sorted(warned.items()):
            rows.append((f"views/{name}" if name else "shapes", f"warning: {kind}: {n:,}"))
    cells = "".join(f"<tr><td>{for_html(a)}<td>{for_html(b)}" for a, b in rows)
    return f"<table>{cells}</table>"


def _failure_table(failures: list[tuple[str, Failure]]) -> str:
    if not failures:
        return "<h2>no failures</h2>"
    rows = "".join(
        f"<tr><td>{for_html(where)}<td>{for_html(f.key)}<td>{for_html(f.id)}<td>{for_html(f.stage)}"
        f"<td>{for_html(f.reason)}"
        for where, f in failures[:MAX_FAILURES]
    )
    more = len(failures) - MAX_FAILURES
    rest = f"<p>and {more:,} more: python -m pipeline check</p>" if more > 0 else ""
    head = "<tr><th>of<th>key<th>id<th>stage<th>reason"
    return f'<h2>{len(failures):,} failures</h2><table id="failures">{head}{rows}</table>{rest}'


_STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:0 1rem 3rem;color:#222;background:#f4f4f2}
header{position:sticky;top:0;background:#f4f4f2;padding:.4rem 0;border-bottom:1px solid #ccc;z-index:1}
h1{font-size:1.2rem;margin:.2rem 0}h3{margin:0;font-size:.95rem;overflow-wrap:anywhere}p{margin:.2rem 0}
label{margin-right:1rem}main{display:grid;grid-template-columns:minmax(0,1fr);gap:.6rem;margin:.6rem 0}
article{background:#fff;border:1px solid #ddd;border-radius:4px;padding:.5rem}[hidden]{display:none!important}
.row{display:flex;flex-wrap:wrap;gap:.5rem;align-items:flex-end}figure{margin:0;max-width:100%;overflow-x:auto}
figcaption{font-size:.8rem;color:#666}canvas{border:1px solid #eee;cursor:grab;touch-action:none;background:#fff}
img{display:block;height:112px}ul{margin:.3rem 0 0;color:#8a5a00}table{border-collapse:collapse;background:#fff}
td,th{border:1px solid #ddd;padding:.2rem .5rem;text-align:left;overflow-wrap:anywhere}.bad{color:#a00}
"""
_SCRIPT = """
const byId = id => document.getElementById(id), choice = {class: byId('class'), set: byId('set')};
function show() {
  let shown = 0;
  for (const card of document.querySelectorAll('article')) {
    const wanted = (!choice.class.value || card.dataset.class === choice.class.value)
      && (!byId('warned').checked || card.dataset.warned === '1');
    card.hidden = !wanted; shown += wanted;
  }
  for (const figure of document.querySelectorAll('figure'))
    figure.hidden = choice.set.value && figure.dataset.set !== choice.set.value;
  byId('shown').textContent = shown;
}
function changed() {
  const now = new URLSearchParams();
  for (const name in choice) if (choice[name].value) now.set(name, choice[name].value);
  if (byId('warned').checked) now.set('warned', '1');
  history.replaceState(null, '', '#' + now); show();
}
function draw(canvas) {
  const pen = canvas.getContext('2d'), n = canvas.width, {bytes, turn, tilt} = canvas;
  const ca = Math.cos(turn), sa = Math.sin(turn), ce = Math.cos(tilt), se = Math.sin(tilt), dots = [];
  for (let i = 0; i < bytes.length; i += 6) {
    const [x, y, z] = [0, 1, 2].map(k => bytes[i + k] / 127.5 - 1);
    const across = ca * x + sa * z, deep = -sa * x + ca * z;
    dots.push([se * y + ce * deep, n * (1 + across * .9) / 2, n * (1 - (ce * y - se * deep) * .9) / 2, i]);
  }
  dots.sort((a, b) => a[0] - b[0]);
  pen.clearRect(0, 0, n, n);
  for (const [, u, v, i] of dots) {
    pen.fillStyle = `rgb(${bytes[i + 3]},${bytes[i + 4]},${bytes[i + 5]})`;
    pen.fillRect(u, v, 1.5, 1.5);
  }
}
for (const canvas of document.querySelectorAll('canvas')) {
  canvas.bytes = Uint8Array.from(atob(canvas.dataset.cloud), c => c.charCodeAt(0));
  canvas.turn = 0.5 + Math.PI; canvas.tilt = -0.35; draw(canvas);
  canvas.onpointerdown = e => canvas.setPointerCapture(e.pointerId);
  canvas.onpointermove = e => { if (e.buttons) {
    canvas.turn += e.movementX / 60; canvas.tilt += e.movementY / 60; draw(canvas); } };
}
const asked = new URLSearchParams(location.hash.slice(1));
for (const name in choice) choice[name].value = asked.get(name) || '';
byId('warned').checked = asked.get('warned') === '1';
for (const name of ['class', 'set', 'warned']) byId(name).onchange = changed;
show();
"""
