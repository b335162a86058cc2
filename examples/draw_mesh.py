"""Draws a mesh file by a view preset, and writes all views as one picture.

    python examples/draw_mesh.py chair.obj --out chair.png --preset rgb12 image_size=224

`python -m pipeline presets` lists the presets, and `presets NAME` the keys of one.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import trimesh
from PIL import Image

import renderers
from manifests.config import parse_changes


def sheet(pictures: np.ndarray) -> Image.Image:
    """Pictures float (V, 3, H, W) in [0, 1], beside and below each other."""
    across = math.ceil(math.sqrt(len(pictures)))
    empty = np.ones((across * math.ceil(len(pictures) / across) - len(pictures), *pictures.shape[1:]), np.float32)
    tiles = np.concatenate([pictures, empty]).transpose(0, 2, 3, 1)
    rows = [np.concatenate(list(tiles[i : i + across]), axis=1) for i in range(0, len(tiles), across)]
    return Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="All views of a mesh as one picture.")
    parser.add_argument("mesh", help="any mesh file that trimesh reads, with +Y up")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changed keys of the preset")
    parser.add_argument("--preset", default="rgb12")
    parser.add_argument("--out", default="views.png")
    options = parser.parse_intermixed_args()
    views = renderers.draw(renderers.fit(trimesh.load(options.mesh)), options.preset, **parse_changes(options.changes))
    sheet(views.pictures).save(options.out)
    print(f"{options.out}: {views}")
