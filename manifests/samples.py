"""Samples and the tar members that hold them: the only place that knows member names.

A sample is a key and a dict of member suffix -> bytes (`json`, `points.npy`, `v03.depth.png` ...). `FORMAT` is the
layout; `CONTENT` goes up with every change of what a build's bytes mean, and is part of every hash.
"""

from __future__ import annotations

import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from manifests.errors import one_line

FORMAT = 1
CONTENT = 2  # 1: glTF, OBJ, PLY and clouds as libraries read them
EMPTY_CODE = 0
FAR_CODE = 65535
JPEG_QUALITY = 95
PNG_LEVEL = 3
MAX_PIXELS = 1 << 25  # of a picture in a shard; no preset makes a larger one
BLOCK = 512
ADLER = 65521
_END = bytes(BLOCK)
_ROOM = 64 << 20

JSON = "json"
POINTS = "points.npy"
COLORS = "colors.npy"
PARTS = "parts.npy"
MESH = "mesh.glb"


@dataclass(frozen=True)
class Sample:
    """One object's members in one tar: suffix -> bytes."""

    key: str
    members: dict[str, bytes]

    @property
    def json(self) -> dict[str, Any]:
        """The sample's json member. Raises ValueError unless it is an object, KeyError where it is missing."""
        try:
            values = json.loads(self.members[JSON])
        except RecursionError as error:
            raise ValueError("its json is nested too deep") from error
        if not isinstance(values, dict):
            raise ValueError("its json is no object")
        return values


Wanted = Callable[[Sample, str], bool]


def view_member(view: int, channel: str, suffix: str) -> str:
    """Name of one picture: `view_member(3, "depth", "png")` is `v03.depth.png`."""
    return f"v{view:02d}.{channel}.{suffix}"


def split_view_member(suffix: str) -> tuple[int, str] | None:
    """(view, channel) of a picture's suffix, or None for another member."""
    parts = suffix.split(".")
    if len(parts) == 3 and re.fullmatch("v[0-9]{1,6}", parts[0]):
        return int(parts[0][1:]), parts[1]
    return None


def encode_json(values: dict[str, Any]) -> bytes:
    """JSON bytes, the same for the same values. Raises ValueError where a number is not finite."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def encode_array(array: np.ndarray) -> bytes:
    """The .npy bytes of an array."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def decode_array(data: bytes) -> np.ndarray:
    """The array of .npy bytes. Raises ValueError when damaged or of other than numbers; never unpickles."""
    shape, dtype, start = npy_header(data)
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"an npy file whose header announces {str(shape)[:60]} and does not hold just that")
    return np.load(io.BytesIO(data), allow_pickle=False)


def npy_header(
    data: bytes, with_fields: bool = False, size: int | None = None
) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, dtype, where the values begin) of .npy bytes. Raises ValueError unless it is an array of numbers.

    with_fields: or of rows with named fields of numbers. size: of the file, where the bytes are only its beginning.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:  # the header is a literal of Python, whose parser has errors of its own
        raise ValueError("not a readable npy file: its header is damaged or cut") from error
    fields = [each[0].base for each in dtype.fields.values()] if with_fields and dtype.fields else [dtype]
    if not all(field.kind in "fiub" for field in fields):
        raise ValueError(f"an npy file of {str(dtype)[:40]}; numbers are needed (pickles are never opened)")
    if min(shape, default=0) < 0 or max(shape, default=0) > (len(data) if size is None else size):
        raise ValueError(f"its header announces {str(shape)[:60]}, more than its bytes hold")
    return shape, dtype, file.tell()


def depth_codes(depth: np.ndarray, near: float, far: float) -> tuple[np.ndarray, int]:
    """uint16 codes (H, W) of depth (H, W) in world units, and how many finite pixels lay outside [near, far].

    0 is empty; else z = near + (code - 1) / 65534 * (far - near), rounded to the nearest code. A pixel outside the
    range is clipped to its end.
    """
    hit = np.isfinite(depth)
    scaled = (np.where(hit, depth, near).astype(np.float64) - near) / (far - near)
    outside = int(np.count_nonzero(hit & ((scaled < 0) | (scaled > 1))))
    codes = np.rint(np.clip(scaled, 0, 1) * (FAR_CODE - 1)).astype(np.uint16) + np.uint16(1)
    return np.where(hit, codes, np.uint16(EMPTY_CODE)), outside


def depth_of_codes(codes: np.ndarray, near: float, far: float) -> np.ndarray:
    """float32 depth (H, W) in world units of uint16 codes, +inf where empty."""
    depth = near + (codes.astype(np.float64) - 1) / (FAR_CODE - 1) * (far - near)
    return np.where(codes == EMPTY_CODE, np.inf, depth).astype(np.float32)


def gray_codes(gray: np.ndarray) -> np.ndarray:
    """uint8 codes (H, W) of gray (H, W) in [0, 1]; code / 255 is the value again."""
    return np.rint(gray * 255).astype(np.uint8)


def encode_picture(array: np.ndarray, suffix: str) -> bytes:
    """PNG or JPEG bytes (quality 95, 4:4:4) of uint8 (H, W[, 3]) or uint16 (H, W)."""
    file = io.BytesIO()
    image = Image.fromarray(array)
    if suffix == "jpg":
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def decode_picture(data: bytes) -> np.ndarray:
    """uint8 (H, W, 3), uint8 (H, W) or uint16 (H, W) of a PNG's or JPEG's bytes. Raises ValueError when damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            array = np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever its decoders trip over
        raise ValueError(f"damaged picture: {one_line(error, 200)}") from error
    return array.astype(np.uint16) if array.dtype == np.int32 else array


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix) of a member's name, split at its first dot. Raises ValueError without a dot."""
    key, dot, suffix = name.partition(".")
    if not dot or not key or "/" in name:
        raise ValueError(f"not a member of ours: {' '.join(name.split())[:100]}")
    return key, suffix


