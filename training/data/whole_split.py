"""Every object of a split once, unaugmented and without labels, in the order of the shards.

Batches are cut by position, so that an object is always computed beside the same others: several processes that share
the batches, and reader processes, change no figure.

Shape letters: B batch, V views, S side of a picture, N points.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from manifests.picture_mapping import mean_and_deviation
from manifests.rng import generator
from manifests.samples import JSON, Sample, split_view_member
from training.data.batch import normalized
from training.data.dataset import Shard, Source
from training.data.decode import cloud_of, num_views, picture_of
from training.data.image_augment import normalize_cloud, weak_picture
from training.data.reader_processes import Readers
from training.data.sample_index import naming
from training.data.shard_reader import read_pieces
from training.settings.data import DataSettings

BATCH = 32  # objects
ViewOf = Callable[[str, int], int]  # (key, number of views in use) -> the one that is read
Note = Callable[[Shard, Sample], Any]


@dataclass(frozen=True)
class WholeBatch:
    """Objects as they are: pictures uint8 (B, V, 3, S, S), clouds float32 (B, N, 3) about their centroid, radius 1.

    num_views: of each object; its further pictures are zero. mean, deviation: of RGB in [0, 1].
    """

    keys: tuple[str, ...]
    pictures: Tensor
    points: Tensor
    num_views: tuple[int, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def there(self) -> Tensor:
        """bool (B, V): which pictures are views of their object."""
        return torch.arange(self.pictures.shape[1]) < torch.tensor(self.num_views)[:, None]

    def normalized(self, numbers: Tensor, device: torch.device) -> Tensor:
        """float32 (P, 3, S, S) on the device: the pictures with these numbers, counted view by view."""
        return normalized(self.pictures.flatten(0, 1)[numbers].to(device), self.mean, self.deviation)


@dataclass(frozen=True)
class NotedBatch:
    """A batch and what was noted of each of its objects."""

    batch: WholeBatch
    notes: tuple[Any, ...]


def batch_numbers(total: int, batch_size: int, rank: int = 0, world: int = 1) -> range:
    """Which of the batches of `total` objects a process computes: neighbours, and all of them in the order of ranks."""
    count = -(-total // batch_size)
    return range(count * rank // world, count * (rank + 1) // world)


class SplitReader(IterableDataset):
    """The batches with the given numbers, each reader process taking every so manieth of them.

    view_of: else all views in use are read. note: what is noted of an object as its shape is read; an object of which
    that is None is left out before its pictures are decoded, and a batch without any is not given.
    """

    def __init__(
        self,
        source: Source,
        settings: DataSettings,
        image_size: int,
        numbers: Sequence[int],
        batch_size: int = BATCH,
        view_of: ViewOf | None = None,
        note: Note | None = None,
    ) -> None:
        self.source, self.settings, self.image_size = source, settings, image_size
        self.numbers, self.batch_size, self.view_of, self.note = numbers, batch_size, view_of, note
        self._ends = list(accumulate(len(shard.keys) for shard in source.shards))

    @property
    def batch_bytes(self) -> int:
        """Of a batch of objects with as many views as the preset says, or one where each object has its own number."""
        views = 1
        if self.view_of is None:
            views = len(self.settings.views_of(max(self.source.view_set.preset.num_views, 1)))
        clouds = self.settings.num_points * 3 * np.float32().nbytes
        return self.batch_size * (views * 3 * self.image_size**2 + clouds)

    def __iter__(self) -> Iterator[NotedBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        firsts = [number * self.batch_size for number in self.numbers[worker::workers]]
        batches = [list(self._pieces(range(n, min(n + self.batch_size, self.source.total)))) for n in firsts]
        joined = read_pieces([piece for pieces in batches for piece in pieces], views_wanted=self._pictured)
        for pieces in batches:
            found = list(self._objects(pieces, joined))
            if found:
                yield self._collate(found)

    def _pieces(self, positions: range) -> Iterator[tuple[Shard, list[int]]]:
        """Shards with numbers of their samples: those at these positions of the split."""
        for index, inside in groupby(positions, lambda position: bisect_right(self._ends, position)):
            shard = self.source.shards[index]
            start = self._ends[index] - len(shard.keys)
            yield shard, [position - start for position in inside]

    def _objects(
        self, pieces: list[tuple[Shard, list[int]]], joined: Iterator[tuple[Sample, Sample]]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray, Any]]:
        """(key, pictures, points, note) of the next objects of `joined`, which are those of `pieces`."""
        for shard, numbers in pieces:
            for shape, views in islice(joined, len(numbers)):
                noted = () if self.note is None else self.note(shard, shape)
                if noted is not None:
                    yield shape.key, *self._whole(shard, shape, views), noted

    def _pictured(self, views: Sample, suffix: str) -> bool:
        """Whether a member of an object's views is read."""
        picture = split_view_member(suffix)
        if picture is None or picture[1] != self.settings.channel:
            return suffix == JSON
        return picture[0] in self._used(views)

    def _used(self, views: Sample) -> Sequence[int]:
        used = self.settings.views_of(num_views(views))
        return used if self.view_of is None else [used[self.view_of(views.key, len(used))]]

    def _whole(self, shard: Shard, shape: Sample, views: Sample) -> tuple[np.ndarray, np.ndarray]:
        preset, channel = self.source.view_set.preset, self.settings.channel
        with naming(shard.views, views.key):
            pictures = [weak_picture(picture_of(views, v, channel, preset), self.image_size) for v in self._used(views)]
        with naming(shard.shapes, shape.key):
            points = cloud_of(shape, self.settings.num_points, generator(0, 0, shape.key))
        return np.stack(pictures), normalize_cloud(points)

    def _collate(self, found: list[tuple[str, np.ndarray, np.ndarray, Any]]) -> NotedBatch:
        keys, views, points, notes = zip(*found, strict=True)
        counts = tuple(map(len, views))
        pictures = np.zeros((len(keys), max(counts), *views[0].shape[1:]), np.uint8)
        for row, each in zip(pictures, views, strict=True):
            row[: len(each)] = each
        mean, deviation = mean_and_deviation(self.settings.channel, self.source.view_set.preset)
        whole = torch.from_numpy(pictures).permute(0, 1, 4, 2, 3).contiguous()
        batch = WholeBatch(keys, whole, torch.from_numpy(np.stack(points)), counts, mean, deviation)
        return NotedBatch(batch, notes)


def loader_of(reader: SplitReader, workers: int = 0) -> Readers:
    """The batches of a reader in order, read by so many processes beside this one; iterate by `data.batches_of`."""
    return Readers(reader, workers, reader.batch_bytes)
