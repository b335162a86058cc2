"""The records of finished tars as the driver of a build needs them: read once, and kept in part."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationError

from manifests import remote, store
from manifests.errors import first_problem
from manifests.layout import MANIFEST
from manifests.records import Failure, Record, Skipped, record_path

_AT_ONCE = 128  # records that are asked of an object store together


class FinishedRecords:
    """Records by tar; a folder is listed once, when it is first needed.

    They are kept without keys, offsets, sizes and checks: those of a build of a million objects would fill the driver's
    memory, and making Python objects of them takes nine tenths of the time. `check` looks at them.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Record] = {}
        self._names: dict[str, list[str]] = {}
        self._fetched: dict[str, dict[str, bytes | None]] = {}  # folder -> record -> its bytes, until it is looked at

    def is_done(self, tar: str, hash: str) -> bool:
        """Whether a tar has its record, with this hash, and is there. A damaged record counts as missing."""
        try:
            return self._is_there(tar) and self[tar].hash == hash
        except ValueError:
            return False

    def with_failures(self, tars: Iterable[str], kinds: frozenset[str]) -> list[str]:
        """Those of the finished tars that have failures of some kinds."""
        found = []
        for tar in tars if kinds else ():
            try:
                if any(failure.kind in kinds for failure in self[tar].failures):
                    found.append(tar)
            except ValueError:
                continue  # not finished, and so made anyway
        return found

    def forget(self, tars: Iterable[str]) -> None:
        """Removes the records of tars, which are made again."""
        for path in map(record_path, tars):
            folder, _, name = path.rpartition("/")
            store.remove(path)
            self._kept.pop(path, None)
            self._names[folder] = [other for other in self._listed(folder) if other != name]

    def __getitem__(self, tar: str) -> Record:
        """The record of a tar. Raises ValueError, naming the file, where it is missing or damaged."""
        path = record_path(tar)
        if path not in self._kept:
            data = self._data(path)
            if data is None:
                raise ValueError(f"{tar} has no record")
            self._kept[path] = _parsed(path, data)
        return self._kept[path]

    def _is_there(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        names = self._listed(folder)
        place = bisect_left(names, name)
        return place < len(names) and names[place] == name

    def _listed(self, folder: str) -> list[str]:
        """Names in a folder, sorted: one look instead of one for each tar."""
        if folder not in self._names:
            self._names[folder] = store.list_names(folder)
        return self._names[folder]

    def _data(self, path: str) -> bytes | None:
        """The bytes of a record; of an object store those of the next ones are fetched with it."""
        if not self._is_there(path):
            return None
        if not remote.is_url(path):
            return store.read_bytes(path)
        folder, _, name = path.rpartition("/")
        if path not in self._fetched.get(folder, ()):
            names = self._listed(folder)
            paths = [store.join(folder, n) for n in names[bisect_left(names, name) :][: 2 * _AT_ONCE] if _is_record(n)]
            self._fetched[folder] = dict(zip(paths, store.read_many(paths), strict=True))
        return self._fetched[folder].pop(path)


def _is_record(name: str) -> bool:
    return name.endswith(".json") and name != MANIFEST


class _Kept(BaseModel):
    """What is kept of a record; the rest is passed over without becoming Python objects."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int
    count: int
    bytes: int
    sha256: str
    hash: str
    failures: tuple[Failure, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    versions: dict[str, str] = {}
    seconds: float = 0.0
    max_rss_mb: float = 0.0
    warnings: dict[str, int] = {}
    gates: dict[str, float] = {}


def _parsed(path: str, data: bytes) -> Record:
    try:
        kept = _Kept.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(f"{path}: not a record: {first_problem(error)}") from error
    return Record(keys=(), offsets=(), **dict(kept))
