"""Finds the objects of a build that are nearest to words, a picture or a cloud, in the space that a run has learned.

    python -m training embed runs/demo-quick/cross_most --shards runs/demo-quick/target --out features.npz
    python examples/nearest_objects.py runs/demo-quick/cross_most features.npz "a photo of a chair."
    python examples/nearest_objects.py runs/demo-quick/cross_most features.npz picture.jpg

The second and third answer in text: likeness (a cosine), key and class, the nearest first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import training

PICTURES = (".jpg", ".jpeg", ".png")
CLOUDS = (".npy", ".txt", ".xyz")


def feature_of(model: training.Classifier, asked: str) -> np.ndarray:
    """The unit feature (E,) of a picture file, a cloud file (N, 3), or words."""
    ending = Path(asked).suffix.lower()
    if ending in PICTURES:
        return model.encode_image(asked)[0].numpy()
    if ending in CLOUDS:
        cloud = np.load(asked) if ending == ".npy" else np.loadtxt(asked)
        return model.encode_points(cloud[:, :3])[0].numpy()
    return model.encode_text(asked)[0].numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The objects that are nearest to a query.")
    parser.add_argument("checkpoint", help="a run, a checkpoint or a file of `weights --out`")
    parser.add_argument("features", help="what `embed` wrote with the same checkpoint")
    parser.add_argument("query", help="words, a picture file or a cloud file")
    parser.add_argument("--count", type=int, default=5)
    options = parser.parse_args()
    stored = np.load(options.features, allow_pickle=False)
    near = stored["points"] @ feature_of(training.load(options.checkpoint), options.query)
    for i in np.argsort(-near)[: options.count]:
        label = stored["label"][i]
        print(f"{near[i]:6.3f}  {stored['keys'][i]}  {stored['classes'][label] if label >= 0 else 'no class'}")
