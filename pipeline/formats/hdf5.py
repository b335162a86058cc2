"""Objects that are rows of HDF5 files: `data` (N, P, 3), `label` (N,) or (N, 1), `pid` (N, P). The home of h5py.

A file is opened once a process and read a row at a time. Links out of the file, data kept elsewhere, and sizes that the
file's bytes cannot hold are found before anything is allocated for them. Nothing is ever written.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from manifests.errors import Refused, with_type
from manifests.install import missing
from pipeline.sources.raw_shape import RawShape
from pipeline.sources.source_files import noted, source_file

try:
    import h5py
except ImportError as error:
    raise missing("h5py", "build") from error

MAX_ROWS = 1_000_000
_OPEN_FILES = 4
_CACHE_BYTES = 64 << 20  # decompressed chunks of one dataset: all of a ModelNet40 file of 2,048 objects
_MAX_CHUNK_BYTES = 256 << 20
_SLICE_BYTES = 16 << 20  # of part labels at a time
_DEFLATE_RATIO = 1032  # zlib's manual, "Maximum Compression Factor": no stream expands further


@dataclass(frozen=True)
class RowFile:
    """One open file. data: (N, P, 3) of floats. labels: int64 (N,). parts: (N, P) of whole numbers, or None."""

    data: h5py.Dataset
    labels: np.ndarray
    parts: h5py.Dataset | None


def read_labels(
    root: Path, relative: str, max_points: int, with_parts: bool = False, num_classes: int = 0, num_parts: int = 0
) -> np.ndarray:
    """int64 (N,), the label of every row of one file of a source. num_classes, num_parts: 0 where any number will do.

    Raises Refused where the file is wrong, or holds other labels than 0..num_classes - 1 or 0..num_parts - 1: it is of
    another release, and no row of it can be trusted.
    """
    try:
        with _open(source_file(root, relative)) as opened:
            file = _checked(opened, max_points, with_parts)
            if num_classes:
                _require_range("labels", file.labels, num_classes)
            if num_parts and file.parts is not None:
                rows = max(1, _SLICE_BYTES // max(1, file.parts.shape[1] * file.parts.dtype.itemsize))
                for first in range(0, len(file.labels), rows):
                    with suppress(OSError, RuntimeError):  # a damaged row becomes a Failure when it is read
                        _require_range("part labels", np.asarray(file.parts[first : first + rows]), num_parts)
            return file.labels
    except ValueError as error:
        raise Refused(f"{relative}: {error}") from error


def _require_range(what: str, numbers: np.ndarray, count: int) -> None:
    """Raises ValueError unless all numbers are of 0..count - 1."""
    if numbers.size and (numbers.min() < 0 or numbers.max() >= count):
        least, most = int(numbers.min()), int(numbers.max())
        guess = ": counted from 1" if (least, most) == (1, count) else ""
        raise ValueError(f"its {what} are {least}..{most}{guess}; 0..{count - 1} are expected")


def read_row(root: Path, relative: str, row: int, max_points: int, with_parts: bool = False) -> RawShape:
    """The points and parts of one row of one file of a source. Raises ValueError, in one line, where that is wrong."""
    path = source_file(root, relative)
    file = _kept_open(path, os.stat(path).st_mtime_ns, os.getpid(), max_points, with_parts)
    if not 0 <= row < len(file.labels):
        raise ValueError(f"no row {row}: the file has {len(file.labels):,}")
    try:
        with np.errstate(invalid="ignore"):  # damaged numbers are found by whoever checks the cloud
            numbers = np.asarray(file.data[row])
            points = numbers.astype(np.float64)
        parts = None if file.parts is None else np.asarray(file.parts[row])
    except (OSError, RuntimeError) as error:  # what HDF5 raises on bytes that are cut or do not unpack
        raise ValueError(f"row {row} cannot be read ({with_type(error, 200)})") from error
    noted(f"{relative}#{row}", numbers.tobytes())
    if parts is not None:
        noted(f"{relative}#{row} parts", parts.tobytes())
    if parts is not None and (parts.min() < 0 or parts.max() > 255):
        raise ValueError(f"part labels from {parts.min()} to {parts.max()}")
    return RawShape(points=points, parts=None if parts is None else parts.astype(np.uint8))


def has_background(root: Path, relative: str) -> bool | None:
    """Whether the first row's `mask` names a background point (-1); None where the file has no mask."""
    try:
        with _open(source_file(root, relative)) as file:
            if "mask" not in file:
                return None
            mask = _dataset(file, "mask", "iuf", 2)
            _require_bytes(mask)
            return bool((np.asarray(mask[0]) == -1).any())
    except (ValueError, OSError, RuntimeError, IndexError) as error:
        raise Refused(f"{relative}: {with_type(error, 200)}") from error


