"""The order of an epoch, from sizes of shards and a seed alone: no data is read.

An epoch is the samples that the one before left over, then the permuted shards without those, beginning somewhere
inside a shard; what does not fill its last batch of all ranks is left over for the next. It is cut into contiguous
ranges of whole batches, one a reader (rank x worker process), and each reader shuffles its own in a buffer.

A run that is stopped within an epoch keeps what was given so far as segments, plain values for a checkpoint: a list of
(world, workers, batches), batches of all ranks together, which `went_on` makes longer. With it, other numbers of ranks
or workers go on where those stopped: every sample still comes once in the epoch (`EpochOrder`). At the end of an epoch
the list begins anew, empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from manifests.rng import generator

Given = Sequence[tuple[int, int, int]]  # segments of an epoch: (world, workers, batches of all ranks)


@dataclass(frozen=True)
class Range:
    """Samples start..stop of one shard."""

    shard: int
    start: int
    stop: int


def epoch_ranges(sizes: Sequence[int], batch: int, seed: int, epoch: int) -> list[Range]:
    """The samples of an epoch, whole batches (`batch`: of all ranks together), of shards with `sizes` samples.

    No sample comes twice in an epoch; one that rests comes in the first batch of the next.
    """
    total = sum(sizes)
    used = total // batch * batch
    order: list[Range] = []
    for number in range(epoch + 1 if used < total else 1):
        rested = cut(order, used, total)
        permuted = _permuted(sizes, generator(seed, number if used < total else epoch, "shards"))
        order = rested + list(_without(permuted, rested))
    return cut(order, 0, used)


def _permuted(sizes: Sequence[int], rng: np.random.Generator) -> list[Range]:
    """All shards in a drawn order; the head of the first comes last, or a single shard's end would rest too often."""
    first, *others = [Range(int(shard), 0, sizes[shard]) for shard in rng.permutation(len(sizes))]
    begin = int(rng.integers(first.stop))
    return [Range(first.shard, begin, first.stop), *others, Range(first.shard, 0, begin)]


def cut(ranges: Iterable[Range], first: int, last: int) -> list[Range]:
    """The samples at positions first..last of a concatenation of ranges."""
    found, position = [], 0
    for piece in ranges:
        start = piece.start + max(first - position, 0)
        stop = min(piece.start + last - position, piece.stop)
        if start < stop:
            found.append(Range(piece.shard, start, stop))
        position += piece.stop - piece.start
    return found


def _without(ranges: Iterable[Range], removed: Iterable[Range]) -> Iterator[Range]:
    """The ranges less what is removed."""
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
    """Batches first..last of a rank are one reader's; it gives them from its own number `skip` on."""

    reader: int
    first: int
    last: int
    skip: int


def share_of(worker: int, workers: int, num_batches: int, skip: int) -> Share:
    """The share of a worker process. Workers take turns giving a batch, from worker 0 on.

    So after `skip` batches worker 0 goes on as the reader whose turn it is, and each reader has given its part of them.
    """
    reader = (worker + skip) % workers
    whole, rest = divmod(num_batches, workers)
    first = reader * whole + min(reader, rest)
    return Share(reader, first, first + whole + (reader < rest), -(-max(skip - reader, 0) // workers))


def shuffled(count: int, buffer: int, rng: np.random.Generator) -> list[int]:
    """Positions 0..count as they leave a shuffle buffer: each arrival pushes out one that is drawn."""
    held = list(range(min(buffer, count)))
    order = []
    for arriving, out in enumerate(rng.integers(buffer, size=count - len(held)).tolist(), len(held)):
        order.append(held[out])
        held[out] = arriving
    return order + [held[i] for i in rng.permutation(len(held))]


def went_on(given: Given, world: int, workers: int, batches: int) -> list[tuple[int, int, int]]:
    """The segments of an epoch after `batches` more, by `world` ranks of `workers` processes each (0 is as good as 1).

    What the same readers give one after the other is one segment; segments of nothing are none.
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
    """Which samples of an epoch each reader gives, and when: positions in its `epoch_ranges`.

    count: samples of the epoch, whole batches; batch: of all ranks together; buffer: of each reader's shuffling. Each
    rank has its contiguous part of the positions, cut again by whole batches among its readers.
    """

    count: int
    batch: int
    buffer: int
    seed: int
    epoch: int

    def of_reader(self, given: Given, world: int, workers: int, rank: int, worker: int) -> np.ndarray:
        """The positions that one worker process still gives, in order, after the segments in `given`.

        Where the last segment is of as many ranks and workers, everything is as if there had been no break. Else what
        no segment gave is cut among the present readers: in whole batches, each sample once.
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
        """The ascending positions that a segment leaves of `rest`; `done`: batches given before it."""
        world, workers, batches = segment
        gone = []
        for rank in range(world):
            for worker in range(workers):
                share = share_of(worker, workers, len(rest) // self.batch, batches)
                gone.append(self._order(rest, done, world, rank, share)[: share.skip * (self.batch // world)])
        return np.setdiff1d(rest, np.concatenate(gone), assume_unique=True)

    def _order(self, rest: np.ndarray, done: int, world: int, rank: int, share: Share) -> np.ndarray:
        """All positions of a reader's share of `rest` as they leave its buffer."""
        size = self.batch // world
        begin = rank * (len(rest) // world)
        part = rest[begin + share.first * size : begin + share.last * size]
        names = ("buffer", rank, share.reader, *((done,) if done else ()))
        return part[shuffled(len(part), self.buffer, generator(self.seed, self.epoch, *names))]
