"""Reads clouds written as text: rows of numbers, with or without names of their columns."""

from __future__ import annotations

import re
import warnings

import numpy as np

from pipeline.formats.cloud_columns import MAX_COLUMNS, is_place, named_cloud, unnamed_cloud
from pipeline.sources.raw_shape import WINDOWS_NAN, RawShape

_COMMENT = re.compile(rb"(?:#|//)[^\r\n]*")  # without the blanks before it, of which there may be megabytes
_NUMBER = re.compile(rb"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan(?:\(\w*\))?|inf(?:inity)?)", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(rb"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
_NO_VALUE = re.compile(rb"(?<!\S)(?:NA|N/A|null|none)(?!\S)", re.IGNORECASE)
_VALUES = (_NUMBER, _DECIMAL_COMMA, _NO_VALUE)
_TITLES = 20  # lines before the numbers that may hold names


def read_text_cloud(data: bytes, intensity_first: bool = False) -> RawShape:
    """A cloud of rows of numbers between blanks, commas or semicolons.

    Before them there may be comments (# or //), a line with the columns' names, which then decide, also as a comment,
    and the number of points. intensity_first: see `cloud_columns.unnamed_cloud`. Raises ValueError on anything else.
    """
    data = _decoded(data)
    title, announced, body = _parts(data)
    rows = number_rows(body)
    if announced is not None and announced != len(rows):
        raise ValueError(f"its first line announces {announced:,} points, {len(rows):,} are there: cut, or lying")
    names = _names(data, title, rows.shape[1])
    if names is None:
        return unnamed_cloud(rows, intensity_first)
    return named_cloud(list(rows.T), names)


def _decoded(data: bytes) -> bytes:
    """The text as UTF-8 without a byte order mark."""
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if data.startswith(mark):
            return data[2:].decode(encoding, "replace").encode()
    if b"\0" in data[:4096]:
        raise ValueError("not a text file")
    return data.removeprefix(b"\xef\xbb\xbf")


def _parts(data: bytes) -> tuple[bytes | None, int | None, bytes]:
    """(a title line before the numbers, the number of points that is announced, the rows of numbers)."""
    lines = filled_lines(data)
    title = announced = None
    start = 0
    for line in lines[:3]:
        cells = [cell for cell in _cells(line) if cell]
        if len(cells) == 1 and cells[0].isdigit() and announced is None:
            announced = int(cells[0][:18])  # a .pts file begins with the number of its points
        elif title is None and not (cells and any(kind.fullmatch(cells[0]) for kind in _VALUES)):
            title = line
        else:
            break
        start += 1
    if start == len(lines):
        raise ValueError("no row of numbers")
    return title, announced, b"\n".join(lines[start:])


def filled_lines(data: bytes) -> list[bytes]:
    """The lines that hold anything but a comment, without the blanks at their ends."""
    if b".#" in data:  # as C on Windows writes what is not finite; a comment to what follows
        data = WINDOWS_NAN.sub(b"nan", data)
    if b"#" in data or b"//" in data:
        data = _COMMENT.sub(b"", data)
    return [line for line in map(bytes.strip, data.splitlines()) if line]


def _cells(line: bytes) -> list[bytes]:
    """What stands between the separators of a line: semicolons, else commas, else tabs, else blanks."""
    line = line.strip()
    separator = next((mark for mark in (b";", b",", b"\t") if mark in line), None)
    return [cell.strip(b" \t\"'") for cell in (line.split() if separator is None else line.split(separator))]


def _names(data: bytes, title: bytes | None, width: int) -> list[str] | None:
    """Names of the columns: those of the title, else of a comment that names x, y and z; None without names.

    Raises ValueError where the title has names for other columns than there are.
    """
    if title is not None:
        names = _texts(title)
        if len(names) == width or sum(map(is_place, names)) == 3:
            if len(names) != width:
                raise ValueError(f"{len(names)} names ({', '.join(names)[:80]}) over {width} columns")
            return names
    for line in data[: 1 << 16].splitlines()[:_TITLES]:
        if _COMMENT.fullmatch(line.strip()):
            names = _texts(line.strip().lstrip(b"#/ \t"))[-width:]
            if len(names) == width and sum(map(is_place, names)) == 3:
                return names
    return None


def _texts(line: bytes) -> list[str]:
    cells = [cell.decode("utf-8", "replace") for cell in _cells(line)]
    return cells[:-1] if len(cells) > 1 and not cells[-1] else cells


def number_rows(body: bytes, most: int = MAX_COLUMNS) -> np.ndarray:
    """float64 (N, columns) of lines of numbers, none of them blank; NaN where a cell is empty.

    Raises ValueError, with what was seen, for anything else.
    """
    body = _one_separator(body)
    lines = body.split(b"\n")
    width = len(lines[0].split())
    if width > most:
        raise ValueError(f"{len(lines):,} rows of {width:,} columns: points are rows of x, y and z (transpose it?)")
    numbers = _numbers(body)
    if numbers is None:
        numbers = _numbers(_NO_VALUE.sub(b"nan", body))
    if numbers is None:
        raise ValueError(_first_odd(lines))
    other = next((line for line in lines if len(line.split()) != width), None)
    if other is not None or len(numbers) != width * len(lines):
        told = f"{len(lines)} rows of {width} numbers expected, {len(numbers)} numbers there"
        raise ValueError(told + ("" if other is None else f" (a row has {len(other.split())})"))
    return numbers.reshape(-1, width)


def _numbers(body: bytes) -> np.ndarray | None:
    """float64 (N,) of numbers between blanks, or None where anything else stands among them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(body, dtype=np.float64, sep=" ")
        except (DeprecationWarning, ValueError):
            return None


def _one_separator(body: bytes) -> bytes:
    """Rows with blanks between numbers, `nan` in empty cells, without quotes. Raises ValueError on decimal commas."""
    first = body.partition(b"\n")[0]
    separator = next((mark for mark in (b";", b",") if mark in first), b"")
    parts = first.split(separator) if separator == b";" else first.split()
    quoted = re.search(rb'"[-+]?\d*,\d+"', first)
    if quoted or (len(parts) > 1 and any(_DECIMAL_COMMA.fullmatch(part.strip(b" \t\"';")) for part in parts)):
        raise ValueError(f"decimal commas ({_shown(first)}): write 1.5 and not 1,5")
    inner = [b"," in part.strip(b",") for part in first.split()]
    if separator == b"," and any(inner) and not all(inner):  # 1,234.5 2 3
        raise ValueError(f"commas inside of numbers or between some of them ({_shown(first)}): write 1234.5")
    body = body.replace(b'"', b"")
    if separator:
        mark = re.escape(separator)
        if all(line.rstrip().endswith(separator) for line in body.split(b"\n")):
            body = re.sub(mark + rb"[ \t]*$", b"", body, flags=re.MULTILINE)
        empty = rb"(?:^|(?<=" + mark + rb"))[ \t]*(?=" + mark + rb")|(?<=" + mark + rb")[ \t]*$"
        body = re.sub(empty, b"nan", body, flags=re.MULTILINE).replace(separator, b" ")
    return body


def _first_odd(lines: list[bytes]) -> str:
    """What to say of the first text among the lines that is no number."""
    for number, line in enumerate(lines, 1):
        for cell in line.split():
            if not _NUMBER.fullmatch(cell) and not _NO_VALUE.fullmatch(cell):
                return f"{_shown(cell)} in row {number:,} is no number"
    return "something that is no number stands among the numbers"


def _shown(text: bytes) -> str:
    return repr(text[:60].decode("utf-8", "replace"))
