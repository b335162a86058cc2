"""Computes the order of an epoch's samples from the sizes of the shards and a seed; it reads no data.

An epoch starts with the samples that the last one left over. The permuted shards follow, without those samples, from a
random position inside a shard on. Samples that do not fill the last batch of all ranks are left over for the next
epoch. The epoch is cut into contiguous ranges of whole batches, one for each reader (a worker process of a rank), and
each reader shuffles its range in a buffer.

A checkpoint within an epoch stores the batches given so far as segments: a list of (world, workers, batches), where
batches are those of all ranks together. `went_on` extends the list. A run can resume with other numbers of ranks or
workers: `EpochOrder` still gives every sample once in the epoch. Each epoch starts with an empty list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from manifests.rng import generator

Given = Sequence[tuple[int, int, int]]  # segments of an epoch: (world, workers, batches of all ranks)


@dataclass(frozen=True)
class Range:
    """Samples start to stop (excluded) of one shard."""

    shard: int
    start: int
    stop: int


def epoch_ranges(sizes: Sequence[int], batch: int, seed: int, epoch: int) -> list[Range]:
    """The samples of an epoch, in order. sizes: of the shards, in samples; batch: of all ranks together.

    No sample comes twice in an epoch. A sample that is left over comes in the first batch of the next.
    """
    total = sum(sizes)
    used = total // batch * batch
    order: list[Range] = []
    for number in range(epoch + 1 if used < total else 1):
        left_over = cut(order, used, total)
        permuted = _permuted(sizes, generator(seed, number if used < total else epoch, "shards"))
        order = left_over + list(_without(permuted, left_over))
    return cut(order, 0, used)


def _permuted(sizes: Sequence[int], rng: np.random.Generator) -> list[Range]:
    """All shards in a random order, from a random position in the first one on; the skipped samples come last.

    Without that position, a single shard would always leave its end over.
    """
    first, *others = [Range(int(shard), 0, sizes[shard]) for shard in rng.permutation(len(sizes))]
    begin = int(rng.integers(first.stop))
    return [Range(first.shard, begin, first.stop), *others, Range(first.shard, 0, begin)]


def cut(ranges: Iterable[Range], first: int, last: int) -> list[Range]:
    """The samples at positions first to last (excluded) of the concatenated ranges."""
    found, position = [], 0
    for piece in ranges:
        start = piece.start + max(first - position, 0)
        stop = min(piece.start + last - position, piece.stop)
        if start < stop:
            found.append(Range(piece.shard, start, stop))
        position += piece.stop - piece.start
    return found


def _without(ranges: Iterable[Range], removed: Iterable[Range]) -> Iterator[Range]:
    """The ranges without the removed ones."""
    gone: dict[int, list[tuple[int, int]]] = {}
    for piece in removed:
        gone.setdefault(piece.shard, []).append((piece.start, piece.stop))
    for piece in ranges:
        start = piece.start
        for first, last in sorted(gone.get(piece.shard, ())):
            if last <= start or piece.stop <= first:
                continue
            if start < first:
                yield Range(piece.shard, start, first)
            start = last
        if start < piece.stop:
            yield Range(piece.shard, start, piece.stop)


@dataclass(frozen=True)
class Share:
    """Batches first to last (excluded) of a rank, which one reader gives; it skips its first `skip`, given before."""

    reader: int
    first: int
    last: int
    skip: int


def share_of(worker: int, workers: int, num_batches: int, skip: int) -> Share:
    """The share of a worker process after `skip` batches were given before a break.

    Workers take turns, from worker 0 on. So after the break worker 0 takes the place of the reader whose turn is next.
    """
    reader = (worker + skip) % workers
    whole, rest = divmod(num_batches, workers)
    first = reader * whole + min(reader, rest)
    return Share(reader, first, first + whole + (reader < rest), -(-max(skip - reader, 0) // workers))


def shuffled(count: int, buffer: int, rng: np.random.Generator) -> list[int]:
    """Positions 0 to count as they leave a shuffle buffer: each arrival replaces a random position in it."""
    held = list(range(min(buffer, count)))
    order = []
    for arriving, out in enumerate(rng.integers(buffer, size=count - len(held)).tolist(), len(held)):
        order.append(held[out])
        held[out] = arriving
    return order + [held[i] for i in rng.permutation(len(held))]


def went_on(given: Given, world: int, workers: int, batches: int) -> list[tuple[int, int, int]]:
    """The segments of an epoch after `batches` more, by `world` ranks of `workers` processes each (0 counts as 1).

    Successive segments of the same readers become one, and empty segments are dropped.
    """
    segments: list[tuple[int, int, int]] = []
    for ranks, readers, number in (*given, (world, workers, batches)):
        if number and segments and segments[-1][:2] == (ranks, max(readers, 1)):
            number += segments.pop()[2]
        if number:
            segments.append((ranks, max(readers, 1), number))
    return segments


@dataclass(frozen=True)
class EpochOrder:
    """The order in which each reader gives the samples of an epoch, as positions in its `epoch_ranges`.

    count: samples of the epoch, whole batches. batch: samples of a batch of all ranks together. buffer: samples in each
    reader's shuffle buffer. Each rank has a contiguous part of the positions, cut into whole batches among its readers.
    """

    count: int
    batch: int
    buffer: int
    seed: int
    epoch: int

    def of_reader(self, given: Given, world: int, workers: int, rank: int, worker: int) -> np.ndarray:
        """The positions that one worker process still gives, in order, after the segments in `given`.

        If the last segment had as many ranks and workers, the order is that of an epoch without a break. Otherwise the
        remaining samples are divided among the present readers, in whole batches.
        """
        before, skip = went_on(given, world, workers, 0), 0
        if before and before[-1][:2] == (world, workers):
            skip = before.pop()[2]
        rest, done = np.arange(self.count), 0
        for segment in before:
            rest, done = self._without(rest, done, segment), done + segment[2]
        share = share_of(worker, workers, len(rest) // self.batch, skip)
        return self._order(rest, done, world, rank, share)[share.skip * (self.batch // world) :]

    def _without(self, rest: np.ndarray, done: int, segment: tuple[int, int, int]) -> np.ndarray:
        """The ascending positions of `rest` that a segment did not give. done: batches given before the segment."""
        world, workers, batches = segment
        gone = []
        for rank in range(world):
            for worker in range(workers):
                share = share_of(worker, workers, len(rest) // self.batch, batches)
                gone.append(self._order(rest, done, world, rank, share)[: share.skip * (self.batch // world)])
        return np.setdiff1d(rest, np.concatenate(gone), assume_unique=True)

    def _order(self, rest: np.ndarray, done: int, world: int, rank: int, share: Share) -> np.ndarray:
        """The positions of a reader's share of `rest`, in the order in which they leave its buffer."""
        size = self.batch // world
        begin = rank * (len(rest) // world)
        part = rest[begin + share.first * size : begin + share.last * size]
        names = ("buffer", rank, share.reader, *((done,) if done else ()))
        return part[shuffled(len(part), self.buffer, generator(self.seed, self.epoch, *names))]
