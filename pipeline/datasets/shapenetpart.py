"""ShapeNetPart: clouds of 2,048 points with part labels, 16 classes, 50 parts (shapenet_part_seg_hdf5_data).

The lists train_hdf5_file_list.txt, val_... and test_... name ply_data_{train,val,test}*.h5 with `data` float32
(N, 2048, 3), `label` uint8 (N, 1) and `pid` uint8 (N, 2048), a part's number over all classes. +Y is up.
Source of names, keys and numbers: PointNet, part_seg (Qi et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from manifests.dataset_info import DatasetTable
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.datasets.modelnet40_d import row_shape
from pipeline.datasets.options import CloudLimit
from pipeline.datasets.release_files import listed_files, only_folder, require_order
from pipeline.formats.hdf5 import read_labels
from pipeline.sources.raw_shape import RawShape

OPTIONS = CloudLimit
SPLITS = ("train", "val", "test")
NUM_PARTS = 50


def assets(root: Path, table: DatasetTable, options: CloudLimit) -> Iterator[Asset]:
    """Every row of the h5 files. Raises Refused when the release is not there, or is another one."""
    folder = only_folder(root, _has_files, table.name, "hdf5_data/ply_data_train0.h5")
    require_order(root, folder / "all_object_categories.txt", table.classes)
    for split in SPLITS:
        for relative in listed_files(root, folder, f"{split}_hdf5_file_list.txt", f"ply_data_{split}*.h5"):
            try:
                labels = read_labels(root, relative, options.max_points, True, len(table.classes), NUM_PARTS)
            except Refused as error:
                if "no dataset pid" in str(error):
                    raise Refused(f"{error}: no part labels, as in ModelNet40 (use modelnet40_d)") from error
                raise
            for row, label in enumerate(labels):
                yield Asset(f"{Path(relative).stem}-{row:05d}", f"{relative}#{row}", split, table.classes[label])


def read(asset: Asset, root: Path, options: CloudLimit) -> RawShape:
    """The cloud and the part labels of one row. Raises ValueError when it cannot be read or a label is out of range."""
    raw = row_shape(asset, root, options, with_parts=True)
    most = 0 if raw.parts is None else raw.parts.max()
    if most >= NUM_PARTS:
        raise ValueError(f"a part label {most}; parts are 0..{NUM_PARTS - 1}")
    return raw


def _has_files(folder: Path) -> bool:
    return any(folder.glob("ply_data_*.h5"))