def _open(path: Path) -> h5py.File:
    """Opens without a lock, which file systems that are mounted read-only do not have."""
    try:
        return h5py.File(path, "r", locking=False, rdcc_nbytes=_CACHE_BYTES)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"not a readable HDF5 file ({with_type(error, 200)})") from error


@lru_cache(maxsize=_OPEN_FILES)
def _kept_open(path: Path, changed_ns: int, process: int, max_points: int, with_parts: bool) -> RowFile:
    """A checked file that stays open, one a process: a forked child must not share the parent's place in it."""
    file = _open(path)
    try:
        return _checked(file, max_points, with_parts)
    except ValueError:
        file.close()
        raise


def _checked(file: h5py.File, max_points: int, with_parts: bool) -> RowFile:
    try:
        data = _dataset(file, "data", "f", 3)
        label = _dataset(file, "label", "iu", 1)
        parts = _dataset(file, "pid" if "pid" in file or "seg" not in file else "seg", "iu", 2) if with_parts else None
        rows, num_points, width = data.shape
        if width != 3 or num_points < 1:
            raise ValueError(f"data of shape {data.shape}; (N, 2048, 3) is expected")
        if rows > MAX_ROWS:
            raise ValueError(f"data declares {rows:,} rows, more than {MAX_ROWS:,}")
        if num_points > max_points:
            raise ValueError(f"data declares {num_points:,} points a row, more than max_points={max_points:,}")
        if label.shape not in ((rows,), (rows, 1)):
            raise ValueError(f"label of shape {label.shape} beside {rows:,} rows of data")
        if parts is not None and parts.shape != (rows, num_points):
            raise ValueError(f"{parts.name[1:]} of shape {parts.shape} beside data of {data.shape}")
        for dataset in (data, label, parts):
            if dataset is not None:
                _require_bytes(dataset)
        labels = np.asarray(label[()]).reshape(-1)
    except (OSError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not a readable HDF5 file ({with_type(error, 200)})") from error
    return RowFile(data, labels.astype(np.int64), parts)


def _dataset(file: h5py.File, name: str, kinds: str, least_dims: int) -> h5py.Dataset:
    """A dataset that lies in the file itself. kinds: letters of numpy's dtype.kind."""
    link = file.get(name, getlink=True)
    if link is None:
        raise ValueError(f"no dataset {name}; it has {', '.join(sorted(file)[:8]) or 'none'}")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is a link ({type(link).__name__}), not data of the file itself")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is a group, not a dataset")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{name} is kept in another file")
    if dataset.shape is None or len(dataset.shape) < least_dims or dataset.dtype.kind not in kinds:
        wanted = "whole numbers" if kinds == "iu" else "numbers"
        raise ValueError(f"{name} of {dataset.dtype} and shape {dataset.shape}; an array of {wanted} is expected")
    if name == "data" and len(dataset.shape) != 3:
        raise ValueError(f"data of shape {dataset.shape}; (N, 2048, 3) is expected")
    return dataset


def _require_bytes(dataset: h5py.Dataset) -> None:
    """Raises ValueError where the file holds fewer bytes than the dataset's shape needs, at the best compression."""
    declared = math.prod(int(n) for n in dataset.shape) * dataset.dtype.itemsize
    held = dataset.id.get_storage_size()
    ratio = 1 if dataset.chunks is None else _DEFLATE_RATIO
    name = dataset.name[1:]
    if declared > held * ratio:
        raise ValueError(f"{name} declares {declared:,} bytes, {held:,} are there: cut, or lying")
    if dataset.chunks is not None and math.prod(dataset.chunks) * dataset.dtype.itemsize > _MAX_CHUNK_BYTES:
        raise ValueError(f"{name} is cut into chunks of {dataset.chunks}, too large to unpack")
