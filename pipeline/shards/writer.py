"""Writes one tar of a shard from samples, and then its record."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, Any

from manifests import store
from manifests.process_info import peak_resident_mb
from manifests.records import Failure, Record, Skipped, read_record, record_path, write_json
from manifests.samples import FORMAT, JSON

Members = dict[str, bytes]


class ShardWriter:
    """One tar on its way into an open file; its record is made once it is closed."""

    def __init__(self, path: str, file: IO[bytes], hash: str) -> None:
        self.path, self.hash = path, hash
        self.keys: list[str] = []
        self.offsets: list[int] = []
        self._sizes: list[dict[str, int]] = []
        self._checks: list[dict[str, int]] = []
        self.failures: list[Failure] = []
        self.skipped: list[Skipped] = []
        self._warnings: Counter[str] = Counter()
        self._measured: dict[str, list[float]] = {"coverage": [], "mask_iou": []}
        self._file = _Hashing(file)
        import webdataset as wds  # here: where torch is installed, this import loads it

        self._tar = wds.TarWriter(self._file, encoder=False, mtime=0, user="", group="")

    def add(self, key: str, outcome: Members | Failure | Skipped) -> None:
        """Appends a sample, or notes why it is missing."""
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        elif isinstance(outcome, Skipped):
            self.skipped.append(outcome)
        else:
            self.keys.append(key)
            self.offsets.append(self._tar.tarstream.offset)
            self._sizes.append({suffix: len(data) for suffix, data in outcome.items()})
            self._checks.append({suffix: zlib.crc32(data) for suffix, data in outcome.items()})
            self._tar.write({"__key__": key, **outcome})
            self._sum_up(outcome)

    def _sum_up(self, members: Members) -> None:
        values = json.loads(members.get(JSON, b"{}"))
        self._warnings.update({w["type"]: w["count"] for w in values.get("warnings", [])})
        for view in values.get("views", []):
            for name, numbers in self._measured.items():
                if view.get(name) is not None:
                    numbers.append(view[name])

    def close(self) -> None:
        """Ends the tar (the file stays open for its owner)."""
        self._tar.close()

    def let_go(self) -> None:
        """Drops what is still written, so that the file's owner may close it: tar writers flush when collected."""
        self._file.file = None

    def record(self, versions: dict[str, str], seconds: float) -> Record:
        """The record of the closed tar."""
        return Record(
            format=FORMAT,
            count=len(self.keys),
            bytes=self._file.count,
            sha256=self._file.sha256.hexdigest(),
            hash=self.hash,
            keys=tuple(self.keys),
            offsets=tuple(self.offsets),
            failures=tuple(self.failures),
            skipped=tuple(self.skipped),
            versions=versions,
            seconds=round(seconds, 3),
            max_rss_mb=round(peak_resident_mb(), 1),
            warnings=dict(sorted(self._warnings.items())),
            gates=self._gates(),
            sizes=_by_suffix(self._sizes),
            checks=_by_suffix(self._checks),
        )

    def _gates(self) -> dict[str, float]:
        coverage, iou = self._measured["coverage"], self._measured["mask_iou"]
        sums = {}
        if coverage:
            mean = sum(coverage) / len(coverage)
            sums = {"coverage_min": min(coverage), "coverage_mean": round(mean, 6), "coverage_max": max(coverage)}
        return sums | ({"mask_iou_min": min(iou)} if iou else {})


def _by_suffix(samples: list[dict[str, int]]) -> dict[str, tuple[int | None, ...]]:
    return {suffix: tuple(sample.get(suffix) for sample in samples) for suffix in sorted(set().union(*samples))}


@dataclass
class _Hashing:
    """A file that counts and hashes what is written through it; what comes after `file = None` is dropped."""

    file: IO[bytes] | None
    count: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def write(self, data: bytes) -> int:
        if self.file is None:
            return len(data)
        self.sha256.update(data)
        self.count += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        if self.file is not None:
            self.file.flush()


def is_done(tar: str, hash: str) -> bool:
    """Whether a tar has its record, with this hash, and is there. A damaged record counts as missing."""
    try:
        record = read_record(record_path(tar))
    except ValueError:
        return False
    return record is not None and record.hash == hash and store.exists(tar)


def open_writer(stack: ExitStack, path: str, hash: str) -> ShardWriter:
    """A writer whose tar appears when the stack ends well, and not at all otherwise."""
    writer = ShardWriter(path, stack.enter_context(store.writing(path)), hash)
    stack.callback(writer.let_go)
    return writer


def write_records(writers: list[ShardWriter], versions: dict[str, str], seconds: float) -> None:
    """Writes the records of tars that are in place: from now on they are done."""
    for writer in writers:
        write_json(record_path(writer.path), writer.record(versions, seconds).to_json())
