"""The training loader: samples/s on one core, JPEG decoding and weak and strong of both modalities included.

    python tests/bench/bench_loader.py

Builds parametric objects into a temporary folder first, 12 RGB and 12 depth pictures each. Says:

- samples/s of reading, decoding and augmenting, clouds included, which a GPU does where there is one (`Batch.to`);
- the share of that rate that is left of the same work on samples in memory, in turns in the same run;
- bytes read of a local disk, of bytes used: by this process, and by the kernel from the disk with nothing cached;
- a multiple of the released loading and augmentation (Cross-MoST), written down here straightforwardly: a picture file
  and a cloud file a sample, torchvision and timm on Pillow pictures, float64 clouds, eleven failing crops, and filling
  up to 8,192 points from a full matrix of distances.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine, one_core

one_core()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from timm.data.auto_augment import rand_augment_transform  # noqa: E402
from torchvision import transforms  # noqa: E402

from manifests.picture_mapping import NORMALIZE  # noqa: E402
from training.data.batch import RawBatch  # noqa: E402
from training.data.dataset import Source, open_source  # noqa: E402
from training.data.decode import num_views, picture_of  # noqa: E402
from training.data.loader import Drawn, Form, Loader, UnlabelledSamples  # noqa: E402
from training.data.shard_reader import read_joined  # noqa: E402
from training.settings.data import AugmentSettings, DataSettings  # noqa: E402
from training.settings.fit_recipe import read_recipe  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MEAN, DEVIATION = NORMALIZE["clip"]
SECONDS = 8.0


def build(out: str, objects: int, image_size: int, num_points: int) -> None:
    """Shards of parametric objects with 12 RGB and 12 depth pictures."""
    keys = {
        "parametric.objects": objects,
        "parametric.test_fraction": 0,
        "num_points": num_points,
        "views.rgb12.image_size": image_size,
    }
    changes = [f"{name}={value}" for name, value in keys.items()]
    command = [sys.executable, "-m", "pipeline", "build", "parametric", "--out", out, "--workers", "0", *changes]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)


@dataclass(frozen=True)
class Rates:
    """Samples a second: of a reader process, and with its clouds augmented on the same core; `memory`: the latter of
    samples in memory. Each the best of the turns.
    """

    reader: float
    whole: float
    memory: float


def rates_of(source: Source, settings: DataSettings, augment: AugmentSettings, form: Form, batch: int) -> Rates:
    """Of the loader that training uses and of the same work on samples in memory, an epoch of each in turns."""
    samples = UnlabelledSamples(source, settings, augment, form, batch, 0)
    loader = Loader(samples)
    kept = list(samples._drawn(0, [], 0, 1))
    device, best = torch.device("cpu"), Rates(0, 0, 0)
    start, epoch = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        samples.set_epoch(epoch)
        epoch += 1
        reading = making = 0.0
        for batches in (iter(loader), in_memory(samples, kept)):
            count, taken, moved = 0, 0.0, 0.0
            while True:
                before = time.perf_counter()
                found = next(batches, None)
                if found is None:
                    break
                between = time.perf_counter()
                found.to(device)
                taken, moved = taken + between - before, moved + time.perf_counter() - between
                count += len(found.keys)
            if not reading:
                reading, making = taken, taken + moved
        if epoch > 1:  # the first is not counted
            best = Rates(
                max(best.reader, count / reading),
                max(best.whole, count / making),
                max(best.memory, count / (taken + moved)),
            )
    return best


def in_memory(samples: UnlabelledSamples, kept: list[Drawn]) -> Iterator[RawBatch]:
    """The batches of samples whose bytes are in memory."""
    for first in range(0, len(kept) - samples.batch_size + 1, samples.batch_size):
        yield samples._collate([samples._make(drawn) for drawn in kept[first : first + samples.batch_size]])


def bytes_read(source: Source, settings: DataSettings, form: Form) -> tuple[float, float, float]:
    """kB an object used, bytes asked for and bytes that the disk gave of each byte used, with nothing cached."""
    for shard in source.shards:
        for tar in (shard.shapes, shard.views):
            with open(tar, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    samples = UnlabelledSamples(source, settings, AugmentSettings(), form, 1, 0)
    used, before = 0, kernel_counts()
    for drawn in samples._drawn(0, [], 0, 1):
        used += sum(len(data) for sample in (drawn.shape, drawn.views) for data in sample.members.values())
    after = kernel_counts()
    asked, given = (after[name] - before[name] for name in ("rchar", "read_bytes"))
    return used / source.total / 1000, asked / used, given / used


def kernel_counts() -> dict[str, int]:
    """What this process has read."""
    return {name: int(n) for name, n in (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())}


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
        form = Form(224, 16, 32, 0.3)
        kilobytes, asked, given = bytes_read(source, settings, form)
        print(f"{kilobytes:.0f} kB used of an object; read {asked:.2f} x that, the disk gave {given:.2f} x (no cache)")
        tell("224 px, 8,192 points", rates := rates_of(source, settings, AugmentSettings(), form, 32))
        released = released_samples_a_second(source, files, 8192)
        print(f"the released way: {released:.2f} samples/s; {rates.whole / released:.0f} x that")
        out = f"{folder}/small"
        build(out, 256, 48, 1024)
        recipe = read_recipe("small_cross_most", {})
        small = rates_of(open_source(out, recipe.data), recipe.data, recipe.augment, Form(48, 8, 16, 0.3), 64)
        tell(f"48 px, {recipe.data.num_points} points, small_cross_most", small)


def tell(name: str, rates: Rates) -> None:
    """One line."""
    share = 100 * rates.whole / rates.memory
    print(
        f"{name}: {rates.whole:.0f} samples/s with clouds augmented on the same core, {share:.0f}% of the same work in "
        f"memory ({rates.memory:.0f}); a reader process alone {rates.reader:.0f}"
    )


if __name__ == "__main__":
    main()
