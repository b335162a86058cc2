"""What happened to assets and shards: Asset, Failure, Skipped and Record, and how they are written as JSON.

A record beside a tar is written last: the record *is* "done", and rerunning is resuming.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from json.encoder import encode_basestring_ascii
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from manifests import store
from manifests.errors import first_problem, one_line

MAX_KEY_BYTES = 80
KINDS = ("timeout", "memory", "crash")
_STRICT = ConfigDict(extra="forbid")
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,80}$")]  # it becomes part of files' names
Count = Annotated[int, Field(ge=0, lt=1 << 62)]


@dataclass(frozen=True, slots=True)
class Asset:
    """One object of a raw dataset, before anything of it is read.

    id: the dataset's own name for it. source: path relative to the dataset's folder (or a description, for made
    objects). class_name: None where unknown. key: made from the id, unique over all splits; the plan fills it in.
    """

    id: str
    source: str
    split: str
    class_name: str | None = None
    key: str = ""


@dataclass(frozen=True)
class Failure:
    """An asset that gave no object, or an object that gave no views.

    stage: load, sample, mesh, render or encode. reason: one line; it begins with `timeout:`, `memory:` or `crash:`
    where the machine ended the attempt, and says what is wrong with the data otherwise.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    key: Key
    id: str
    stage: str
    reason: str

    @property
    def kind(self) -> str:
        """timeout, memory, crash or data: what `--retry` selects by."""
        kind = self.reason.partition(":")[0]
        return kind if kind in KINDS else "data"


@dataclass(frozen=True)
class Skipped:
    """An object that a view set leaves out by rule, such as `no mesh` for a mesh preset."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    key: Key
    reason: str


@dataclass(frozen=True)
class Record:
    """What one tar holds: written beside it, last.

    keys and offsets have one entry a sample, in the tar's order; offsets are bytes of the sample's first header.
    sizes: suffix -> bytes of that member in each sample, None where a sample lacks it; the members of a sample come in
    the order of these suffixes, each behind a header of 512 bytes and filled up to whole blocks. So a reader finds a
    member without those before it. Empty in records of older builds, whose readers go from header to header.
    checks: in the same form the zlib.crc32 of each member's bytes, so that a reader of single members notices a flipped
    byte; empty in records of older builds.
    warnings: type -> count, summed over the samples. gates: the smallest, the mean and the largest coverage of the
    views, and the smallest mask_iou where it is measured; empty for shapes and meshes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    format: int
    count: Count
    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")]  # the name of a file in a cache
    hash: str
    keys: tuple[Key, ...]
    offsets: tuple[Count, ...]
    failures: tuple[Failure, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    max_rss_mb: float = 0.0
    warnings: dict[str, int] = field(default_factory=dict)
    gates: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, tuple[Count | None, ...]] = field(default_factory=dict)
    checks: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Record:
        """The record of plain values. Raises ValueError naming the key that is missing, unknown or of another type."""
        try:
            record = _RECORD.validate_python(values)
        except ValidationError as error:
            raise ValueError(f"not a record: {first_problem(error)}") from error
        columns = [("offsets", record.offsets), *record.sizes.items(), *record.checks.items()]
        for name, column in columns:
            if len(column) != len(record.keys):
                raise ValueError(f"not a record: {name[:40]} has {len(column)} values for {len(record.keys)} keys")
        return record


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def read_record(path: str) -> Record | None:
    """The record at `path`, or None where it is missing. Raises ValueError naming the path when it is damaged."""
    values = read_json(path)
    if values is None:
        return None
    try:
        return Record.from_json(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_json(path: str) -> dict[str, Any] | None:
    """The JSON object at `path`, or None where it is missing. Raises ValueError naming the path when it is damaged."""
    data = store.read_bytes(path)
    if data is None:
        return None
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_json(data: bytes | str) -> dict[str, Any]:
    """The JSON object in a file's bytes.

    Raises ValueError, in one line, for anything else, for deep nesting, and for halves of characters (lone surrogates),
    which cannot be written again.
    """
    try:
        values = json.loads(data)
        text = data if isinstance(data, bytes) else data.encode(errors="replace")
        if b"\\ud" in text.lower():
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else one_line(error, 200)
        raise ValueError(f"damaged JSON ({said})") from error
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def write_json(path: str, values: dict[str, Any]) -> None:
    """Writes one JSON object whole or not at all. Raises ValueError where a number is not finite."""
    store.write_bytes(path, (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def json_text(values: Any, indent: int | None = None) -> str:
    """Values as JSON for other programs. A number that is not finite is null: JSON has no word for it, and most parsers
    stop at Python's NaN."""
    try:
        return json.dumps(values, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def record_path(tar_path: str) -> str:
    """`a/train-00017.tar` -> `a/train-00017.json`."""
    return tar_path.removesuffix(".tar") + ".json"


def make_keys(ids: list[str], sources: list[str] | None = None) -> list[str]:
    """One key for each id: `[A-Za-z0-9_-]+`, at most 80 bytes, all different.

    Other characters become `_`. Ids that clash (also in letter case, which some file systems drop) or are overlong all
    get `-` and 8 hex digits of the id's sha256, so a key does not depend on the order of the ids. The same id of
    several `sources` gets those of the id and its source.
    Raises ValueError when the same id (of the same source) comes twice.
    """
    named = list(zip(ids, sources or [""] * len(ids), strict=True))
    if len(set(named)) != len(named):
        twice = next(id for (id, _), n in Counter(named).items() if n > 1)
        raise ValueError(f"the id {twice} comes twice")
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "_", i) for i in ids]
    times, of_id = Counter(key.lower() for key in plain), Counter(ids)
    return [
        key
        if times[key.lower()] == 1 and 0 < len(key) <= MAX_KEY_BYTES
        else _hashed(key, i if of_id[i] == 1 else f"{i}\0{source}")
        for key, (i, source) in zip(plain, named, strict=True)
    ]


def _hashed(key: str, name: str) -> str:
    return f"{key[: MAX_KEY_BYTES - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def asset_list_hash(assets: list[Asset]) -> str:
    """sha256 of the ordered asset list: a source that gained, lost or renamed an object has another hash."""
    sha = hashlib.sha256()
    for asset in assets:
        sha.update(asset_line(asset))
    return sha.hexdigest()


def asset_line(asset: Asset) -> bytes:
    """One line of OUT/assets.jsonl, which lets a refused rerun name the first asset that differs."""
    values = (asset.split, asset.key, asset.id, asset.class_name, asset.source)
    # as json.dumps writes them, at a third of its time: there may be millions
    return f"[{', '.join('null' if v is None else encode_basestring_ascii(v) for v in values)}]\n".encode()


def parse_assets(data: bytes) -> list[Asset]:
    """The assets of OUT/assets.jsonl. Raises ValueError, in one line, when it is damaged."""
    try:
        rows = _ASSET_ROWS.validate_python([json.loads(line) for line in data.splitlines()])
    except RecursionError as error:
        raise ValueError("damaged JSON (nested too deep)") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"line {int(first['loc'][0]) + 1}: {' '.join(first['msg'].split())}") from error
    return [Asset(id, source, split, class_name, key) for split, key, id, class_name, source in rows]


_ASSET_ROWS = TypeAdapter(list[tuple[Key, Key, str, str | None, str]])  # a split's name has the form of a key
