"""Encodes drawn views as members of a tar: pictures and the json beside them."""

from __future__ import annotations

from manifests.presets import DrawnViews
from manifests.samples import FORMAT, JSON, depth_codes, encode_json, encode_picture, gray_codes, view_member
from pipeline.shards.view_quality import ViewQuality, warnings_of
from pipeline.shards.writer import Members
from renderers.view import View


def view_members(key: str, name: str, preset: DrawnViews, views: list[View], judged: list[ViewQuality]) -> Members:
    """Members of one object in a tar of the view set `name`. judged: what the gates found in each view."""
    members: Members = {}
    described, clipped = [], 0
    for number, (view, found) in enumerate(zip(views, judged, strict=True)):
        camera = view.camera
        if view.rgb is not None:
            suffix = _rgb_format(preset)
            members[view_member(number, "rgb", suffix)] = encode_picture(view.rgb, suffix)
        if view.depth is not None:
            codes, outside = depth_codes(view.depth, camera.near, camera.far)
            clipped += outside
            members[view_member(number, "depth", "png")] = encode_picture(codes, "png")
        if view.gray is not None:
            members[view_member(number, "gray", "png")] = encode_picture(gray_codes(view.gray), "png")
        described.append(
            {
                "model": camera.model,
                "camera_from_world": camera.camera_from_world.tolist(),
                "K": camera.K.tolist(),
                "width": camera.width,
                "height": camera.height,
                "near": camera.near,
                "far": camera.far,
                "coverage": round(found.coverage, 6),
            }
        )
        if found.mask_iou is not None:
            described[-1]["mask_iou"] = round(found.mask_iou, 6)
    counts = warnings_of(judged, preset)
    if clipped:
        counts["depth outside near..far"] = clipped
    warnings = [{"type": kind, "count": count} for kind, count in sorted(counts.items())]
    values = {"format": FORMAT, "key": key, "preset": name, "views": described, "warnings": warnings}
    return {JSON: encode_json(values), **members}


def _rgb_format(preset: DrawnViews) -> str:
    return preset.rgb_format if preset.draws == "mesh" else "png"
