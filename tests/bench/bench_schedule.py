"""What handing out jobs costs: jobs of ten seconds of work, one a core, against the time that the work alone takes.

    python tests/bench/bench_schedule.py [--workers 2] [--jobs 12] [--seconds 10] [--assets 100]

A dataset is planted whose objects keep a core busy until so much time has gone by, however fast the machine: ten
seconds from a job's first object to its last. So the work alone takes ten seconds times the jobs of one worker; what is
more is the price of handing jobs out, of renewing worker processes (after 1,000 objects) and of records. Ray's start
comes before the first job and is told apart. Bar: 5 % with 100 objects a job, as a core makes ten a second; a worker
is then renewed once in ten jobs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe_machine

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DATASET = """
import time

import numpy as np

from manifests.records import Asset
from pipeline.formats.mesh import RawShape

NEEDS_SOURCE = False
CLOUD = np.random.default_rng(0).standard_normal((64, 3))


def assets(root, table, options):
    return (Asset(f"busy{{n:06d}}", "busy", "train", "thing") for n in range({objects}))


due, made = 0.0, 0


def read(asset, root, options):
    global due, made
    due = (due if made % {size} else time.monotonic()) + {seconds}
    made += 1
    while time.monotonic() < due:
        sum(range(1000))
    return RawShape(points=CLOUD)
"""
TABLE = 'name = "busy"\nclasses = ["thing"]\nprompt_names = ["thing"]\n'
RECIPE = 'dataset = "busy"\nstore_meshes = false\nnum_points = 64\nfps_prefix = 16\nshard_size = {size}\n'


def plant(tree: Path, objects: int, seconds: float, size: int) -> None:
    """A copy of the code with a dataset of busy objects."""
    for package in ("manifests", "renderers", "pipeline"):
        shutil.copytree(REPOSITORY / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "pipeline/datasets/busy.py").write_text(DATASET.format(objects=objects, seconds=seconds, size=size))
    (tree / "manifests/datasets/busy.toml").write_text(TABLE)
    (tree / "pipeline/recipes/busy.toml").write_text(RECIPE.format(size=size))


def spans(out: Path) -> list[tuple[float, float]]:
    """(start, end) of every job, by its record, in order."""
    found = []
    for path in (out / "shapes").glob("*.json"):
        end = path.stat().st_mtime
        found.append((end - json.loads(path.read_text())["seconds"], end))
    return sorted(found)


def main() -> None:
    """Prints the work, what was above it, and what came before the first job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=12, help="of each worker")
    parser.add_argument("--seconds", type=float, default=10.0, help="of work in a job")
    parser.add_argument("--assets", type=int, default=100, help="of a job")
    options = parser.parse_args()
    print(describe_machine())
    jobs, each = options.jobs * options.workers, options.seconds / options.assets
    with tempfile.TemporaryDirectory(prefix="bench-schedule-") as scratch:
        tree, out = Path(scratch) / "tree", Path(scratch) / "out"
        plant(tree, jobs * options.assets, each, options.assets)
        command = [sys.executable, "-m", "pipeline", "build", "busy", "--out", str(out)]
        began, start = time.time(), time.perf_counter()
        subprocess.run([*command, "--workers", str(options.workers)], cwd=tree, check=True, stderr=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        found = spans(out)
    work, first, last = options.jobs * options.seconds, found[0][0], max(end for _, end in found)
    inside = sum(end - start for start, end in found) / options.workers - work
    above = last - first - work
    print(f"{jobs} jobs of {options.seconds:g} s and {options.assets} objects, --workers {options.workers}")
    print(f"work alone {work:.1f} s; first job's start to last job's end {above:.2f} s more, {above / work:+.1%}")
    print(f"  of it inside the jobs (imports, files) {inside:.2f} s, between jobs {above - inside:.2f} s")
    print(
        f"before the first job {first - began:.2f} s, after the last {wall - (last - began):.2f} s, in all {wall:.1f} s"
    )
    print(describe_machine())


if __name__ == "__main__":
    main()
