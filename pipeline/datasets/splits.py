"""What a partial copy of a dataset lacks, and the folder in which its classes lie."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from manifests.dataset_info import DatasetTable
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.datasets.options import DatasetOptions, NamedSplit


def count_shortfalls(
    options: DatasetOptions, table: DatasetTable, found: list[Asset], splits: tuple[str, ...]
) -> list[str]:
    """`train 3 of 9,843` for each split whose count is not the table's; splits: looks at these only, () at all."""
    division = options.split if isinstance(options, NamedSplit) else ""
    return compare_counts(table.split_counts.get(division) or table.counts, found, splits)


def compare_counts(expected: dict[str, int], found: list[Asset], splits: tuple[str, ...]) -> list[str]:
    """`train 3 of 9,843` for each split with another number of assets than expected."""
    counts = Counter(asset.split for asset in found)
    return [
        f"{split} {counts[split]:,} of {number:,}"
        for split, number in expected.items()
        if counts[split] != number and (not splits or split in splits)
    ]


def dataset_folder(root: Path, names: tuple[str, ...], dataset: str, example: str) -> Path:
    """The folder that holds the folders `names`: the source, or the only folder in it that does.

    Raises Refused naming an example of an expected file where no folder does.
    """
    if any((root / name).is_dir() for name in names):
        return root
    inside = [d for d in sorted(root.iterdir()) if d.is_dir() and any((d / name).is_dir() for name in names)]
    if len(inside) != 1:
        raise Refused(f"no {dataset} in {root}: expected files such as {root}/{example}")
    return inside[0]
