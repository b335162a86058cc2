"""The training loader: samples/s on one core, JPEG decoding and weak and strong of both modalities included.

    python tests/bench/bench_loader.py

Builds parametric objects into a temporary folder first. Baseline of the ratio: the released loading and augmentation
(Cross-MoST), written down here straightforwardly: a picture file and a cloud file a sample, torchvision and timm on
Pillow pictures, float64 clouds, eleven failing crops, and filling up to 8,192 points from a full matrix of distances.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe_machine, one_core

one_core()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from timm.data.auto_augment import rand_augment_transform  # noqa: E402
from torchvision import transforms  # noqa: E402

from manifests.mappings import NORMALIZE  # noqa: E402
from training.augment import AugmentSettings  # noqa: E402
from training.data import Form, batches_of, unlabelled  # noqa: E402
from training.join import DataSettings, Source, open_source, read_joined  # noqa: E402
from training.objects import num_views, picture_of  # noqa: E402
from training.recipe import read_recipe  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MEAN, DEVIATION = NORMALIZE["clip"]
SECONDS = 8.0


def build(out: str, objects: int, image_size: int, num_points: int) -> None:
    """Shards of parametric objects with 12 RGB views."""
    keys = {
        "parametric.objects": objects,
        "parametric.test_fraction": 0,
        "num_points": num_points,
        "views.rgb12.image_size": image_size,
        "views.rgb12.channels": '["rgb"]',
    }
    changes = [f"{name}={value}" for name, value in keys.items()]
    command = [sys.executable, "-m", "pipeline", "build", "parametric", "--out", out, "--workers", "0", *changes]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)


def samples_a_second(source: Source, settings: DataSettings, augment: AugmentSettings, form: Form, batch: int) -> float:
    """Of the loader that training uses, over whole epochs, after one that is not counted."""
    samples, loader = unlabelled(source, settings, augment, form, batch, 0)
    sum(len(batch.keys) for batch in batches_of(loader))
    start, count, epoch = time.perf_counter(), 0, 0
    while time.perf_counter() - start < SECONDS:
        epoch += 1
        samples.set_epoch(epoch)
        count += sum(len(batch.keys) for batch in batches_of(loader))
    return count / (time.perf_counter() - start)


def released_samples_a_second(source: Source, folder: Path, num_points: int) -> float:
    """Of the released way, on the same objects in files of their own."""
    files = unpacked(source, folder)
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    bicubic = transforms.InterpolationMode.BICUBIC
    weak = transforms.Compose([transforms.Resize(224, bicubic), transforms.RandomCrop(224), *normalize])
    options = {"translate_pct": 0.45, "img_mean": tuple(round(255 * m) for m in MEAN), "interpolation": Image.BICUBIC}
    operations = rand_augment_transform("rand-m9-mstd0.5-inc1", options)
    for operation in operations.ops:
        operation.magnitude_max = 9.99  # or Pillow of today refuses to posterise now and then
    strong = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, (0.3, 1.0), interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            operations,
            *normalize,
        ]
    )
    rng, start, count = np.random.default_rng(0), time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        views, cloud = files[count % len(files)]
        picture = Image.open(views[rng.integers(len(views))]).convert("RGB")
        points = np.load(cloud)[:num_points].astype(np.float64)
        weak(picture), strong(picture)
        torch.from_numpy(released_weak_cloud(points.copy(), rng)).float()
        torch.from_numpy(released_strong_cloud(points.copy(), num_points, rng)).float()
        count += 1
    return count / (time.perf_counter() - start)


def unpacked(source: Source, folder: Path) -> list[tuple[list[Path], Path]]:
    """The files of pictures and of the cloud of each object."""
    files = []
    for shard in source.shards:
        for shape, views in read_joined(shard, range(len(shard.keys))):
            pictures = [folder / f"{shape.key}_{view:03d}.png" for view in range(num_views(views))]
            for view, path in enumerate(pictures):
                Image.fromarray(picture_of(views, view, "rgb", source.view_set.preset)).save(path)
            cloud = folder / f"{shape.key}.npy"
            cloud.write_bytes(shape.members["points.npy"])
            files.append((pictures, cloud))
    return files


def released_normalized(points: np.ndarray) -> np.ndarray:
    """About the centroid, farthest point at 1."""
    points = points - points.mean(axis=0)
    return points / np.sqrt((points**2).sum(axis=1)).max()


def turn(axis: int, angle: float) -> np.ndarray:
    """A rotation about one axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.roll(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), (axis, axis), (0, 1))


def released_weak_cloud(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normalised, scaled, turned a little."""
    points = released_normalized(points) * rng.uniform(0.9, 1.1)
    angles = np.clip(rng.normal(0, 0.06, 3), -0.18, 0.18)
    return points @ (turn(2, angles[2]) @ turn(1, angles[1]) @ turn(0, angles[0])).T


def released_strong_cloud(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Normalised, scaled, turned, shifted, jittered, dropped onto point 0, not cropped, filled up by interpolation."""
    points = released_normalized(points) * rng.uniform(0.5, 2)
    points = points @ turn(1, rng.uniform(0, 2 * np.pi)).T
    points = points + rng.uniform(-0.5, 0.5, 3) * (points.max(axis=0) - points.min(axis=0))
    points = points + np.clip(rng.normal(0, 0.01, points.shape), -0.05, 0.05)
    points[rng.random(len(points)) < rng.uniform(0, 0.875)] = points[0]
    low, high = points.min(axis=0), points.max(axis=0)
    for _ in range(11):  # sides of 1.1 to 9 times the cloud's: every box holds every point, and the crop is given up
        half = rng.uniform(1.1, 9, 3) * (high - low) / 2
        middle = points[rng.integers(len(points))]
        _ = points[((points > middle - half) & (points < middle + half)).all(axis=1)]
    cloud = torch.from_numpy(points).float()
    distances = torch.cdist(cloud, cloud)
    picked = torch.from_numpy(rng.integers(len(points), size=count - len(points)))
    nearest = distances[picked].topk(10, largest=False).indices
    return torch.cat([cloud, cloud[nearest].mean(dim=1)]).numpy()


def main() -> None:
    """Prints the rate at full size, its ratio to the baseline, and the rate of small pictures."""
    torch.set_num_threads(1)
    print(f"{describe_machine()}; one core, one thread, no reader processes")
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/full"
        build(out, 64, 224, 8192)
        settings, files = DataSettings(num_points=8192), Path(folder) / "files"
        source = open_source(out, settings)
        files.mkdir()
        rate = samples_a_second(source, settings, AugmentSettings(), Form(224, 16, 32, 0.3), 32)
        released = released_samples_a_second(source, files, 8192)
        print(f"224 px, 8,192 points: {rate:.0f} samples/s, {rate / released:.0f} x the released way ({released:.2f})")
        out = f"{folder}/small"
        build(out, 256, 48, 1024)
        recipe = read_recipe("small_cross_most", {})
        rate = samples_a_second(open_source(out, recipe.data), recipe.data, recipe.augment, Form(48, 8, 16, 0.3), 64)
        print(f"48 px, {recipe.data.num_points} points, small_cross_most: {rate:.0f} samples/s")


if __name__ == "__main__":
    main()
