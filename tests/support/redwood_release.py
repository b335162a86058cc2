"""A miniature Redwood release: indices, meshes and RGB-D archives in the exact layout."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

STEP_US = 33_367


def write_ply(
    path: Path, vertices: np.ndarray, faces: np.ndarray | None = None, colors: np.ndarray | None = None
) -> None:
    """Binary little-endian, float32 vertices, uchar colours, int faces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = [(axis, "<f4") for axis in "xyz"]
    names = ["property float " + axis for axis in "xyz"]
    if colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
        names += ["property uchar " + name for name in ("red", "green", "blue")]
    rows = np.zeros(len(vertices), fields)
    for place, axis in enumerate("xyz"):
        rows[axis] = vertices[:, place]
    for place, name in enumerate(("red", "green", "blue") if colors is not None else ()):
        rows[name] = colors[:, place]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *names]
    data = rows.tobytes()
    if faces is not None:
        table = np.zeros(len(faces), [("n", "u1"), ("v", "<i4", 3)])
        table["n"], table["v"] = 3, faces
        head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        data += table.tobytes()
    path.write_bytes("\n".join([*head, "end_header", ""]).encode() + data)


def jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return file.getvalue()


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def color_of(frame: int) -> tuple[int, int, int]:
    """The colour of the left half of a frame; the right half is white."""
    return 8 * (frame % 30), 100, 255 - 8 * (frame % 30)


def rgb_frame(frame: int) -> bytes:
    picture = np.full((480, 640, 3), 255, np.uint8)
    picture[:, :320] = color_of(frame)
    return jpeg(picture)


def depth_frame(frame: int) -> bytes:
    """1,000 + frame millimetres in the left half, nothing in the right one."""
    depth = np.zeros((480, 640), np.uint16)
    depth[:, :320] = 1000 + frame
    return png(depth)


def write_scan(path: Path, frames: int, lost_depth: tuple[int, ...] = ()) -> None:
    """An archive whose depth comes 5 ms after its colour and lacks some frames, so that numbers do not pair them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        number = 0
        for frame in range(frames):
            if frame not in lost_depth:
                number += 1
                archive.writestr(f"depth/{number:07d}-{frame * STEP_US + 5000:012d}.png", depth_frame(frame))
        for frame in reversed(range(frames)):
            archive.writestr(f"rgb/{frame + 1:07d}-{frame * STEP_US:012d}.jpg", rgb_frame(frame))


def write_release(
    root: Path, scans: dict[str, list[str]], mesh: tuple[np.ndarray, np.ndarray], frames: int = 24
) -> Path:
    """class -> ids; every id has a mesh and a scan."""
    ids = sorted(id for of_class in scans.values() for id in of_class)
    root.mkdir(parents=True, exist_ok=True)
    (root / "categories.json").write_text(json.dumps(scans | {"appliance": ["01532"]}))
    (root / "meshes.json").write_text(json.dumps([*ids, "99999"]))
    (root / "rgbds.json").write_text(json.dumps([*ids, "01532"]))
    for id in ids:
        write_ply(root / "data" / "mesh" / f"{id}.ply", *mesh)
        write_scan(root / "data" / "rgbd" / f"{id}.zip", frames, lost_depth=(3, 4))
    return root
