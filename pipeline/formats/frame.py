"""One real picture with its camera, as datasets of captured sequences hold them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class FrameCamera:
    """The camera of a frame, in pixels of the frame as it lies in the file.

    camera_from_source: float64 (4, 4), a rigid motion in the source's units, or None where the pose is unknown.
    K: float64 (3, 3), u = K (x/z, y/z, 1); pixel centres at half integers.
    """

    K: np.ndarray
    width: int
    height: int
    camera_from_source: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """One frame of a sequence; its pictures are read when they are asked for, with ValueError where they are broken.

    name: of its file, for people. rgb: bytes of a JPEG or PNG. depth: float32 (H, W) along the optical axis in the
    source's units, +inf where unknown. mask: bool (H, W), the object.
    """

    name: str
    rgb: Callable[[], bytes]
    depth: Callable[[], np.ndarray] | None = None
    mask: Callable[[], np.ndarray] | None = None
    camera: FrameCamera | None = None


def png_numbers(data: bytes) -> np.ndarray:
    """(H, W), the whole numbers of a PNG of 16 bits. Raises ValueError on other pictures and on huge ones."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS or image.mode not in ("I;16", "I;16B", "I"):
            raise ValueError(f"depth of mode {image.mode}, {image.width} x {image.height} pixels")
        return np.asarray(image)
