"""Redwood 3D scans: data/mesh/<5 digits>.ply and data/rgbd/<5 digits>.zip beside categories.json and meshes.json.

Meshes are in metres, up roughly the -Y of the first camera. An archive holds rgb/<frame>-<microseconds>.jpg and
depth/<frame>-<microseconds>.png: 640 x 480, depth in millimetres, registered to colour, 0 where unknown. There are more
pictures of one kind than of the other, so they are paired by time. Poses were never released.
"""

from __future__ import annotations

import bisect
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from manifests.dataset_info import DatasetTable
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.datasets.options import DatasetOptions
from pipeline.datasets.seeded_split import seeded_split
from pipeline.formats.frame import Frame, FrameCamera, png_numbers
from pipeline.formats.mesh import read_faces
from pipeline.sources.json_stream import JsonLimits, load_json
from pipeline.sources.raw_shape import RawShape
from pipeline.sources.source_files import source_file

SAVES_SPLITS = True
WIDTH, HEIGHT = 640, 480
K = np.array([[525.0, 0, 319.5], [0, 525.0, 239.5], [0, 0, 1]])  # PrimeSense's defaults; the devices' own are unknown
_METRES = np.float32(0.001)
_UNPACKED = 1 << 20
_INDEX = JsonLimits(megabytes=64, depth=8)
_ID = re.compile(r"\d{5}")
_MEMBER = re.compile(r"(?:[^/]+/)?(rgb|depth)/(\d+)-(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


class RedwoodOptions(DatasetOptions):
    """How the scans of a class are divided, and limits of an archive.

    pair_us: farthest in time, microseconds, that a colour picture's depth may be. Limits, in no hash: zip_members of an
    archive, picture_mb of one of its pictures when unpacked.
    """

    IN_TABLE: ClassVar[bool] = True
    LIMITS: ClassVar[frozenset[str]] = frozenset({"zip_members", "picture_mb"})

    train_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.8
    split_seed: int = 0
    pair_us: Annotated[int, Field(ge=0)] = 50_000
    zip_members: Annotated[int, Field(ge=1)] = 200_000
    picture_mb: Annotated[int, Field(ge=1)] = 16


OPTIONS = RedwoodOptions


def assets(root: Path, table: DatasetTable, options: RedwoodOptions) -> Iterator[Asset]:
    """Every mesh of the table's classes that is there; the split is taken over all that the index lists.

    Raises Refused when an index is missing or broken.
    """
    categories, meshes = _index(root, "categories.json", dict), set(_index(root, "meshes.json", list))
    for class_name in table.classes:
        known = sorted(set(map(str, categories.get(class_name, ()))) & meshes)
        odd = next((id for id in known if not _ID.fullmatch(id)), None)
        if odd is not None:
            raise Refused(f"{root / 'categories.json'}: {odd[:40]!r} is no scan of five digits")
        split = seeded_split(known, options.train_fraction, options.split_seed)
        for id in known:
            source = f"data/mesh/{id}.ply"
            if (root / source).exists():
                yield Asset(id, source, split[id], class_name)


def _index(root: Path, name: str, kind: type) -> Any:
    if not (root / name).is_file():
        raise Refused(
            f"no {name} in {root}: copy it from the repository redwood-3dscan, beside data/mesh and data/rgbd"
        )
    try:
        values = load_json(source_file(root, name), _INDEX)
    except ValueError as error:
        raise Refused(f"{root / name}: {error}") from error
    inner = values.values() if isinstance(values, dict) else ()
    strings = values if isinstance(values, list) else ()
    if (
        not isinstance(values, kind)
        or any(not isinstance(ids, list) or any(not isinstance(id, str) for id in ids) for ids in inner)
        or any(not isinstance(id, str) for id in strings)
    ):
        raise Refused(f"{root / name}: not the index of redwood-3dscan")
    return values


def shortfalls(options: RedwoodOptions, table: DatasetTable, found: list[Asset], splits: tuple[str, ...]) -> list[str]:
    """`7 of 398 meshes` where the copy is not the whole; splits are the recipe's own and have no counts."""
    expected = sum(table.counts.values())
    return [] if len(found) == expected else [f"{len(found):,} of {expected:,} meshes"]


def read(asset: Asset, root: Path, options: RedwoodOptions) -> RawShape:
    """The mesh of one scan. Raises ValueError when it has no face or cannot be read."""
    return read_faces(source_file(root, asset.source), root)


@contextmanager
def frames(asset: Asset, root: Path, options: RedwoodOptions) -> Iterator[list[Frame]]:
    """The frames of a scan, read in place from its archive. Raises ValueError when that is broken or a trap."""
    try:
        path = source_file(root, f"data/rgbd/{asset.id}.zip")
    except ValueError as error:
        raise ValueError(f"data/rgbd/{asset.id}.zip: {error}") from error
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path.name} is no readable archive: {' '.join(str(error).split())[:100]}") from error
    with archive:
        yield _paired(archive, path.name, options)


