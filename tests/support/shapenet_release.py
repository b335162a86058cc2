"""Miniature ShapeNetCore releases in the exact layout of v1 and of v2, files as their exporters write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CHAIR, RIFLE, CAR = "03001627", "04090263", "02958343"
NO_FACES = "4a32519f44dc84aabafe26e2eb69ebf4"  # a rifle that is broken in both releases
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_SIDES = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]


def box(x: float, y: float, z: float) -> np.ndarray:
    """(8, 3) corners of a box of these sides, a little off the middle in every direction."""
    return _CORNERS * (x, y, z) + np.array([0.1, 0.05, 0.02])


def write_v1(root: Path, synset: str, id: str, corners: np.ndarray, color: tuple[int, int, int] | None) -> Path:
    """<synset>/<id>/model.obj as Blender writes it, with images/texture0.jpg where a colour is given."""
    folder = root / synset / id
    texture = "map_Kd ./images/texture0.jpg\n" if color else ""
    _write(
        folder, folder / "model.obj", corners, f"newmtl material_0_1_8\nKd 1.0 1.0 1.0\nd 1.000000\n{texture}", color
    )
    return folder


def write_v2(root: Path, synset: str, id: str, corners: np.ndarray, color: tuple[int, int, int] | None) -> Path:
    """<synset>/<id>/models/model_normalized.obj as Assimp writes it, with images/ beside models/."""
    folder = root / synset / id
    texture = "map_Kd ../images/texture0.jpg\n" if color else ""
    obj = folder / "models" / "model_normalized.obj"
    _write(folder, obj, corners, f"newmtl material_0_1_8\nKd 1 1 1\nKa 0 0 0\nNs 10\nillum 2\n{texture}", color)
    (folder / "models" / "model_normalized.json").write_text(f'{{"id": "{id}"}}')
    return folder


def _write(folder: Path, obj: Path, corners: np.ndarray, mtl: str, color: tuple[int, int, int] | None) -> None:
    obj.parent.mkdir(parents=True)
    if color:
        (folder / "images").mkdir()
        Image.new("RGB", (16, 16), color).save(folder / "images" / "texture0.jpg", quality=95)
    obj.with_suffix(".mtl").write_text(mtl)
    lines = [f"mtllib {obj.stem}.mtl", *("v {:.6f} {:.6f} {:.6f}".format(*corner) for corner in corners)]
    lines += ["vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1", "g mesh1_mesh1-geometry", "usemtl material_0_1_8"]
    for a, b, c, d in _SIDES:
        lines += [f"f {a}/1 {b}/2 {c}/3", f"f {a}/1 {c}/3 {d}/4"]
    obj.write_text("\n".join(lines) + "\n")
