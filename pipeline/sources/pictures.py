"""Decodes the pictures of textures: known formats only, of a size that can be held."""

from __future__ import annotations

import io

import numpy as np
from PIL import EpsImagePlugin, Image

MAX_SIDE = 4096
MAX_PIXELS = 1 << 26
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TGA", "TIFF", "WEBP", "PPM", "DDS")  # formats that start no other program
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_ROWS = 256  # of a picture, at a time
_GREYS = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
EpsImagePlugin.gs_binary = False  # also where a mesh library opens a picture


def decode_texture(data: bytes) -> tuple[np.ndarray, bool]:
    """(RGBA uint8 (H, W, 4), whether it was made smaller) of a picture's bytes. Raises ValueError on other bytes."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size = max(image.size)
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            picture = _rgba(image, data[24:25])
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever its parsers trip over
        raise ValueError(f"no picture ({type(error).__name__}: {error})") from error
    return np.asarray(picture), size > MAX_SIDE


def _rgba(image: Image.Image, png_bits: bytes) -> Image.Image:
    """The picture as RGBA of 8 bits. Raises ValueError where its values would not be kept.

    png_bits: the byte that holds the bits of a sample in a PNG.
    """
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(258, (8,)))  # TIFF 6.0: BitsPerSample; 262: PhotometricInterpretation; 284: PlanarConfiguration
    if bits > 8 and tags.get(284) == 2:
        raise ValueError(f"planes of {bits} bits")
    clear = image.info.get("transparency")
    if image.format == "PNG" and clear is not None:
        if image.mode == "L" and png_bits < b"\x08":  # the PNG specification, 11.3.1: in the samples' own bits
            image.info["transparency"] = clear * 255 // ((1 << png_bits[0]) - 1)
        elif image.mode == "RGB" and png_bits == b"\x10":
            image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.mode in _EIGHT_BITS:
        return image.convert("RGBA")
    if image.mode not in _GREYS or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(f"a picture of the kind {image.mode}")
    values = np.asarray(image)
    largest = float(values.max())
    if not 0 <= values.min() <= largest <= 65535:
        raise ValueError("grey values without a range")
    scale = 255 / ((1 << (bits if tags else 16)) - 1)
    if image.mode == "F":
        scale = 255 if largest <= 1 else 1 if largest <= 255 else 255 / 65535
    rgba = np.empty((*values.shape, 4), np.uint8)
    for start in range(0, len(values), _ROWS):  # a picture may be large, and float64 is eight times as large
        rows = values[start : start + _ROWS].astype(np.float64)
        grey = np.rint(255 - rows * scale if tags.get(262) == 0 else rows * scale)
        rgba[start : start + _ROWS, :, :3] = grey[..., None]
        rgba[start : start + _ROWS, :, 3] = np.where(rows == clear, 0, 255)
    return Image.fromarray(rgba)
