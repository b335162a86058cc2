"""Reads every object of a split once, unaugmented and in the order of the shards: for evaluation and prediction.

Batches are cut by position, so an object is always computed beside the same others. Neither the number of processes
that share the batches nor the number of reader processes changes a figure.

Shape letters: B batch, V views, S side of a picture, N points.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from manifests.rng import generator
from manifests.samples import JSON, Sample, split_view_member
from training.data.batch import normalized
from training.data.dataset import Shard, Source
from training.data.decode import cloud_of, num_views, picture_of
from training.data.image_augment import normalize_cloud, weak_picture
from training.data.reader_processes import Readers, this_reader
from training.data.sample_index import naming
from training.data.shard_reader import read_pieces, read_shapes
from training.settings.data import DataSettings

BATCH = 32  # objects
UNKNOWN = -1  # the label of an object without one, or whose label was not read
ViewOf = Callable[[str, int], int]  # (key, number of views in use) -> the view to read
LabelOf = Callable[[Shard, Sample], int | None]  # a label, or None to leave the object out


@dataclass(frozen=True)
class WholeBatch:
    """Unaugmented objects: pictures uint8 (B, V, 3, S, S), clouds float32 (B, N, 3) with centroid 0 and radius 1.

    V is 0 where the source has no pictures. num_views: of each object; its further pictures are zero. labels: UNKNOWN
    unless the reader was told to read them. mean, deviation: of RGB in [0, 1].
    """

    keys: tuple[str, ...]
    pictures: Tensor
    points: Tensor
    num_views: tuple[int, ...]
    labels: tuple[int, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def there(self) -> Tensor:
        """bool (B, V): which pictures are views of their object."""
        return torch.arange(self.pictures.shape[1]) < torch.tensor(self.num_views)[:, None]

    def normalized(self, numbers: Tensor, device: torch.device) -> Tensor:
        """float32 (P, 3, S, S) on the device: the pictures with these numbers, counted view by view."""
        return normalized(self.pictures.flatten(0, 1)[numbers].to(device), self.mean, self.deviation)


def batch_numbers(total: int, batch_size: int, rank: int = 0, world: int = 1) -> range:
    """Numbers of the batches that process `rank` of `world` computes; the ranks' ranges follow one another."""
    count = -(-total // batch_size)
    return range(count * rank // world, count * (rank + 1) // world)


def unknown_label(shard: Shard, shape: Sample) -> int:
    """Reads no label."""
    return UNKNOWN


class SplitReader(IterableDataset[WholeBatch]):
    """The batches with the given numbers. Of n reader processes, process i reads every n-th of them, from the i-th on.

    view_of: chooses the one view that is read; without it all views in use are. label_of: of an object, from its shape;
    an object whose label is None is left out before its pictures are decoded, and so is a batch that is then empty.
    """

    def __init__(
        self,
        source: Source,
        settings: DataSettings,
        image_size: int,
        numbers: Sequence[int],
        batch_size: int = BATCH,
        view_of: ViewOf | None = None,
        label_of: LabelOf = unknown_label,
    ) -> None:
        self.source, self.settings, self.image_size = source, settings, image_size
        self.numbers, self.batch_size, self.view_of, self.label_of = numbers, batch_size, view_of, label_of
        self._ends = list(accumulate(len(shard.keys) for shard in source.shards))

    @property
    def batch_bytes(self) -> int:
        """Bytes of a batch; where objects differ in their number of views, of a batch with one view each."""
        views = 1
        if self.view_of is None:
            views = len(self.settings.views_of(max(self.source.preset.num_views, 1))) if self.source.view_set else 0
        clouds = self.settings.num_points * 3 * np.float32().nbytes
        return self.batch_size * (views * 3 * self.image_size**2 + clouds)

    def batches(self, workers: int = 0) -> Iterator[WholeBatch]:
        """The batches in order, read by `workers` processes beside this one. Raises as `Readers` does."""
        return iter(Readers(self, workers, self.batch_bytes))

    def __iter__(self) -> Iterator[WholeBatch]:
        worker, workers = this_reader()
        firsts = [number * self.batch_size for number in self.numbers[worker::workers]]
        batches = [list(self._pieces(range(n, min(n + self.batch_size, self.source.total)))) for n in firsts]
        joined = read_pieces([piece for pieces in batches for piece in pieces], views_wanted=self._pictured)
        for pieces in batches:
            found = list(self._objects(pieces, joined))
            if found:
                yield self._collate(found)

    def _pieces(self, positions: range) -> Iterator[tuple[Shard, list[int]]]:
        """The shards that hold these positions of the split, each with the numbers of its samples there."""
        for index, inside in groupby(positions, lambda position: bisect_right(self._ends, position)):
            shard = self.source.shards[index]
            start = self._ends[index] - len(shard.keys)
            yield shard, [position - start for position in inside]

    def _objects(
        self, pieces: list[tuple[Shard, list[int]]], joined: Iterator[tuple[Sample, Sample]]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
        """(key, pictures, points, label) of the next objects of `joined`, which are those of `pieces`."""
        for shard, numbers in pieces:
            for shape, views in islice(joined, len(numbers)):
                label = self.label_of(shard, shape)
                if label is not None:
                    yield shape.key, *self._whole(shard, shape, views), label

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
        cloud = whole_cloud(shard, shape, self.settings.num_points)
        if self.source.view_set is None:
            return np.zeros((0, self.image_size, self.image_size, 3), np.uint8), cloud
        preset, channel = self.source.preset, self.settings.channel
        with naming(shard.views, views.key):
            pictures = [weak_picture(picture_of(views, v, channel, preset), self.image_size) for v in self._used(views)]
        return np.stack(pictures), cloud

    def _collate(self, found: list[tuple[str, np.ndarray, np.ndarray, int]]) -> WholeBatch:
        keys, views, points, labels = zip(*found, strict=True)
        counts = tuple(map(len, views))
        pictures = np.zeros((len(keys), max(counts), *views[0].shape[1:]), np.uint8)
        for row, each in zip(pictures, views, strict=True):
            row[: len(each)] = each
        whole = torch.from_numpy(pictures).permute(0, 1, 4, 2, 3).contiguous()
        return WholeBatch(keys, whole, torch.from_numpy(np.stack(points)), counts, labels, *self.source.pixels)


def clouds_alone(source: Source, num_points: int) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """(keys, clouds float32 (B, N, 3)) of the objects without views, as `WholeBatch` has them; no picture is read."""
    shapes = ((shard, shape) for shard in source.viewless for shape in read_shapes(shard))
    found = ((shape.key, whole_cloud(shard, shape, num_points)) for shard, shape in shapes)
    while batch := list(islice(found, BATCH)):
        keys, clouds = zip(*batch, strict=True)
        yield keys, torch.from_numpy(np.stack(clouds))


def whole_cloud(shard: Shard, shape: Sample, num_points: int) -> np.ndarray:
    """An object's cloud as evaluation sees it, float32 (num_points, 3). Raises DamagedShard."""
    with naming(shard.shapes, shape.key):
        return normalize_cloud(cloud_of(shape, num_points, generator(0, 0, shape.key)))
