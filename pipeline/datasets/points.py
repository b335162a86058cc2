"""Anyone's own clouds: ply, pcd, npy, npz and text files, in folders as `meshes` or as a listing names them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from manifests.dataset_info import DatasetTable
from manifests.records import Asset
from pipeline.datasets.meshes import Listing, own_files
from pipeline.formats.point_cloud import CLOUD_SUFFIXES, read_cloud
from pipeline.sources.raw_shape import RawShape
from pipeline.sources.source_files import passed_over_files

OPTIONS = Listing


def assets(root: Path, table: DatasetTable, options: Listing) -> Iterator[Asset]:
    """Every file with a cloud's suffix below the folder, or the rows of the listing.

    Raises Refused when there is no such file, or when the listing is wrong.
    """
    yield from own_files(root, options.listing, CLOUD_SUFFIXES)


def passed_over(options: Listing, root: Path | None) -> dict[str, int]:
    """Suffix -> number of files that look like shapes and are no clouds that are read."""
    return {} if root is None or options.listing is not None else passed_over_files(root, CLOUD_SUFFIXES)


def read(asset: Asset, root: Path, options: Listing | None = None) -> RawShape:
    """The points of one file, and their colours where it has some. Raises ValueError when it cannot be read."""
    return read_cloud(root, asset.source)
