"""One real picture with its camera, as datasets of captured sequences hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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
