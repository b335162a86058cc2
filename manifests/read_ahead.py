"""Reads a file of an object store forwards: threads ask for large blocks before they are needed.

What an object store costs is requests: one of 16 MB takes hardly longer than one of 40 kB. A request that fails is
repeated (manifests.remote.patiently), so a cut connection costs one block.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from manifests import remote
from manifests.errors import Stopped
from manifests.patience import NoAnswer, Patience, begin, store_seconds

BLOCK_BYTES = 16 << 20
GAP_BYTES = 2 << 20  # a gap up to this size is read along: cheaper than another request
AHEAD = 2  # blocks on their way beside the one in use
_SPARE_SECONDS = 30.0  # a thread's, beyond what the store is given
_T = TypeVar("_T")
_BEYOND = ("InvalidRange", "range is not satisfiable", "Requested Range Not Satisfiable", "416")


def awaited(future: Future[_T], path: str, requests: int = 1) -> _T:
    """Waits for what a thread reads of `path`, with `requests` requests in a row.

    Raises the thread's own error, and Stopped where it takes longer than all its requests may.
    """
    limit = requests * (store_seconds() + _SPARE_SECONDS)
    try:
        return future.result(timeout=limit)
    except TimeoutError as error:
        if future.done():
            raise
        raise Stopped(f"cannot read {path}: its thread gave nothing for {limit:g} s; run the same again") from error


def blocks_of(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending (start, stop) of the requests for ascending extents: near ones become one, large ones several."""
    merged: list[list[int]] = []
    for start, stop in extents:
        if merged and start - merged[-1][1] <= GAP_BYTES:
            merged[-1][1] = max(merged[-1][1], stop)
        elif start < stop:
            merged.append([start, stop])
    return [(at, min(at + BLOCK_BYTES, stop)) for start, stop in merged for at in range(start, stop, BLOCK_BYTES)]


class AheadFile(io.RawIOBase):
    """The file at `path`: its `extents` (ascending, in bytes) are read ahead, any other bytes when they are needed.

    size: of the whole file, bytes. Nothing is requested before `begin` or the first read. Reading raises Stopped naming
    the path when the store keeps failing; past the end it gives fewer bytes, as files do.
    """

    def __init__(self, path: str, extents: Sequence[tuple[int, int]], size: int) -> None:
        self.path, self.size = path, size
        self._fs, self._inner = remote.filesystem(path)
        self._blocks = blocks_of(extents)
        self._starts = [start for start, _ in self._blocks]
        self._coming: dict[int, Future[bytes]] = {}
        self._position = 0

    @property
    def all_begun(self) -> bool:
        """Whether every block was asked for."""
        return not self._blocks or len(self._blocks) - 1 in self._coming

    def begin(self, number: int = 0) -> None:
        """Asks for a block and those after it, and drops those before it."""
        for passed in [each for each in self._coming if each < number]:
            del self._coming[passed]
        for each in range(number, min(number + 1 + AHEAD, len(self._blocks))):
            if each not in self._coming:
                self._coming[each] = begin(partial(self._fetch, *self._blocks[each]))

    def _fetch(self, start: int, stop: int) -> bytes:
        def attempt(patience: Patience) -> bytes:
            try:
                return patience.ask(self._fs, "cat_file", self._inner, start=start, end=stop)
            except NoAnswer:
                raise
            except OSError as error:
                if any(words in str(error) for words in _BEYOND):
                    return b""
                raise

        return remote.patiently(self.path, "read", attempt)

    def _here(self, most: int) -> memoryview:
        """At most `most` bytes at the position, as far as a block goes; empty at the end of the file."""
        if self._position >= self.size:
            return memoryview(b"")
        number = bisect_right(self._starts, self._position) - 1
        if number < 0 or self._position >= self._blocks[number][1]:
            following = self._blocks[number + 1 :][:1]
            stop = min([self._position + most, self.size, *(start for start, _ in following)])
            return memoryview(self._fetch(self._position, stop))
        self.begin(number)
        start, _ = self._blocks[number]
        block = memoryview(awaited(self._coming[number], self.path))
        return block[self._position - start :][:most]

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, or what there is."""
        room, done = memoryview(buffer).cast("B"), 0
        while done < len(room) and (found := self._here(len(room) - done)):
            room[done : done + len(found)] = found
            done, self._position = done + len(found), self._position + len(found)
        return done

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, fewer at the end of the file; all that follow for -1."""
        if size is None or size < 0:
            return self.readall()
        found = self._here(size)
        self._position += len(found)
        if len(found) == size or not found:
            return bytes(found)
        return bytes(found) + self.read(size - len(found))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position. The end is unknown."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a file of an object store")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seekable(self) -> bool:
        """True."""
        return True

    def readable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Drops what was read."""
        self._coming.clear()
        super().close()
