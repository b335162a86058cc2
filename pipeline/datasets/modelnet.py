"""ModelNet10 and ModelNet40: <class>/{train,test}/<class>_NNNN.off, also the manually aligned set.

The class is the folder's name (names hold underscores, so the file's name is not cut at the first one). Hidden files
and what a Mac puts into archives are passed over. Listing order is sorted: `os.listdir` gives none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from manifests.errors import Refused
from manifests.records import Asset
from manifests.tables import DatasetTable
from pipeline.load import RawShape, read_mesh

SPLITS = ("train", "test")


def assets(root: Path, table: DatasetTable, options: None = None) -> Iterator[Asset]:
    """Every .off file of the known classes. Raises Refused when the folder holds no class of the table."""
    folder = root
    if not any((folder / name).is_dir() for name in table.classes):
        inside = [
            d for d in sorted(root.iterdir()) if d.is_dir() and any((d / name).is_dir() for name in table.classes)
        ]
        if len(inside) != 1:
            example = f"{root}/{table.classes[0]}/train/{table.classes[0]}_0001.off"
            raise Refused(f"no {table.name} in {root}: expected files such as {example}")
        folder = inside[0]
    for class_name in table.classes:
        for split in SPLITS:
            for path in sorted((folder / class_name / split).glob("*")):
                if path.suffix.lower() == ".off" and not path.name.startswith("."):
                    source = path.relative_to(root).as_posix()
                    yield Asset(path.stem, source, split, class_name)


def read(asset: Asset, root: Path, options: None = None) -> RawShape:
    """The mesh of one file. Raises ValueError when it has no face or cannot be read."""
    raw = read_mesh(root / asset.source, root)
    if raw.mesh is None:
        raise ValueError("the file has no faces")
    return raw
