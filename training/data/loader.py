"""Turns shards into training batches: joins shapes and views, shuffles, decodes and augments them.

The order of an epoch depends only on (seed, epoch, records); training/data/sampler.py divides it among the readers. The
view, the augmentation and the mask of a sample are drawn from (seed, epoch, key). Readers go on from epoch to epoch
without a pause: while the last batches of one epoch are used, the first of the next are read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import IterableDataset

from manifests.errors import Refused
from manifests.plain_text import number_of
from manifests.samples import JSON, POINTS, Sample, split_view_member
from training.data.batch import AnyRawBatch, RawBatch, RawLabelledBatch
from training.data.dataset import Shard, Source
from training.data.decode import cloud_of, num_views, picture_of
from training.data.image_augment import StrongPicture, image_mask
from training.data.image_augment import weak_picture as make_weak_picture
from training.data.labels import label_of
from training.data.point_augment import pool_of
from training.data.reader_processes import Readers, this_reader
from training.data.sample_index import DamagedShard, naming
from training.data.sampler import EpochOrder, Given, Range, epoch_ranges
from training.data.shard_reader import read_pieces
from training.data.view_draw import ViewDraw
from training.settings.data import AugmentSettings, DataSettings, LabelledAugmentSettings, PictureAugmentSettings


@dataclass(frozen=True)
class Form:
    """What a model takes: side of a picture, patch and mask cell, all in pixels, the share of hidden cells, and of how
    many views of an object a method takes strong pictures."""

    image_size: int
    patch: int
    mask_cell: int
    mask_ratio: float
    views: int = 1


@dataclass(frozen=True)
class Drawn:
    """An object of an epoch and the view drawn for it. more: further views, of a method that takes several. rng: the
    generator of (seed, epoch, key), after those draws. beside: its views in further view sets, with their shards."""

    shard: Shard
    shape: Sample
    views: Sample
    view: int
    more: tuple[int, ...]
    rng: np.random.Generator
    beside: tuple[tuple[Shard, Sample], ...] = ()


class EpochSamples(IterableDataset[Any]):
    """The batches of one process for the epoch chosen by `set_epoch`. Subclasses say what a batch is.

    batch_size: of one process. num_batches: of a whole epoch, for all ranks. Making it raises Refused where the split
    is smaller than one batch of all ranks.
    """

    batch: type[AnyRawBatch]
    pictures: tuple[str, ...]  # names of the pictures in a batch; where there are none, no picture is read

    def __init__(
        self,
        source: Source,
        settings: DataSettings,
        augment: PictureAugmentSettings,
        form: Form,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.source, self.settings, self.form = source, settings, form
        self.augment, self.batch_size, self.seed = augment, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch: int = 0
        self.given: Given = ()
        self.num_batches = source.total // (batch_size * world)
        if not source.total:
            raise Refused(f"data.split={settings.split} has no objects with views, of those that data.* leaves")
        if not self.num_batches:
            raise Refused(
                f"optimizer.batch_size={batch_size * world} is more than the {number_of(source.total, 'object')} of "
                f"data.split={settings.split}"
            )
        self.mean, self.deviation = source.pixels
        if self.pictures:
            self._strong = StrongPicture(augment, form.image_size, tuple(round(255 * m) for m in self.mean))

    @property
    def batch_bytes(self) -> int:
        """Bytes of a batch on its way from a reader: its pictures and clouds; the rest is negligible."""
        pixels = self.num_pictures * self.form.image_size**2
        return self.batch_size * 3 * (pixels + self.num_points * np.float32().nbytes)

    @property
    def num_pictures(self) -> int:
        """How many pictures a sample has."""
        return len(self.pictures) + self.form.views - 1 if self.source.view_set else 0

    @property
    def num_points(self) -> int:
        """How many points of a stored cloud are read."""
        return self.settings.num_points

    def _make(self, drawn: Drawn) -> dict[str, Any]:
        """One sample: `key` and the arrays of its batch by name, pictures (..., H, W, 3)."""
        raise NotImplementedError

    def _collate(self, samples: list[dict[str, Any]]) -> Any:
        names = [name for name in samples[0] if name != "key"]
        tensors: dict[str, Any] = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in names}
        for name in self.pictures:
            tensors[name] = tensors[name].movedim(-1, -3)
        tensors["augment"] = self.augment
        if self.pictures:
            tensors |= {"mean": self.mean, "deviation": self.deviation}
        return self.batch(tuple(s["key"] for s in samples), **tensors)

    def _picture(self, drawn: Drawn, view: int | None = None) -> np.ndarray:
        """Of the drawn view, or of another."""
        with naming(drawn.shard.views, drawn.views.key):
            return picture_of(
                drawn.views, drawn.view if view is None else view, self.settings.channel, self.source.preset
            )

    def _cloud(self, drawn: Drawn) -> np.ndarray:
        with naming(drawn.shard.shapes, drawn.shape.key):
            return cloud_of(drawn.shape, self.num_points, drawn.rng)

    def set_epoch(self, epoch: int, given: Given = ()) -> None:
        """Chooses an epoch: its order, its draws, and the batches of it that were given before a break.

        given: those batches as segments (training/data/sampler.py); their samples are not read again. Raises Refused
        when they do not fit an epoch of this data.
        """
        whole = self.batch_size * self.world
        if any(w < 1 or n < 0 or b < 0 or whole % w for w, n, b in given) or _batches(given) > self.num_batches:
            raise Refused(
                f"an epoch of {self.num_batches} batches of {whole} cannot have been given out as the checkpoint says, "
                f"{given}: it was of other data or another optimizer.batch_size"
            )
        self.epoch, self.given = epoch, given

    @property
    def left(self) -> int:
        """The number of batches that the chosen epoch still has."""
        return self.num_batches - _batches(self.given)

    def __iter__(self) -> Iterator[Any]:
        worker, workers = this_reader()
        return self._of_epoch(self.epoch, self.given, worker, workers)

    def onwards(self) -> Iterator[Any]:
        """The batches of the chosen epoch and of all after it. The turns of the workers go on from epoch to epoch."""
        worker, workers = this_reader()
        epoch, given, turn = self.epoch, self.given, self.left
        yield from self._of_epoch(epoch, given, worker, workers)
        while True:
            epoch += 1
            yield from self._of_epoch(epoch, (), (worker - turn) % workers, workers)
            turn += self.num_batches

    def _of_epoch(self, epoch: int, given: Given, worker: int, workers: int) -> Iterator[Any]:
        yield from wds.DataPipeline(
            lambda: self._drawn(epoch, given, worker, workers),
            wds.map(self._make),
            wds.batched(self.batch_size, collation_fn=self._collate, partial=False),
        )

    def _drawn(self, epoch: int, given: Given, worker: int, workers: int) -> Iterator[Drawn]:
        """The objects of one reader in the order in which they leave its shuffle buffer, read as late as possible."""
        sizes, batch = [len(shard.keys) for shard in self.source.shards], self.batch_size * self.world
        epoch_order = EpochOrder(self.num_batches * batch, batch, self.settings.shuffle, self.seed, epoch)
        order = epoch_order.of_reader(given, self.world, workers, self.rank, worker).tolist()
        arriving = self._read(epoch, epoch_ranges(sizes, batch, self.seed, epoch), sorted(order))
        waiting: dict[int, Drawn] = {}
        for position in order:
            while position not in waiting:
                arrived, drawn = next(arriving)
                waiting[arrived] = drawn
            yield waiting.pop(position)

    def _read(self, epoch: int, ranges: list[Range], positions: list[int]) -> Iterator[tuple[int, Drawn]]:
        """(position, object) for ascending positions in the concatenated ranges, so that tars are read forwards."""
        views_draw = ViewDraw(self.seed, epoch, self.settings if self.source.view_set else None, self.form.views)
        pieces = self._pieces(ranges, positions)
        arriving = iter(positions)
        joined = read_pieces(pieces, self._wanted, self._views_wanted(views_draw))
        for shard, numbers in pieces:
            for shape, views in islice(joined, len(numbers)):
                with naming(shard.views, views.key):
                    taken, rng = views_draw.take(views)
                yield next(arriving), Drawn(shard, shape, views, taken[0], taken[1:], rng)

    def _pieces(self, ranges: list[Range], positions: list[int]) -> list[tuple[Shard, list[int]]]:
        """The shards that hold these positions of the concatenated ranges, each with the numbers of its samples."""
        pieces, position = [], 0
        for piece in ranges:
            size = piece.stop - piece.start
            inside = positions[bisect_left(positions, position) : bisect_left(positions, position + size)]
            pieces.append((self.source.shards[piece.shard], [piece.start + p - position for p in inside]))
            position += size
        return pieces

    def _wanted(self, shape: Sample, suffix: str) -> bool:
        """Whether a member of a shape is read."""
        return suffix == POINTS

    def _views_wanted(self, drawn: Callable[[Sample, str], bool]) -> Callable[[Sample, str], bool]:
        """Says whether a member of an object's views is read. drawn: the same, of the view that was drawn."""
        return drawn if self.pictures else _no_picture


