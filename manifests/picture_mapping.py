"""Turns stored views into the pictures that an image tower sees, at load time, as the view set's preset says."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from manifests.presets import AnyViews

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of RGB in [0, 1]
NORMALIZE: dict[str, Statistics] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
CLIP2POINT_RANGE = 200 / 255


def tower_picture(array: np.ndarray, channel: str, preset: AnyViews) -> np.ndarray:
    """float32 (S, S, 3) that the tower sees of one view, before mean and deviation.

    array: rgb uint8 (H, W, 3); gray uint8 or float32 in [0, 1] (H, W); depth float32 (H, W), +inf where empty. In
    [0, 1], but world depth for mapping=world.
    """
    picture = mapped_picture(array, channel, preset)
    return picture if picture.ndim == 3 else picture[..., None].repeat(3, axis=2)


def mapped_picture(array: np.ndarray, channel: str, preset: AnyViews) -> np.ndarray:
    """`tower_picture`, with one channel, float32 (S, S), where all three are the same."""
    if channel == "depth":
        picture = to_picture(array, preset.mapping)
    else:
        picture = array.astype(np.float32) / 255 if array.dtype == np.uint8 else array
    if preset.upsample:
        picture = upsampled(picture, preset.upsample)
    return picture


def to_picture(depth: np.ndarray, mapping: str) -> np.ndarray:
    """float32 (H, W) in [0, 1] of depth float32 (H, W), +inf where empty.

    clip2point (as released): (z - m) / M * 200/255 with M the largest depth and m = min(1, the smallest), empty 1; so
    near is black, far light grey and nothing white. linear: near 1 to far 0.2 over the depths there are, empty 0.
    world (PointCLIP and SimpleView): depth as it is, not in [0, 1], empty 0.
    """
    hit = np.isfinite(depth)
    if mapping == "world":
        return np.where(hit, depth, np.float32(0))
    if not hit.any():
        return np.full(depth.shape, 1.0 if mapping == "clip2point" else 0.0, np.float32)
    near, far = depth[hit].min(), depth[hit].max()
    filled = np.where(hit, depth, far)
    if mapping == "clip2point":
        near = min(np.float32(1.0), near)
        return np.where(hit, (filled - near) / far * np.float32(CLIP2POINT_RANGE), 1.0).astype(np.float32)
    if mapping == "linear":
        return np.where(hit, 1.0 - 0.8 * (filled - near) / max(far - near, 1e-6), 0.0).astype(np.float32)
    raise ValueError(f"mapping={mapping} makes no picture of depth")


def upsampled(picture: np.ndarray, size: int) -> np.ndarray:
    """float32 (size, size[, 3]) of a picture (H, W[, 3]), bilinear, corner pixels on corner pixels (align_corners)."""
    top, bottom, down = _neighbours(picture.shape[0], size)
    left, right, across = _neighbours(picture.shape[1], size)
    more = (1,) * (picture.ndim - 2)
    across, down = across.reshape(-1, *more), down.reshape(-1, 1, *more)
    rows = picture.take(left, axis=1)
    rows += across * (picture.take(right, axis=1) - rows)
    result = rows.take(top, axis=0)
    result += down * (rows.take(bottom, axis=0) - result)
    return result


@lru_cache(maxsize=16)
def _neighbours(count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower pixel, upper pixel, float32 share of the upper) of `size` places over `count` pixels."""
    place = np.arange(size, dtype=np.float32) * np.float32((count - 1) / max(size - 1, 1))
    lower = np.minimum(place.astype(np.int64), count - 1)
    return lower, np.minimum(lower + 1, count - 1), place - lower.astype(np.float32)


def value_range(channel: str, preset: AnyViews) -> float:
    """The largest value that `tower_picture` can give: 1, or the far end of world depth."""
    return preset.far if channel == "depth" and preset.mapping == "world" else 1.0


def mean_and_deviation(channel: str, preset: AnyViews, tower: Statistics | None = None) -> Statistics:
    """Mean and standard deviation that normalise a picture stored as 8-bit codes of [0, value_range] / 255.

    tower: those of an image tower; without it the preset's `normalize` counts.
    """
    mean, deviation = tower or NORMALIZE[preset.normalize]
    largest = value_range(channel, preset)
    return tuple(m / largest for m in mean), tuple(d / largest for d in deviation)


# Eight colours that colour-blind people tell apart (Okabe and Ito 2008); no class of a known dataset has more parts.
PART_COLORS = np.array(
    [
        *[(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)],
        *[(86, 180, 233), (213, 94, 0), (120, 120, 120), (200, 180, 40)],
    ],
    np.uint8,
)


def part_colors(parts: np.ndarray) -> np.ndarray:
    """RGB, uint8 (N, 3), of part numbers (N,). The parts of one class follow one another, so their colours differ."""
    return PART_COLORS[np.asarray(parts, np.int64) % len(PART_COLORS)]
