"""The order of an epoch: nobody comes twice, nobody rests twice, and readers share it exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.order import cut, epoch_ranges, share_of, shuffled


def samples_of(ranges) -> list[tuple[int, int]]:
    return [(piece.shard, number) for piece in ranges for number in range(piece.start, piece.stop)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 3))
def test_nobody_comes_twice_and_who_rested_comes_first(sizes: list[int], batch: int, seed: int) -> None:
    everyone = {(shard, number) for shard, size in enumerate(sizes) for number in range(size)}
    if batch > len(everyone):
        return
    rested: set[tuple[int, int]] = set()
    for epoch in range(6):
        order = samples_of(epoch_ranges(sizes, batch, seed, epoch))
        assert len(order) == len(set(order)) == len(everyone) // batch * batch
        assert set(order[: len(rested)]) == rested
        rested = everyone - set(order)
        assert len(rested) < batch


@pytest.mark.parametrize("sizes", [[23], [7, 7, 7, 2]])
def test_everybody_rests_equally_often(sizes: list[int]) -> None:
    """3 of 23 rest each of 300 epochs: 39 times each, give or take 6."""
    rests = np.full((len(sizes), max(sizes)), 300)
    for epoch in range(300):
        found = samples_of(epoch_ranges(sizes, 5, 1, epoch))
        assert len(found) == 20
        np.subtract.at(rests, tuple(np.array(found).T), 1)
    counts = [int(rests[shard, number]) for shard, size in enumerate(sizes) for number in range(size)]
    assert sum(counts) == 300 * 3
    assert 15 < min(counts) <= max(counts) < 70


def test_the_order_of_shards_depends_on_seed_and_epoch() -> None:
    orders = {tuple(epoch_ranges([3] * 8, 3, seed, epoch)) for seed in range(2) for epoch in range(3)}
    assert len(orders) == 6
    assert epoch_ranges([3] * 8, 3, 1, 2) == epoch_ranges([3] * 8, 3, 1, 2)


def test_cut_is_a_slice_of_the_concatenation() -> None:
    ranges = epoch_ranges([5, 1, 8, 3], 4, 0, 3)
    whole = samples_of(ranges)
    for first in range(len(whole)):
        for last in range(first, len(whole) + 1):
            assert samples_of(cut(ranges, first, last)) == whole[first:last]


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("num_batches", [1, 2, 7, 9])
def test_workers_take_turns_from_any_batch_on(workers: int, num_batches: int) -> None:
    def given_by_turns(skip: int) -> list[tuple[int, int]]:
        shares = [share_of(worker, workers, num_batches, skip) for worker in range(workers)]
        mine = [[(s.reader, number) for number in range(s.first + s.skip, s.last)] for s in shares]
        turns = [[batches[turn] for batches in mine if turn < len(batches)] for turn in range(num_batches)]
        return [batch for turn in turns for batch in turn]

    whole = given_by_turns(0)
    assert sorted(number for _, number in whole) == list(range(num_batches))
    for skip in range(num_batches + 1):
        assert given_by_turns(skip) == whole[skip:]


def test_a_shuffle_buffer_gives_each_once_and_holds_no_more_than_it_may() -> None:
    for count, buffer in ((0, 4), (3, 4), (200, 16), (50, 1)):
        order = shuffled(count, buffer, np.random.default_rng(0))
        assert sorted(order) == list(range(count))
        assert all(position < place + buffer for place, position in enumerate(order))
    assert shuffled(50, 1, np.random.default_rng(0)) == list(range(50))
    order = np.array(shuffled(200, 16, np.random.default_rng(0)))
    assert np.abs(order - np.arange(200)).mean() > 4
