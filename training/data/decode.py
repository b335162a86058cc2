"""Decodes one object of a shard: a view into a picture, its points into a cloud of a fixed size."""

from __future__ import annotations

import numpy as np

from manifests.picture_mapping import mapped_picture, value_range
from manifests.presets import AnyViews
from manifests.samples import PARTS, POINTS, Sample, decode_array, decode_picture, depth_of_codes, view_member


def picture_of(views: Sample, number: int, channel: str, preset: AnyViews) -> np.ndarray:
    """One view through the preset's mapping, uint8 (H, W, 3): 0 to 255 stand for 0 to value_range.

    Raises ValueError when the view is missing.
    """
    suffixes = [name for s in ("png", "jpg") if (name := view_member(number, channel, s)) in views.members]
    if not suffixes:
        raise ValueError(f"no {channel} picture of view {number}")
    array = decode_picture(views.members[suffixes[0]])
    if channel == "depth":
        camera = views.json["views"][number]
        array = depth_of_codes(array, camera["near"], camera["far"])
    elif array.ndim == 3 and not preset.upsample:
        return array
    picture = mapped_picture(array, channel, preset) * (255 / value_range(channel, preset))
    codes = np.rint(picture, out=picture).astype(np.uint8)
    return codes if codes.ndim == 3 else codes[..., None].repeat(3, axis=2)


def num_views(views: Sample) -> int:
    """How many views an object has."""
    return len(views.json["views"])


def cloud_of(shape: Sample, count: int, rng: np.random.Generator) -> np.ndarray:
    """The first `count` points, float32 (count, 3), padded by `pad_cloud`. Raises ValueError for a damaged cloud."""
    points = decode_array(shape.members[POINTS])
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"{POINTS} of shape {points.shape} is no cloud of finite points")
    return pad_cloud(points[:count], count, rng)


def labelled_cloud_of(shape: Sample, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`cloud_of` with the part of each point, int64 (count,); a repeated point has its part again.

    Raises ValueError for a damaged cloud, and where there is not one part label a point.
    """
    if PARTS not in shape.members:
        raise ValueError(f"no {PARTS}: part segmentation needs a part label of each point")
    parts, points = decode_array(shape.members[PARTS]), decode_array(shape.members[POINTS])
    if parts.dtype != np.uint8 or parts.shape != points.shape[:1]:
        raise ValueError(f"{PARTS} of shape {parts.shape} does not label {POINTS} of shape {points.shape}")
    numbers = pad_cloud(np.arange(len(points))[:count], count, rng)
    return cloud_of(shape, len(points), rng)[numbers], parts[numbers].astype(np.int64)


def pad_cloud(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Fills up a cloud that has fewer points than `count`, by repeating random ones."""
    if len(points) >= count:
        return points
    return np.concatenate([points, points[rng.integers(len(points), size=count - len(points))]])
