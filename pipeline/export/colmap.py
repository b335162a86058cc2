"""Writes one object as a COLMAP model: images/, masks/ and sparse/0/ with cameras.txt, images.txt and points3D.txt.

COLMAP's conventions are ours: camera from world, x right, y down, z forward, pixel centres at half integers. So a pose
is our camera_from_world as a quaternion and a translation, and K is a PINHOLE camera. Format: colmap.github.io/format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests import store
from manifests.errors import Refused, with_type
from manifests.layout import SHAPES, VIEWS
from manifests.samples import (
    COLORS,
    EMPTY_CODE,
    POINTS,
    Sample,
    decode_array,
    decode_picture,
    encode_picture,
    read_samples,
    split_view_member,
)
from pipeline.export.finished_build import Build, finished_record
from pipeline.export.hub_and_wids import refuse_among_shards

FOLDER = "colmap"
SPARSE = "sparse/0"
_GREY = 128


@dataclass(frozen=True)
class PosedPicture:
    """One view: its name, encoded bytes, its mask's PNG bytes or None, and the entry of the json with its camera."""

    name: str
    data: bytes
    mask: bytes | None
    camera: dict[str, Any]


def write_object(build: Build, to: str | None, key: str | None, overwrite: bool) -> tuple[str, str, str, list[str]]:
    """Writes one object; (folder, key, view set, paths).

    to: None is OUT/colmap/<key>. key: None is the first object that the view set has. The view set is the build's first
    whose pictures are RGB and whose cameras are known and perspective. Raises Refused where no view set is, no such
    object is there, or the folder is not empty.
    """
    name = _view_set(build)
    key, shape, views = _samples(build, name, key)
    try:
        pictures = _pictures(views, name)
        model = _model(pictures, shape)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        words = with_type(error, 100)
        raise Refused(f"{build.out}: {key} is damaged ({words}): python -m pipeline check {build.out}") from error
    folder = store.join(build.out, FOLDER, key) if to is None else store.absolute(to)
    refuse_among_shards(build.out, folder)
    if folder == build.out or (store.list_names(folder) and not overwrite):
        raise Refused(f"--to {folder} is not empty: choose another folder, or --overwrite")
    written = {f"images/{picture.name}": picture.data for picture in pictures}
    written |= {f"masks/{picture.name}.png": picture.mask for picture in pictures if picture.mask is not None}
    written |= {f"{SPARSE}/{file}": text.encode() for file, text in model.items()}
    for path, data in written.items():
        store.write_bytes(store.join(folder, path), data)
    return folder, key, name, [store.join(folder, path) for path in written]


def _view_set(build: Build) -> str:
    """The first view set with RGB seen by perspective cameras. Raises Refused, saying why each view set is not such."""
    reasons = []
    for name, view_set in build.view_sets.items():
        preset = view_set.preset
        if "rgb" not in preset.channels:
            reasons.append(f"{name} has no RGB")
        elif getattr(preset, "projection", "perspective") != "perspective":
            reasons.append(f"{name} is orthographic, which COLMAP does not know")
        elif preset.reads == "files":
            reasons.append(f"{name} has no cameras")
        else:
            return name
    why = "; ".join(reasons) or "there are no view sets"
    raise Refused(f"no view set for COLMAP ({why}): python -m pipeline views rgb12 --shards {build.out}")


def _samples(build: Build, name: str, key: str | None) -> tuple[str, Sample, Sample]:
    """(key, sample of the shapes, sample of the view set) of an object. Raises Refused where it is in neither."""
    failed: dict[str, str] = {}
    for split in build.manifest.num_shards:
        for shapes, views in zip(build.tars(SHAPES, split), build.tars(f"{VIEWS}/{name}", split), strict=True):
            record = finished_record(build.out, views)
            failed |= {f.key: f.reason for f in record.failures} | {s.key: s.reason for s in record.skipped}
            if key in record.keys or (key is None and record.keys):
                found = key or record.keys[0]
                return found, _sample(build.out, shapes, found), _sample(build.out, views, found)
    if key in failed:
        raise Refused(f"--key {key}: it has no views in {name} ({failed[key]})")
    raise Refused(f"--key {key}: no such object in {build.out}; keys are in its assets.jsonl, the second of each line")


