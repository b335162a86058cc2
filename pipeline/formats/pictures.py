"""Decodes the pictures of textures: known formats only, of a size that can be held."""

from __future__ import annotations

import io

import numpy as np
from PIL import EpsImagePlugin, Image

MAX_SIDE = 4096
MAX_PIXELS = 1 << 26
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TGA", "TIFF", "WEBP", "PPM", "DDS")  # formats that start no other program
EpsImagePlugin.gs_binary = False  # also where a mesh library opens a picture


def decode_texture(data: bytes) -> tuple[np.ndarray, bool]:
    """(RGBA uint8 (H, W, 4), whether it was made smaller) of a picture's bytes. Raises ValueError on other bytes."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size = max(image.size)
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            picture = image.convert("RGBA")
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever its parsers trip over
        raise ValueError(f"no picture ({type(error).__name__}: {error})") from error
    return np.asarray(picture), size > MAX_SIDE


def is_picture(image: Image.Image) -> bool:
    """Whether a picture that was opened, not decoded, is whole, of a known format and of a size that can be held."""
    try:
        if image.width * image.height > MAX_PIXELS or (image.format and image.format not in FORMATS):
            return False
        image.load()
    except MemoryError:
        raise
    except Exception:  # Pillow raises whatever its decoders trip over
        return False
    return True
