"""Finds the objects of a split that have views, and where they lie in the tars: joins shapes and a view set by key.

Opening reads records alone; training.data.shard_reader then reads the tars and checks them against their records.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from manifests import remote, store
from manifests.errors import Refused
from manifests.layout import (
    BuildManifest,
    ViewSetManifest,
    asked_view_set,
    require_manifest,
    shapes_tar,
    view_set_names,
    views_tar,
)
from manifests.picture_mapping import NORMALIZE, Statistics, mean_and_deviation
from manifests.plain_text import number_of
from manifests.presets import AnyViews
from manifests.records import Record, read_record, record_path
from training.data.sample_index import Places, places_of
from training.data.shard_cache import Cache, open_cache
from training.data.subsets import subset_of
from training.settings.data import DataSettings

log = logging.getLogger(__name__)
_REQUESTS = 16  # at once, to an object store


@dataclass(frozen=True)
class Shard:
    """One joined shard: the paths of its tars, the keys of the objects in use, and where they lie in each tar.

    views: empty for objects without views (`Source.viewless`); views_places are then those of the shapes.
    """

    shapes: str
    views: str
    keys: tuple[str, ...]
    shapes_places: Places
    views_places: Places
    cache: Cache | None = None

    def only(self, keys: frozenset[str]) -> Shard:
        """The same shard, reduced to these objects."""
        kept = [number for number, key in enumerate(self.keys) if key in keys]
        names = tuple(self.keys[number] for number in kept)
        return replace(
            self, keys=names, shapes_places=self.shapes_places.only(kept), views_places=self.views_places.only(kept)
        )


@dataclass(frozen=True)
class Source:
    """A split of a build joined with one view set.

    manifest: of the build, with the candidate classes alone. left_out: number of shapes without views. labels: for each
    class of the build its number among the candidates, or None if it is not a candidate. absent: why an object has no
    shape or no views, by key. pixels: the mean and deviation that normalise its pictures. viewless: objects that the
    view set skips by its rule (no mesh to draw), whose shapes can be read all the same. view_set: None where no picture
    is asked for; the shards are then those of the shapes alone.
    """

    manifest: BuildManifest
    view_set: ViewSetManifest | None
    shards: tuple[Shard, ...]
    left_out: int
    labels: tuple[int | None, ...]
    absent: dict[str, str]
    pixels: Statistics
    viewless: tuple[Shard, ...] = ()

    @property
    def preset(self) -> AnyViews:
        """Of the view set; a source without pictures has none."""
        assert self.view_set is not None
        return self.view_set.preset

    @property
    def total(self) -> int:
        """Number of objects."""
        return sum(len(shard.keys) for shard in self.shards)


@dataclass(frozen=True)
class _JoinedShard:
    """A shard, if it is there, its number of shapes without views, `Source.absent` and `Source.viewless` of it."""

    shard: Shard | None = None
    left_out: int = 0
    absent: dict[str, str] = field(default_factory=dict)
    viewless: Shard | None = None


def open_source(
    shards: str,
    settings: DataSettings,
    warn: bool = True,
    tower: Statistics | None = None,
    pictures: bool = True,
) -> Source:
    """Joins the records of a split with those of a view set; reads no tar.

    warn: logs how many objects are left out. tower: the pictures' mean and deviation, or None for the preset's.
    pictures: else the shapes alone are read, of all objects, and no view set is needed. Raises Refused when there is no
    build, or it is not finished, or the split, the view set or a record is missing.
    """
    out = store.absolute(shards)
    manifest = require_manifest(out, f"--shards {shards}")
    if not manifest.complete and not settings.allow_incomplete:
        raise Refused(
            f"--shards {shards} is not finished: run its build again, or insist with data.allow_incomplete=true"
        )
    if settings.split not in manifest.splits:
        has = ", ".join(manifest.splits)
        raise Refused(f"data.split={settings.split} (of fit; --split of others): {shards} has {has}")
    view_set = _view_set(out, shards, settings, manifest) if pictures else None
    subset = subset_of(out, manifest, settings.split, settings.classes, settings.candidates, settings.objects)
    joined: list[Shard] = []
    viewless: list[Shard] = []
    left_out = 0
    absent: dict[str, str] = {}
    for each in _joined(out, manifest, view_set, settings):
        for shard, kept in ((each.shard, joined), (each.viewless, viewless)):
            if shard is not None and subset.keys is not None:
                shard = shard.only(subset.keys)
            if shard is not None and shard.keys:
                kept.append(shard)
        left_out += each.left_out
        absent |= each.absent
    if left_out and warn:
        log.warning("%s: %s left out: views failed or were skipped", out, number_of(left_out, "object"))
    stored = manifest.recipe.get("num_points")
    if warn and isinstance(stored, int) and 0 < stored < settings.num_points:
        words = "%s: clouds of %s points are filled up to data.num_points=%d by repeats: of the points of a group, "
        words += "about 1 in %.2g is distinct; data.num_points=%d takes them as they are"
        log.warning(words, out, f"{stored:,}", settings.num_points, settings.num_points / stored, stored)
    if settings.cache and remote.is_url(out) and joined:
        largest = max(places.size for shard in joined for places in (shard.shapes_places, shard.views_places))
        cache = open_cache(settings.cache, settings.cache_gb, largest)
        joined = [replace(shard, cache=cache) for shard in joined]
    pixels = mean_and_deviation(settings.channel, view_set.preset, tower) if view_set else NORMALIZE["clip"]
    return Source(subset.manifest, view_set, tuple(joined), left_out, subset.labels, absent, pixels, tuple(viewless))


def _view_set(out: str, shards: str, settings: DataSettings, manifest: BuildManifest) -> ViewSetManifest:
    """The view set that the settings name. Raises Refused unless it is there, of these shapes, with what is asked."""
    view_set = asked_view_set(out, settings.views)
    if view_set is None:
        names = ", ".join(view_set_names(out)) or "none"
        raise Refused(f"data.views={settings.views}: {shards} has no such view set (it has: {names})")
    if settings.channel not in view_set.preset.channels:
        has = ", ".join(view_set.preset.channels)
        raise Refused(f"data.channel={settings.channel}: view set {settings.views} has {has}")
    if 0 < view_set.preset.num_views < settings.num_views:
        raise Refused(
            f"data.num_views={settings.num_views}: view set {settings.views} has {view_set.preset.num_views} views"
        )
    if view_set.shapes_hash != manifest.shapes_hash:
        raise Refused(f"{out}/views/{settings.views} was drawn from other shapes: delete it and draw it again")
    return view_set


def _joined(
    out: str, manifest: BuildManifest, view_set: ViewSetManifest | None, settings: DataSettings
) -> Iterable[_JoinedShard]:
    """`_join` of each shard of the split. From an object store the records of several shards are read at once."""
    split, hashes = settings.split, (manifest.shapes_hash, view_set.hash if view_set else "")

    def join(number: int) -> _JoinedShard:
        views = views_tar(out, settings.views, split, number) if view_set else ""
        return _join(shapes_tar(out, split, number), views, hashes, settings)

    numbers = range(manifest.num_shards[split])
    if not remote.is_url(out):
        return map(join, numbers)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(join, numbers))


def _join(shapes: str, views: str, hashes: tuple[str, str], settings: DataSettings) -> _JoinedShard:
    """Joins two tars by their records. Raises Refused where these disagree. views: empty for the shapes alone.

    There is no shard where a file is missing and `allow_incomplete` permits that.
    """
    records: list[Record] = []
    absent: dict[str, str] = {}
    for tar, hash in [(tar, hash) for tar, hash in zip((shapes, views), hashes, strict=True) if tar]:
        try:
            record = read_record(record_path(tar))
        except ValueError as error:
            raise Refused(str(error)) from error
        if record is None or not store.exists(tar):
            if settings.allow_incomplete:
                return _JoinedShard(absent=absent)
            raise Refused(f"{tar} or its record is missing: run the build again, or data.allow_incomplete=true")
        if record.hash != hash:
            raise Refused(f"{tar} was made with other settings than the manifest says: it is of another build")
        records.append(record)
        absent |= {failure.key: f"{failure.stage}: {failure.reason}" for failure in record.failures}
        absent |= {skipped.key: f"{skipped.reason}, which {settings.views} draws" for skipped in record.skipped}
    if not views:
        at = _places([records[0]], shapes)[0]
        return _JoinedShard(Shard(shapes, "", records[0].keys, at, at), absent=absent)
    declared = {f.key for f in records[1].failures} | {s.key for s in records[1].skipped}
    expected = tuple(key for key in records[0].keys if key not in declared)
    if expected != records[1].keys:
        odd = sorted(set(expected) ^ set(records[1].keys)) or ["the order"]
        raise Refused(f"{views} does not fit {shapes}: {odd[0]} differs; draw this view set again")
    places = _places(records, f"{shapes} or {views}")
    kept = [number for number, key in enumerate(records[0].keys) if key not in declared]
    shard = Shard(shapes, views, expected, places[0].only(kept), places[1])
    skipped = {each.key for each in records[1].skipped}
    without = [number for number, key in enumerate(records[0].keys) if key in skipped]
    keys, at = tuple(records[0].keys[number] for number in without), places[0].only(without)
    return _JoinedShard(shard, records[0].count - len(expected), absent, Shard(shapes, "", keys, at, at))


def _places(records: list[Record], tars: str) -> list[Places]:
    """Where samples lie in the tars of these records. Raises Refused naming the tars where one is damaged."""
    try:
        return [places_of(record) for record in records]
    except (ValueError, TypeError, OverflowError) as error:
        raise Refused(f"the record of {tars} is damaged: {error}") from error
