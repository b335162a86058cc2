"""A whole split for evaluation: every labelled object once, in the order of the shards, unaugmented."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from manifests.mappings import mean_and_deviation
from manifests.samples import JSON, Sample, split_view_member
from manifests.seeds import generator
from training.augment import normalize_cloud, to_tensor, weak_picture
from training.batches import LabelledBatch
from training.join import DataSettings, Shard, Source, naming, open_source, read_joined
from training.objects import cloud_of, num_views, picture_of


def labelled(
    shards: str,
    settings: DataSettings,
    image_size: int,
    batch_size: int,
    view_of: Callable[[str, int], int] | None = None,
) -> tuple[Source, Callable[[], Iterator[LabelledBatch]]]:
    """Batches with labels for evaluation, in the order of the shards; objects without a label are left out.

    view_of: (key, number of views) -> which one of the views in use is read; else all of those are.
    """
    source = open_source(shards, settings)

    def pictured(views: Sample, suffix: str) -> bool:
        picture = split_view_member(suffix)
        if picture is None or picture[1] != settings.channel:
            return suffix == JSON
        return picture[0] in settings.views_of(num_views(views))

    def batches() -> Iterator[LabelledBatch]:
        samples: list[tuple[str, Tensor, Tensor, int]] = []
        for shard in source.shards:
            for shape, views in read_joined(shard, range(len(shard.keys)), views_wanted=pictured):
                with naming(shard.shapes, shape.key):
                    label = label_of(shape, source)
                if label is not None:
                    whole = _whole(shard, shape, views, source, settings, image_size, view_of)
                    samples.append((shape.key, *whole, label))
                if len(samples) == batch_size:
                    yield _collate_labelled(samples)
                    samples = []
        if samples:
            yield _collate_labelled(samples)

    return source, batches


def label_of(shape: Sample, source: Source) -> int | None:
    """The number of an object's class among the candidates; None where it has no label."""
    label = shape.json["label"]
    return None if label is None else source.labels[label]


def _whole(
    shard: Shard,
    shape: Sample,
    views: Sample,
    source: Source,
    settings: DataSettings,
    image_size: int,
    view_of: Callable[[str, int], int] | None,
) -> tuple[Tensor, Tensor]:
    preset = source.view_set.preset
    mean, deviation = mean_and_deviation(settings.channel, preset)
    with naming(shard.views, views.key):
        used = settings.views_of(num_views(views))
        pictures = [
            to_tensor(weak_picture(picture_of(views, v, settings.channel, preset), image_size), mean, deviation)
            for v in (used if view_of is None else [used[view_of(views.key, len(used))]])
        ]
    with naming(shard.shapes, shape.key):
        points = cloud_of(shape, settings.num_points, generator(0, 0, shape.key))
    return torch.stack(pictures), torch.from_numpy(normalize_cloud(points))


def _collate_labelled(samples: list[tuple[str, Tensor, Tensor, int]]) -> LabelledBatch:
    keys, images, points, labels = zip(*samples, strict=True)
    counts = tuple(map(len, images))
    if len(set(counts)) > 1:
        most = max(counts)
        images = [torch.cat([i, i.new_zeros(most - len(i), *i.shape[1:])]) for i in images]
    else:
        counts = ()
    return LabelledBatch(keys, torch.stack(images), torch.stack(points), torch.tensor(labels), counts)
