"""Shards -> batches: shapes and views are merge-joined by their records, shuffled with a seed, decoded, augmented.

An epoch's order depends on (seed, epoch, records) alone and is cut into as many contiguous ranges as there are readers
(training/order.py); each reader shuffles in a buffer. View, augmentation and mask of a sample are drawn from (seed,
epoch, key).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from manifests.errors import Refused
from manifests.mappings import mean_and_deviation
from manifests.samples import (
    JSON,
    POINTS,
    Sample,
    view_member,
)
from manifests.seeds import generator
from training.augment import (
    AugmentSettings,
    StrongPicture,
    image_mask,
)
from training.augment import weak_picture as make_weak_picture
from training.batches import RawBatch, RawLabelledBatch
from training.join import DamagedShard, DataSettings, Shard, Source, naming, read_joined
from training.labelled import label_of
from training.objects import cloud_of, num_views, picture_of
from training.order import Range, Share, cut, epoch_ranges, share_of, shuffled


@dataclass(frozen=True)
class Form:
    """What a model takes: side of a picture, patch and mask cell in pixels, share of hidden cells."""

    image_size: int
    patch: int
    mask_cell: int
    mask_ratio: float


@dataclass(frozen=True)
class Drawn:
    """An object of an epoch and the view drawn for it; `rng` goes on with the draws of (seed, epoch, key)."""

    shard: Shard
    shape: Sample
    views: Sample
    view: int
    rng: np.random.Generator


class EpochSamples(IterableDataset):
    """Batches of one process for one epoch; call `set_epoch` before iterating. Subclasses say what a batch is."""

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
        self.rank, self.world, self.epoch, self.skip = rank, world, 0, 0
        self.num_batches = source.total // (batch_size * world)
        if not self.num_batches:
            raise Refused(
                f"optimizer.batch_size={batch_size * world} is more than the {source.total} objects of "
                f"data.split={settings.split}"
            )
        self.mean, self.deviation = mean_and_deviation(settings.channel, source.view_set.preset)
        self._strong = StrongPicture(augment, form.image_size, tuple(round(255 * m) for m in self.mean))

    def _make(self, drawn: Drawn) -> dict[str, Any]:
        """`key` and the arrays of one sample."""
        raise NotImplementedError

    def _collate(self, samples: list[dict[str, Any]]) -> Any:
        """One batch of samples."""
        raise NotImplementedError

    def _picture(self, drawn: Drawn) -> np.ndarray:
        with naming(drawn.shard.views, drawn.views.key):
            return picture_of(drawn.views, drawn.view, self.settings.channel, self.source.view_set.preset)

    def _cloud(self, drawn: Drawn) -> np.ndarray:
        with naming(drawn.shard.shapes, drawn.shape.key):
            return cloud_of(drawn.shape, self.settings.num_points, drawn.rng)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Chooses the order and the draws of an epoch, and how many of this rank's first batches are not given.

        Nothing of those is read; the others are those of a whole epoch.
        """
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        yield from wds.DataPipeline(
            lambda: self._drawn(share_of(worker, workers, self.num_batches, self.skip)),
            wds.map(self._make),
            wds.batched(self.batch_size, collation_fn=self._collate, partial=False),
        )

    def _drawn(self, share: Share) -> Iterator[Drawn]:
        """The objects of one reader as they leave its shuffle buffer, read as late as that order allows."""
        sizes = [len(shard.keys) for shard in self.source.shards]
        whole = epoch_ranges(sizes, self.batch_size * self.world, self.seed, self.epoch)
        before = self.rank * self.num_batches
        first, last = ((before + number) * self.batch_size for number in (share.first, share.last))
        rng = generator(self.seed, self.epoch, "buffer", self.rank, share.reader)
        order = shuffled(last - first, self.settings.shuffle, rng)[share.skip * self.batch_size :]
        arriving, waiting = self._read(cut(whole, first, last), sorted(order)), {}
        for position in order:
            while position not in waiting:
                arrived, drawn = next(arriving)
                waiting[arrived] = drawn
            yield waiting.pop(position)

    def _read(self, ranges: list[Range], positions: list[int]) -> Iterator[tuple[int, Drawn]]:
        """The objects at these ascending positions of the concatenated ranges, read forwards."""
        views_draw = _ViewDraw(self.seed, self.epoch, self.settings)
        position = 0
        for piece in ranges:
            shard, size = self.source.shards[piece.shard], piece.stop - piece.start
            inside = positions[bisect_left(positions, position) : bisect_left(positions, position + size)]
            numbers = [piece.start + p - position for p in inside]
            joined = read_joined(shard, numbers, self._wanted, views_draw)
            for at, (shape, views) in zip(inside, joined, strict=True):
                with naming(shard.views, views.key):
                    view, rng = views_draw.take(views)
                yield at, Drawn(shard, shape, views, view, rng)
            position += size

    def _wanted(self, shape: Sample, suffix: str) -> bool:
        """Whether a member of a shape is read."""
        return suffix == POINTS


