"""Files of an object store read forwards: the right bytes, few requests, asked for before they are needed."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_store import WatchedStore, watched_store

from manifests import read_ahead
from manifests.read_ahead import AHEAD, AheadFile, blocks_of

BLOCK, GAP = 64, 16
DATA = bytes(os.urandom(1000))
EXTENTS = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 100)), max_size=8).map(
    lambda pairs: [(start, start + length) for start, length in sorted(pairs)]
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(read_ahead, "GAP_BYTES", GAP)


@pytest.fixture
def watched() -> Iterator[type[WatchedStore]]:
    with watched_store(file=DATA) as found:
        yield found


@settings(max_examples=80)
@given(EXTENTS)
def test_blocks_hold_every_extent_and_no_byte_twice(extents: list[tuple[int, int]]) -> None:
    """Also of extents that lie inside each other. What nobody wants is read between near ones only."""
    blocks = blocks_of(extents)
    asked = [at for start, stop in blocks for at in range(start, stop)]
    wanted = {at for start, stop in extents for at in range(start, stop)}
    assert asked == sorted(set(asked))
    assert wanted <= set(asked)
    assert all(0 < stop - start <= BLOCK for start, stop in blocks)
    for at in set(asked) - wanted:
        assert wanted & set(range(at - GAP, at)), at
        assert wanted & set(range(at + 1, at + GAP + 1)), at


def test_near_extents_are_one_request_and_far_ones_two() -> None:
    assert blocks_of([(0, 10), (10 + GAP, 40)]) == [(0, 40)]
    assert blocks_of([(0, 10), (11 + GAP, 40)]) == [(0, 10), (11 + GAP, 40)]
    assert blocks_of([(0, 2 * BLOCK + 1)]) == [(0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, 2 * BLOCK + 1)]


@settings(max_examples=60)
@given(EXTENTS, st.lists(st.tuples(st.sampled_from(["read", "seek", "skip"]), st.integers(0, 400)), max_size=12))
def test_any_reading_gives_the_bytes_of_the_file(extents: list, steps: list) -> None:
    """Inside the extents, across blocks, between extents and past the end, as a plain file does."""
    with watched_store(file=DATA), AheadFile("watched://file", extents, len(DATA)) as file:
        plain = io.BytesIO(DATA)
        for step, number in steps:
            if step == "read":
                assert file.read(number) == plain.read(number)
            elif step == "seek":
                assert file.seek(3 * number) == plain.seek(3 * number)
            else:
                assert file.seek(number, io.SEEK_CUR) == plain.seek(number, io.SEEK_CUR)
            assert file.tell() == plain.tell()
        assert file.read() == plain.read()
        buffer = bytearray(200)
        file.seek(850)
        assert file.readinto(buffer) == 150
        assert buffer[:150] == DATA[850:]


def test_blocks_are_asked_for_before_they_are_read_and_once(watched) -> None:
    blocks = [(at, min(at + BLOCK, 1000)) for at in range(0, 1000, BLOCK)]
    with AheadFile("watched://file", [(0, 1000)], 1000) as file:
        assert not watched.asked  # nothing before it is begun
        file.begin()
        assert not file.all_begun
        assert file.read(1) == DATA[:1]
        for number in range(len(blocks)):
            file.seek(blocks[number][0])
            assert file.read(10) == DATA[blocks[number][0] :][:10]
            assert file._coming.keys() >= set(range(number, min(number + 1 + AHEAD, len(blocks))))
            assert file.all_begun == (number + AHEAD >= len(blocks) - 1)
    assert sorted((start, stop) for _, start, stop in watched.asked) == blocks


def test_a_file_of_which_nothing_is_wanted_has_begun() -> None:
    with watched_store(file=DATA):
        assert AheadFile("watched://file", [], 1000).all_begun


def test_what_was_read_leaves_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of gigabytes is read in blocks of 16 MB: those that are read are dropped."""
    monkeypatch.setattr(read_ahead, "BLOCK_BYTES", 1 << 18)
    size = 40 << 18
    with watched_store(file=bytes(size)), AheadFile("watched://file", [(0, size)], size) as file:
        file.read(1)  # the store itself makes a copy of its own when it is first asked
        tracemalloc.start()
        try:
            while file.read(1 << 16):
                pass
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < (AHEAD + 4) << 18


def test_a_range_past_the_end_is_the_end_and_a_store_that_fails_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar that is shorter than its record says reads as a cut file, and is told as one."""
    monkeypatch.setenv("CROSS_MOST_STORE_SECONDS", "0.1")
    with watched_store(file=DATA) as watched:
        watched.failing["/file"] = [OSError(22, "The requested range is not satisfiable")]
        assert AheadFile("watched://file", [], 1000).read(10) == b""
        watched.failing["/file"] = [OSError("Service Unavailable")]
        with pytest.raises(Exception, match=r"cannot read watched://file: Service Unavailable"):
            AheadFile("watched://file", [], 1000).read(10)
