"""Objaverse 1.0 with LVIS categories, as its official downloader lays it out.

    lvis-annotations.json[.gz]     {category: [uid, ...]}
    glbs/000-023/<uid>.glb

The annotation file is the table: its categories, sorted, are the classes, and its objects the complete copy.
Underscores and the remarks in brackets are part of a class's name and not of its prompt name.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from manifests.dataset_info import DatasetTable
from manifests.errors import Refused, one_line
from manifests.records import Asset
from pipeline.datasets.options import DatasetOptions
from pipeline.formats.mesh import read_faces
from pipeline.sources.raw_shape import RawShape
from pipeline.sources.source_files import source_file, subfolders

ANNOTATIONS = ("lvis-annotations.json", "lvis-annotations.json.gz")
_LIMIT = 64 << 20  # the real file has 2 MB
_UID = re.compile(r"[A-Za-z0-9_-]{1,80}")


def complete(table: DatasetTable, root: Path) -> DatasetTable:
    """The table with the classes and the count of the annotation file. Raises Refused where that is missing."""
    categories = _categories(root)
    uids = {uid for found in categories.values() for uid in found}
    return table.model_copy(
        update={
            "classes": tuple(categories),
            "prompt_names": tuple(_prompt_name(name) for name in categories),
            "counts": {"all": len(uids)},
        }
    )


def assets(root: Path, table: DatasetTable, options: DatasetOptions | None = None) -> Iterator[Asset]:
    """Every annotated object whose GLB is there. Raises Refused when there is no annotation file or no GLB."""
    files = _glb_files(root)
    seen: set[str] = set()
    for category, uids in _categories(root).items():
        for uid in uids:
            if uid in files and uid not in seen:
                seen.add(uid)
                yield Asset(id=uid, source=files[uid], split="all", class_name=category)
    if not seen:
        raise Refused(f"no annotated GLB in {root}: expected files such as {root}/glbs/000-000/<uid>.glb")


def read(asset: Asset, root: Path, options: DatasetOptions | None = None) -> RawShape:
    """The mesh of one GLB. Raises ValueError when it has no face or cannot be read."""
    return read_faces(root / asset.source, root)


def _prompt_name(category: str) -> str:
    """`Christmas_tree` and `bat_(animal)` in words: `Christmas tree`, `bat`."""
    return re.sub(r"[_\s]+", " ", re.sub(r"_?\([^)]*\)", "", category)).strip() or category


def _categories(root: Path) -> dict[str, list[str]]:
    """Category -> uids, categories and uids sorted."""
    path = next((root / name for name in ANNOTATIONS if (root / name).is_file()), None)
    if path is None:
        raise Refused(f"{root} holds no {ANNOTATIONS[1]}: import objaverse; objaverse.load_lvis_annotations() gets it")
    try:
        path = source_file(root, path.name)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_LIMIT + 1)
        values = json.loads(data) if len(data) <= _LIMIT else None
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise Refused(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict) or not values:
        raise Refused(f"{path} is no table of categories and uids, or has more than {_LIMIT:,} bytes")
    for name, uids in values.items():
        if not name or not isinstance(uids, list) or not all(isinstance(u, str) and _UID.fullmatch(u) for u in uids):
            raise Refused(f"{path}: category {name[:60]!r} holds something that is no uid")
    return {name: sorted(values[name]) for name in sorted(values)}


def _glb_files(root: Path) -> dict[str, str]:
    """uid -> path relative to the source, of every GLB in glbs/<folder>/."""
    folder = root / "glbs"
    files: dict[str, str] = {}
    if not folder.is_dir():
        return files
    for inside in subfolders(root, folder):
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                if entry.name.endswith(".glb") and not entry.name.startswith("."):
                    files.setdefault(entry.name.removesuffix(".glb"), f"glbs/{inside}/{entry.name}")
    return files
