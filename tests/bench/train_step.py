"""One full training step at full size against the bare towers, in one run: how much all else costs.

    python tests/bench/train_step.py [--device cuda] [--precision bf16] [--compile] [--batch 4,8] [--profile]

ViT-B/16 at 224 px, Point-BERT of 64 groups of 32 in 8,192 points, 40 classes, random weights, random pictures and
clouds: what the released code's own figure was taken of (batch 4, 2 threads, float32). A step is everything but the
loader: pictures normalised, clouds augmented, the teacher, the student's masked pass, all losses, backward, AdamW, the
moving average. Baseline, the bare towers: the teacher's forward, the student's masked forward and the backward of the
sum of its features, on the same weights and a batch that is ready. Both are timed in turn; minima and medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

THREADS = 2
if "--device" not in sys.argv:
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from machine import describe_machine  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from training.data.batch import Batch, RawBatch  # noqa: E402
from training.data.image_augment import image_mask  # noqa: E402
from training.loop.update import Updates, updates_of  # noqa: E402
from training.models.clip import build_towers  # noqa: E402
from training.models.cross_modal import CrossModalModel  # noqa: E402
from training.networks.neighbours import farthest_points  # noqa: E402
from training.networks.point_bert import PointTower  # noqa: E402
from training.settings.data import AugmentSettings  # noqa: E402
from training.settings.fit_recipe import CrossMostRecipe  # noqa: E402
from training.settings.model import ImageSettings, PointSettings  # noqa: E402

CLASSES, NUM_POINTS, IMAGE_SIZE = 40, 8192, 224
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RELEASED_SECONDS, RELEASED_GB = 4.36, 4.3  # batch 4, 2 threads, measured on another day on a machine of this kind


def full_size(device: torch.device, recipe: CrossMostRecipe) -> Updates:
    """A run's updates with random weights."""
    torch.manual_seed(0)
    image, text, _ = build_towers(ImageSettings())
    del text
    points = PointTower(PointSettings(), image.embed_dim)
    classifier = torch.nn.functional.normalize(torch.randn(image.embed_dim, CLASSES), dim=0)
    student = CrossModalModel(image, points, classifier, float(np.log(100))).to(device).train()
    return updates_of(student, recipe, 1000)


def raw_batch(size: int) -> RawBatch:
    """Random pictures and clouds, as a loader gives them."""
    rng = np.random.default_rng(0)

    def pictures() -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, 256, (size, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8))

    masks = [image_mask(IMAGE_SIZE, 16, 32, 0.3, rng) for _ in range(size)]
    return RawBatch(
        keys=tuple(map(str, range(size))),
        weak_image=pictures(),
        strong_image=pictures(),
        points=torch.from_numpy(rng.standard_normal((size, NUM_POINTS, 3), np.float32)),
        seed=torch.arange(size),
        image_mask=torch.from_numpy(np.stack(masks)),
        points_draw=torch.rand(size, 2),
        modality_draw=torch.rand(size),
        mean=MEAN,
        deviation=DEVIATION,
        augment=AugmentSettings(),
    )


def bare(updates: Updates, batch: Batch) -> None:
    """Both towers of the teacher forward, of the student forward and backward."""
    student, teacher = updates.student, updates.teacher.model
    with student.inside_towers(batch.weak_image.device):
        with torch.no_grad():
            teacher.image(batch.weak_image)
            teacher.points(batch.weak_points)
        image = student.image(batch.strong_image, batch.image_mask)
        points = student.points(batch.strong_points, batch.points_draw)
    updates.optimizer.zero_grad(set_to_none=True)
    (image.feature.sum() + points.feature.sum()).backward()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, with all that it started on the device."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def pieces(updates: Updates, raw: RawBatch, device: torch.device) -> dict[str, Callable[[], object]]:
    """What a step has beside the towers, as far as it can be called alone."""
    batch, student = raw.to(device), updates.student
    return {
        "pictures and clouds": lambda: raw.to(device),
        "group centres, one pass": lambda: farthest_points(batch.strong_points, student.points.settings.groups),
        "AdamW": updates.optimizer.step,
        "moving average": lambda: updates.teacher.update(student, 0),
    }


def measure(options: argparse.Namespace, size: int) -> dict[str, float]:
    """Seconds of a step, of the bare towers and of pieces: minima and medians; memory of the step alone."""
    device = torch.device(options.device)
    recipe = CrossMostRecipe.model_validate({"precision": options.precision, "compile": options.compile})
    updates, raw = full_size(device, recipe), raw_batch(size)
    raw = raw.pin_memory() if device.type == "cuda" else raw
    batch = raw.to(device)
    for step in range(2 + 3 * options.compile):  # the first update allocates AdamW's moments, or compiles
        updates(raw.to(device), step)
        bare(updates, batch)
    step_seconds, bare_seconds = [], []
    for _ in range(options.repeats):
        step_seconds.append(seconds(lambda: updates(raw.to(device), 5), device))
        bare_seconds.append(seconds(lambda: bare(updates, batch), device))
    updates(raw.to(device), 5)
    found = {
        "step": min(step_seconds),
        "step, median": float(np.median(step_seconds)),
        "bare": min(bare_seconds),
        "bare, median": float(np.median(bare_seconds)),
    }
    for name, call in pieces(updates, raw, device).items():
        found[name] = min(seconds(call, device) for _ in range(10))
    return found


