"""Reads the JSON of a dataset, plain or gzipped, within limits: size when unpacked, depth of nesting."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_RECORD = 16 << 20  # characters of one record
_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"\s*")  # a file may be gigabytes of them


@dataclass(frozen=True)
class JsonLimits:
    """megabytes: of a file when unpacked. depth: of lists and objects inside each other."""

    megabytes: int
    depth: int


def load_json(path: Path, limits: JsonLimits) -> Any:
    """The value of a small JSON file. Raises ValueError naming the file."""
    data = b"".join(_chunks(path, limits, gzipped=False))
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {_why(error)}") from error
    _require_shallow(value, limits, path.name)
    return value


def load_records(path: Path, limits: JsonLimits, name: str = "") -> Iterator[dict[str, Any]]:
    """The objects of a gzipped JSON list, in order, never all at once. Raises ValueError naming the file.

    name: only those whose `sequence_name` it is. Files of 100 MB hold every sequence of a category, so stretches in
    which the name does not occur are passed over without being parsed, where records begin with that key, as the
    official writer has it.
    """
    needle, marker = json.dumps(name), '{"sequence_name"'
    reader = codecs.getincrementaldecoder("utf-8")()
    text, place, begun, after = "", 0, False, False  # after: a record, so that a comma or the end comes next
    for chunk in _and_none(_chunks(path, limits, gzipped=True)):
        try:
            text, place = text[place:] + reader.decode(chunk or b"", final=chunk is None), 0
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name}: {_why(error)}") from error
        if name and begun and chunk is not None and needle not in text:
            skipped = text.rfind(marker)
            if skipped >= 0:
                place, after = skipped, False
                _require_bounded(text, place, path.name)
                continue
        while True:
            blanks = _BLANKS.match(text, place)
            place = blanks.end() if blanks else place
            sign = text[place : place + 1]
            if not sign:
                break
            if not begun or after:
                if after and sign == "]":
                    return
                if sign != ("," if after else "["):
                    raise ValueError(f"{path.name}: broken: {sign!r} where a list of records goes on")
                begun, after, place = True, False, place + 1
                continue
            if sign == "]":
                return
            try:
                value, end = _DECODER.raw_decode(text, place)
            except RecursionError as error:
                raise ValueError(f"{path.name}: {_why(error)}") from error
            except ValueError:  # cut, perhaps by the chunk
                _require_bounded(text, place, path.name)
                break
            if not isinstance(value, dict):
                raise ValueError(f"{path.name} is no list of records")
            place, after = end, True
            if not name or value.get("sequence_name") == name:
                _require_shallow(value, limits, path.name)
                yield value
    raise ValueError(f"{path.name} is cut, or no JSON")


def _and_none(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    yield from chunks
    yield None


def _chunks(path: Path, limits: JsonLimits, *, gzipped: bool) -> Iterator[bytes]:
    """The bytes of a file, unpacked. Raises ValueError when it is broken or too large."""
    left = limits.megabytes << 20
    try:
        with gzip.open(path, "rb") if gzipped else open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise ValueError(f"{path.name} has more than annotations_mb={limits.megabytes}")
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name}: {_why(error)}") from error


def _require_bounded(text: str, place: int, name: str) -> None:
    if len(text) - place > _RECORD:
        raise ValueError(f"{name} is no JSON, or holds a record of more than {_RECORD >> 20} MB")


def _require_shallow(value: Any, limits: JsonLimits, name: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > limits.depth + 1:
            raise ValueError(f"{name} is nested deeper than json_depth={limits.depth}")
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [v for values in inner for v in values if isinstance(v, (dict, list))]


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"broken ({' '.join(str(error).split())[:100]})"
