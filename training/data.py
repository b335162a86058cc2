"""Shards -> batches: shapes and views are merge-joined by their records, shuffled with a seed, decoded, augmented.

An epoch's order depends on (seed, epoch, records) alone: shards are permuted, their concatenation is cut into as many
contiguous ranges as there are readers (offsets in the records let a range begin inside a shard), and each reader
shuffles in a buffer. View, augmentation and mask of a sample are drawn from (seed, epoch, key).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from manifests.errors import Refused
from manifests.mappings import NORMALIZE, to_picture
from manifests.samples import (
    JSON,
    POINTS,
    Sample,
    decode_array,
    decode_picture,
    depth_of_codes,
    split_view_member,
    view_member,
)
from manifests.seeds import generator
from training.augment import AugmentSettings, StrongPicture, image_mask, normalize_cloud, strong_cloud, to_tensor
from training.augment import weak_cloud as make_weak_cloud
from training.augment import weak_picture as make_weak_picture
from training.join import DamagedShard, DataSettings, Shard, Source, naming, open_source, read_joined


@dataclass(frozen=True)
class Batch:
    """What training sees: no label.

    weak_image, strong_image: float32 (B, 3, S, S), normalised. weak_points, strong_points: float32 (B, N, 3).
    image_mask: bool (B, S/p, S/p), true where hidden. points_draw: float32 (B, 2) and modality_draw: float32 (B,),
    uniform draws for the point mask and for labels.mode=random.
    """

    keys: tuple[str, ...]
    weak_image: Tensor
    strong_image: Tensor
    weak_points: Tensor
    strong_points: Tensor
    image_mask: Tensor
    points_draw: Tensor
    modality_draw: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if name != "keys"}
        return Batch(keys=self.keys, **tensors)


@dataclass(frozen=True)
class LabelledBatch:
    """What evaluation sees: all views of each object, float32 (B, V, 3, S, S), clouds (B, N, 3), label int64 (B,)."""

    keys: tuple[str, ...]
    images: Tensor
    points: Tensor
    label: Tensor


def picture_of(views: Sample, number: int, channel: str, mapping: str) -> Image.Image:
    """One view as an RGB picture; depth is mapped as its preset says. Raises ValueError when it is not there."""
    suffixes = [name for s in ("png", "jpg") if (name := view_member(number, channel, s)) in views.members]
    if not suffixes:
        raise ValueError(f"no {channel} picture of view {number}")
    array = decode_picture(views.members[suffixes[0]])
    if channel == "depth":
        camera = views.json["views"][number]
        depth = depth_of_codes(array, camera["near"], camera["far"])
        array = np.rint(to_picture(depth, mapping) * 255).astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


def num_views(views: Sample) -> int:
    """How many views an object has."""
    return len(views.json["views"])


def keep_view(views: Sample, number: int) -> Sample:
    """The sample without the pictures of other views, so that a shuffle buffer holds an eighth of the bytes or less."""
    kept = {
        name: data
        for name, data in views.members.items()
        if name == JSON or (split_view_member(name) or (number,))[0] == number
    }
    return Sample(views.key, kept)


def cloud_of(shape: Sample, count: int, rng: np.random.Generator) -> np.ndarray:
    """The first `count` points, float32 (count, 3), filled up from `rng`. Raises ValueError unless they are a cloud."""
    points = decode_array(shape.members[POINTS])
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"{POINTS} of shape {points.shape} is no cloud of finite points")
    return pad_cloud(points[:count], count, rng)


@dataclass(frozen=True)
class Form:
    """What a model takes: side of a picture, patch and mask cell in pixels, share of hidden cells."""

    image_size: int
    patch: int
    mask_cell: int
    mask_ratio: float


class UnlabelledSamples(IterableDataset):
    """Batches of one process for one epoch; call `set_epoch` before iterating."""

    def __init__(
        self,
        source: Source,
        settings: DataSettings,
        augment: AugmentSettings,
        form: Form,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.source, self.settings, self.form = source, settings, form
        self.augment, self.batch_size, self.seed = augment, batch_size, seed
        self.rank, self.world, self.epoch = rank, world, 0
        self.num_batches = source.total // (batch_size * world)
        if not self.num_batches:
            raise Refused(
                f"optimizer.batch_size={batch_size * world} is more than the {source.total} objects of "
                f"data.split={settings.split}"
            )
        mean = NORMALIZE[source.view_set.preset.normalize][0]
        fill = tuple(round(255 * m) for m in mean)
        self._strong = StrongPicture(augment, form.image_size, fill)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the draws of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        pipeline = wds.DataPipeline(
            lambda: map(self._choose, self._range(worker, workers)),
            wds.shuffle(
                self.settings.shuffle,
                initial=self.settings.shuffle,
                rng=random.Random(f"{self.seed}/{self.epoch}/{self.rank}/{worker}"),
            ),
            wds.map(self._make),
            wds.batched(self.batch_size, collation_fn=collate, partial=False),
        )
        yield from pipeline

    def _range(self, worker: int, workers: int) -> Iterator[tuple[Shard, Sample, Sample]]:
        """The joined samples of one reader: whole batches, contiguous in the permuted concatenation of all shards."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.source.shards))
        each = self.num_batches // workers + (worker < self.num_batches % workers)
        before = worker * (self.num_batches // workers) + min(worker, self.num_batches % workers)
        first = (self.rank * self.num_batches + before) * self.batch_size
        last = first + each * self.batch_size
        position = 0
        for index in order:
            shard = self.source.shards[index]
            start, stop = max(first - position, 0), min(last - position, len(shard.keys))
            if start < stop:
                yield from ((shard, *pair) for pair in read_joined(shard, start, stop))
            position += len(shard.keys)

    def _choose(self, joined: tuple[Shard, Sample, Sample]) -> tuple[Shard, Sample, Sample]:
        """Drops the pictures of the views that `_make` will not draw: the buffer need not hold them."""
        shard, shape, views = joined
        with naming(shard.views, views.key):
            view = int(generator(self.seed, self.epoch, views.key).integers(num_views(views)))
        return shard, shape, keep_view(views, view)

    def _make(self, joined: tuple[Shard, Sample, Sample]) -> dict[str, object]:
        shard, shape, views = joined
        rng = generator(self.seed, self.epoch, shape.key)
        preset, form = self.source.view_set.preset, self.form
        with naming(shard.views, views.key):
            view = int(rng.integers(num_views(views)))
            picture = picture_of(views, view, self.settings.channel, preset.mapping)
        mean, deviation = NORMALIZE[preset.normalize]
        with naming(shard.shapes, shape.key):
            points = cloud_of(shape, self.settings.num_points, rng)
        return {
            "key": shape.key,
            "weak_image": to_tensor(make_weak_picture(picture, form.image_size), mean, deviation),
            "strong_image": to_tensor(self._strong(picture, rng), mean, deviation),
            "weak_points": torch.from_numpy(make_weak_cloud(points, rng)),
            "strong_points": torch.from_numpy(strong_cloud(points, self.augment, rng)),
            "image_mask": torch.from_numpy(
                image_mask(form.image_size, form.patch, form.mask_cell, form.mask_ratio, rng)
            ),
            "points_draw": torch.from_numpy(rng.random(2).astype(np.float32)),
            "modality_draw": torch.tensor(rng.random(), dtype=torch.float32),
        }


def pad_cloud(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """A cloud with fewer points than `count`, filled up by repeating some of them."""
    if len(points) >= count:
        return points
    return np.concatenate([points, points[rng.integers(len(points), size=count - len(points))]])


def collate(samples: list[dict[str, object]]) -> Batch:
    """One batch of samples."""
    stacked = {name: torch.stack([s[name] for s in samples]) for name in samples[0] if name != "key"}
    return Batch(keys=tuple(s["key"] for s in samples), **stacked)


def unlabelled(
    source: Source, settings: DataSettings, augment: AugmentSettings, form: Form, batch_size: int, seed: int
) -> tuple[UnlabelledSamples, DataLoader]:
    """Batches without labels for training. `set_epoch` on the first, iterate over the second by `batches_of`.

    Raises Refused when a batch is larger than the data.
    """
    samples = UnlabelledSamples(source, settings, augment, form, batch_size, seed)
    own = torch.Generator()  # or each epoch's start would draw from the generator of the towers, and resuming differ
    loader = DataLoader(samples, batch_size=None, num_workers=settings.workers, generator=own)
    return samples, loader


def batches_of(loader: DataLoader) -> Iterator[Batch]:
    """Batches of an epoch; what a reader process raised about a shard is one line again."""
    try:
        yield from loader
    except DamagedShard as error:
        raise DamagedShard(str(error).strip().splitlines()[-1].rpartition("DamagedShard: ")[2]) from error


def labelled(
    shards: str, settings: DataSettings, image_size: int, batch_size: int
) -> tuple[Source, Callable[[], Iterator[LabelledBatch]]]:
    """Batches with labels for evaluation, in the order of the shards; objects without a label are left out."""
    source = open_source(shards, settings)

    def batches() -> Iterator[LabelledBatch]:
        samples: list[tuple[str, Tensor, Tensor, int]] = []
        for shard in source.shards:
            for shape, views in read_joined(shard, 0, len(shard.keys)):
                with naming(shard.shapes, shape.key):
                    label = shape.json["label"]
                if label is not None:
                    samples.append((shape.key, *_whole(shard, shape, views, source, settings, image_size), label))
                if len(samples) == batch_size:
                    yield _collate_labelled(samples)
                    samples = []
        if samples:
            yield _collate_labelled(samples)

    return source, batches


def _whole(
    shard: Shard, shape: Sample, views: Sample, source: Source, settings: DataSettings, image_size: int
) -> tuple[Tensor, Tensor]:
    preset = source.view_set.preset
    mean, deviation = NORMALIZE[preset.normalize]
    with naming(shard.views, views.key):
        pictures = [
            to_tensor(
                make_weak_picture(picture_of(views, v, settings.channel, preset.mapping), image_size), mean, deviation
            )
            for v in range(num_views(views))
        ]
    with naming(shard.shapes, shape.key):
        points = cloud_of(shape, settings.num_points, generator(0, 0, shape.key))
    return torch.stack(pictures), torch.from_numpy(normalize_cloud(points))


def _collate_labelled(samples: list[tuple[str, Tensor, Tensor, int]]) -> LabelledBatch:
    keys, images, points, labels = zip(*samples, strict=True)
    return LabelledBatch(keys, torch.stack(images), torch.stack(points), torch.tensor(labels))
