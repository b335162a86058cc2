"""Reads the elements of a PLY file, whatever they mean: ascii and binary, all types, lists, any order.

Source: Turk, The PLY Polygon File Format (1994).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipeline.formats.polygons import spread
from pipeline.sources.raw_shape import plain_nan, read_numbers

_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
_TYPES |= {"double": "f8", "long": "i8", "ulong": "u8", "half": "f2", "uint8": "u1", "float16": "f2"}
_TYPES |= {f"{name}{8 * size}": f"{name[0]}{size}" for name in ("int", "uint", "float") for size in (2, 4, 8)}
_TYPES["int8"] = "i1"
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_END = re.compile(rb"(?:\A|[\r\n])end_header[ \t]*(\r\n|\n|\r|\Z)")
_TEXTURE = re.compile(r"(?:comment|obj_info)\s+TextureFile\s+(.+)", re.IGNORECASE)


@dataclass
class Element:
    """One kind of thing in a file. properties: (name, type, type of the length of a list or None).

    columns: name -> (N,). lists: name -> (all values (M,), how many each row has (N,)). Both are read last.
    """

    name: str
    size: int
    properties: list[tuple[str, str, str | None]] = field(default_factory=list)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    lists: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def read_elements(data: bytes, found: Counter[str]) -> tuple[dict[str, Element], list[str]]:
    """The elements by name, with their values, and the names of texture files."""
    end = _END.search(data)
    if not end:
        raise ValueError("not a readable ply file: no end_header")
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", data[: end.start()].decode("latin-1"))]
    if lines[0].lower() != "ply":
        raise ValueError("not a readable ply file: it does not begin with ply")
    elements, order, pictures = _declared(lines)
    named = {element.name: element for element in reversed(elements)}  # of two with one name the first
    body = data[end.end() :]
    if end[1] == b"\r\n" and b"\n" not in data[: end.start()] and order:
        body = data[end.end() - 1 :]  # \r ended the header, and the first byte of a number is 10
    if order:
        at = 0
        for element in elements:
            at = _binary(element, body, at, order)
        found["bytes behind the end"] += len(body[at:].strip(b"\r\n\0 "))
    else:
        body = plain_nan(body)
        try:
            over = _all_ascii(elements, read_numbers(body))
        except ValueError:
            over = 1
        if over:  # more in a line, or more lines, than the header says
            kept, over = _announced(elements, body)
            _all_ascii(elements, read_numbers(kept))
        found["numbers passed over"] += over
    found["elements passed over"] += sum(element.size for element in elements if element is not named[element.name])
    return named, pictures


def _declared(lines: list[str]) -> tuple[list[Element], str, list[str]]:
    """(elements without values, byte order, names of texture files) of a header."""
    elements: list[Element] = []
    pictures, order = [], None
    for line in lines[1:]:
        words = line.split()
        texture = _TEXTURE.fullmatch(line)
        if texture:
            pictures.append(texture[1].strip())
        elif words[:1] == ["format"]:
            order = _ORDERS.get(words[1].lower() if len(words) > 1 else "")
            if order is None:
                raise ValueError(f"a PLY file of {line[:40]!r}; ascii and binary are read")
        elif words[:1] == ["element"]:
            elements.append(Element(words[1].lower(), int(words[2])))
        elif words[:1] == ["property"]:
            listed = words[1:2] == ["list"]
            kinds = [_TYPES.get(word.lower(), "") for word in (words[2:4] if listed else words[1:2])]
            if not elements or len(words) != (5 if listed else 3) or "" in kinds or (listed and kinds[0][0] == "f"):
                raise ValueError(f"a PLY header with the line {line[:60]!r}, which is not read")
            elements[-1].properties.append((words[-1].lower(), kinds[-1], kinds[0] if listed else None))
    if order is None:
        raise ValueError("a PLY header without a format")
    return elements, order, pictures


def _all_ascii(elements: list[Element], numbers: np.ndarray) -> int:
    """Reads all elements from numbers one after the other; how many are left."""
    at = 0
    for element in elements:
        at = _ascii(element, numbers, at)
    return len(numbers) - at


def _announced(elements: list[Element], text: bytes) -> tuple[bytes, int]:
    """(what the header announces of each line of a text, how many words there are beside it).

    Raises ValueError where there are fewer lines than rows: then a row is no line, and the header does not fit.
    """
    lines, kept, at = [words for line in text.splitlines() if (words := line.split())], list[bytes](), 0
    for element in elements:
        if len(lines) < at + element.size:
            raise ValueError(f"{element.size:,} of {element.name} announced, fewer are there: cut, or lying")
        for words in lines[at : at + element.size]:
            needed = 0
            for _, _, length in element.properties:
                listed = read_numbers(words[needed]) if length is not None and needed < len(words) else ()
                needed += 1 + sum(_length(value) for value in listed)
            kept += words[:needed]
        at += element.size
    return b" ".join(kept), sum(map(len, lines)) - len(kept)


def _ascii(element: Element, numbers: np.ndarray, at: int) -> int:
    """Reads an element's values from `numbers`, from place `at`; returns where it ends."""
    short = ValueError(f"{element.size:,} of {element.name} announced, fewer are there: cut, or lying")
    widths: dict[str, np.ndarray] = {}
    places: dict[str, np.ndarray] = {}
    place = at
    for name, _, length in element.properties:  # as if all rows were like the first
        if place >= len(numbers) and element.size:
            raise short
        many = 1 if length is None or not element.size else _length(numbers[place])
        place += (length is not None) * 1
        widths[name], places[name] = np.full(element.size, many), np.full(element.size, place)
        place += many
    row = place - at
    rows = np.arange(element.size)
    for name in places:
        places[name] = places[name] + rows * row
    end = at + element.size * row
    heads = [places[name] - 1 for name, _, length in element.properties if length is not None]
    same = end <= len(numbers) and all((numbers[head] == numbers[head[:1]]).all() for head in heads)
    if not same:
        if not heads:
            raise short
        end = _ragged_ascii(element, numbers, at, widths, places, short)
    for name, kind, length in element.properties:
        values = numbers[spread(places[name], widths[name])] if length else numbers[places[name]]
        if kind[0] in "iu":
            most = min(np.iinfo(kind).max, 1 << 62)
            values = np.clip(np.nan_to_num(values), max(np.iinfo(kind).min, -most), most)
        with np.errstate(over="ignore"):
            values = values.astype(kind)
        _keep(element, name, values, widths[name] if length else None)
    return end