def peak(options: argparse.Namespace, size: int) -> float:
    """GB of a process that does three steps and nothing else: resident, or allocated on the GPU."""
    device = torch.device(options.device)
    recipe = CrossMostRecipe.model_validate({"precision": options.precision, "compile": options.compile})
    updates, raw = full_size(device, recipe), raw_batch(size)
    for step in range(3):
        updates(raw.to(device), step)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def matmul_rate(device: torch.device) -> float:
    """Measured bf16 floating-point operations a second of one large product (8192 x 8192 x 8192)."""
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    return 2 * 8192**3 / min(seconds(lambda: left @ right, device) for _ in range(20))


def floating_point_operations(updates: Updates, batch: Batch) -> float:
    """Of the matrix products, convolutions and attention of one bare step."""
    with FlopCounterMode(display=False) as counter:
        bare(updates, batch)
    return float(counter.get_total_flops())


def profile(options: argparse.Namespace, size: int) -> str:
    """A table of the ten operations that take longest in themselves, over three steps."""
    device = torch.device(options.device)
    recipe = CrossMostRecipe.model_validate({"precision": options.precision, "compile": options.compile})
    updates, raw = full_size(device, recipe), raw_batch(size)
    for step in range(3):
        updates(raw.to(device), step)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for step in range(3, 6):
            updates(raw.to(device), step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    kind = "device" if device.type == "cuda" else "cpu"
    times = {event.key: getattr(event, f"self_{kind}_time_total") for event in found.key_averages()}
    calls = {event.key: event.count for event in found.key_averages()}
    total = sum(times.values())
    lines = [f"{'share':>6} {'ms a step':>10} {'calls':>6}  operation"]
    for name in sorted(times, key=times.get, reverse=True)[:10]:
        lines.append(f"{times[name] / total:6.1%} {times[name] / 3000:10.1f} {calls[name] // 3:6}  {name}")
    return "\n".join(lines)


def say(found: dict[str, float], size: int, gb: float) -> None:
    """One batch size in words."""
    ratio, median = found["step"] / found["bare"], found["step, median"] / found["bare, median"]
    print(f"batch {size}: step {found['step']:.3f} s, bare towers {found['bare']:.3f} s: {ratio:.3f} x (bar 1.10)")
    print(f"  medians {found['step, median']:.3f} and {found['bare, median']:.3f} s: {median:.3f} x; peak {gb:.2f} GB")
    for name in list(found)[4:]:
        print(f"  {name}: {1000 * found[name]:.1f} ms, {found[name] / found['step']:.1%} of the step")
    if size == 4:
        print(f"  released code, batch 4, 2 threads, fp32: {RELEASED_SECONDS} s, {RELEASED_GB} GB")


def say_gpu(options: argparse.Namespace, size: int, step_seconds: float) -> None:
    """The share of the GPU's own rate that a step reaches."""
    device = torch.device(options.device)
    updates = full_size(device, CrossMostRecipe.model_validate({"precision": options.precision}))
    operations = floating_point_operations(updates, raw_batch(size).to(device))
    del updates
    rate = matmul_rate(device)
    print(f"  {torch.cuda.get_device_name(device)}: bf16 products {rate / 1e12:.0f} TFLOP/s, the step's own")
    print(f"  {operations / 1e12:.2f} TFLOP: {operations / step_seconds / rate:.1%} of that rate (bar 45 %)")


def main() -> None:
    """Prints the figures, or with --profile the operations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", default="4,8")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--peak", action="store_true", help="print the GB of a process of its own and nothing else")
    options = parser.parse_args()
    sizes = [int(size) for size in options.batch.split(",")]
    torch.set_flush_denormal(True)
    if options.device == "cpu":
        torch.set_num_threads(THREADS)
    if options.peak:
        print(json.dumps(peak(options, sizes[0])))
        return
    print(f"{describe_machine()}; {options.device}, {options.precision}, {torch.get_num_threads()} threads")
    for size in sizes:
        if options.profile:
            print(f"batch {size}\n{profile(options, size)}")
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--batch", str(size), "--peak"]
        gb = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found = measure(options, size)
        say(found, size, gb)
        if options.device != "cpu":
            say_gpu(options, size, found["step"])


if __name__ == "__main__":
    main()
