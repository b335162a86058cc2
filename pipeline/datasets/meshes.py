"""Anyone's own files: off, obj, ply, stl, glb and gltf in any letter case, at any depth.

The class is the first folder; the split is a path part named train, val or test, else `all`. A file with points and
no faces is an object without a mesh. Files directly in the source have no class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from manifests.errors import Refused
from manifests.records import Asset
from manifests.tables import DatasetTable
from pipeline.load import MESH_SUFFIXES, RawShape, read_mesh

SPLITS = ("train", "val", "test")


def assets(root: Path, table: DatasetTable, options: None = None) -> Iterator[Asset]:
    """Every file with a mesh's suffix below the folder. Raises Refused when there is none."""
    found = 0
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.suffix.lower() not in MESH_SUFFIXES or any(
            part.startswith((".", "__MACOSX")) for part in relative.parts
        ):
            continue
        found += 1
        folders = relative.parts[:-1]
        splits = [part.lower() for part in folders if part.lower() in SPLITS]
        classes = [part for part in folders[:1] if part.lower() not in SPLITS] or [
            part for part in folders[1:2] if folders[0].lower() in SPLITS
        ]
        yield Asset(
            id=relative.as_posix(),
            source=relative.as_posix(),
            split=splits[0] if splits else "all",
            class_name=classes[0] if classes else None,
        )
    if not found:
        raise Refused(f"no mesh in {root}: looked for {', '.join(MESH_SUFFIXES)}")


def read(asset: Asset, root: Path, options: None = None) -> RawShape:
    """The mesh or points of one file. Raises ValueError when it cannot be read."""
    return read_mesh(root / asset.source, root)
