"""A miniature CO3D release after the official schema: a known object, known cameras, masks and depth by projecting it.

Everything is computed in PyTorch3D's own terms (row vectors, x left, y up, NDC), so that the pipeline's conversion is
held against a second way of writing it.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from redwood_release import jpeg, png, write_ply
from shapes import chair

from renderers.geometry import Mesh
from renderers.sampling import sample_surface

OBJECT_COLOR = (40, 60, 30)


@dataclass(frozen=True)
class P3dCamera:
    """R (3, 3), T (3,): X_cam = X R + T. focal, principal: NDC of `convention`."""

    R: np.ndarray
    T: np.ndarray
    focal: tuple[float, float]
    principal: tuple[float, float]
    convention: str

    def screen(self, points: np.ndarray, width: int, height: int) -> np.ndarray:
        """Pixels (N, 2), x to the right and y down from the top left corner (PyTorch3D, docs/notes/cameras.md)."""
        seen = points @ self.R + self.T
        ndc = seen[:, :2] / seen[:, 2:] * self.focal + self.principal
        side = np.array([width, height]) if self.convention != "ndc_isotropic" else np.full(2, min(width, height))
        return np.array([width, height]) / 2 - ndc * side / 2

    def depth(self, points: np.ndarray) -> np.ndarray:
        return (points @ self.R + self.T)[:, 2]


def orbit(
    up: np.ndarray, frames: int, size: tuple[int, int], convention: str, seed: int = 0, tilt: float = 0.4
) -> list[P3dCamera]:
    """Cameras on a circle about `up`, looking down at the origin from 4 units, a little off the centre."""
    rng = np.random.default_rng(seed)
    up = up / np.linalg.norm(up)
    aside = np.cross(up, [1.0, 0.2, -0.1])
    aside /= np.linalg.norm(aside)
    width, height = size
    cameras = []
    for angle in 2 * np.pi * np.arange(frames) / frames:
        level = np.cos(angle) * aside + np.sin(angle) * np.cross(up, aside)
        eye = 4 * (np.cos(tilt) * level + np.sin(tilt) * up)
        z = -eye / np.linalg.norm(eye)
        x = np.cross(up, z)  # PyTorch3D: x = up x z, which points to the left
        x /= np.linalg.norm(x)
        R = np.stack([x, np.cross(z, x), z], axis=1)  # columns are the camera's axes
        pixels = 1.8 * min(width, height)
        principal = rng.uniform(-0.08, 0.08, 2)
        half = np.array([width, height]) / 2 if convention != "ndc_isotropic" else np.full(2, min(width, height) / 2)
        focal = np.array([pixels, 1.07 * pixels]) / half
        cameras.append(P3dCamera(R, -eye @ R + rng.uniform(-0.05, 0.05, 3), tuple(focal), tuple(principal), convention))
    return cameras


def silhouette(mesh: Mesh, camera: P3dCamera, width: int, height: int) -> np.ndarray:
    """bool (H, W): every triangle drawn as a polygon."""
    return polygons(camera.screen(mesh.vertices, width, height), mesh.faces, width, height)


def polygons(pixels: np.ndarray, faces: np.ndarray, width: int, height: int) -> np.ndarray:
    """bool (H, W) of triangles whose corners are given in continuous pixels (V, 2)."""
    image = Image.new("1", (width, height))
    pen = ImageDraw.Draw(image)
    for face in faces:
        pen.polygon([tuple(pixels[v] - 0.5) for v in face], fill=1, outline=1)
    return np.asarray(image)


def turned_chair(seed: int, scale: float = 0.9) -> tuple[Mesh, np.ndarray]:
    """A chair in a frame of its own, and where its +Y went."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q *= np.sign(np.linalg.det(q))
    matrix = np.eye(4)
    matrix[:3, :3] = scale * q
    return chair().transformed(matrix), q[:, 1]


