"""A contact sheet of a build: a row an object and view set, RGB and depth, with key, class and the set's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from manifests import store
from manifests.errors import Refused
from manifests.layout import require_manifest, shapes_tar, view_set_names, views_tar
from manifests.picture_mapping import part_colors
from manifests.plain_text import for_terminal
from manifests.samples import (
    PARTS,
    POINTS,
    Sample,
    decode_array,
    decode_picture,
    depth_of_codes,
    read_samples,
    split_view_member,
)

TILE = 112
MARGIN = 4
CAPTION = 26


def contact_sheet(out: str, num_objects: int = 12, num_views: int = 6, split: str | None = None) -> Image.Image:
    """One row for each view set of an object, up to `num_views` of its pictures; the cloud is at the first row's left.

    Objects are the first of the first shards: a random sample. Raises Refused where there is nothing to show.
    """
    out = store.absolute(out)
    manifest = require_manifest(out, out)
    splits = [split] if split else list(manifest.num_shards)
    if split and split not in manifest.num_shards:
        raise Refused(f"no split {split}; {out} has {', '.join(manifest.num_shards)}")
    names = view_set_names(out)
    rows = []
    objects = (found for split in splits for found in objects_of(out, split, manifest.num_shards[split], names))
    for shape, views in islice(objects, num_objects):
        values, first = shape.json, cloud_tile(shape)
        what = f"{shape.key}  {values['class'] or 'no class'}  ({values['split']})"
        for name in [name for name in names if name in views] or ["no views"]:
            pictures = [tile for _, tile in view_tiles(views[name], num_views)] if name in views else []
            rows.append((f"{what}  {name}", [first, *pictures]))
            first = Image.new("RGB", (TILE, TILE), "white")
    if not rows:
        raise Refused(f"{out} has no finished shard to show")
    return _paste(rows)


def objects_of(out: str, split: str, num_shards: int, names: list[str]) -> Iterator[tuple[Sample, dict[str, Sample]]]:
    """(shape, view set name -> its views) of a split's objects in the shards' order, read only as far as asked for."""
    for shard in range(num_shards):
        path = shapes_tar(out, split, shard)
        if not store.exists(path):
            continue
        with ExitStack() as stack:
            streams: dict[str, Iterator[tuple[int, Sample]]] = {}
            heads: dict[str, Sample | None] = {}
            for name in names:
                tar = views_tar(out, name, split, shard)
                if store.exists(tar):
                    streams[name] = read_samples(stack.enter_context(store.open_reading(tar)))
                    heads[name] = next(streams[name], (0, None))[1]
            for _, shape in read_samples(stack.enter_context(store.open_reading(path))):
                found = {}
                for name, stream in streams.items():
                    head = heads[name]
                    if head is not None and head.key == shape.key:
                        found[name] = head
                        heads[name] = next(stream, (0, None))[1]
                yield shape, found


def view_tiles(views: Sample, num_views: int, most: int | None = None) -> list[tuple[str, Image.Image]]:
    """(`rgb 0`, its tile) of the first views' pictures: RGB and gray as they are, depth near dark, far light.

    most: the largest side of a tile, of a smaller picture its own; without it every side is TILE.
    """
    tiles = []
    cameras = views.json["views"]
    members = sorted((place, suffix) for suffix in views.members if (place := split_view_member(suffix)))
    for channel in ("rgb", "gray", "depth"):
        for (view, kind), suffix in members:
            if kind != channel or view >= num_views:
                continue
            picture = decode_picture(views.members[suffix])
            if channel == "depth":
                picture = _shade(depth_of_codes(picture, cameras[view]["near"], cameras[view]["far"]))
            tile = Image.fromarray(picture).convert("RGB")
            side = TILE if most is None else min(most, max(tile.size))
            tiles.append(
                (f"{channel} {view}", ImageOps.pad(tile, (side, side), Image.Resampling.BILINEAR, color="white"))
            )
    return tiles


def _shade(depth: np.ndarray) -> np.ndarray:
    hit = np.isfinite(depth)
    if not hit.any():
        return np.full(depth.shape, 255, np.uint8)
    near, far = depth[hit].min(), depth[hit].max()
    scaled = (np.where(hit, depth, far) - near) / max(far - near, 1e-6) * 210
    return np.where(hit, scaled, 255).astype(np.uint8)


def cloud_tile(shape: Sample) -> Image.Image:
    """The stored points from the front right, a little from above: nearer is darker, or each part in its colour."""
    points = decode_array(shape.members[POINTS])[:2048]
    a, e = np.deg2rad(30), np.deg2rad(20)
    right, up = (
        np.array([np.cos(a), 0, np.sin(a)]),
        np.array([-np.sin(a) * np.sin(e), np.cos(e), np.cos(a) * np.sin(e)]),
    )
    towards = np.cross(right, up)
    x, y, z = points @ right, points @ up, points @ towards
    tile = np.full((TILE, TILE), 255, np.uint8)
    order = np.argsort(z)
    column = np.clip(((x + 1.1) / 2.2 * TILE).astype(int), 0, TILE - 1)[order]
    row = np.clip(((1.1 - y) / 2.2 * TILE).astype(int), 0, TILE - 1)[order]
    tile[row, column] = np.clip(150 - 110 * (z[order] + 1) / 2, 0, 200).astype(np.uint8)
    shown = np.stack([tile] * 3, axis=2)
    if PARTS in shape.members:
        shown[row, column] = part_colors(decode_array(shape.members[PARTS])[: len(points)][order])
    return Image.fromarray(shown)


def _paste(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    width = MARGIN + max(len(tiles) for _, tiles in rows) * (TILE + MARGIN)
    height = MARGIN + len(rows) * (TILE + CAPTION + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (caption, tiles) in enumerate(rows):
        top = MARGIN + i * (TILE + CAPTION + MARGIN)
        pen.text((MARGIN, top + 4), for_terminal(caption), fill="black", font=font)
        for j, tile in enumerate(tiles):
            sheet.paste(tile, (MARGIN + j * (TILE + MARGIN), top + CAPTION))
    return sheet
