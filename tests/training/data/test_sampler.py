"""The order of an epoch: nobody comes twice, nobody rests twice, and readers share it exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.sampler import EpochOrder, cut, epoch_ranges, share_of, shuffled, went_on


def samples_of(ranges) -> list[tuple[int, int]]:
    return [(piece.shard, number) for piece in ranges for number in range(piece.start, piece.stop)]


@settings(max_examples=50)
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


def given_by(order: EpochOrder, given, world: int, workers: int) -> list[list[int]]:
    """The global batches of all that readers give after `given`: a rank's are those of its workers, taking turns."""
    size = order.batch // world
    ranks = []
    for rank in range(world):
        parts = [order.of_reader(given, world, workers, rank, worker).tolist() for worker in range(workers)]
        batches = [[part[i : i + size] for i in range(0, len(part), size)] for part in parts]
        turns = max(map(len, batches))
        ranks.append([mine[turn] for turn in range(turns) for mine in batches if turn < len(mine)])
    return [[position for batch in together for position in batch] for together in zip(*ranks, strict=True)]


@st.composite
def breaks(draw) -> tuple[EpochOrder, list[tuple[int, int, int]]]:
    """An epoch of 1 to 12 global batches of 12 or 24, and segments of other worlds and workers within it."""
    batch, num_batches = draw(st.sampled_from([12, 24])), draw(st.integers(1, 12))
    order = EpochOrder(batch * num_batches, batch, draw(st.sampled_from([1, 5, 40])), draw(st.integers(0, 3)), 2)
    segments, left = [], num_batches
    for _ in range(draw(st.integers(1, 4))):
        segments.append((draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.integers(1, 5)), draw(st.integers(0, left))))
        left -= segments[-1][2]
    segments.append((draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.integers(1, 5)), left))
    return order, segments


@settings(max_examples=200)
@given(breaks())
def test_any_breaks_within_an_epoch_leave_each_sample_once_in_whole_batches(case) -> None:
    order, segments = case
    found: list[int] = []
    given: list[tuple[int, int, int]] = []
    for world, workers, batches in segments:
        coming = given_by(order, given, world, workers)
        assert len(coming) == order.count // order.batch - sum(s[2] for s in given)
        assert all(len(batch) == order.batch for batch in coming)
        found += [position for batch in coming[:batches] for position in batch]
        given = went_on(given, world, workers, batches)
    assert sorted(found) == list(range(order.count))


@settings(max_examples=100)
@given(breaks(), st.data())
def test_the_same_readers_go_on_as_if_unbroken(case, data) -> None:
    """Also after breaks of others, and where nothing was given between."""
    order, segments = case
    *before, (world, workers, left) = segments
    given = []
    for segment in before:
        given = went_on(given, *segment)
    whole = given_by(order, given, world, workers)
    assert len(whole) == left
    first = data.draw(st.integers(0, left))
    again = went_on(went_on(given, world, workers, first), 5, 5, 0)
    assert given_by(order, again, world, workers) == whole[first:]
    second = data.draw(st.integers(0, left - first))
    assert given_by(order, went_on(again, world, workers, second), world, workers) == whole[first + second :]


def test_readers_of_an_epoch_shuffle_differently() -> None:
    """Or positions of all shards would come in the same drawn order again and again."""
    order = EpochOrder(240, 12, 16, 0, 1)
    orders = set()
    for rank in range(2):
        for worker in range(2):
            part = order.of_reader([], 2, 2, rank, worker)
            orders.add(tuple((part - part.min()).tolist()))
    assert len(orders) == 4
    other = EpochOrder(240, 12, 16, 0, 2)
    assert other.of_reader([], 1, 1, 0, 0).tolist() != order.of_reader([], 1, 1, 0, 0).tolist()


def test_segments_are_plain_and_as_few_as_can_be() -> None:
    given = went_on([], 2, 0, 3)
    assert given == [(2, 1, 3)]
    assert went_on(given, 2, 1, 4) == [(2, 1, 7)]
    assert went_on([[2, 1, 3], [1, 1, 0]], 2, 0, 4) == [(2, 1, 7)]
    assert went_on(given, 1, 4, 2) == [(2, 1, 3), (1, 4, 2)]
    assert went_on([], 1, 1, 0) == []


def test_other_readers_shuffle_the_rest_anew_and_another_rank_has_another_part() -> None:
    order = EpochOrder(240, 12, 16, 0, 1)
    given = [(2, 2, 5)]
    parts = [set(order.of_reader(given, 3, 1, rank, 0).tolist()) for rank in range(3)]
    assert [len(part) for part in parts] == [60, 60, 60]
    assert len(set.union(*parts)) == 180
    assert max(parts[0]) < min(parts[1])  # contiguous parts: a reader streams few shards
    assert order.of_reader(given, 3, 1, 0, 0).tolist() != sorted(parts[0])
