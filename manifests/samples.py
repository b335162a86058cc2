"""Samples and the tar members that hold them: the only place that knows member names.

A sample is a key and a dict of member suffix -> bytes (`json`, `points.npy`, `v03.depth.png` ...). `FORMAT` is the
layout; `CONTENT` is raised by whoever changes what the bytes of a build mean, and is part of every hash.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image

FORMAT = 1
CONTENT = 1
EMPTY_CODE = 0
FAR_CODE = 65535
JPEG_QUALITY = 95
PNG_LEVEL = 3

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
        """The sample's json member."""
        return json.loads(self.members[JSON])


def view_member(view: int, channel: str, suffix: str) -> str:
    """Name of one picture: `view_member(3, "depth", "png")` is `v03.depth.png`."""
    return f"v{view:02d}.{channel}.{suffix}"


def split_view_member(suffix: str) -> tuple[int, str] | None:
    """(view, channel) of a picture's suffix, or None for a member that is none."""
    parts = suffix.split(".")
    if len(parts) == 3 and parts[0][:1] == "v" and parts[0][1:].isdigit():
        return int(parts[0][1:]), parts[1]
    return None


def encode_json(values: dict[str, Any]) -> bytes:
    """JSON bytes, the same for the same values."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def encode_array(array: np.ndarray) -> bytes:
    """The .npy bytes of an array."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def decode_array(data: bytes) -> np.ndarray:
    """The array of .npy bytes. Raises ValueError when damaged; never unpickles."""
    return np.load(io.BytesIO(data), allow_pickle=False)


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
    """uint8 (H, W, 3), uint8 (H, W) or uint16 (H, W) of a picture's bytes. Raises ValueError when damaged."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            array = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"damaged picture: {error}") from error
    return array.astype(np.uint16) if array.dtype == np.int32 else array


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix) of a member's name, at its first dot. Raises ValueError where there is none."""
    key, dot, suffix = name.partition(".")
    if not dot or not key or "/" in key:
        raise ValueError(f"not a member of ours: {name}")
    return key, suffix


def read_samples(file: IO[bytes]) -> Iterator[tuple[int, Sample]]:
    """(offset of the first header, Sample) of every sample of a tar, in order, reading forwards only.

    Raises ValueError when the tar is cut, a member is no file or a member's name is not ours.
    """
    key, start, members = None, 0, {}
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for info in tar:
                member = tar.extractfile(info)
                if member is None:
                    raise ValueError(f"{info.name} is no file")
                name, suffix = split_name(info.name)
                if name != key:
                    if key is not None:
                        yield start, Sample(key, members)
                    key, start, members = name, info.offset, {}
                if suffix in members:
                    raise ValueError(f"{info.name} comes twice")
                members[suffix] = member.read()
                tar.members = []  # type: ignore[assignment]  # or it would keep every header of the stream
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"damaged tar: {error}") from error
    if key is not None:
        yield start, Sample(key, members)


def tar_name(split: str, shard: int) -> str:
    """`train-00017.tar`."""
    return f"{split}-{shard:05d}.tar"


def split_and_shard(tar: str) -> tuple[str, int]:
    """(split, shard) of a tar's name. Raises ValueError when it is not ours."""
    split, dash, number = tar.removesuffix(".tar").rpartition("-")
    if not dash or not number.isdigit():
        raise ValueError(f"not a shard of ours: {tar}")
    return split, int(number)
