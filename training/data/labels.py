"""Reads a whole split with its labels, for evaluation: every object once, unaugmented, in the order of the shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from manifests.samples import Sample
from training.data.dataset import Shard, Source
from training.data.sample_index import naming
from training.data.whole_split import BATCH, UNKNOWN, SplitReader, ViewOf
from training.settings.data import DataSettings


def labelled(
    source: Source,
    settings: DataSettings,
    image_size: int,
    numbers: Sequence[int],
    batch_size: int = BATCH,
    view_of: ViewOf | None = None,
    unknown: bool = False,
) -> SplitReader:
    """A reader that reads labels, too. unknown: keeps objects without a label, as UNKNOWN; else they are left out."""
    read_label = partial(_label, source=source, missing=UNKNOWN if unknown else None)
    return SplitReader(source, settings, image_size, numbers, batch_size, view_of, read_label)


def _label(shard: Shard, shape: Sample, source: Source, missing: int | None) -> int | None:
    with naming(shard.shapes, shape.key):
        label = label_of(shape, source)
    return missing if label is None else label


def label_of(shape: Sample, source: Source) -> int | None:
    """The number of an object's class among the candidates, or None for an object without a label."""
    label = shape.json["label"]
    return None if label is None else source.labels[label]