def _batches(given: Given) -> int:
    """The number of batches in some segments."""
    return sum(batches for _, _, batches in given)


def _no_picture(views: Sample, suffix: str) -> bool:
    """Reads what the cameras of an object's views are, and no picture of them."""
    return suffix == JSON


class UnlabelledSamples(EpochSamples):
    """Weak and strong pictures, clouds as stored with a seed, masks and draws: RawBatch. No label is read."""

    batch = RawBatch
    pictures = ("weak_image", "strong_image")
    augment: AugmentSettings

    def _make(self, drawn: Drawn) -> dict[str, Any]:
        form, rng = self.form, drawn.rng
        picture, points = self._picture(drawn), self._cloud(drawn)
        strong = self._strong(picture, rng)
        if form.views > 1:
            others = [self._strong(self._picture(drawn, view), rng) for view in drawn.more]
            strong = np.stack([strong, *others])
        made = {
            "key": drawn.shape.key,
            "strong_image": strong,
            "points": points,
            "seed": rng.integers(2**63),
            "image_mask": image_mask(form.image_size, form.patch, form.mask_cell, form.mask_ratio, rng),
            "points_draw": rng.random(2, np.float32),
            "modality_draw": rng.random(dtype=np.float32),
        }
        place = rng.random() if self.augment.weak_crop == "random" else 0.5  # drawn last, as older runs lack it
        return made | {"weak_image": make_weak_picture(picture, form.image_size, place)}


