"""View: a drawn picture and its camera, which every backend returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from renderers.cameras import Camera


@dataclass(frozen=True)
class View:
    """One picture of one object and the camera that took it.

    rgb: uint8 (H, W, 3) or None. depth: float32 (H, W), distance along the optical axis in world units, +inf where
    nothing was hit, or None. gray: float32 (H, W) in [0, 1] or None, for methods that define a picture and no depth.
    coverage: share of pixels that show the object, where the backend knows it better than depth tells. seen_through:
    bool (H, W), pixels where faces lie and none of them is solid (alpha of one half): empty in depth, and in RGB what
    their alpha leaves of them, which may be the background alone; None without such faces.
    """

    camera: Camera
    rgb: np.ndarray | None = None
    depth: np.ndarray | None = None
    gray: np.ndarray | None = None
    coverage: float | None = None
    seen_through: np.ndarray | None = None

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        for name, array, dtype, shape in (
            ("rgb", self.rgb, np.uint8, (*size, 3)),
            ("depth", self.depth, np.float32, size),
            ("gray", self.gray, np.float32, size),
            ("seen_through", self.seen_through, np.bool_, size),
        ):
            if array is not None and (array.dtype != dtype or array.shape != shape):
                raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")
        if self.rgb is None and self.depth is None and self.gray is None:
            raise ValueError("a view holds at least one picture")

    def __repr__(self) -> str:
        return f"View({self.camera.width} x {self.camera.height}: {channels_of(self)})"


def channels_of(drawn: object) -> str:
    """The names of the pictures that a view, or all views of a shape, hold."""
    return ", ".join(name for name in ("rgb", "depth", "gray") if getattr(drawn, name, None) is not None)
