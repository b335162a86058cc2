"""Reads STL files, binary and text, of any number of solids: a soup of triangles without colours."""

from __future__ import annotations

import re

import numpy as np

from pipeline.sources.raw_shape import RawShape, plain_nan, read_numbers, utf8
from renderers.geometry import Mesh

_HEAD, _RECORD = 84, 50  # bytes before the first triangle, and of each: normal, three corners, an attribute
_VERTEX = re.compile(rb"(?i)\bvertex\b([^\r\n]*)")


def read_stl(data: bytes) -> RawShape:
    """The triangles of an STL file. Raises ValueError saying what is wrong: cut, no triangles, no numbers.

    A binary file may begin with `solid`, too: the length that its count announces tells it. The attribute of a binary
    triangle has several meanings, none of them standard, and is passed over.
    """
    data = utf8(data) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else data
    count = int.from_bytes(data[80:_HEAD], "little")
    if data.lstrip()[:5].lower() == b"solid" and len(data) != _HEAD + _RECORD * count:
        corners = _text(data)
    elif len(data) < _HEAD + _RECORD * count or len(data) < _HEAD:
        held = max(len(data) - _HEAD, 0) // _RECORD
        raise ValueError(f"its header announces {count:,} triangles, {held:,} are there: cut, or no STL file")
    else:
        records = np.frombuffer(data, np.dtype([("", "<f4", 3), ("corners", "<f4", (3, 3)), ("", "<u2")]), count, _HEAD)
        corners = records["corners"].astype(np.float64)
    if not len(corners):
        raise ValueError("the file holds neither faces nor points: its solids are empty")
    if not np.isfinite(corners).all():
        raise ValueError("a vertex is not finite (NaN or infinity)")
    return RawShape(mesh=Mesh(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3)))


def _text(data: bytes) -> np.ndarray:
    """Corners float64 (F, 3, 3) of the lines `vertex x y z`."""
    lines = _VERTEX.findall(data)
    numbers = read_numbers(plain_nan(b"\n".join(lines)))
    if len(numbers) != 3 * len(lines):
        raise ValueError(f"{len(lines):,} vertices with {len(numbers):,} numbers in place of three each")
    if len(lines) % 3:
        raise ValueError(f"{len(lines):,} vertices, which are no whole triangles: cut")
    return numbers.reshape(-1, 3, 3)
