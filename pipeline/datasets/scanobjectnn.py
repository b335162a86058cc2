"""ScanObjectNN: OBJ_ONLY, OBJ_BG and PB_T50_RS from the h5 release, the first two also from the raw scans.

h5: {main_split,split1..4}[_nobg]/{training,test}_objectdataset[...].h5 with `data` float32 (N, 2048, 3), `label` (N,)
and `mask` (-1: background); `_nobg` is without background. Raw: object_dataset/<class>/<scene>_<object>.bin and the
list training_data/main_split.txt, `<name>.bin<TAB><label>[<TAB>t]`. Clouds are neither centred nor scaled; +Y is up.
Source: hkust-vgd/scanobjectnn, README and data_utils.py.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from manifests.dataset_info import DatasetTable, load_table
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.datasets.modelnet40_d import row_shape
from pipeline.datasets.options import CloudLimit, NamedSplit, NamedSplitOfClouds
from pipeline.datasets.release_files import folders, read_lines, require_order
from pipeline.datasets.splits import compare_counts
from pipeline.formats.hdf5 import has_background, read_labels
from pipeline.sources.raw_shape import RawShape, check_finite
from pipeline.sources.source_files import noted, source_file

OPTIONS = NamedSplitOfClouds
PREFIXES = {"train": "training", "test": "test"}
PARTITIONS = ("main_split", "split1", "split2", "split3", "split4")
FOLDERS = tuple(f"{name}{suffix}" for name in PARTITIONS for suffix in ("", "_nobg"))
PERTURBED = {
    "objectdataset_augmented25_norot": "PB_T25",
    "objectdataset_augmented25rot": "PB_T25_R",
    "objectdataset_augmentedrot": "PB_T50_R",
    "objectdataset_augmentedrot_scale75": "PB_T50_RS",
}
PLAIN = "objectdataset"
MIN_POINTS = 2048  # of the object itself; the h5 release leaves out what has fewer
NO_OBJECT = (0, 1, 2)  # instance labels of the last column: unlabelled, wall, floor
_COLUMNS = 11
_BLOCK = 8192  # points read at a time while counting


@dataclass(frozen=True)
class Variant:
    """One of the three variants. files: how the release's file names end. background: whether points of it are in."""

    short: str
    title: str
    files: str
    background: bool


VARIANTS = {
    "scanobjectnn_obj": Variant("obj", "OBJ_ONLY", PLAIN, background=False),
    "scanobjectnn_bg": Variant("bg", "OBJ_BG", PLAIN, background=True),
    "scanobjectnn_hardest": Variant("hardest", "PB_T50_RS", "objectdataset_augmentedrot_scale75", background=True),
}


def assets(root: Path, table: DatasetTable, options: NamedSplitOfClouds) -> Iterator[Asset]:
    """Every row of the variant's two h5 files, or every raw object of the list.

    Ids are `<variant>-<row>`: rows of the test file go on after those of the training file; raw objects have their
    line in the list. Raises Refused when the source holds another variant, or nothing of the dataset.
    """
    variant = VARIANTS[table.name]
    partition = options.split or PARTITIONS[0]
    h5 = folders(root, _has_h5)
    lists = [] if h5 else folders(root, lambda folder: (folder / f"{partition}.txt").is_file())
    if h5:
        yield from _h5_assets(root, h5, variant, table, partition, options.max_points)
    elif lists:
        yield from _raw_assets(root, lists[0] / f"{partition}.txt", variant, table)
    else:
        name = f"{partition}{'' if variant.background else '_nobg'}/training_{variant.files}.h5"
        raise Refused(f"no {table.name} in {root}: expected {name}, or {partition}.txt and folders of .bin files")


def shortfalls(options: NamedSplit, table: DatasetTable, found: list[Asset], splits: tuple[str, ...]) -> list[str]:
    """Splits that are not of the expected size; of split1..4 only the sum over both splits is known."""
    expected = table.split_counts[options.split] if options.split else table.counts
    total = expected.get("total", len(found))
    if not splits and total != len(found):
        return [f"train and test {len(found):,} of {total:,}"]
    return compare_counts({name: n for name, n in expected.items() if name != "total"}, found, splits)


