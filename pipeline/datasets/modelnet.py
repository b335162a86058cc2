"""ModelNet10 and ModelNet40: <class>/{train,test}/<class>_NNNN.off, also the manually aligned set.

The class is the folder's name (names hold underscores, so the file's name is not cut at the first one). Hidden files
and what a Mac puts into archives are passed over. Files are listed in sorted order, as `os.listdir` has no order.

`split=mvcnn80_20` keeps the objects of MVCNN's 12-view pictures, at most 80 for training and 20 for testing of each
class: those whose ids a list or a folder of pictures names (`split_list`), else the first ones.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from manifests import store
from manifests.dataset_info import DatasetTable
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.datasets.options import ListedSplit, NamedSplit
from pipeline.datasets.splits import count_shortfalls, dataset_folder
from pipeline.formats.mesh import read_faces
from pipeline.sources.raw_shape import RawShape

SPLITS = ("train", "test")
FIRST = {"train": 80, "test": 20}  # of each class, MVCNN (modelnet40v1)
_ID = re.compile(r"(.+?_\d{4})(?!\d)")  # chair_0890_001.jpg, night_stand_0001.obj.shaded_v001.png


class ModelNetOptions(NamedSplit, ListedSplit):
    """split: mvcnn80_20. split_list: the ids of its objects, or a folder of their pictures."""


OPTIONS = ModelNetOptions


def assets(root: Path, table: DatasetTable, options: ModelNetOptions) -> Iterator[Asset]:
    """Every .off file of the known classes, or those of a division.

    Raises Refused when the folder holds no class of the table, or a list no id.
    """
    taken: Counter[tuple[str, str]] = Counter()
    listed = listed_ids(options.split_list, table) if options.split_list else frozenset()
    for asset in _objects(root, table):
        place = (asset.class_name or "", asset.split)
        taken[place] += 1
        if options.split_list:
            kept = asset.id in listed
        else:
            kept = not options.split or taken[place] <= FIRST[asset.split]
        if kept:
            yield asset


def _objects(root: Path, table: DatasetTable) -> Iterator[Asset]:
    first = table.classes[0]
    folder = dataset_folder(root, table.classes, table.name, f"{first}/train/{first}_0001.off")
    for class_name in table.classes:
        for split in SPLITS:
            for path in sorted((folder / class_name / split).glob("*")):
                if path.suffix.lower() == ".off" and not path.name.startswith("."):
                    source = path.relative_to(root).as_posix()
                    yield Asset(path.stem, source, split, class_name)


def listed_ids(path: str, table: DatasetTable) -> frozenset[str]:
    """The ids of this dataset's classes in a text file (one a line, folders and suffixes aside) or in picture names.

    Raises Refused where no id is found.
    """
    file = Path(path)
    if file.is_dir():
        names = [name for _, _, names in os.walk(file) for name in names]
    else:
        try:
            names = [line.strip().rpartition("/")[2] for line in store.read_text(file).splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"split_list={path} is no list of ids: {error}") from error
    found = {match[1] for match in map(_ID.match, names) if match}
    ids = frozenset(id for id in found if id.rpartition("_")[0] in table.classes)
    if not ids:
        raise Refused(f"split_list={path}: no id of {table.name} in it, such as {table.classes[0]}_0001")
    return ids


def shortfalls(options: ModelNetOptions, table: DatasetTable, found: list[Asset], splits: tuple[str, ...]) -> list[str]:
    """What a copy lacks of the expected counts, or of the list."""
    if not options.split_list:
        return count_shortfalls(options, table, found, splits)
    listed = listed_ids(options.split_list, table)
    return [f"{len(found):,} of {len(listed):,} listed objects"] if len(found) != len(listed) else []


def notes(options: ModelNetOptions, table: DatasetTable) -> tuple[str, ...]:
    """What a person should know about the division."""
    if not options.split or options.split_list:
        return ()
    first = " and ".join(f"{number} {split}" for split, number in FIRST.items())
    return (f"split={options.split} without split_list: the first {first} objects of each class, perhaps not MVCNN's",)


def read(asset: Asset, root: Path, options: ModelNetOptions | None = None) -> RawShape:
    """The mesh of one file. Raises ValueError when it has no face or cannot be read."""
    return read_faces(root / asset.source, root)
