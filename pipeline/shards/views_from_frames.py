"""Makes views from real frames: chosen over an object's sequence, cut out, resized, cameras turned into the world.

A dataset with sequences offers `frames(asset, root, options)`, a context that gives a list of Frame in the order of
the sequence. A frame that cannot be used is passed over for its neighbour and counted.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from manifests.frame_views import FrameViews
from manifests.records import Asset
from manifests.rng import generator
from manifests.samples import FORMAT, JSON, depth_codes, encode_json, encode_picture, view_member
from pipeline.formats.frame import MAX_PIXELS, Frame, FrameCamera
from pipeline.shards.view_quality import one_colour
from pipeline.shards.writer import Members
from pipeline.sources.pictures import FORMATS

_ATTEMPTS = 8  # frames tried in a stretch of the sequence
_DRAFT = 2  # a JPEG is decoded at this many times the stored size or more

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Stored:
    """A frame as it is stored. depth: world units. described: its entry in the json without near and far."""

    rgb: np.ndarray
    depth: np.ndarray | None
    described: dict[str, object]


def frame_members(
    asset: Asset, frames: list[Frame], world_from_source: np.ndarray, preset: FrameViews, name: str, seed: int
) -> Members:
    """Members of one object's frames in the tar of view set `name`. Raises ValueError when no frame can be used.

    Unknown cameras are null, as are near and far without depth. coverage: the mask's share of the picture, null
    without a mask.
    """
    usable = [frame for frame in frames if frame.depth] if "depth" in preset.channels else frames
    usable = usable or frames
    reasons: Counter[str] = Counter()
    stored: list[_Stored] = []
    for stretch in stretches(len(usable), preset.num_frames, generator(seed, asset.key, "frames")):
        for number in stretch[:_ATTEMPTS]:
            try:
                stored.append(_stored(usable[number], world_from_source, preset))
            except MemoryError:
                raise
            except Exception as error:  # whatever a decoder trips over means that this frame is broken
                reasons[f"{usable[number].name}: {' '.join(str(error).split())[:160] or type(error).__name__}"] += 1
            else:
                break
    if not stored:
        raise ValueError(f"no frame can be used; {next(iter(reasons), 'the sequence has no frames')}")
    near, far = _depth_range(stored)
    members, described, clipped = {}, [], 0
    for view, one in enumerate(stored):
        members[view_member(view, "rgb", preset.rgb_format)] = encode_picture(one.rgb, preset.rgb_format)
        limits: dict[str, float | None] = {"near": None, "far": None}
        if one.depth is not None:
            codes, outside = depth_codes(one.depth, near, far)
            clipped += outside
            members[view_member(view, "depth", "png")] = encode_picture(codes, "png")
            limits = {"near": near, "far": far}
        described.append(one.described | limits)
    counts = {"frame passed over": reasons.total(), "depth outside near..far": clipped}
    warnings = [{"type": kind, "count": count} for kind, count in sorted(counts.items()) if count]
    values = {"format": FORMAT, "key": asset.key, "preset": name, "views": described, "warnings": warnings}
    return {JSON: encode_json(values), **members}


def stretches(count: int, wanted: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """The frames 0 .. count - 1 in min(count, wanted) equal stretches, each in the order in which frames are tried."""
    ends = np.linspace(0, count, min(count, wanted) + 1).round().astype(int)
    for start, end in itertools.pairwise(ends):
        yield (start + rng.permutation(end - start)).tolist()


def _stored(frame: Frame, world_from_source: np.ndarray, preset: FrameViews) -> _Stored:
    """A frame cut and resized. Raises ValueError, or what a decoder raises, when it cannot be used."""
    mask = frame.mask() if frame.mask else None
    with Image.open(io.BytesIO(frame.rgb()), formats=FORMATS) as file:
        width, height = file.size
        _require_size(frame, width, height, mask)
        box = (0, 0, width, height)
        if preset.crop == "mask":
            box = _mask_box(mask, preset.crop_margin)
        size = stored_size(box, preset.image_size)
        if preset.crop == "none":
            file.draft("RGB", (_DRAFT * size[0], _DRAFT * size[1]))
        image = file.convert("RGB")
    if preset.crop == "mask":
        image = image.crop(box)
    rgb = np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))
    if one_colour(rgb):
        raise ValueError("blank: it is of one colour")
    depth = None
    if "depth" in preset.channels and frame.depth:
        depth = frame.depth()
        if depth.shape != (height, width):
            raise ValueError(f"its depth is {depth.shape}, its picture {(height, width)}")
        depth = resized_nearest(depth, box, size) * np.float32(scale_of(world_from_source))
    coverage = None if mask is None else round(float(resized_nearest(mask, box, size).mean()), 6)
    described = _camera_values(frame.camera, world_from_source, box, size)
    return _Stored(
        rgb, depth, described | {"width": size[0], "height": size[1], "coverage": coverage, "frame": frame.name}
    )


def _require_size(frame: Frame, width: int, height: int, mask: np.ndarray | None) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"a picture of {width} x {height} pixels")
    camera = frame.camera
    if camera is not None and (camera.width, camera.height) != (width, height):
        raise ValueError(f"{width} x {height} pixels, its camera has {camera.width} x {camera.height}")
    if mask is not None and mask.shape != (height, width):
        raise ValueError(f"its mask is {mask.shape}, its picture {(height, width)}")


def _mask_box(mask: np.ndarray | None, margin: float) -> Box:
    """left, top, right, bottom of a mask with its margin. Raises ValueError where it is missing or empty."""
    if mask is None or not mask.any():
        raise ValueError("it has no mask" if mask is None else "its mask is empty")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    more = round(margin * max(right - left, bottom - top))
    height, width = mask.shape
    return (
        int(max(left - more, 0)),
        int(max(top - more, 0)),
        int(min(right + more, width)),
        int(min(bottom + more, height)),
    )


def stored_size(box: Box, image_size: int) -> tuple[int, int]:
    """(width, height) of a box whose short side is brought to `image_size`, 0: as it is."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = image_size / min(width, height) if image_size else 1.0
    return max(round(width * scale), 1), max(round(height * scale), 1)


