"""Checks the form of one sample of a build: its json, its cloud, its cameras, its pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic_core import from_json

from manifests.layout import BuildManifest, ViewSetManifest
from manifests.plain_text import number_of
from manifests.samples import (
    COLORS,
    FORMAT,
    JSON,
    PARTS,
    POINTS,
    Sample,
    decode_array,
    decode_picture,
    split_view_member,
)
from pipeline.sources.image_header import PictureHead, read_head

ODD = (KeyError, TypeError, AttributeError)  # what JSON of another form than ours raises
_KINDS = {"depth": (1, 16), "gray": (1, 8)}  # channel -> (channels, bits) of its pictures


def shape_values(sample: Sample, manifest: BuildManifest) -> dict[str, Any]:
    """The json of one sample of a tar of shapes. Raises ValueError saying what is wrong with the sample."""
    try:
        values, points = from_json(sample.members[JSON]), decode_array(sample.members[POINTS])
    except (KeyError, ValueError) as error:
        raise ValueError(f"unreadable ({error})") from error
    if values.get("format") != FORMAT or values.get("key") != sample.key:
        raise ValueError("its json is of another format or key")
    if points.dtype != np.float32 or points.shape != (values["num_points"], 3) or not np.isfinite(points).all():
        raise ValueError(f"points are {points.dtype} {points.shape}")
    label, texts = values["label"], [values[name] for name in ("id", "split", "source", "class")]
    if not all(isinstance(text, str) for text in texts if text is not None) or None in texts[:3]:
        raise ValueError("its id, split, source or class is no text")
    if label is not None and (not 0 <= label < len(manifest.classes) or manifest.classes[label] != values["class"]):
        raise ValueError(f"label {label} is not class {values['class']}")
    for suffix, width in ((COLORS, (3,)), (PARTS, ())):
        if suffix in sample.members:
            array = decode_array(sample.members[suffix])
            if array.dtype != np.uint8 or array.shape != (len(points), *width):
                raise ValueError(f"{suffix} is {array.dtype} {array.shape}")
    return values


def view_values(sample: Sample, view_set: ViewSetManifest, deep: bool) -> dict[str, Any]:
    """The json of one sample of a tar of views. Raises ValueError saying what is wrong with the sample."""
    try:
        values = from_json(sample.members[JSON])  # cameras are many numbers: half the time of json.loads
        views = values["views"]
        pictures = {s: split_view_member(s) for s in sample.members if s != JSON}
        whole = {p[0] for p in pictures.values() if p} == set(range(len(views)))
        expected = view_set.preset.num_views
        fewer = view_set.preset.reads == "frames" and 0 < len(views) < expected
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"unreadable ({error})") from error
    if values.get("key") != sample.key or values.get("preset") != view_set.name:
        raise ValueError(f"its json is of the key {values.get('key')} and the view set {values.get('preset')}")
    if (len(views) != expected and not fewer) or not whole:
        raise ValueError(f"{number_of(len(views), 'view')}, the preset has {expected}")
    for suffix, place in pictures.items():
        try:
            if place is None:
                raise ValueError("no picture of a view")
            view, channel = place
            size = (views[view]["width"], views[view]["height"])
            head = _head(sample.members[suffix], deep)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"unreadable ({suffix}: {error})") from error
        if head[:2] != size:
            raise ValueError(f"{suffix} is {head[:2]}, its camera {size} (width, height)")
        if head[2:] != _KINDS.get(channel, head[2:]):
            raise ValueError(f"{suffix} has {head.channels} channels of {head.bits} bits")
    return values


def _head(data: bytes, deep: bool) -> PictureHead:
    """Size and kind of a picture, from its headers where they tell. Raises ValueError where it is damaged."""
    head = None if deep else read_head(data)
    if head is None:
        picture = decode_picture(data)
        channels = 1 if picture.ndim == 2 else picture.shape[2]
        head = PictureHead(picture.shape[1], picture.shape[0], channels, 8 * picture.dtype.itemsize)
    return head


def warning_counts(rows: Any) -> dict[str, int]:
    """type -> count of the warnings of a sample. Raises ValueError on anything else."""
    counts = {w["type"]: w["count"] for w in rows}
    if not all(isinstance(kind, str) and isinstance(count, int) for kind, count in counts.items()):
        raise ValueError("its warnings are no types with counts")
    return counts


def worded(error: Exception) -> str:
    """What an error of these checks says; JSON of another form raises errors whose text alone means little."""
    return f"unreadable ({error!r})" if isinstance(error, ODD) else str(error)