def _ragged_ascii(
    element: Element,
    numbers: np.ndarray,
    at: int,
    widths: dict[str, np.ndarray],
    places: dict[str, np.ndarray],
    short: ValueError,
) -> int:
    values = numbers[at:].tolist()
    place = 0
    columns = [(widths[name], places[name], length is not None) for name, _, length in element.properties]
    try:
        for row in range(element.size):
            for width, start, listed in columns:
                many = 1
                if listed:
                    many = int(values[place])
                    if many < 0:
                        raise short
                    place += 1
                width[row], start[row] = many, at + place
                place += many
    except (IndexError, ValueError, OverflowError):
        raise short from None
    if at + place > len(numbers):
        raise short
    return at + place


def _length(value: float) -> int:
    if not 0 <= value < 1 << 31:
        raise ValueError(f"a PLY list of {value:g} values")
    return int(value)


def _keep(element: Element, name: str, values: np.ndarray, widths: np.ndarray | None) -> None:
    if widths is None:
        element.columns[name] = values
    else:
        element.lists[name] = (values, widths)


def _binary(element: Element, body: bytes, at: int, order: str) -> int:
    """Reads an element's values from `body`, from byte `at`; returns where it ends."""
    short = ValueError(f"{element.size:,} of {element.name} announced, fewer are there: cut, or lying")
    if not element.size or not element.properties:
        for name, kind, length in element.properties:
            _keep(element, name, np.zeros(0, kind), np.zeros(0, np.int64) if length else None)
        return at
    fields: list[tuple] = []
    for number, (_, kind, length) in enumerate(element.properties):  # as if all rows were like the first
        many = 1
        if length is not None:
            fields.append((f"n{number}", order + length))
            place = at + np.dtype(fields).itemsize
            if place > len(body):
                raise short
            many = _length(np.frombuffer(body[:place], order + length, 1, place - np.dtype(length).itemsize)[0])
            if many > len(body):
                raise short
        fields.append((f"v{number}", order + kind, *([(many,)] if length else [])))
    dtype = np.dtype(fields)
    if at + element.size * dtype.itemsize <= len(body):
        rows = np.frombuffer(body, dtype, element.size, at)
        counts = [rows[name] for name in dtype.names or () if name.startswith("n")]
        if all((each == each[0]).all() for each in counts):
            for number, (name, _, length) in enumerate(element.properties):
                values = rows[f"v{number}"]
                widths = np.full(element.size, values.shape[1]) if length else None
                _keep(element, name, _native(values.reshape(-1)), widths)
            return at + element.size * dtype.itemsize
    if not any(length for _, _, length in element.properties):
        raise short
    return _ragged_binary(element, body, at, order, short)


def _native(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("=")))


def _ragged_binary(element: Element, body: bytes, at: int, order: str, short: ValueError) -> int:
    """The rows one after the other: each list says only at its beginning how long it is."""
    columns = [
        (np.zeros(element.size, np.int64), np.zeros(element.size, np.int64), np.dtype(kind).itemsize, length)
        for _, kind, length in element.properties
    ]
    byte_order: Literal["big", "little"] = "big" if order == ">" else "little"
    size = len(body)
    for row in range(element.size):
        for places, widths, item, length in columns:
            many = 1
            if length is not None:
                after = at + int(length[1])
                many = int.from_bytes(body[at:after], byte_order, signed=length[0] == "i")
                if many < 0:
                    raise short
                at = after
            places[row], widths[row] = at, many
            at += many * item
            if at > size:
                raise short
    raw = np.frombuffer(body, np.uint8)
    for (name, kind, length), (places, widths, item, _) in zip(element.properties, columns, strict=True):
        first = np.repeat(places - (np.cumsum(widths) - widths) * item, widths) + np.arange(int(widths.sum())) * item
        values = np.ascontiguousarray(raw[first[:, None] + np.arange(item)]).view(order + kind)[:, 0]
        _keep(element, name, _native(values), widths if length else None)
    return at
