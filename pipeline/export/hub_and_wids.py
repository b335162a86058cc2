"""Prepares a build for other tools: a dataset card and a table of samples for the Hugging Face Hub, indexes for wids.

Shards are never changed and never copied unless asked: the new files lie beside them in OUT, which can then be uploaded
as it stands, or in a folder of their own (`--to`) with links to the shards. Every path in them is relative.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from manifests import remote, store
from manifests.errors import Refused
from manifests.layout import (
    ASSETS,
    MANIFEST,
    MESHES,
    RECIPE,
    SHAPES,
    SPLITS,
    VIEWS,
    require_manifest,
)
from manifests.records import record_path, write_json
from pipeline.export.dataset_card import card
from pipeline.export.finished_build import Build, survey
from pipeline.export.parquet_index import INDEX, require, write_split

README = "README.md"
WIDS = "wids"
_BLOCK = 8 << 20


def lay_out(build: Build, to: str | None, copy: bool) -> str:
    """The folder that an export is written to, with the shards in it.

    to: None is OUT itself; else a folder that gets links to the shards (relative ones), or copies of them.
    Raises Refused where the folder holds something else, lies among the shards, or cannot hold links, and where a link
    leads out of the build.
    """
    if to is None:
        return build.out
    to = store.absolute(to)
    refuse_among_shards(build.out, to)
    if not copy and (remote.is_url(to) or remote.is_url(build.out)):
        raise Refused(f"--to {to}: a link needs two local folders; add --copy")
    if to == build.out:
        return to
    if store.list_names(to):
        try:
            same = require_manifest(to, to).shapes_hash == build.manifest.shapes_hash
        except Refused:
            same = False
        if not same:
            raise Refused(f"--to {to} is not empty and no export of {build.out}; choose another folder")
    _refuse_links_out(build)
    for path in _files(build):
        source, target = store.join(build.out, path), store.join(to, path)
        if copy:
            with store.writing(target) as file, store.open_reading(source) as reading:
                shutil.copyfileobj(reading, file, _BLOCK)
        else:
            _link(Path(source), Path(target))
    return to


def _refuse_links_out(build: Build) -> None:
    """Raises Refused naming a link that leads out of the build: what it names would be handed on with the shards."""
    if remote.is_url(build.out):
        return
    root = os.path.realpath(build.out)
    for path in _files(build):
        at = build.out
        for part in path.split("/"):
            at = os.path.join(at, part)
            real = os.path.realpath(at)
            if os.path.commonpath([root, real]) != root:
                raise Refused(f"{at} is a link to {real}, out of the build: put that in its place, or delete it")


def refuse_among_shards(out: str, to: str) -> None:
    """Raises Refused where a folder for an export lies in OUT's shapes, meshes or views."""
    for name in (SHAPES, MESHES, VIEWS):
        inside = store.join(out, name)
        if to == inside or to.startswith(f"{inside}/"):
            raise Refused(f"--to {to}: nothing is written among the shards; choose another folder")


def _files(build: Build) -> Iterator[str]:
    """Paths of a build below OUT: every tar before its record, the manifest last, so half a copy is no build."""
    for folder in build.folders:
        for split in build.manifest.num_shards:
            for tar in build.tars(folder, split):
                yield from (tar, record_path(tar))
    yield from (store.join(VIEWS, name, MANIFEST) for name in build.view_sets)
    yield from (store.join(SPLITS, name) for name in store.list_names(store.join(build.out, SPLITS)))
    yield from (name for name in (ASSETS, RECIPE) if store.exists(store.join(build.out, name)))
    yield MANIFEST


def _link(source: Path, target: Path) -> None:
    if not source.exists():
        raise Refused(f"{source} is missing: run the build again")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))


def write_wids(build: Build, folder: str) -> list[str]:
    """Writes wids/<folder>-<split>.json, an index of the kind `wids-shard-index-v1` each; their paths.

    The urls are relative to the file, so the index is right on this disk and wherever the folder is uploaded.
    """
    written = []
    for of, splits in survey(build).items():
        for split, tars in splits.items():
            name = f"{of.replace('/', '-')}-{split}"
            values = {
                "__kind__": "wids-shard-index-v1",
                "wids_version": 1,
                "name": f"{build.manifest.dataset}-{name}",
                "shardlist": [
                    {"url": f"../{t.path}", "nsamples": t.samples, "filesize": t.bytes, "sha256": t.sha256}
                    for t in tars
                ],
            }
            written.append(store.join(folder, WIDS, f"{name}.json"))
            write_json(written[-1], values)
    return written


def write_hub(build: Build, folder: str, license: str | None, overwrite: bool) -> list[str]:
    """Writes README.md, a dataset card, and index/<split>.parquet, a row a sample; their paths.

    Raises Refused, before anything is written, where pyarrow is missing or a README.md of other words is there.
    """
    require()
    found = survey(build)
    text = card(build, found, license).encode()
    readme = store.join(folder, README)
    there = store.read_bytes(readme)
    if there not in (None, text) and not overwrite:
        raise Refused(f"{readme} is there and may hold words of yours: --overwrite writes it anew")
    written = []
    for split in build.manifest.num_shards:
        written.append(store.join(folder, INDEX, f"{split}.parquet"))
        write_split(build, split, written[-1])
    store.write_bytes(readme, text)
    return [readme, *written]