class _ViewDraw:
    """Draws a view of each object while its members pass by, so that no other picture is read."""

    def __init__(self, seed: int, epoch: int, settings: DataSettings) -> None:
        self._seed, self._epoch, self._settings = seed, epoch, settings
        self._drawn: dict[str, tuple[int, np.random.Generator, str]] = {}

    def __call__(self, views: Sample, suffix: str) -> bool:
        return suffix == JSON or suffix.startswith(self._draw(views)[2])

    def _draw(self, views: Sample) -> tuple[int, np.random.Generator, str]:
        if views.key not in self._drawn:
            rng = generator(self._seed, self._epoch, views.key)
            used = self._settings.views_of(num_views(views))
            view = used[int(rng.integers(len(used)))]
            self._drawn[views.key] = view, rng, view_member(view, self._settings.channel, "")
        return self._drawn[views.key]

    def take(self, views: Sample) -> tuple[int, np.random.Generator]:
        """The view of an object, and the generator that goes on with its draws."""
        view, rng, _ = self._draw(views)
        del self._drawn[views.key]
        return view, rng


class UnlabelledSamples(EpochSamples):
    """Weak and strong pictures, clouds as stored with a seed, masks and draws: RawBatch. No label is read."""

    def _make(self, drawn: Drawn) -> dict[str, Any]:
        form, rng = self.form, drawn.rng
        picture, points = self._picture(drawn), self._cloud(drawn)
        return {
            "key": drawn.shape.key,
            "weak_image": make_weak_picture(picture, form.image_size),
            "strong_image": self._strong(picture, rng),
            "points": points,
            "seed": rng.integers(2**63),
            "image_mask": image_mask(form.image_size, form.patch, form.mask_cell, form.mask_ratio, rng),
            "points_draw": rng.random(2, np.float32),
            "modality_draw": rng.random(dtype=np.float32),
        }

    def _collate(self, samples: list[dict[str, Any]]) -> RawBatch:
        tensors = {name: _stacked(samples, name) for name in samples[0] if name != "key"}
        for name in ("weak_image", "strong_image"):
            tensors[name] = tensors[name].permute(0, 3, 1, 2)
        keys = tuple(s["key"] for s in samples)
        return RawBatch(keys, **tensors, mean=self.mean, deviation=self.deviation, augment=self.augment)


class SupervisedSamples(EpochSamples):
    """One picture, weak or strong by equal chance; a cloud as stored with a seed; the label: RawLabelledBatch."""

    def _wanted(self, shape: Sample, suffix: str) -> bool:
        return suffix in (POINTS, JSON)

    def _make(self, drawn: Drawn) -> dict[str, Any]:
        picture, points, rng = self._picture(drawn), self._cloud(drawn), drawn.rng
        with naming(drawn.shard.shapes, drawn.shape.key):
            label = label_of(drawn.shape, self.source)
        if label is None:
            raise DamagedShard(f"{drawn.shard.shapes}: {drawn.shape.key}: no label, which supervised training needs")
        strong = rng.random() < 0.5
        picture = self._strong(picture, rng) if strong else make_weak_picture(picture, self.form.image_size)
        return {
            "key": drawn.shape.key,
            "image": picture,
            "points": points,
            "seed": rng.integers(2**63),
            "label": np.int64(label),
        }

    def _collate(self, samples: list[dict[str, Any]]) -> RawLabelledBatch:
        return RawLabelledBatch(
            keys=tuple(s["key"] for s in samples),
            images=_stacked(samples, "image").permute(0, 3, 1, 2)[:, None],
            points=_stacked(samples, "points"),
            seed=_stacked(samples, "seed"),
            label=_stacked(samples, "label"),
            mean=self.mean,
            deviation=self.deviation,
        )


def _stacked(samples: list[dict[str, Any]], name: str) -> Tensor:
    return torch.from_numpy(np.stack([s[name] for s in samples]))


def unlabelled(
    source: Source,
    settings: DataSettings,
    augment: AugmentSettings,
    form: Form,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> tuple[UnlabelledSamples, DataLoader]:
    """Batches without labels for training, RawBatch. `set_epoch` on the first, iterate over the second by `batches_of`.

    Raises Refused when a batch of all ranks is larger than the data.
    """
    samples = UnlabelledSamples(source, settings, augment, form, batch_size, seed, rank, world)
    return samples, _loader(samples)


def supervised(
    source: Source,
    settings: DataSettings,
    augment: AugmentSettings,
    form: Form,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> tuple[SupervisedSamples, DataLoader]:
    """The same with labels, RawLabelledBatch of one view an object: for pre-training on a source domain, for an oracle.

    The order of samples, their views and the raised errors are those of `unlabelled`; an object without a label raises
    DamagedShard naming it.
    """
    samples = SupervisedSamples(source, settings, augment, form, batch_size, seed, rank, world)
    return samples, _loader(samples)


def _loader(samples: EpochSamples) -> DataLoader:
    own = torch.Generator()  # or each epoch's start would draw from the generator of the towers, and resuming differ
    return DataLoader(samples, batch_size=None, num_workers=samples.settings.workers, generator=own)


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """Batches of an epoch; what a reader process raised about a shard is one line again."""
    try:
        yield from loader
    except DamagedShard as error:
        raise DamagedShard(str(error).strip().splitlines()[-1].rpartition("DamagedShard: ")[2]) from error
