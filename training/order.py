"""The order of an epoch, from sizes of shards and a seed alone: no data is read.

An epoch is the samples that the one before left over, then the permuted shards without those, beginning somewhere
inside a shard; what does not fill its last batch of all ranks is left over for the next. It is cut into contiguous
ranges of whole batches, one a reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from manifests.seeds import generator


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
