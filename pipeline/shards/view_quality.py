"""Whether drawn views show the object: coverage, blank pictures, the border, masks. Rules: manifests.presets.Gates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import cast

import numpy as np

from manifests.presets import DrawnViews
from renderers.cameras import Camera
from renderers.view import View

ONE_COLOUR_RANGE = 2  # of 255: what JPEG leaves of one colour
_BEHIND = 1e-6


@dataclass(frozen=True)
class ViewQuality:
    """What the gates find in one view.

    coverage: share of pixels that show the object (with `ground`, the ground as well). mask_iou: of RGB other than the
    background and depth, or None where there is no such pair; pixels of transparent faces alone, which depth leaves
    out by rule, are not compared. border: share of the outermost pixels that show the object. blank: why the view shows
    nothing, or None. forgiven: why that is no fault, or None. seen_through: share of the pixels that show the object
    where depth has nothing of it.
    """

    coverage: float
    mask_iou: float | None
    border: float
    blank: str | None
    forgiven: str | None
    seen_through: float = 0.0


def judge(view: View, preset: DrawnViews, points: np.ndarray) -> ViewQuality:
    """Measures one view of an object with points float32 (N, 3), world frame."""
    mask = object_mask(view, preset)
    coverage = np.count_nonzero(mask) / mask.size if view.coverage is None else float(view.coverage)
    iou, through = None, 0.0
    if view.rgb is not None and view.depth is not None:
        other, solid = differs(view.rgb, preset.background), np.isfinite(view.depth)
        if view.seen_through is not None:
            through = float(np.mean(~solid[mask])) if mask.any() else 0.0
            other &= ~view.seen_through
        union = np.count_nonzero(other | solid)
        iou = np.count_nonzero(other & solid) / union if union else 1.0
    with_ground = preset.draws == "mesh" and preset.ground
    blank = forgiven = None
    picture = view.rgb if view.rgb is not None else view.gray
    if not coverage:
        blank = "nothing of the object is in it"
        if view.seen_through is not None and view.seen_through.any():
            blank = "the object is transparent there: its alpha is below one half, and depth shows solid faces only"
            if view.rgb is not None:
                blank = "the object is transparent there: its alpha is 0 or cut off, or its colour is the background's"
        elif projected_width(points, view.camera) < preset.thin_px:
            forgiven = "thinner than a pixel"
    elif picture is not None and one_colour(picture):
        blank = "its picture is of one colour"
        if view.rgb is not None and not differs(view.rgb[:1, :1], preset.background).any():
            forgiven = "of the background's colour"
    return ViewQuality(coverage, iou, 0.0 if with_ground else border_share(mask), blank, forgiven, through)


def require_seen(judged: list[ViewQuality], preset: DrawnViews) -> None:
    """Raises ValueError naming the first blank view when the object's views are no use; see manifests.presets.Gates."""
    blank = [number for number, one in enumerate(judged) if one.blank]
    faults = [number for number in blank if not judged[number].forgiven]
    if len(blank) == len(judged):
        raise ValueError(f"every view is blank; view {blank[0]}: {judged[blank[0]].blank}")
    if len(faults) > preset.max_blank_views:
        others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ValueError(f"view {faults[0]} is blank: {judged[faults[0]].blank}{others}")


def warnings_of(judged: list[ViewQuality], preset: DrawnViews) -> Counter[str]:
    """Warning type -> number of views."""
    found: Counter[str] = Counter()
    for one in judged:
        if one.blank:
            found["blank view" + (f": {one.forgiven}" if one.forgiven else "")] += 1
            continue
        if one.coverage < preset.min_coverage:
            found["low coverage"] += 1
        if one.border > preset.border_share:
            found["touches the border"] += 1
        if one.mask_iou is not None and one.mask_iou < preset.min_mask_iou:
            found["masks of RGB and depth differ"] += 1
        if one.seen_through > 1 - preset.min_mask_iou:
            found["transparent: shown by RGB and not by depth"] += 1
    return found


def object_mask(view: View, preset: DrawnViews) -> np.ndarray:
    """bool (H, W), where a view shows the object: by depth, else by RGB, else by a grey picture that is not white.

    Transparent faces are in no depth; beside RGB they count where that shows them.
    """
    if view.depth is not None:
        solid = np.isfinite(view.depth)
        if view.rgb is None or view.seen_through is None:
            return solid
        return solid | (view.seen_through & differs(view.rgb, preset.background))
    if view.rgb is not None:
        return differs(view.rgb, preset.background)
    gray = cast(np.ndarray, view.gray)  # a view has one of the three
    return gray < (255 if gray.dtype == np.uint8 else 1)


def differs(rgb: np.ndarray, color: list[float]) -> np.ndarray:
    """bool (H, W), where a picture uint8 (H, W, 3) is not of a colour in [0, 1]."""
    red, green, blue = np.rint(np.asarray(color) * 255).astype(np.uint8)
    return (rgb[..., 0] != red) | (rgb[..., 1] != green) | (rgb[..., 2] != blue)


def one_colour(picture: np.ndarray) -> bool:
    """Whether a picture (H, W[, 3]) has a single colour, up to what JPEG leaves of it."""
    limit = ONE_COLOUR_RANGE if picture.dtype == np.uint8 else ONE_COLOUR_RANGE / 255
    for part in (picture[::16, ::16], picture):  # few pictures of one colour pass the first
        pixels = part.reshape(-1, *part.shape[2:])
        if (pixels.max(axis=0).astype(np.float32) - pixels.min(axis=0) > limit).any():
            return False
    return True


def border_share(mask: np.ndarray) -> float:
    """Share of the outermost pixels of a mask (H, W) that are set."""
    height, width = mask.shape
    there = sum(np.count_nonzero(side) for side in (mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]))
    return there / (2 * (height + width) - 4)


def projected_width(points: np.ndarray, camera: Camera) -> float:
    """Width in pixels of points (N, 3) seen from a camera, across the direction in which they are narrowest."""
    pose = camera.camera_from_world
    moved = points.astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
    places = moved[:, :2]
    if camera.model == "perspective":
        moved = moved[moved[:, 2] > _BEHIND]
        places = moved[:, :2] / moved[:, 2:]
    if not len(places):
        return np.inf
    places = places @ camera.K[:2, :2].T
    across = np.linalg.svd(places - places.mean(axis=0), full_matrices=False)[2][-1]
    return float(np.ptp(places @ across))
