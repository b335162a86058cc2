"""A step of CrossPoint: seconds, memory, samples/s and the loader's share, for PointNet and DGCNN.

    python tests/bench/bench_crosspoint.py [--batch 32] [--points 2048] [--steps 3] [--threads 2] [keys of the recipe]

Builds parametric objects with pictures of 224 pixels into a temporary folder, then trains the recipe `crosspoint`
(ResNet-50 from scratch, both clouds of an object in one batch) by `fit` in a process of its own for each network, with
readers in the same process (data.workers=0). The first step is left out: it makes Adam's state. Medians. CPU seconds a
step are those of the whole command, set-up and first step included: what to read where other work shares the cores.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from machine import describe_machine

BACKBONES = ("pointnet", "dgcnn")


def run(arguments: list[object], threads: int) -> None:
    """A command of ours, with so many threads."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE")
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")


def measure(backbone: str, shards: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Medians over the steps after the first, and the peak of resident memory."""
    run_folder = folder / backbone
    keys = [f"points.backbone={backbone}", f"optimizer.batch_size={options.batch}", f"data.num_points={options.points}"]
    keys += [f"optimizer.steps={options.steps + 1}", "log_every=1", "save_every=1000", "data.workers=0"]
    keys += ["data.views=rgb12", "tensorboard=false", *options.changes]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(["training", "fit", "crosspoint", "--shards", shards, "--run", run_folder, *keys], options.threads)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with open(run_folder / "log.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)][1:]
    found = {name: median(row[name] for row in rows) for name in ("ms_per_step", "samples_per_second", "data_wait")}
    return found | {"memory_mb": rows[-1]["memory_mb"], "cpu_seconds": cpu / (options.steps + 1)}


def main() -> None:
    """Prints a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", choices=BACKBONES, action="append", help="these alone")
    parser.add_argument(
        "changes", nargs="*", metavar="key=value", help="keys of the recipe, such as crosspoint.images=5"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        build = ["pipeline", "build", "parametric", "--out", shards, "--workers", 0, f"num_points={options.points}"]
        run([*build, f"parametric.objects={3 * options.batch}", "views.rgb12.image_size=224"], 1)
        print(f"batch {options.batch} x {options.points:,} points, {options.threads} threads; {describe_machine()}")
        for backbone in options.backbone or BACKBONES:
            found = measure(backbone, shards, Path(folder), options)
            seconds, rate = found["ms_per_step"] / 1000, found["samples_per_second"]
            said = f"{backbone:9} {seconds:6.1f} s a step ({found['cpu_seconds']:.1f} CPU s), {rate:5.2f} samples/s"
            print(
                f"{said}, loader {found['data_wait']:.1%}, {found['memory_mb'] / 1000:.2f} GB   ({describe_machine()})",
                flush=True,
            )


if __name__ == "__main__":
    main()
