"""ModelNet40 as clouds: the h5 release of 2,048 points, or the text release of 10,000 points with normals.

h5 (modelnet40_ply_hdf5_2048): the lists train_files.txt and test_files.txt, ply_data_*.h5 with `data` float32
(N, 2048, 3) and `label` uint8 (N, 1). Text (modelnet40_normal_resampled): the lists modelnet40_train.txt and
modelnet40_test.txt of bare ids, <class>/<id>.txt with lines `x,y,z,nx,ny,nz`. +Y is up in both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from manifests.dataset_info import DatasetTable
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.datasets.options import CloudLimit, NamedSplit, NamedSplitOfClouds
from pipeline.datasets.release_files import listed_files, only_folder, read_lines, require_order
from pipeline.datasets.splits import compare_counts
from pipeline.formats.hdf5 import read_labels, read_row
from pipeline.formats.point_cloud import read_cloud
from pipeline.sources.raw_shape import RawShape, check_finite

OPTIONS = NamedSplitOfClouds
SPLITS = ("train", "test")
TEXT = "normal_resampled"
EXAMPLE = "modelnet40_ply_hdf5_2048/ply_data_train0.h5 or modelnet40_normal_resampled/airplane/airplane_0001.txt"
_NORMALS = "columns passed over"


def assets(root: Path, table: DatasetTable, options: NamedSplitOfClouds) -> Iterator[Asset]:
    """Every row of the h5 files, or every listed text file. Raises Refused where neither release is there, or both."""
    wanted = _is_text if options.split == TEXT else lambda folder: _is_h5(folder) or _is_text(folder)
    folder = only_folder(root, wanted, table.name, EXAMPLE)
    if _is_text(folder):
        yield from _text_assets(root, folder, table)
    elif (folder / "train_hdf5_file_list.txt").is_file():
        raise Refused(f"{folder} holds ShapeNetPart: use shapenetpart")
    else:
        yield from _h5_assets(root, folder, table, options.max_points)


def shortfalls(options: NamedSplit, table: DatasetTable, found: list[Asset], splits: tuple[str, ...]) -> list[str]:
    """Splits that are not of the expected size: the two releases differ by three objects."""
    text = any(asset.source.endswith(".txt") for asset in found)
    return compare_counts(table.split_counts[TEXT] if text else table.counts, found, splits)


def read(asset: Asset, root: Path, options: CloudLimit) -> RawShape:
    """The cloud of one object. Raises ValueError when it cannot be read or its label is no class."""
    if asset.source.endswith(".txt"):
        raw = read_cloud(root, asset.source)
        return RawShape(points=raw.points, warnings={k: n for k, n in raw.warnings.items() if k != _NORMALS})
    return row_shape(asset, root, options)


def row_shape(asset: Asset, root: Path, options: CloudLimit, with_parts: bool = False) -> RawShape:
    """The cloud of one row (`<file>#<row>`). Raises ValueError when its label is no class, or a point is not finite."""
    relative, _, number = asset.source.rpartition("#")
    if asset.class_name is None:
        raise ValueError("its label is none of the classes")  # of a build before such files were refused
    return check_finite(read_row(root, relative, int(number), options.max_points, with_parts))


def _is_h5(folder: Path) -> bool:
    return any(folder.glob("ply_data_*.h5"))


def _is_text(folder: Path) -> bool:
    return (folder / "modelnet40_train.txt").is_file() or (folder / "modelnet40_test.txt").is_file()


def _h5_assets(root: Path, folder: Path, table: DatasetTable, max_points: int) -> Iterator[Asset]:
    require_order(root, folder / "shape_names.txt", table.classes)
    for split in SPLITS:
        for relative in listed_files(root, folder, f"{split}_files.txt", f"ply_data_{split}*.h5"):
            labels = read_labels(root, relative, max_points, num_classes=len(table.classes))
            for row, label in enumerate(labels):
                yield Asset(f"{Path(relative).stem}-{row:05d}", f"{relative}#{row}", split, table.classes[label])


def _text_assets(root: Path, folder: Path, table: DatasetTable) -> Iterator[Asset]:
    require_order(root, folder / "modelnet40_shape_names.txt", table.classes)
    inside = folder.relative_to(root).as_posix()
    for split in SPLITS:
        path = folder / f"modelnet40_{split}.txt"
        for name in read_lines(root, path) if path.is_file() else ():
            class_name = name.rpartition("_")[0]
            if class_name not in table.classes or not name.removeprefix(f"{class_name}_").isdigit():
                raise Refused(f"{path}: {name[:60]} is no id such as {table.classes[0]}_0001")
            relative = f"{inside}/{class_name}/{name}.txt".removeprefix("./")
            if os.path.isfile(root / relative):  # also where the name is too long for a file
                yield Asset(name, relative, split, class_name)