def read(asset: Asset, root: Path, options: CloudLimit) -> RawShape:
    """The cloud of one object, uncentred. Raises ValueError when it cannot be read or its label is no class."""
    if not asset.source.endswith(".bin"):
        return row_shape(asset, root, options)
    rows = _read_scan(root, asset.source, options.max_points)
    if not asset.id.startswith(f"{VARIANTS['scanobjectnn_bg'].short}-"):
        rows = rows[rows[:, -1] == main_instance(rows[:, -1])]
    return check_finite(RawShape(points=rows[:, :3].astype(np.float64)))


def main_instance(labels: np.ndarray) -> float:
    """The most frequent label of the last column (N,) besides 0, 1 and 2; the smallest of several.

    Raises ValueError when there is no other label.
    """
    values, counts = np.unique(labels[~np.isin(labels, NO_OBJECT)], return_counts=True)
    if not len(values):
        raise ValueError("no point of the object: all labels are 0, 1 or 2")
    return float(values[counts.argmax()])


def _has_h5(folder: Path) -> bool:
    return any(folder.glob("*_objectdataset*.h5"))


def _h5_assets(
    root: Path, found: list[Path], variant: Variant, table: DatasetTable, partition: str, max_points: int
) -> Iterator[Asset]:
    folder = _variant_folder(root, found, variant, table, partition)
    labels = {}
    for split, prefix in PREFIXES.items():
        path = folder / f"{prefix}_{variant.files}.h5"
        if path.is_file():
            relative = path.relative_to(root).as_posix()
            labels[split] = (relative, read_labels(root, relative, max_points, num_classes=len(table.classes)))
    _refuse_other_counts({split: len(rows) for split, (_, rows) in labels.items()}, variant, table, folder)
    first = 0
    for split in PREFIXES:
        relative, rows = labels.get(split, ("", np.empty(0, np.int64)))
        for row, label in enumerate(rows):
            id = f"{variant.short}-{first + row:05d}"
            yield Asset(id, f"{relative}#{row}", split, table.classes[label])
        first = max(len(rows), table.counts[split])  # test rows keep their numbers where the training file is missing


def _variant_folder(root: Path, found: list[Path], variant: Variant, table: DatasetTable, partition: str) -> Path:
    """The folder with the variant's files. Raises Refused naming the variants that are there in its place."""
    name = partition if variant.background else f"{partition}_nobg"
    named = [folder for folder in found if folder.name == name]
    loose = [folder for folder in found if folder.name not in FOLDERS]
    folder = next(iter(named), None) or (loose[0] if loose and partition == PARTITIONS[0] else None)
    if folder is None:
        raise Refused(f"no {name} for {table.name} in {root}: {_what_is_there(found)}")
    there = [path for path in (folder / f"{p}_{variant.files}.h5" for p in PREFIXES.values()) if path.is_file()]
    if not there:
        raise Refused(f"no training_{variant.files}.h5 in {folder}: {_what_is_there([folder])}")
    if folder in loose and variant.files == PLAIN:
        background = has_background(root, there[0].relative_to(root).as_posix())
        if background is not None and background != variant.background:
            other = next(v for v in VARIANTS.values() if v.files == PLAIN and v.background == background)
            raise Refused(f"{there[0]}: this is {other.title}: use scanobjectnn_{other.short}")
        if background is None:
            raise Refused(f"{there[0]} may be OBJ_BG or OBJ_ONLY: put it into a folder main_split or main_split_nobg")
    return folder


def _what_is_there(found: list[Path]) -> str:
    """What h5 files of other variants there are, with the recipes that read them."""
    said = []
    for folder in found:
        for path in sorted(folder.glob("*_objectdataset*.h5")):
            files = path.stem.partition("_")[2]
            background = not folder.name.endswith("_nobg")
            titles = [v for v in VARIANTS.values() if v.files == files and v.background == background]
            title = titles[0].title if titles else PERTURBED.get(files, files)
            if not titles and not background and files in PERTURBED:
                title += " without background"
            recipe = f"use scanobjectnn_{titles[0].short}" if titles else "no recipe reads it"
            if folder.name.startswith("split") and titles:
                recipe += f" split={folder.name.removesuffix('_nobg')}"
            line = f"this is {title}: {recipe}"
            if line not in said:
                said.append(line)
    return "; ".join(said)


