"""Where samples lie in a tar, according to its record; reads one and checks it against the record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from manifests.errors import Stopped, one_line
from manifests.records import Record
from manifests.samples import BLOCK, Sample, Wanted, read_sample, read_samples


class DamagedShard(Stopped, ValueError):
    """A tar does not hold what its record says. One line: file, key, reason."""


@dataclass(frozen=True)
class Places:
    """Where n samples lie in a tar.

    size: of the tar, in bytes. offsets: int64 (n,), of the first header of each sample; ends: int64 (n,), behind its
    last byte. sizes: int64 (n, suffixes), bytes of each member in the order of the tar, -1 where a sample lacks it.
    checks: uint32 (n, suffixes), crc32 of each member. Older records have no sizes (`suffixes` is empty) or no checks.
    """

    size: int
    sha256: str
    offsets: np.ndarray
    ends: np.ndarray
    suffixes: tuple[str, ...]
    sizes: np.ndarray
    checks: np.ndarray | None

    def only(self, numbers: Sequence[int]) -> Places:
        """The places of some of the samples."""
        return replace(
            self,
            offsets=self.offsets[numbers],
            ends=self.ends[numbers],
            sizes=self.sizes[numbers],
            checks=None if self.checks is None else self.checks[numbers],
        )

    def extents(self, numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
        """(start, stop) of some of the samples, in bytes."""
        return zip(self.offsets[numbers].tolist(), self.ends[numbers].tolist(), strict=True)

    def read(self, file: IO[bytes], number: int, key: str, wanted: Wanted) -> Sample:
        """One sample with its wanted members. Raises ValueError when the tar does not hold it there."""
        offset = int(self.offsets[number])
        if self.suffixes:
            return read_sample(file, key, offset, self._members(number), wanted)
        file.seek(offset)
        for _, sample in read_samples(file, wanted):
            if sample.key != key:
                raise ValueError(f"found {sample.key} where its record says {key}")
            return sample
        raise ValueError("the tar ends before it: fewer samples than its record says")

    def _members(self, number: int) -> Iterator[tuple[str, int, int | None]]:
        checks = [None] * len(self.suffixes) if self.checks is None else self.checks[number].tolist()
        for suffix, size, check in zip(self.suffixes, self.sizes[number].tolist(), checks, strict=True):
            if size >= 0:
                yield suffix, size, check


def places_of(record: Record) -> Places:
    """Where a record's samples lie. Raises ValueError, TypeError or OverflowError when that cannot be."""
    sizes = _columns(record.sizes, len(record.keys))
    offsets, following = np.array(record.offsets, np.int64), np.array([*record.offsets[1:], record.bytes], np.int64)
    if offsets.shape != (len(record.keys),):
        raise ValueError("its offsets are not as many as its keys")
    ends = offsets + np.where(sizes < 0, 0, BLOCK + sizes + -sizes % BLOCK).sum(axis=1) if record.sizes else following
    if (offsets < 0).any() or (ends > following[: len(ends)]).any() or (ends < offsets).any():
        raise ValueError("its samples lie beyond each other")
    checks = _columns(record.checks, len(record.keys)) if record.checks else None
    if checks is not None:
        strange = tuple(record.checks) != tuple(record.sizes) or (checks >> 32 > 0).any()
        if strange or ((checks < 0) != (sizes < 0)).any():
            raise ValueError("its checks are not of the members that it tells the sizes of")
        checks = checks.astype(np.uint32)
    return Places(record.bytes, record.sha256, offsets, ends, tuple(record.sizes), sizes, checks)


def _columns(numbers: dict[str, tuple[int | None, ...]], count: int) -> np.ndarray:
    """int64 (count, suffixes), -1 for None."""
    columns = [[-1 if number is None else number for number in column] for column in numbers.values()]
    return np.array(columns, np.int64).reshape(len(columns), count).T


@contextmanager
def naming(tar: str, key: str) -> Iterator[None]:
    """Turns what damaged bytes raise into DamagedShard, naming the tar and the key."""
    try:
        yield
    except (ValueError, KeyError, IndexError, EOFError, OSError) as error:
        reason = f"no member {error}" if isinstance(error, KeyError) else one_line(error)
        raise DamagedShard(f"{tar}: {key}: {reason}; `python -m pipeline check` finds what is damaged") from error
