"""What a finished build holds: its manifest, its view sets and, from the records, every tar."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from manifests import store
from manifests.errors import Refused
from manifests.layout import (
    MESHES,
    SHAPES,
    VIEWS,
    BuildManifest,
    ViewSetManifest,
    read_view_set,
    require_manifest,
    view_set_names,
)
from manifests.records import Record, read_record, record_path
from manifests.samples import Sample, read_samples, tar_name


@dataclass(frozen=True)
class Build:
    """A finished build and those of its view sets that are wanted, by name."""

    out: str
    manifest: BuildManifest
    view_sets: dict[str, ViewSetManifest]

    @property
    def folders(self) -> list[str]:
        """The folders of tars, below OUT: shapes, meshes where they are stored, and each view set's."""
        meshes = [MESHES] if self.manifest.recipe.get("store_meshes", True) else []
        return [SHAPES, *meshes, *(store.join(VIEWS, name) for name in self.view_sets)]

    def tars(self, folder: str, split: str) -> list[str]:
        """Paths below OUT of the tars of a folder and split, in order."""
        return [store.join(folder, tar_name(split, shard)) for shard in range(self.manifest.num_shards[split])]


@dataclass(frozen=True)
class Tar:
    """One tar: its path below OUT, samples, bytes, sha256 and the suffixes of the members in it."""

    path: str
    samples: int
    bytes: int
    sha256: str
    suffixes: frozenset[str]


Survey = dict[str, dict[str, list[Tar]]]  # folder -> split -> tars


def open_build(out: str, view_sets: tuple[str, ...] = ()) -> Build:
    """A finished build with all its view sets, or those that are named.

    Raises Refused where OUT is no build, is not finished, or has no such view set.
    """
    out = store.absolute(out)
    manifest = require_manifest(out, out)
    if not manifest.complete:
        raise Refused(f"{out} is not finished: run its build again first")
    there = view_set_names(out)
    for name in view_sets:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.0)
            raise Refused(f"--views {name}: {out} has no such view set; {f'did you mean {near[0]}?' if near else ''}")
    found = {}
    for name in view_sets or there:
        try:
            view_set = read_view_set(out, name)
        except ValueError as error:
            raise Refused(f"{error}: python -m pipeline check {out}") from error
        if view_set is None or view_set.shapes_hash != manifest.shapes_hash:
            raise Refused(f"{out}/views/{name} was drawn from other shapes: delete it, or name others by --views")
        found[name] = view_set
    return Build(out, manifest, found)


def finished_record(out: str, tar: str) -> Record:
    """The record of a tar below OUT. Raises Refused where it is missing or damaged."""
    path = store.join(out, tar)
    try:
        record = read_record(record_path(path))
    except ValueError as error:
        raise Refused(f"{error}: python -m pipeline check {out}") from error
    if record is None:
        raise Refused(f"{path} has no record: run the build (or its views) again")
    return record


def survey(build: Build) -> Survey:
    """What every tar of a build holds, from the records. Raises Refused where one is missing or damaged."""
    return {
        folder: {
            split: [_tar(build.out, path) for path in build.tars(folder, split)] for split in build.manifest.num_shards
        }
        for folder in build.folders
    }


def _tar(out: str, path: str) -> Tar:
    record = finished_record(out, path)
    suffixes = frozenset(record.sizes)
    if record.count and not suffixes:  # a record of an older build: the tar tells
        with store.open_reading(store.join(out, path)) as file:
            suffixes = frozenset(s for _, sample in read_samples(file, _seen) for s in sample.members)
    return Tar(path, record.count, record.bytes, record.sha256, suffixes)


def _seen(sample: Sample, suffix: str) -> bool:
    """Reads no member, but notes that it is there."""
    sample.members[suffix] = b""
    return False
