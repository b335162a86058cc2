"""Reads the tars of a build, each once, and compares their bytes and members with their records."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, cast

from manifests import store
from manifests.records import Record, read_record, record_path
from manifests.samples import Sample, read_samples
from pipeline.inspect.findings import Findings

OnTar = Callable[[str], None]
_ROOM, _BLOCK = 8 << 20, 256 << 10


class VerifiedTars:
    """One run over a build: what was found so far, and the memory that every tar is read into."""

    def __init__(self, found: Findings, on_tar: OnTar, deep: bool) -> None:
        self.found, self.deep = found, deep
        self.gates: dict[str, list[tuple[int, dict[str, float]]]] = {}  # of each view set, (objects, gates) a record
        self._on_tar = on_tar
        self._room = bytearray(_ROOM)  # used again: fresh memory for each tar costs as much as hashing it

    def verified(self, tar: str, hash: str) -> tuple[Record, Iterator[Sample]] | None:
        """A tar's record and samples, when its bytes are those of the record; else None, with the problem noted."""
        self._on_tar(tar)
        try:
            record = read_record(record_path(tar))
            if record is None:
                if self.found.complete:
                    raise ValueError(f"{tar}: no record beside it; run the build again")
                return None
            if record.hash != hash:
                raise ValueError(f"{tar}: made with other settings than the manifest says")
            return record, self._samples(tar, record)
        except ValueError as error:
            self.found.blame(tar, str(error))
            return None

    def _samples(self, tar: str, record: Record) -> Iterator[Sample]:
        """The samples of a tar with the record's bytes, one at a time; what is wrong with the tar is noted on the way.

        They are to be used up before the next tar is read.
        """
        data, sha256 = self._read(tar)
        if len(data) != record.bytes or sha256 != record.sha256:
            raise ValueError(f"{tar}: damaged (sha256 differs); delete its record and run the build again")
        return self._parsed(tar, record, data)

    def _parsed(self, tar: str, record: Record, data: memoryview) -> Iterator[Sample]:
        keys, offsets, sizes, checks = [], [], [], []
        try:
            for offset, sample in read_samples(cast(IO[bytes], MemoryFile(data))):
                keys.append(sample.key)
                offsets.append(offset)
                sizes.append({suffix: len(member) for suffix, member in sample.members.items()})
                checks.append({s: zlib.crc32(m) for s, m in sample.members.items()} if record.checks else {})
                yield sample
        except ValueError as error:
            self.found.blame(tar, f"{tar}: {error}")
            return
        if tuple(keys) != record.keys or tuple(offsets) != record.offsets:
            self.found.blame(tar, f"{tar}: its keys or offsets are not those of its record")
        for name, there, said in (("sizes", sizes, record.sizes), ("crc32", checks, record.checks)):
            if said and {s: tuple(m.get(s) for m in there) for s in set().union(*there)} != said:
                self.found.blame(tar, f"{tar}: its members' {name} are not those of its record")

    def _read(self, tar: str) -> tuple[memoryview, str]:
        """(all bytes of a tar, their sha256). Raises ValueError where it is missing."""
        sha256, end = hashlib.sha256(), 0
        try:
            with store.open_reading(tar) as file:
                while True:
                    if end == len(self._room):
                        self._room = self._room + bytes(len(self._room))
                    with memoryview(self._room) as room:
                        count = cast(io.RawIOBase, file).readinto(room[end : end + _BLOCK]) or 0
                        sha256.update(room[end : end + count])
                    if not count:
                        break
                    end += count
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{tar}: missing; delete its record and run the build again") from error
        except OSError as error:
            raise ValueError(f"{tar}: cannot be read ({error.strerror})") from error
        self.found.bytes += end
        return memoryview(self._room).toreadonly()[:end], sha256.hexdigest()


class MemoryFile(io.RawIOBase):
    """A file over bytes in memory; they are copied as they are read."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._place = data, 0

    def read(self, size: int = -1) -> bytes:
        part = self._data[self._place :] if size < 0 else self._data[self._place : self._place + size]
        self._place += len(part)
        return bytes(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (self._place if whence == io.SEEK_CUR else 0)
        return self._place
