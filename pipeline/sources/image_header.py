"""Size, channels and depth of a PNG or JPEG from its headers: a hundred times as fast as decoding it."""

from __future__ import annotations

import struct
from typing import NamedTuple

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # colour type -> channels; 3, a palette, is left to the decoder
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive


class PictureHead(NamedTuple):
    """The size of a picture in pixels, its channels and the bits of each."""

    width: int
    height: int
    channels: int
    bits: int


def read_head(data: bytes) -> PictureHead | None:
    """The head of a PNG or JPEG that is whole: its parts follow each other from its first to its last byte.

    None for any other bytes, also for pictures of rarer kinds: decode those.
    """
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
    except (struct.error, IndexError):
        return None
    return None


def _png(data: bytes) -> PictureHead | None:
    """A PNG begins with IHDR, has pixels and ends with IEND at its last byte."""
    kind, place, pixels = b"", len(_PNG), False
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, place)
        pixels |= kind == b"IDAT"
        place += length + 12
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR" or place != len(data) or not pixels or colour not in _PNG_CHANNELS:
        return None
    return PictureHead(width, height, _PNG_CHANNELS[colour], bits)


def _jpeg(data: bytes) -> PictureHead | None:
    """A JPEG's segments up to its frame header; it ends with the end-of-image marker."""
    place = 2
    while data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker in _FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            return PictureHead(width, height, channels, bits) if data.endswith(b"\xff\xd9") else None
        place += 2 + max(length, 2)
    return None
