"""Streams clouds and pictures of a build with webdataset alone: for a training loop that is not ours.

    python examples/read_shards.py runs/demo-quick/target --split train --views rgb12

The shards are plain tars (docs/format.md). Those of shapes and of a view set have the same names and the same keys in
the same order, but a view set lacks the objects that it could not draw: the two are joined by key.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset


def objects(out: str, split: str, views: str) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """Yields key, points float32 (N, 3), pictures uint8 (V, H, W, 3) and label of each object that was drawn."""
    for tar in sorted(Path(out, "shapes").glob(f"{split}-?????.tar")):
        shapes = iter(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
        drawn = webdataset.WebDataset(str(Path(out, "views", views, tar.name)), shardshuffle=False).decode("rgb8")
        for sample in drawn:
            shape = next(each for each in shapes if each["__key__"] == sample["__key__"])
            names = sorted(name for name in sample if name.endswith((".rgb.jpg", ".rgb.png")))
            pictures = np.stack([sample[name] for name in names])
            yield sample["__key__"], shape["points.npy"], pictures, shape["json"]["label"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What a build holds, as arrays.")
    parser.add_argument("out", help="a finished build")
    parser.add_argument("--split", default="train")
    parser.add_argument("--views", default="rgb12", help="a view set with RGB")
    options = parser.parse_args()
    for key, points, pictures, label in objects(options.out, options.split, options.views):
        print(f"{key}: points {points.shape}, pictures {pictures.shape}, label {label}")
