"""Clouds with a part label of each point: batches to train on, and whole splits to judge by. No picture is read.

A point keeps its label through every change of order, repeat and augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifests.dataset_info import DatasetTable, load_table, table_names
from manifests.errors import Refused
from manifests.rng import generator
from manifests.samples import JSON, PARTS, POINTS, Sample
from training.data.batch import RawPartLabelledBatch
from training.data.dataset import Source
from training.data.decode import cloud_of, labelled_cloud_of
from training.data.image_augment import normalize_cloud
from training.data.loader import Drawn, EpochSamples
from training.data.sample_index import naming
from training.data.shard_reader import read_shapes
from training.settings.part_settings import PartAugmentSettings

BATCH = 16  # objects; a network keeps features of each neighbour of each point


def part_table(dataset: str) -> DatasetTable:
    """The table of a dataset whose classes have parts. Raises Refused for another dataset."""
    table = load_table(dataset) if dataset in table_names() else None
    if table is None or not table.parts:
        known = [name for name in table_names() if load_table(name).parts]
        raise Refused(f"dataset {dataset} has no part labels: build one that has ({', '.join(known)})")
    return table


def category_of(shape: Sample, table: DatasetTable) -> int:
    """The number of an object's class in the table. Raises ValueError where it has no class of it."""
    label = table.label(shape.json["class"])
    if label is None:
        raise ValueError(f"no class of {table.name}, which part segmentation needs")
    return label


class PartSamples(EpochSamples):
    """A cloud as stored with a seed, the part of each point and the object's class: RawPartLabelledBatch.

    Objects and their order are those of other methods. An object without a class or without part labels raises
    DamagedShard naming it.
    """

    batch = RawPartLabelledBatch
    pictures = ()
    augment: PartAugmentSettings

    def _wanted(self, shape: Sample, suffix: str) -> bool:
        return suffix in (POINTS, PARTS, JSON)

    def _make(self, drawn: Drawn) -> dict[str, Any]:
        count, rng, table = self.settings.num_points, drawn.rng, part_table(self.source.manifest.dataset)
        with naming(drawn.shard.shapes, drawn.shape.key):
            category = category_of(drawn.shape, table)
            points, parts = labelled_cloud_of(drawn.shape, count, rng)
            _require_parts(parts, category, table)
        seed, order = rng.integers(2**63), np.arange(count)
        if self.augment.cloud_order == "shuffled":
            order = rng.permutation(count)
        elif self.augment.cloud_order == "resampled":
            order = rng.integers(count, size=count)
        labels = {"parts": parts[order], "category": np.int64(category)}
        return {"key": drawn.shape.key, "points": points[order], "seed": seed, **labels}


def _require_parts(parts: np.ndarray, category: int, table: DatasetTable) -> None:
    """Raises ValueError where a point is of a part that the object's class does not have."""
    own = table.parts_of(category)
    if parts.min() < own.start or parts.max() >= own.stop:
        strange = next(int(part) for part in parts if part not in own)
        raise ValueError(f"part {strange} is no part of {table.classes[category]} ({own.start}..{own.stop - 1})")


@dataclass(frozen=True)
class WholePartBatch:
    """Unaugmented objects: clouds float32 (B, N, 3) with centroid 0 and radius 1, and the class (B,) of each.

    parts: int64 (B, N), or None where an object has none. stored: how many of an object's points are its own; what
    follows repeats them.
    """

    keys: tuple[str, ...]
    points: Tensor
    category: Tensor
    parts: Tensor | None
    stored: tuple[int, ...]


def whole_parts(
    source: Source, num_points: int, table: DatasetTable, required: bool = True, category: int | None = None
) -> Iterator[WholePartBatch]:
    """Every object of a split in the order of its shards, BATCH at a time.

    required: an object without part labels raises DamagedShard. category: takes every object for one of this class;
    else an object without a class raises DamagedShard.
    """
    found = (
        _whole(shard.shapes, shape, num_points, table, required, category)
        for shard in source.shards
        for shape in read_shapes(shard)
    )
    while rows := list(islice(found, BATCH)):
        keys, points, categories, parts, stored = zip(*rows, strict=True)
        labelled = None if any(each is None for each in parts) else torch.from_numpy(np.stack(parts))
        yield WholePartBatch(keys, torch.from_numpy(np.stack(points)), torch.tensor(categories), labelled, stored)


def _whole(
    tar: str, shape: Sample, num_points: int, table: DatasetTable, required: bool, category: int | None
) -> tuple[str, np.ndarray, int, np.ndarray | None, int]:
    """Key, cloud, class, parts and number of its own points of an object."""
    rng = generator(0, 0, shape.key)
    with naming(tar, shape.key):
        own = category_of(shape, table) if category is None else category
        if required or (PARTS in shape.members and category is None):
            points, parts = labelled_cloud_of(shape, num_points, rng)
            _require_parts(parts, own, table)
        else:
            points, parts = cloud_of(shape, num_points, rng), None
        stored = min(num_points, shape.json["num_points"])
        return shape.key, normalize_cloud(points), own, parts, stored
