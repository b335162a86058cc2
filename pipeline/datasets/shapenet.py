"""ShapeNetCore v1 and v2: <synset>/<id>/model.obj, and <synset>/<id>/models/model_normalized.obj.

The two differ by a quarter turn about +Y, so a folder of one is refused by the other's recipe. Class names come from
the table, by synset id. The id of an object is `<synset>-<id>`. Every folder <synset>/<id> is an object: one without
its .obj becomes a failure. Textures are looked for in the object's own folder and nowhere above it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from manifests.dataset_info import DatasetTable
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.datasets.options import ListedSplit
from pipeline.datasets.shapenet_lists import read_split_list
from pipeline.datasets.splits import compare_counts, dataset_folder
from pipeline.formats.mesh import read_faces
from pipeline.sources.raw_shape import RawShape
from pipeline.sources.source_files import stays_inside

OPTIONS = ListedSplit
OBJ = {"shapenet_v1": "model.obj", "shapenet_v2": "models/model_normalized.obj"}  # P3D datasets/shapenet_core.py:66
UNTEXTURED = "no texture"


def assets(root: Path, table: DatasetTable, options: ListedSplit) -> Iterator[Asset]:
    """Every object of the known synsets: all in `train`, or those of the list, in its splits.

    Raises Refused when the folder holds no synset, one of the other version, or one that the table does not have.
    """
    objects = list(_objects(root, table))
    splits = {id: "train" for id, _, _ in objects}
    if options.split_list:
        splits = read_split_list(options.split_list, table.synsets, list(splits)).splits
    for id, source, class_name in objects:
        if id in splits:
            yield Asset(id, source, splits[id], class_name)


def _objects(root: Path, table: DatasetTable) -> Iterator[tuple[str, str, str]]:
    """(id, path of its .obj, class) of every object folder, by synset and id."""
    example = f"{next(iter(table.synsets))}/<id>/{OBJ[table.name]}"
    folder = dataset_folder(root, tuple(table.synsets), table.name, example)
    (other,) = (name for name in OBJ if name != table.name)
    for synset in _folders(folder):
        if not re.fullmatch(r"\d{8}", synset):
            continue
        class_name = table.synsets.get(synset)
        for model in _folders(folder / synset):
            path = folder / synset / model
            found = os.path.isfile(path / OBJ[table.name])
            if not found and os.path.isfile(path / OBJ[other]):
                raise Refused(f"{path} is of {other}, not of {table.name}: python -m pipeline build {other}")
            if class_name is None:
                raise Refused(f"{folder / synset}: {table.name} has no synset {synset}")
            yield f"{synset}-{model}", (path / OBJ[table.name]).relative_to(root).as_posix(), class_name


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are passed over."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def shortfalls(options: ListedSplit, table: DatasetTable, found: list[Asset], splits: tuple[str, ...]) -> list[str]:
    """What a copy lacks: objects of the list, `train 3 of 41,950`; without a list whole synsets, `2 of 55 synsets`."""
    if options.split_list:
        listed = read_split_list(options.split_list, table.synsets, [asset.id for asset in found])
        return compare_counts(listed.counts, found, splits) + [f"no object of {synset}" for synset in listed.absent]
    there = {asset.class_name for asset in found}
    lost = [f"{synset} {name}" for synset, name in table.synsets.items() if name not in there]
    more = ", ..." if len(lost) > 3 else ""
    summary = f"{len(there)} of {len(table.synsets)} synsets (no {', '.join(lost[:3])}{more})"
    return [summary] if lost else []


def notes(options: ListedSplit, table: DatasetTable) -> tuple[str, ...]:
    """What a person should know about the list."""
    nameless = read_split_list(options.split_list, table.synsets, []).nameless if options.split_list else 0
    return (f"split_list: {nameless} of its rows have a synset and no id",) if nameless else ()


def read(asset: Asset, root: Path, options: ListedSplit | None = None) -> RawShape:
    """The textured mesh of one object. Raises ValueError when it has no face or cannot be read."""
    path = root / asset.source
    folder = path.parents[1] if path.parent.name == "models" else path.parent
    if not stays_inside(folder.resolve(), root):
        raise ValueError("leads out of the source folder")
    raw = read_faces(path, folder)
    if raw.mesh is not None and all(material.texture is None for material in raw.mesh.materials):
        return replace(raw, warnings={**raw.warnings, UNTEXTURED: 1})
    return raw