def _refuse_other_counts(rows: dict[str, int], variant: Variant, table: DatasetTable, folder: Path) -> None:
    """Raises Refused when the files have as many rows as those of another variant and not of this one."""
    for split, number in rows.items():
        others = [name for name in VARIANTS if number == load_table(name).counts[split] != table.counts[split]]
        if others:
            path = folder / f"{PREFIXES[split]}_{variant.files}.h5"
            titles, recipes = " or ".join(VARIANTS[name].title for name in others), " or ".join(others)
            count = f"{number:,} objects, not {table.counts[split]:,}"
            raise Refused(f"{path} has {count}: this is {titles}: use {recipes}")


def _raw_assets(root: Path, path: Path, variant: Variant, table: DatasetTable) -> Iterator[Asset]:
    if variant.files != PLAIN:
        raise Refused(
            f"{table.name} is read from h5 files: {root} holds raw scans, from which OBJ_ONLY and OBJ_BG come"
        )
    holders = folders(root, lambda folder: any((folder / name).is_dir() for name in table.classes))
    if len(holders) != 1:
        raise Refused(
            f"{len(holders) or 'no'} folders of .bin files in {root}: expected object_dataset/<class>/<name>.bin"
        )
    require_order(root, path.parent / "shape_names_ext.txt", table.classes)
    inside = holders[0].relative_to(root).as_posix()
    classes_of = defaultdict[str, set[str]](set)  # the file of an object -> the folders that hold one of its name
    for name in table.classes:
        for file in (holders[0] / name).glob("*.bin"):
            classes_of[file.name].add(name)
    for row, line in enumerate(read_lines(root, path)):
        words, where = line.split(), f"{path}, line {row + 1}"
        known = len(words) in (2, 3) and re.fullmatch(r"\d{1,8}", words[1]) and words[2:] in ([], ["t"])
        if not known or not re.fullmatch(r"[\w-]+\.bin", words[0]):
            raise Refused(f"{where}: {line[:80]!r} is not `<name>.bin <label> [t]`")
        if int(words[1]) >= len(table.classes):
            raise Refused(f"{where}: the label {words[1]}; 0..{len(table.classes) - 1} are expected")
        class_name = table.classes[int(words[1])]
        others = classes_of.get(words[0], set())
        if others and class_name not in others:
            raise Refused(f"{where}: the label {words[1]} is {class_name}, and {words[0]} lies in {min(others)}")
        relative = f"{inside}/{class_name}/{words[0]}".removeprefix("./")
        if os.path.isfile(root / relative) and _is_large_enough(root, relative):
            yield Asset(f"{variant.short}-{row:05d}", relative, "test" if words[2:] else "train", class_name)


def _is_large_enough(root: Path, relative: str) -> bool:
    """Whether the object itself, without background, has the points that the h5 release asks for.

    Reads no further than needed. A file that cannot be read is let through: its reader says what is wrong with it.
    """
    seen: Counter[float] = Counter()
    try:
        with source_file(root, relative).open("rb") as file:
            _announced(file)
            while block := file.read(4 * _COLUMNS * _BLOCK):
                labels = np.frombuffer(block, "<f4").reshape(-1, _COLUMNS)[:, -1]
                values, counts = np.unique(labels[~np.isin(labels, NO_OBJECT)], return_counts=True)
                seen.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
                if max(seen.values(), default=0) >= MIN_POINTS:
                    return True
    except (ValueError, OSError):
        return True
    return False


def _read_scan(root: Path, relative: str, max_points: int) -> np.ndarray:
    """float32 (N, 11) of one .bin file: x y z nx ny nz r g b instance semantic, after a first float, the count N."""
    with source_file(root, relative).open("rb") as file:
        announced = _announced(file)
        if announced > max_points:
            raise ValueError(f"{announced:,} points, more than max_points={max_points:,}")
        file.seek(0)
        data = noted(relative, file.read())
        return np.frombuffer(data, "<f4", offset=4).reshape(-1, _COLUMNS)


def _announced(file: BinaryIO) -> int:
    """The count of points that a .bin file begins with. Raises ValueError unless the file has as many."""
    size = os.fstat(file.fileno()).st_size
    count = np.frombuffer(file.read(4).ljust(4, b"\0"), "<f4")[0]
    if not np.isfinite(count) or count < 1 or count != int(count):
        raise ValueError(f"it begins with {count}, which is no count of points")
    if size != 4 + 4 * _COLUMNS * int(count):
        there = (size - 4) / (4 * _COLUMNS)
        raise ValueError(f"{int(count):,} points announced, {there:,.1f} are there: cut, or lying")
    return int(count)