def resized_nearest(array: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """A box (left, top, right, bottom) of an array (H, W) at size (width, height), by the nearest pixel centre."""
    left, top, right, bottom = box
    columns = left + ((np.arange(size[0]) + 0.5) * (right - left) / size[0]).astype(int)
    rows = top + ((np.arange(size[1]) + 0.5) * (bottom - top) / size[1]).astype(int)
    return array[rows[:, None], columns]


def scale_of(world_from_source: np.ndarray) -> float:
    """World units of one unit of the source, of a similarity (4, 4)."""
    return float(np.cbrt(np.linalg.det(np.asarray(world_from_source)[:3, :3])))


def world_camera(camera_from_source: np.ndarray, world_from_source: np.ndarray) -> np.ndarray:
    """camera_from_world (4, 4), a rigid motion in world units.

    camera_from_source: a rigid motion in the source's units. world_from_source: a similarity s R x + t. A point of the
    camera grows with the world: s (Rc x + tc) = Rc R^T (world - t) + s tc.
    """
    scale = scale_of(world_from_source)
    rotation = camera_from_source[:3, :3] @ (world_from_source[:3, :3] / scale).T
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = scale * camera_from_source[:3, 3] - rotation @ world_from_source[:3, 3]
    return pose


def _camera_values(
    camera: FrameCamera | None, world_from_source: np.ndarray, box: Box, size: tuple[int, int]
) -> dict[str, object]:
    """model, camera_from_world and K of the stored picture, null where unknown."""
    if camera is None:
        return dict.fromkeys(("model", "camera_from_world", "K"))
    K = np.array(camera.K, np.float64)
    K[:2, 2] -= box[:2]
    K[0] *= size[0] / (box[2] - box[0])
    K[1] *= size[1] / (box[3] - box[1])
    pose = camera.camera_from_source
    return {
        "model": "perspective",
        "camera_from_world": None if pose is None else world_camera(pose, world_from_source).tolist(),
        "K": K.tolist(),
    }


def _depth_range(stored: list[_Stored]) -> tuple[float, float]:
    """The nearest and farthest depth of an object's frames, a little apart."""
    depths = [one.depth[np.isfinite(one.depth)] for one in stored if one.depth is not None]
    depths = [depth for depth in depths if len(depth)]
    if not depths:
        return 0.0, 1.0
    near, far = min(float(d.min()) for d in depths), max(float(d.max()) for d in depths)
    return near, max(far, near * (1 + 1e-6) + 1e-6)