def _paired(archive: zipfile.ZipFile, name: str, options: RedwoodOptions) -> list[Frame]:
    """A frame for each colour picture, in the order of time, with the depth that is nearest in time."""
    rgb, depth = _members(archive, name, options)
    if not rgb:
        raise ValueError(f"{name} holds no rgb/<frame>-<microseconds>.jpg")
    times = [time for time, _ in depth]
    made = []
    for time, member in rgb:
        nearest = nearest_time(times, time)
        if nearest is not None and abs(times[nearest] - time) <= options.pair_us:
            made.append(_frame(archive, member, depth[nearest][1]))
        else:
            made.append(_frame(archive, member, None))
    return made


def nearest_time(times: list[int], time: int) -> int | None:
    """The index of the nearest of ascending times, the earlier of two at one distance; None for an empty list."""
    after = bisect.bisect_left(times, time)
    around = [place for place in (after - 1, after) if 0 <= place < len(times)]
    return min(around, key=lambda place: (abs(times[place] - time), place), default=None)


Timed = list[tuple[int, zipfile.ZipInfo]]


def _members(archive: zipfile.ZipFile, name: str, options: RedwoodOptions) -> tuple[Timed, Timed]:
    """(time, member) of the colour and of the depth pictures, in the order of time. Raises ValueError on traps."""
    found: dict[str, Timed] = {"rgb": [], "depth": []}
    infos = archive.infolist()
    if len(infos) > options.zip_members:
        raise ValueError(f"{name} has {len(infos):,} members, more than zip_members={options.zip_members}")
    for info in infos:
        parts = info.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise ValueError(f"{name} names a path outside itself: {info.filename[:80]!r}")
        match = _MEMBER.fullmatch(info.filename)
        if match is None or info.is_dir():
            continue
        if info.file_size > options.picture_mb << 20:
            raise ValueError(f"{name}: {info.filename} has more than picture_mb={options.picture_mb}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a limit
            raise ValueError(f"{name}: {info.filename} is packed by a method that is not read")
        if len(match[3]) > 18:
            raise ValueError(f"{name}: {info.filename[:80]!r} has no time in microseconds")
        found[match[1].lower()].append((int(match[3]), info))
    for members in found.values():
        members.sort(key=lambda pair: (pair[0], pair[1].filename))
    return found["rgb"], found["depth"]


def _frame(archive: zipfile.ZipFile, rgb: zipfile.ZipInfo, depth: zipfile.ZipInfo | None) -> Frame:
    return Frame(
        name=rgb.filename,
        rgb=lambda: _unpacked(archive, rgb),
        depth=None if depth is None else lambda: depth_metres(_unpacked(archive, depth)),
        camera=FrameCamera(K, WIDTH, HEIGHT),
    )


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Its bytes; a little at a time, as what comes after the size that it declares would be unpacked as well."""
    try:
        with archive.open(member) as file:
            return b"".join(iter(lambda: file.read(_UNPACKED), b""))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(f"{member.filename} cannot be unpacked: {error}") from error


def depth_metres(data: bytes) -> np.ndarray:
    """float32 (H, W) metres, +inf where unknown, of the bytes of a 16-bit PNG in millimetres."""
    millimetres = png_numbers(data).astype(np.float32)
    return np.where(millimetres > 0, millimetres * _METRES, np.float32(np.inf))
