"""The records of finished tars as the driver of a build needs them: each read once, none kept whole."""

from __future__ import annotations

from dataclasses import replace

from manifests import store
from manifests.records import Record, read_record, record_path


class FinishedRecords:
    """Records by the path of their tar.

    They are kept without keys, offsets and sizes: those of a build of a million objects would fill the driver's memory.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Record] = {}

    def is_done(self, tar: str, hash: str) -> bool:
        """Whether a tar has its record, with this hash, and is there. A damaged record counts as none."""
        try:
            return self[tar].hash == hash and store.exists(tar)
        except ValueError:
            return False

    def __getitem__(self, tar: str) -> Record:
        """The record of a tar. Raises ValueError, naming the file, where it is missing or damaged."""
        if tar not in self._kept:
            record = read_record(record_path(tar))
            if record is None:
                raise ValueError(f"{tar} has no record")
            self._kept[tar] = replace(record, keys=(), offsets=(), sizes={})
        return self._kept[tar]