def everything(sample: Sample, suffix: str) -> bool:
    """Wants every member."""
    return True


def read_samples(file: IO[bytes], wanted: Wanted = everything) -> Iterator[tuple[int, Sample]]:
    """(offset of the first header, Sample) of every sample of a tar, in order, reading forwards only.

    `wanted(sample, suffix)` says of a member, given those before it, whether it is read or passed over. Raises
    ValueError when the tar is cut, a member is no file, comes twice or has a name that is not ours.
    """
    sample, start, position = None, 0, 0
    seen: set[str] = set()
    while header := _read_header(file):
        key, suffix = split_name(header.name)
        if sample is None or key != sample.key:
            if sample is not None:
                yield start, sample
            sample, start, seen = Sample(key, {}), position, set()
        if suffix in seen:
            raise ValueError(f"{' '.join(header.name.split())[:100]} comes twice")
        seen.add(suffix)
        padded = header.size + -header.size % BLOCK
        if wanted(sample, suffix):
            sample.members[suffix] = _read_exactly(file, padded)[: header.size]
        else:
            file.seek(padded, io.SEEK_CUR)
        position += header.length + padded
    if sample is not None:
        yield start, sample
    if header is None:
        raise ValueError("damaged tar: it is cut")


def read_sample(
    file: IO[bytes], key: str, offset: int, members: Iterable[tuple[str, int, int | None]], wanted: Wanted = everything
) -> Sample:
    """The sample at `offset` of a tar of ours, given (suffix, size, crc32) of its members in order, as in its record.

    Only wanted members are read, each in one go with its header: after two reads in a row a disk is read far ahead.
    crc32: None where it is not known. Raises ValueError when the tar is cut or does not hold these bytes there.
    """
    sample = Sample(key, {})
    for suffix, size, check in members:
        if wanted(sample, suffix):
            file.seek(offset)
            data = _read_exactly(file, BLOCK + size)
            header = _read_header(io.BytesIO(data))
            if header != (f"{key}.{suffix}", size, BLOCK):
                raise ValueError(f"found {header.name if header else 'the end'} where its record says {key}.{suffix}")
            sample.members[suffix] = data[BLOCK:]
            if check is not None and zlib.crc32(sample.members[suffix]) != check:
                raise ValueError(f"{suffix} is not what was written (its crc32 differs from the record's)")
        offset += BLOCK + size + -size % BLOCK
    return sample


class _Header(NamedTuple):
    """A member's name, its size and the length of its headers in bytes. False: the end of the archive."""

    name: str
    size: int
    length: int

    def __bool__(self) -> bool:
        return bool(self.length)


def _read_header(file: IO[bytes]) -> _Header | None:
    """The next header of a ustar or pax archive, or None where the file ends before its archive does.

    By hand, because a loader that reads by tarfile spends much of its time there.
    """
    long: dict[str, str] = {}
    length = 0
    while True:
        block = file.read(BLOCK)
        if not block and not length:
            return None
        if len(block) < BLOCK:
            raise ValueError("damaged tar: it is cut")
        if block == _END:
            return _Header("", 0, 0)
        if (_sum(block) - _sum(block[148:156]) + 8 * ord(" ") - _octal(block[148:156])) % ADLER:
            raise ValueError("damaged tar: bad checksum")
        size, kind = _octal(block[124:136]), block[156:157]
        length += BLOCK
        if kind not in b"xg":
            break
        data = _read_exactly(file, size + -size % BLOCK)[:size]
        length += len(data) + -size % BLOCK
        long |= _pax_fields(data) if kind == b"x" else {}
    name = block[:100].partition(b"\0")[0].decode("utf-8", "replace")
    if block[345]:
        name = f"{block[345:500].partition(bytes(1))[0].decode('utf-8', 'replace')}/{name}"
    name = long.get("path", name)
    if kind not in (b"0", b"\0"):
        raise ValueError(f"{' '.join(name.split())[:100]} is no file")
    if not (told := long.get("size", str(size))).isdecimal() or len(told) > 18:
        raise ValueError("damaged tar: an extended header's size is no number")
    return _Header(name, int(told), length)


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    """The next `size` bytes; a header that lies makes it ask for no more memory than the file fills."""
    data = file.read(min(size, _ROOM))
    if len(data) == _ROOM:
        data += _rest(file, size - _ROOM)
    if len(data) < size:
        raise ValueError("damaged tar: it is cut")
    return data


def _rest(file: IO[bytes], size: int) -> bytes:
    parts = []
    while size > 0 and (part := file.read(min(size, _ROOM))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _sum(data: bytes) -> int:
    """Sum of the bytes, modulo ADLER: the low half of Adler-32 from 0, at a tenth of the time of sum(data)."""
    return zlib.adler32(data, 0) & 0xFFFF


def _octal(field: bytes) -> int:
    try:
        number = int(field.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise ValueError("damaged tar: a number in a header cannot be read") from error
    if number < 0:
        raise ValueError("damaged tar: a header's number is negative")
    return number


def _pax_fields(data: bytes) -> dict[str, str]:
    """The fields of an extended header: lines `<length> <name>=<value>`."""
    fields = {}
    while data:
        digits, space, _ = data.partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(data):
            raise ValueError("damaged tar: bad extended header")
        name, _, value = data[len(digits) + 1 : int(digits) - 1].decode("utf-8", "replace").partition("=")
        fields[name] = value
        data = data[int(digits) :]
    return fields


def tar_name(split: str, shard: int) -> str:
    """`train-00017.tar`."""
    return f"{split}-{shard:05d}.tar"