def write_sequence(
    root: Path,
    category: str,
    name: str,
    *,
    version: int,
    convention: str,
    size: tuple[int, int] = (120, 160),
    num_frames: int = 24,
    seed: int = 0,
    black: tuple[int, ...] = (),
    with_cloud: bool = True,
) -> tuple[list[dict], dict]:
    """Files of one sequence; its frame annotations and its sequence annotation. size: (width, height)."""
    width, height = size
    mesh, up = turned_chair(seed)
    folder = f"{category}/{name}"
    rng = np.random.default_rng(seed)
    points, colors = sample_surface(mesh, 3000, rng)
    if with_cloud:
        write_ply(root / folder / "pointcloud.ply", points, colors=colors)
    records = []
    for place, camera in enumerate(orbit(up, num_frames, size, convention, seed)):
        mask = silhouette(mesh, camera, width, height)
        picture = np.full((height, width, 3), 250, np.uint8)
        picture[mask] = OBJECT_COLOR
        if place in black:
            picture[:], mask = 0, np.zeros_like(mask)
        stem = f"frame{place + 1:06d}"
        scale = 1.7
        depth = np.where(mask, camera.depth(np.zeros((1, 3)))[0] / scale, 0).astype(np.float16)
        for sub, file, data in (
            ("images", f"{stem}.jpg", jpeg(picture)),
            ("masks", f"{stem}.png", png(np.where(mask, 230, 10).astype(np.uint8))),
            ("depths", f"{stem}.jpg.geometric.png", png(depth.view(np.uint16))),
            ("depth_masks", f"{stem}.png", png(mask.astype(np.uint8) * 255)),
        ):
            path = root / folder / sub / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        viewpoint = {
            "R": camera.R.tolist(),
            "T": camera.T.tolist(),
            "focal_length": list(camera.focal),
            "principal_point": list(camera.principal),
        }
        if version == 2 or convention == "ndc_isotropic":
            viewpoint["intrinsics_format"] = convention
        records.append(
            {
                "sequence_name": name,
                "frame_number": 10 * place,  # not the number in the file's name
                "frame_timestamp": place / 5,
                "image": {"path": f"{folder}/images/{stem}.jpg", "size": [height, width]},
                "depth": {
                    "path": f"{folder}/depths/{stem}.jpg.geometric.png",
                    "scale_adjustment": scale,
                    "mask_path": f"{folder}/depth_masks/{stem}.png",
                },
                "mask": {"path": f"{folder}/masks/{stem}.png", "mass": float(mask.sum()), "bounding_box_xywh": None},
                "viewpoint": viewpoint,
                "meta": {"frame_type": "train", "frame_splits": ["x"]}
                if version == 2
                else {"frame_type": "train_known"},
            }
        )
    cloud = {"path": f"{folder}/pointcloud.ply", "quality_score": 0.7, "n_points": len(points)} if with_cloud else None
    sequence = {
        "sequence_name": name,
        "category": category,
        "video": {"path": f"{folder}/video.mp4", "length": num_frames / 5},
        "point_cloud": cloud,
        "viewpoint_quality_score": 1.0,
    }
    return records, sequence


def write_category(root: Path, category: str, version: int, names: list[str], **keys: object) -> None:
    """Sequences of a category, its annotations and its set lists (train, val and test by turns)."""
    frames, sequences = [], []
    convention = keys.pop("convention", "ndc_isotropic" if version == 2 else "ndc_norm_image_bounds")
    for seed, name in enumerate(names):
        more, one = write_sequence(root, category, name, version=version, convention=convention, seed=seed, **keys)
        frames += more
        sequences.append(one)
    jgz(root / category / "frame_annotations.jgz", frames)
    jgz(root / category / "sequence_annotations.jgz", sequences)
    of = {
        name: [[name, f["frame_number"], f["image"]["path"]] for f in frames if f["sequence_name"] == name]
        for name in names
    }
    if version == 2:
        lists = {
            split: [e for name in names[i::3] for e in of[name]] for i, split in enumerate(("train", "val", "test"))
        }
        (root / category / "set_lists").mkdir(exist_ok=True)
        (root / category / "set_lists" / "set_lists_fewview_dev.json").write_text(json.dumps(lists))
    else:
        lists = {
            "train_known": [e for name in names[0::2] for e in of[name][::2]],
            "train_unseen": [e for name in names[0::2] for e in of[name][1::2]],
            "test_known": [e for name in names[1::2] for e in of[name]],
            "test_unseen": [],
        }
        (root / category / "set_lists.json").write_text(json.dumps(lists))


def jgz(path: Path, values: object) -> None:
    """As co3d's dump_dataclass_jgzip writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(values).encode(), mtime=0))
