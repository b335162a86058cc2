"""Anyone's own files: off, obj, ply, stl, glb and gltf in any letter case, at any depth, or as a listing names them.

Without a listing the class is the first folder; the split is a path part named train, val or test, else `all`. A file
with points and no faces is an object without a mesh. Files directly in the source have no class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from manifests.dataset_info import DatasetTable
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.datasets.options import DatasetOptions
from pipeline.formats.mesh import MESH_SUFFIXES, read_mesh
from pipeline.sources.file_list import listed_assets
from pipeline.sources.raw_shape import RawShape
from pipeline.sources.source_files import in_words, list_files, passed_over_files, plain_name

SPLITS = ("train", "val", "test")


class Listing(DatasetOptions):
    """listing: a csv or jsonl file that names the objects. Its path is in no hash, the list of assets is."""

    listing: str | None = None


OPTIONS = Listing


def assets(root: Path, table: DatasetTable, options: Listing) -> Iterator[Asset]:
    """Every file with a mesh's suffix below the folder, or the rows of the listing.

    Raises Refused when there is no such file, or when the listing is wrong.
    """
    yield from own_files(root, options.listing, MESH_SUFFIXES)


def own_files(root: Path, listing: str | None, suffixes: Collection[str]) -> Iterator[Asset]:
    """Assets of a listing, or of all files with these suffixes below a folder. Raises Refused when no file is found."""
    if listing is not None:
        yield from listed_assets(listing, root)
        return
    found = 0
    for path in list_files(root, suffixes):
        found += 1
        *folders, _ = path.split("/")
        splits = [part.lower() for part in folders if part.lower() in SPLITS]
        classes = [part for part in folders[:1] if part.lower() not in SPLITS] or [
            part for part in folders[1:2] if folders[0].lower() in SPLITS
        ]
        name = plain_name(path)
        yield Asset(
            id=name,
            source=name,
            split=splits[0] if splits else "all",
            class_name=plain_name(classes[0]) if classes else None,
        )
    if not found:
        others = in_words(passed_over_files(root, suffixes))
        looked = f"no file to read in {root}: looked for {', '.join(suffixes)}"
        raise Refused(f"{looked}; {others}" if others else looked)


def passed_over(options: Listing, root: Path | None) -> dict[str, int]:
    """Suffix -> number of files that look like shapes and are no mesh files that are read."""
    return {} if root is None or options.listing is not None else passed_over_files(root, MESH_SUFFIXES)


def read(asset: Asset, root: Path, options: Listing | None = None) -> RawShape:
    """The mesh or points of one file. Raises ValueError when it cannot be read."""
    return read_mesh(root / asset.source, root)
