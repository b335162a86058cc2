"""Reads PCD files, v0.7 and before: ascii, binary and binary_compressed.

Source: pointclouds.org, The PCD file format.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np

from pipeline.formats.cloud_columns import named_cloud
from pipeline.formats.text_cloud import filled_lines, number_rows
from pipeline.sources.raw_shape import RawShape

_TYPES = {"F": {4: "<f4", 8: "<f8"}, "U": {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}}
_TYPES["I"] = {1: "i1", 2: "<i2", 4: "<i4", 8: "<i8"}
_PADDING = "_"
_MAX_NUMBERS = 4096  # of one point
_MOST_LZF = 264 // 3 + 1  # bytes that LZF makes of one


@dataclass(frozen=True)
class PcdField:
    """One field of a PCD header: `count` numbers of a numpy type for each point."""

    name: str
    type: str
    count: int


def read_pcd(data: bytes) -> RawShape:
    """The points of a PCD file and their colours (rgb, rgba, or r, g and b).

    Padding (`_`) is no column; of fields with one name the first counts. Raises ValueError on a header that does not
    describe the bytes.
    """
    found = re.search(rb"^DATA[ \t]+(\w+)[ \t]*\r?\n", data[: 1 << 16], re.MULTILINE)
    if not found:
        raise ValueError("a PCD file without DATA")
    num_points, fields = _header(data[: found.start()])
    columns = _columns(found[1].decode("latin-1"), data[found.end() :], num_points, fields)
    named = [(field.name, column) for field, column in zip(fields, columns, strict=True) if field.name != _PADDING]
    packed = next((i for i, (name, column) in enumerate(named) if _is_packed(name, column)), None)
    names, values = [], []
    for number, (name, column) in enumerate(named):
        parts = _packed(column).T if number == packed else column.reshape(num_points, -1).T
        if number == packed:
            names += ["red", "green", "blue"]
        else:
            names += [name if i == 0 else f"{name}.{i}" for i in range(len(parts))]
        values += list(parts)
    return named_cloud(values, names)


def _header(head: bytes) -> tuple[int, list[PcdField]]:
    """(number of points, fields) that the lines before DATA describe."""
    lines = (line.split() for line in head.decode("latin-1").splitlines() if line.strip())
    header = {words[0]: words[1:] for words in lines if not words[0].startswith("#")}
    try:
        names = header["FIELDS"] if "FIELDS" in header else header["COLUMNS"]
        sizes, counts = [int(v) for v in header["SIZE"]], [int(v) for v in header.get("COUNT", ["1"] * len(names))]
        size = [int(header[name][0]) for name in ("WIDTH", "HEIGHT") if name in header]
        num_points = int(header["POINTS"][0]) if "POINTS" in header else size[0] * size[1]
        types = [_TYPES[t][s] for t, s in zip(header["TYPE"], sizes, strict=True)]
        fields = [PcdField(*each) for each in zip(names, types, counts, strict=True)]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError("a PCD header that does not describe its fields") from error
    if num_points < 0 or min(counts, default=1) < 1 or sum(counts) > _MAX_NUMBERS:
        raise ValueError("a PCD header with counts that are none")
    if not num_points:
        raise ValueError("the file holds no points")
    return num_points, fields


def _columns(kind: str, body: bytes, num_points: int, fields: list[PcdField]) -> list[np.ndarray]:
    """The values (N,) or (N, count) of every field."""
    if kind == "ascii":
        return _ascii(body, num_points, fields)
    dtype = np.dtype([(str(i), field.type, (field.count,)) for i, field in enumerate(fields)])
    size = num_points * dtype.itemsize
    if kind == "binary":
        if size > len(body):
            raise ValueError(f"its header announces {num_points:,} points, more than its bytes hold: cut, or lying")
        rows = np.frombuffer(body, dtype, num_points)
        return [rows[str(i)] for i in range(len(fields))]
    if kind != "binary_compressed":
        raise ValueError(f"PCD data {kind[:40]} is not read: it is ascii, binary or binary_compressed")
    packed, unpacked = struct.unpack_from("<II", body) if len(body) >= 8 else (1 << 32, 0)
    if packed > len(body) - 8 or unpacked != size or size > packed * _MOST_LZF:
        raise ValueError("PCD data binary_compressed is not readable: its sizes are not those of its points and bytes")
    data, start, columns = lzf(body[8 : 8 + packed], size), 0, []
    for field in fields:  # one after the other, each for all points
        column = np.frombuffer(data, field.type, num_points * field.count, start)
        columns.append(column.reshape(num_points, field.count))
        start += column.nbytes
    return columns


def _ascii(body: bytes, num_points: int, fields: list[PcdField]) -> list[np.ndarray]:
    lines = filled_lines(body)
    rows = number_rows(b"\n".join(lines), _MAX_NUMBERS) if lines else np.empty((0, 0))
    if len(rows) != num_points:
        raise ValueError(f"its header announces {num_points:,} points, {len(rows):,} are there: cut, or lying")
    if rows.shape[1] == sum(field.count for field in fields if field.name != _PADDING):  # PCL's own writes no padding
        counts = [0 if field.name == _PADDING else field.count for field in fields]
    else:
        counts = [field.count for field in fields]
    if num_points and rows.shape[1] != sum(counts):
        raise ValueError(f"its header announces {sum(counts)} numbers a point, {rows.shape[1]} are there: lying")
    columns = np.split(rows, np.cumsum(counts)[:-1], axis=1)
    whole = [np.dtype(field.type).kind in "ui" for field in fields]
    return [np.nan_to_num(c).astype(np.int64) if w else c for c, w in zip(columns, whole, strict=True)]


def lzf(data: bytes, size: int) -> bytes:
    """The `size` bytes that LZF made `data` of. Raises ValueError where it made other bytes of them.

    A control byte below 32 is followed by that many bytes and one as they are; any other names a run further up: its
    three upper bits are the run's length less two (7: a byte more), the rest and the last byte how far up, less one.
    Source: liblzf, lzf_d.c.
    """
    out, place = bytearray(), 0
    try:
        while place < len(data) and len(out) <= size:
            control = data[place]
            place += 1
            if control < 32:
                out += data[place : place + control + 1]
                place += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += data[place]
                place += 1
            start = len(out) - ((control & 31) << 8) - data[place] - 1
            place += 1
            if start < 0:
                raise ValueError
            run = bytes(out[start : start + length + 2])
            out += (run * (length // len(run) + 3))[: length + 2]
    except (IndexError, ValueError) as error:
        raise ValueError("PCD data binary_compressed is not readable: it is damaged") from error
    if len(out) != size:
        raise ValueError("PCD data binary_compressed is not readable: it is cut, or lying")
    return bytes(out)


def _is_packed(name: str, column: np.ndarray) -> bool:
    return name.lower() in ("rgb", "rgba") and column.reshape(len(column), -1).shape[1] == 1


def _packed(column: np.ndarray) -> np.ndarray:
    """uint8 (N, 3) of colours packed as 0xRRGGBB into a number or into the bits of a float32."""
    values = column.reshape(-1)
    if values.dtype.kind == "f":
        seen = values[np.isfinite(values)]
        if len(seen) and seen.min() >= 0 and 1 <= seen.max() < 1 << 24 and (seen == np.rint(seen)).all():
            values = np.nan_to_num(values)  # the number itself, as the format's own example has it
        else:
            values = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = values.astype(np.int64).astype(np.uint32)
    return np.stack([(bits >> shift) & 255 for shift in (16, 8, 0)], axis=1).astype(np.uint8)
