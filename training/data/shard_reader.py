"""Reads samples of joined shards: from local tars, from an object store, or from its cache on a local disk.

Local tars are read only where a wanted member lies. From an object store the next blocks are fetched while the samples
of one are decoded, and then the next shard (`read_pieces`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import IO, cast

from manifests import remote, store
from manifests.patience import begin
from manifests.read_ahead import BLOCK_BYTES, AheadFile, awaited
from manifests.samples import Sample, Wanted, everything
from training.data.dataset import Shard
from training.data.sample_index import DamagedShard, Places, naming
from training.data.shard_cache import Cache


class _Tar:
    """One tar of a shard. numbers: of the samples that will be read, ascending."""

    def __init__(self, path: str, places: Places, numbers: Sequence[int], cache: Cache | None) -> None:
        self.path, self._places = path, places
        self._cache = cache if remote.is_url(path) else None
        self._ahead: AheadFile | None = None
        self._file: IO[bytes] | None = None
        self._coming: Future[IO[bytes]] | None = None
        self._requests = 2 * (1 + places.size // BLOCK_BYTES)  # of a download, and of another process's before it
        if remote.is_url(path) and cache is None:
            self._ahead = AheadFile(path, list(places.extents(numbers)), places.size)
            self._file = cast("IO[bytes]", self._ahead)  # to typeshed, a RawIOBase is not a binary file

    def begin(self) -> None:
        """Starts to fetch what lies in an object store, without waiting for it."""
        if self._ahead is not None:
            self._ahead.begin()
        elif self._cache is not None:
            self._coming = begin(self._open)

    @property
    def all_begun(self) -> bool:
        """Whether all that is wanted of it has been asked for."""
        return self._ahead is None or self._ahead.all_begun

    def _open(self) -> IO[bytes]:
        if self._cache is None:
            return store.open_reading(self.path, ahead=False)
        trusted = self._places.checks is not None  # else only the sha256 shows a flipped byte
        return self._cache.open(self.path, self._places.sha256, self._places.size, trusted)

    def read(self, number: int, key: str, wanted: Wanted) -> Sample:
        """A sample with its wanted members. Raises DamagedShard; a damaged file of the cache is fetched again."""
        file = self._opened()
        with naming(self.path, key):
            try:
                return self._places.read(file, number, key, wanted)
            except ValueError:
                if self._cache is None or not self._cache.discard_damaged(self._places.sha256):
                    raise
        self.close()
        file = self._opened()
        with naming(self.path, key):
            return self._places.read(file, number, key, wanted)

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            coming, self._coming = self._coming, None
            try:
                self._file = awaited(coming, self.path, self._requests) if coming else self._open()
            except (OSError, ValueError) as error:
                raise DamagedShard(f"{self.path}: {getattr(error, 'strerror', None) or error}") from error
        return self._file

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _Piece:
    """Some samples of a shard that are being fetched."""

    def __init__(self, shard: Shard, numbers: Sequence[int]) -> None:
        self.shard, self.numbers = shard, numbers
        self.shapes = _Tar(shard.shapes, shard.shapes_places, numbers, shard.cache)
        self.views = _Tar(shard.views, shard.views_places, numbers, shard.cache) if shard.views else None
        for tar in self._tars():
            tar.begin()

    def _tars(self) -> list[_Tar]:
        return [self.shapes] if self.views is None else [self.shapes, self.views]

    @property
    def all_begun(self) -> bool:
        return all(tar.all_begun for tar in self._tars())

    def close(self) -> None:
        for tar in self._tars():
            tar.close()


def read_pieces(
    pieces: Sequence[tuple[Shard, Sequence[int]]],
    shapes_wanted: Wanted = everything,
    views_wanted: Wanted = everything,
) -> Iterator[tuple[Sample, Sample]]:
    """(shape, views) of samples of joined shards, with their wanted members; without views, no member of these.

    pieces: shards, each with the ascending numbers of its samples. Raises DamagedShard naming the tar and the key when
    a tar ends early, is damaged or holds another key, Stopped naming the tar when an object store goes on failing.
    """
    pieces = [(shard, numbers) for shard, numbers in pieces if len(numbers)]
    following: _Piece | None = None
    for index, each in enumerate(pieces):
        piece, following = following or _Piece(*each), None
        try:
            for number in piece.numbers:
                key = piece.shard.keys[number]
                shape = piece.shapes.read(number, key, shapes_wanted)
                views = Sample(key, {}) if piece.views is None else piece.views.read(number, key, views_wanted)
                if following is None and index + 1 < len(pieces) and piece.all_begun:
                    following = _Piece(*pieces[index + 1])
                yield shape, views
        except BaseException:
            if following is not None:
                following.close()
            raise
        finally:
            piece.close()


def read_joined(
    shard: Shard, numbers: Sequence[int], shapes_wanted: Wanted = everything, views_wanted: Wanted = everything
) -> Iterator[tuple[Sample, Sample]]:
    """`read_pieces` of one shard."""
    return read_pieces([(shard, numbers)], shapes_wanted, views_wanted)


def read_shapes(shard: Shard) -> Iterator[Sample]:
    """The shapes of a shard without views. Raises as `read_pieces` does."""
    tar = _Tar(shard.shapes, shard.shapes_places, range(len(shard.keys)), shard.cache)
    tar.begin()
    try:
        for number, key in enumerate(shard.keys):
            yield tar.read(number, key, everything)
    finally:
        tar.close()
