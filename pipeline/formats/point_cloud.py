"""Reads files of points: ply, pcd, npy and text with x y z in the first three columns.

Columns 4 to 6 are colours where their values are those of colours (whole numbers of 0..255, or 0..1 that are not unit
vectors); any other column, such as a normal or an intensity, is passed over with a warning.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from pathlib import Path

import numpy as np

from manifests.samples import npy_header
from pipeline.formats.mesh import read_mesh
from pipeline.formats.raw_shape import RawShape, check_finite
from pipeline.formats.source_files import read_source

TEXT_SUFFIXES = (".txt", ".xyz", ".csv", ".pts")
CLOUD_SUFFIXES = (".ply", ".pcd", ".npy", *TEXT_SUFFIXES)
_NUMBER = re.compile(rb"[-+]?(?:\d|\.\d|nan|inf)", re.IGNORECASE)
_MAX_COLUMNS = 64
_PCD_TYPES = {"F": {4: "<f4", 8: "<f8"}, "U": {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}}
_PCD_TYPES["I"] = {1: "i1", 2: "<i2", 4: "<i4", 8: "<i8"}


def read_cloud(root: Path, relative: str) -> RawShape:
    """The points of one file of a source. Raises ValueError with one line on what is wrong with it."""
    suffix = Path(relative).suffix.lower()
    if suffix == ".ply":
        return _without_faces(read_mesh(root / relative, root))
    if suffix not in CLOUD_SUFFIXES:
        raise ValueError(f"a {suffix or 'nameless'} file is no cloud; read are {', '.join(CLOUD_SUFFIXES)}")
    data = read_source(root, relative)
    if suffix == ".npy":
        raw = _from_table(_npy(data))
    elif suffix == ".pcd":
        raw = _pcd(data)
    else:
        rows = _text(data)
        if suffix == ".pts" and rows.shape[1] == 7:  # x y z intensity r g b
            rows = rows[:, [0, 1, 2, 4, 5, 6, 3]]
        raw = _from_table(rows)
    return check_finite(raw)


def _without_faces(raw: RawShape) -> RawShape:
    if raw.mesh is None:
        return raw
    colors = raw.mesh.vertex_colors
    return RawShape(
        points=raw.mesh.vertices,
        colors=None if colors is None else np.ascontiguousarray(colors[:, :3]),
        warnings={**raw.warnings, "faces passed over": 1},
    )


def _from_table(rows: np.ndarray) -> RawShape:
    """A shape of rows float64 (N, 3 or more)."""
    if rows.shape[1] < 3:
        raise ValueError(f"{rows.shape[1]} columns; x, y and z are needed")
    points, rest = rows[:, :3], rows[:, 3:]
    colors = _colors(rest[:, :3]) if rest.shape[1] >= 3 else None
    over = rest.shape[1] - (0 if colors is None else 3)
    return RawShape(points=points, colors=colors, warnings={"columns passed over": over} if over else {})


def _colors(values: np.ndarray) -> np.ndarray | None:
    """uint8 (N, 3) of three columns that look like colours, else None."""
    if not np.isfinite(values).all() or values.min() < 0:
        return None
    if values.max() > 1:
        return values.astype(np.uint8) if values.max() <= 255 and (values == np.rint(values)).all() else None
    unit = np.abs(np.linalg.norm(values, axis=1) - 1) < 1e-3
    return None if unit.mean() > 0.9 else np.rint(values * 255).astype(np.uint8)


def _npy(data: bytes) -> np.ndarray:
    shape, dtype, start = npy_header(data)
    if len(shape) != 2:
        raise ValueError(f"an array of shape {str(shape)[:60]}; (N, 3) or (N, 6) is needed")
    if math.prod(shape) * dtype.itemsize > len(data) - start:
        raise ValueError(f"its header announces {str(shape)[:60]}, more than its bytes hold: cut, or lying")
    rows = np.load(io.BytesIO(data), allow_pickle=False)
    return np.asarray(rows[:, :_MAX_COLUMNS], np.float64)


def _text(data: bytes) -> np.ndarray:
    """Rows of numbers between blanks, commas or semicolons, without comments, a title line or a count of points."""
    if b"\0" in data[:4096]:
        raise ValueError("not a text file")
    lines = [line for line in re.sub(rb"(#|//)[^\r\n]*", b"", data).splitlines() if line.strip()]
    if lines and not _NUMBER.match(lines[0].lstrip()):
        lines = lines[1:]  # names of columns
    if lines and len(lines[0].split()) == 1 and lines[0].strip().isdigit():
        lines = lines[1:]  # a .pts file begins with the number of its points
    if not lines:
        raise ValueError("no row of numbers")
    width = len(re.split(rb"[\s,;]+", lines[0].strip(b" \t,;")))
    if not 3 <= width <= _MAX_COLUMNS:
        raise ValueError(f"{width} columns; x, y and z are needed")
    body = re.sub(rb"[,;]", b" ", b"\n".join(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            numbers = np.fromstring(body, dtype=np.float64, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise ValueError("something that is no number stands among the numbers") from error
    if len(numbers) != width * len(lines):
        raise ValueError(f"{len(lines)} rows of {width} numbers expected, {len(numbers)} numbers there")
    return numbers.reshape(-1, width)


def _pcd(data: bytes) -> RawShape:
    """A PCD v0.7 file, ascii or binary. Source: pointclouds.org, The PCD file format."""
    found = re.search(rb"^DATA[ \t]+(\w+)[ \t]*\r?\n", data[: 1 << 16], re.MULTILINE)
    if not found:
        raise ValueError("a PCD file without DATA")
    lines = (line.split() for line in data[: found.start()].decode("latin-1").splitlines() if line.strip())
    header = {words[0]: words[1:] for words in lines if not words[0].startswith("#")}
    kind, body = found[1].decode(), data[found.end() :]
    try:
        names = header["FIELDS"]
        sizes, counts = [int(v) for v in header["SIZE"]], [int(v) for v in header.get("COUNT", ["1"] * len(names))]
        num_points = int(header["POINTS"][0])
        types = [_PCD_TYPES[t][s] for t, s in zip(header["TYPE"], sizes, strict=True)]
        fields = list(zip(names, types, counts, strict=True))
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError("a PCD header that does not describe its fields") from error
    if num_points < 0 or min(counts, default=1) < 1 or sum(counts) > _MAX_COLUMNS:
        raise ValueError("a PCD header with counts that are none")
    columns = [f"{name}.{i}" if i else name for name, _, count in fields for i in range(count)]
    flat = [type for _, type, count in fields for _ in range(count)]
    if not {"x", "y", "z"} <= set(columns) or len(set(columns)) != len(columns):
        raise ValueError(f"a PCD file with the fields {' '.join(names)[:80]}; x, y and z are needed")
    values: dict[str, np.ndarray] | np.ndarray  # by the name of a column
    if kind == "ascii":
        rows = _text(body)
        if rows.shape != (num_points, len(columns)):
            raise ValueError(f"its header announces {num_points:,} points, {len(rows):,} are there: cut, or lying")
        values = {name: rows[:, i] for i, name in enumerate(columns)}
    elif kind == "binary":
        dtype = np.dtype(list(zip(columns, flat, strict=True)))
        if num_points * dtype.itemsize > len(body):
            raise ValueError(f"its header announces {num_points:,} points, more than its bytes hold: cut, or lying")
        values = np.frombuffer(body, dtype, num_points)
    else:
        raise ValueError(f"PCD data {kind} is not read: convert it to binary (pcl_convert_pcd_ascii_binary IN OUT 1)")
    points = np.stack([np.asarray(values[axis], np.float64) for axis in "xyz"], axis=1)
    kept = np.isfinite(points).all(axis=1)  # PCL writes NaN where a range camera saw nothing
    lost = {} if kept.all() else {"points without a place": int((~kept).sum())}
    name = next((n for n in ("rgb", "rgba") if n in columns), None)
    colors = None if name is None else _packed(values[name], flat[columns.index(name)])
    return RawShape(points=points[kept], colors=None if colors is None else colors[kept], warnings=lost)


def _packed(values: np.ndarray, type: str) -> np.ndarray:
    """uint8 (N, 3) of colours packed as 0xRRGGBB into a number or into the bits of a float32."""
    if type == "<f4":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    else:
        bits = np.asarray(values).astype(np.int64).astype(np.uint32)
    return np.stack([(bits >> shift) & 255 for shift in (16, 8, 0)], axis=1).astype(np.uint8)
