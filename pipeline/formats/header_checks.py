"""Finds headers that lie: compares what a PLY file announces with its bytes before a parser allocates for it."""

from __future__ import annotations

import re

_PLY_BYTES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "int32", "uint32", "float", "float32"), 4),
    **dict.fromkeys(("double", "float64", "int64", "uint64", "long", "ulong"), 8),
}
_PLY_END = re.compile(rb"(?:\A|[\r\n])end_header")
_HEADER_LIMIT = 1 << 20


def check_header(data: bytes, suffix: str) -> None:
    """Raises ValueError, in one line, when a .ply announces more than its bytes can hold."""
    if suffix == ".ply":
        _check_ply(data)


def _check_ply(data: bytes) -> None:
    found = _PLY_END.search(data, 0, _HEADER_LIMIT)
    if not found:
        raise ValueError("not a readable ply file: no end_header")
    end = found.end() - len("end_header")
    left = len(data) - end - len("end_header")
    text = data[:end].split(b"format", 1)[-1].lstrip().startswith(b"ascii")
    needed, count, each = 0, 0, 0
    for line in data[:end].decode("latin-1").splitlines():
        words = line.split()
        if words[:1] == ["element"]:
            needed, each = needed + count * each, 0
            if len(words) != 3 or not (words[2].isascii() and words[2].isdigit()) or len(words[2]) > 18:
                raise ValueError(f"no count in the PLY header's line {line[:60]!r}")
            count = int(words[2])
        elif words[:1] == ["property"] and len(words) > 2:
            kind = words[2] if words[1] == "list" else words[1]
            each += 2 if text else _PLY_BYTES.get(kind, 1)
    needed += count * each
    if needed > left + 1:  # a last line may end without a newline
        raise ValueError(f"its header announces at least {needed:,} bytes, {max(left, 0):,} are there: cut, or lying")