class SupervisedSamples(EpochSamples):
    """One picture, weak or strong by equal chance; a cloud as stored with a seed; the label: RawLabelledBatch.

    Where the source has no pictures, a batch has none: (B, 0, 3, S, S). For pre-training on a source domain and for
    supervised training. Samples, their order and their views are those of UnlabelledSamples; an object without a label
    raises DamagedShard naming it.
    """

    batch = RawLabelledBatch
    pictures = ("images",)
    augment: LabelledAugmentSettings

    @property
    def num_points(self) -> int:
        """RS-CNN's clouds are drawn from a larger part of the stored one."""
        drawn = getattr(self.augment, "labelled_points", "") == "rscnn"  # a plugin's method may have other keys
        return pool_of(self.settings.num_points) if drawn else super().num_points

    def _wanted(self, shape: Sample, suffix: str) -> bool:
        return suffix in (POINTS, JSON)

    def _pictures(self, drawn: Drawn) -> np.ndarray:
        """uint8 (1, S, S, 3), or (0, S, S, 3) where the source has no pictures."""
        size = self.form.image_size
        if self.source.view_set is None:
            return np.zeros((0, size, size, 3), np.uint8)
        picture = self._picture(drawn)
        strong = drawn.rng.random() < 0.5
        return (self._strong(picture, drawn.rng) if strong else make_weak_picture(picture, size))[None]

    def _make(self, drawn: Drawn) -> dict[str, Any]:
        points = self._cloud(drawn)
        with naming(drawn.shard.shapes, drawn.shape.key):
            label = label_of(drawn.shape, self.source)
        if label is None:
            raise DamagedShard(f"{drawn.shard.shapes}: {drawn.shape.key}: no label, which supervised training needs")
        return {
            "key": drawn.shape.key,
            "images": self._pictures(drawn),
            "points": points,
            "seed": drawn.rng.integers(2**63),
            "label": np.int64(label),
        }