def _sample(out: str, tar: str, key: str) -> Sample:
    record = finished_record(out, tar)
    try:
        with store.open_reading(store.join(out, tar)) as file:
            file.seek(record.offsets[record.keys.index(key)])
            return next(sample for _, sample in read_samples(file))
    except (ValueError, OSError, StopIteration) as error:
        raise Refused(f"{store.join(out, tar)}: {error}: python -m pipeline check {out}") from error


def _pictures(views: Sample, name: str) -> list[PosedPicture]:
    """The views of an object whose cameras are known. Raises Refused where no camera is."""
    channels: dict[int, dict[str, str]] = {}
    for suffix in views.members:
        if place := split_view_member(suffix):
            channels.setdefault(place[0], {})[place[1]] = suffix
    found = []
    for view, camera in enumerate(views.json["views"]):
        if camera["model"] != "perspective" or camera["camera_from_world"] is None:
            continue
        rgb, depth = channels[view]["rgb"], channels[view].get("depth")
        mask = None
        if depth is not None:
            hit = decode_picture(views.members[depth]) != EMPTY_CODE
            mask = encode_picture((hit * 255).astype(np.uint8), "png")
        found.append(PosedPicture(f"v{view:03d}.{rgb.rpartition('.')[2]}", views.members[rgb], mask, camera))
    if not found:
        raise Refused(f"{views.key}: no camera of {name} is known; name another view set by --views")
    return found


def _model(pictures: list[PosedPicture], shape: Sample) -> dict[str, str]:
    """The three text files of a model; views of one K and size share a camera."""
    cameras: dict[str, int] = {}
    images = []
    for number, picture in enumerate(pictures, 1):
        camera = cameras.setdefault(_pinhole(picture.camera), len(cameras) + 1)
        pose = np.asarray(picture.camera["camera_from_world"])
        values = " ".join(repr(float(v)) for v in (*quaternion(pose[:3, :3]), *pose[:3, 3]))
        images.append(f"{number} {values} {camera} {picture.name}\n\n")  # no observations: the second line is empty
    points = decode_array(shape.members[POINTS])
    colors: np.ndarray = (
        decode_array(shape.members[COLORS]) if COLORS in shape.members else np.full(points.shape, _GREY, np.uint8)
    )
    rows = [
        f"{number} {x!r} {y!r} {z!r} {r} {g} {b} 0\n"
        for number, ((x, y, z), (r, g, b)) in enumerate(zip(points.tolist(), colors.tolist(), strict=True), 1)
    ]
    return {
        "cameras.txt": "# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY\n"
        + "".join(f"{number} {camera}\n" for camera, number in cameras.items()),
        "images.txt": "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of observations\n" + "".join(images),
        "points3D.txt": "# POINT3D_ID X Y Z R G B ERROR TRACK[]\n" + "".join(rows),
    }


def _pinhole(camera: dict[str, Any]) -> str:
    K = np.asarray(camera["K"])
    if abs(K[0, 1]) > 1e-9 or abs(K[1, 0]) > 1e-9:
        raise Refused("K has skew, which COLMAP's cameras have not")
    values = " ".join(repr(float(v)) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    return f"PINHOLE {camera['width']} {camera['height']} {values}"


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion float64 (4,), w x y z with w >= 0, of a rotation (3, 3).

    It is the eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack 2000), at any angle.
    """
    (a, b, c), (d, e, f), (g, h, i) = np.asarray(rotation, np.float64)
    matrix = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    vector = np.linalg.eigh(matrix)[1][:, -1]
    return vector if vector[0] >= 0 else -vector
