"""Reads files of points: ply, pcd, npy, npz and text.

What a column is, its name says, or its values where it has no name (`pipeline.formats.cloud_columns`). Any other
column, such as a normal or an intensity, is passed over, and points whose place is not finite are left out: both are
warnings.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from manifests.samples import npy_header
from pipeline.formats.cloud_columns import MAX_COLUMNS, as_float64, named_cloud, scaled_colors, unnamed_cloud
from pipeline.formats.mesh import read_mesh
from pipeline.formats.pcd import read_pcd
from pipeline.formats.text_cloud import read_text_cloud
from pipeline.sources.raw_shape import RawShape, check_finite, placed, with_places
from pipeline.sources.source_files import read_source

TEXT_SUFFIXES = (".txt", ".xyz", ".csv", ".pts", ".asc")
CLOUD_SUFFIXES = (".ply", ".pcd", ".npy", ".npz", *TEXT_SUFFIXES)
PLACES = (  # names of arrays, of which the first that is there counts
    *("points", "xyz", "pos", "position", "positions", "pc", "pcd", "point_cloud", "pointcloud", "coord", "coords"),
    *("vertices", "verts", "cloud"),
)
COLORS = ("colors", "color", "colours", "colour", "rgb", "rgbs")
_BESIDE = (*COLORS, "normal")  # beginnings of the names of arrays that are no places
_MAX_BYTES = 1 << 28  # of an array of an archive, whose packed bytes may be few
_HEADER = 1 << 16


def read_cloud(root: Path, relative: str) -> RawShape:
    """The points of one file of a source. Raises ValueError with one line on what is wrong with it."""
    suffix = Path(relative).suffix.lower()
    if suffix == ".ply":
        return _without_faces(read_mesh(root / relative, root, keep_strays=True))
    if suffix not in CLOUD_SUFFIXES:
        raise ValueError(f"a {suffix or 'nameless'} file is no cloud; read are {', '.join(CLOUD_SUFFIXES)}")
    data = read_source(root, relative)
    if suffix == ".npy":
        raw = _from_array(_npy(data))
    elif suffix == ".npz":
        raw = _npz(data)
    elif suffix == ".pcd":
        raw = read_pcd(data)
    else:
        raw = read_text_cloud(data, intensity_first=suffix == ".pts")
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


def _npy(data: bytes) -> np.ndarray:
    """The array of .npy bytes: of numbers, or of rows with named fields. Raises ValueError on anything else."""
    shape, dtype, start = npy_header(data, with_fields=True)
    if math.prod(shape) * dtype.itemsize > len(data) - start:
        raise ValueError(f"its header announces {str(shape)[:60]}, more than its bytes hold: cut, or lying")
    return np.load(io.BytesIO(data), allow_pickle=False)


def _from_array(array: np.ndarray, colors: np.ndarray | None = None) -> RawShape:
    """A cloud of an array (N, 3 or more), also with an axis of length 1 before, or of rows with the fields x, y and z.

    colors: (N, 3 or more), that stand in an array of their own.
    """
    if array.dtype.names is not None:
        return _from_fields(array.reshape(-1))
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim != 2:
        raise ValueError(f"an array of shape {str(array.shape)[:60]}; (N, 3) or (N, 6) is needed")
    if array.shape[1] > MAX_COLUMNS:
        raise ValueError(f"an array of shape {array.shape}; (N, 3) is needed: transpose it?")
    rows = as_float64(array)
    if colors is None:
        return unnamed_cloud(rows)
    if rows.shape[1] > 3:
        rows = rows[:, :3]
    raw = unnamed_cloud(rows)  # which says what is wrong with the shape
    scaled = scaled_colors(as_float64(colors[:, :3]), placed(rows))
    over = {"columns passed over": array.shape[1] - 3} if array.shape[1] > 3 else {}
    return raw if scaled is None else with_places(RawShape(points=rows, colors=scaled, warnings=over))


def _from_fields(rows: np.ndarray) -> RawShape:
    """A cloud of rows (N,) with named fields; one of three numbers counts as x, y and z, or red, green and blue."""
    names: list[str] = []
    columns: list[np.ndarray] = []
    for name in rows.dtype.names or ():
        values = rows[name].reshape(len(rows), -1)
        parts = "rgb" if name.lower().startswith(COLORS) else "xyz"
        if values.shape[1] == 1:
            names.append(name)
        else:
            names += [f"{name}_{parts[i] if values.shape[1] == 3 else i}" for i in range(values.shape[1])]
        columns += list(values.T)
    return named_cloud(columns, names)


def _npz(data: bytes) -> RawShape:
    """The cloud of an archive of arrays: the first of PLACES that it has, else its only (N, 3 or more), and COLORS."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
            by_name = {name.lower(): name for name in reversed(found)}
            name = next((by_name[each] for each in PLACES if each in by_name), None)
            if name is None:
                name = _only_cloud({each: _shape(archive, info) for each, info in found.items()})
            array = _npy(_member(archive, found[name]))
            beside = next((by_name[each] for each in COLORS if each in by_name and by_name[each] != name), None)
            colors = None if beside is None else _npy(_member(archive, found[beside]))
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # zipfile and its unpackers raise whatever they trip over
        raise ValueError("not a readable npz file: it is cut, packed in another way, or locked") from error
    if colors is not None and (colors.ndim != 2 or colors.shape[1] < 3 or len(colors) != array.size // array.shape[-1]):
        colors = None
    raw = _from_array(array, colors)
    over = len(found) - 1 - (colors is not None)
    return replace(raw, warnings={**raw.warnings, "arrays passed over": over}) if over else raw


def _only_cloud(shapes: dict[str, tuple[int, ...]]) -> str:
    """The name of the one array that has a cloud's shape. Raises ValueError, with the names, where it is not one."""
    clouds = [
        name
        for name, shape in shapes.items()
        if len(shape) in (1, 2) and (len(shape) == 1 or shape[1] >= 3) and not name.lower().startswith(_BESIDE)
    ]
    if len(clouds) != 1:
        seen = ", ".join(f"{name} {shape}" for name, shape in shapes.items())[:120] or "no array"
        which = "several may be the cloud" if clouds else f"none of them is (N, 3) or named {', '.join(PLACES[:4])}"
        raise ValueError(f"an npz file of {seen}: {which}; name it points")
    return clouds[0]


def _shape(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...]:
    """The shape of an array of an archive: one axis for rows with named fields; () where it is none of numbers."""
    with archive.open(info) as file:
        head = file.read(_HEADER)
    try:
        shape, dtype, _ = npy_header(head, with_fields=True, size=info.file_size)
    except ValueError:
        return ()
    if dtype.names is not None:
        return (math.prod(shape),)
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape if len(shape) > 1 else ()


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _MAX_BYTES:
        raise ValueError(f"its array {info.filename[:60]} announces {info.file_size:,} bytes, more than {_MAX_BYTES:,}")
    return archive.read(info)