class ViewsSamples(SupervisedSamples):
    """The same with all views in use of an object, (V, S, S, 3): PointCMT's batches.

    V is `data.num_views`, or how many the view set has. An object with fewer begins with its first again, which changes
    no maximum over views. Making it raises Refused where neither says how many. known: keys of objects whose pictures
    are needed no more, which are black and not read.
    """

    known: Container[str] = ()

    def __init__(self, source: Source, settings: DataSettings, *rest: Any) -> None:
        self.count = len(settings.views_of(source.preset.num_views or settings.num_views))
        if not self.count:
            raise Refused(f"data.num_views=NUMBER is needed: objects of {settings.views} have different numbers")
        super().__init__(source, settings, *rest)

    @property
    def num_pictures(self) -> int:
        """One of each view."""
        return super().num_pictures + self.count - 1

    def _views_wanted(self, drawn: Callable[[Sample, str], bool]) -> Callable[[Sample, str], bool]:
        return self._pictured

    def _pictured(self, views: Sample, suffix: str) -> bool:
        """Whether a member of an object's views is read."""
        picture = split_view_member(suffix)
        if picture is None or picture[1] != self.settings.channel or views.key in self.known:
            return suffix == JSON
        return picture[0] in self.settings.views_of(num_views(views))

    def _pictures(self, drawn: Drawn) -> np.ndarray:
        """uint8 (V, S, S, 3)."""
        size = self.form.image_size
        if drawn.shape.key in self.known:
            return np.zeros((self.count, size, size, 3), np.uint8)
        used = self.settings.views_of(num_views(drawn.views))
        pictures = [self._picture(drawn, view) for view in used]
        strong = self.augment.image_magnitude or self.augment.image_flip or self.augment.image_crop < 1
        seen = [self._strong(each, drawn.rng) if strong else make_weak_picture(each, size) for each in pictures]
        return np.stack([seen[number % len(seen)] for number in range(self.count)])


class Loader:
    """Iterates over the batches of the epoch that `samples.set_epoch` chose, decoded by `data.workers` processes.

    The processes go on into the next epoch as long as epochs are used up in order. After a break within an epoch, or
    when another epoch or other segments are chosen, they are started anew. pin: batches lie in memory that a GPU reads
    by itself. Raises as training.data.reader_processes does.
    """

    def __init__(self, samples: EpochSamples, pin: bool = False) -> None:
        self._samples, self._coming = samples, -1
        self._running: Iterator[Any] = iter(())
        self._readers = Readers(_Onwards(samples), samples.settings.workers, samples.batch_bytes, pin)

    def __iter__(self) -> Iterator[Any]:
        samples = self._samples
        if samples.epoch != self._coming or samples.left != samples.num_batches:
            self._running = iter(())  # ends the readers before others begin
            self._running = iter(self._readers)
        coming, self._coming = samples.epoch + 1, -1
        for _ in range(samples.left):
            yield next(self._running)
        self._coming = coming


class _Onwards(IterableDataset[Any]):
    """The batches of the chosen epoch and of all after it, as a dataset."""

    def __init__(self, samples: EpochSamples) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Any]:
        return self._samples.onwards()
