"""From depth in world units to the picture that an image tower sees. Made at load time, by the preset's names."""

from __future__ import annotations

import numpy as np

# name -> (mean, standard deviation) of RGB in [0, 1]
NORMALIZE: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
CLIP2POINT_RANGE = 200 / 255


def to_picture(depth: np.ndarray, mapping: str) -> np.ndarray:
    """float32 (H, W) in [0, 1] of depth float32 (H, W), +inf where empty.

    clip2point (as released): (z - m) / M * 200/255 with M the largest depth and m = min(1, the smallest), empty 1; so
    near is black, far light grey and nothing white. linear: near 1 to far 0.2 over the depths there are, empty 0.
    """
    hit = np.isfinite(depth)
    if not hit.any():
        return np.full(depth.shape, 1.0 if mapping == "clip2point" else 0.0, np.float32)
    near, far = depth[hit].min(), depth[hit].max()
    filled = np.where(hit, depth, far)
    if mapping == "clip2point":
        near = min(np.float32(1.0), near)
        return np.where(hit, (filled - near) / far * np.float32(CLIP2POINT_RANGE), 1.0).astype(np.float32)
    if mapping == "linear":
        return np.where(hit, 1.0 - 0.8 * (filled - near) / max(far - near, 1e-6), 0.0).astype(np.float32)
    raise ValueError(f"unknown mapping {mapping}")
