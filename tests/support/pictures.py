"""Pictures of kinds that Pillow does not write: PNG and TIFF of any bits, byte by byte."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png(samples: np.ndarray, bits: int, kind: int, **chunks: bytes) -> bytes:
    """A PNG of samples (H, W) or (H, W, N). kind: the specification's colour type. chunks: PLTE, tRNS."""
    height, width = samples.shape[:2]
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in samples]
    else:
        bit = np.unpackbits(samples.reshape(height, -1, 1).astype(np.uint8), axis=2)[..., 8 - bits :]
        lines = [np.packbits(row).tobytes() for row in bit.reshape(height, -1)]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    parts = {"IHDR": header, **chunks, "IDAT": body, "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name.encode() + data + struct.pack(">I", zlib.crc32(name.encode() + data))
        for name, data in parts.items()
    )


def tiff(samples: np.ndarray, photometric: int, extra: int | None = None, planes: bool = False) -> bytes:
    """A TIFF of samples (H, W, N), unsigned, signed or float by their type. extra: 1 premultiplied alpha, 2 alpha."""
    height, width, channels = samples.shape
    bits = samples.dtype.itemsize * 8
    strips = [samples[..., i].tobytes() for i in range(channels)] if planes else [samples.tobytes()]
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    tags: dict[int, tuple[str, list[int]]] = {256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * channels)}
    tags |= {259: ("H", [1]), 262: ("H", [photometric]), 277: ("H", [channels]), 278: ("I", [height])}
    tags |= {279: ("I", [len(strip) for strip in strips]), 284: ("H", [1 + planes]), 339: ("H", [kind] * channels)}
    tags |= {} if extra is None else {338: ("H", [extra])}
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = ("I", [start + 64 * (len(tags) + 1) + sum(map(len, strips[:i])) for i in range(len(strips))])
    entries, values = b"", b""
    for number, (letter, held) in sorted(tags.items()):
        data = struct.pack(f"<{len(held)}{letter}", *held)
        if len(data) > 4:
            place, values = struct.pack("<I", start + len(values)), values + data.ljust(64, b"\0")
            data = place
        entries += struct.pack("<HHI", number, 3 if letter == "H" else 4, len(held)) + data.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + values.ljust(64 * len(tags), b"\0") + b"".join(strips)
