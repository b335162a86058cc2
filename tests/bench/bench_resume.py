"""Running a finished build of 1,000 shards again: seconds of the whole command, its start included.

    python tests/bench/bench_resume.py [--times 5]

First a real build of 1,000 shards of two tiny objects each (a minute or two), then one of full shards, 256,000 objects,
whose tars are empty and whose records are made up: a rerun looks at the list of objects and at the records, and at no
tar. Bar: 5 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import describe_machine

from manifests.config import parse_changes
from manifests.layout import meshes_tar, shapes_tar, views_tar
from manifests.records import Record, record_path
from pipeline.jobs.build_manifest import write_build_manifest, write_unfinished
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import Job, make_plan

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SHARDS = 1000
TINY = ("num_points=64", "fps_prefix=16", "views.rgb12.image_size=8", "views.depth10.image_size=8")
FULL = ("num_points=8192", "views=['rgb12', 'depth10']")


def changes_of(objects: int, shard_size: int, more: tuple[str, ...]) -> list[str]:
    """Changed keys of the parametric recipe."""
    return [f"parametric.objects={objects}", "parametric.test_fraction=0.0", f"shard_size={shard_size}", *more]


def run(out: Path, workers: int, changes: list[str]) -> float:
    """Seconds of one `build`; it may end with too many failures, for the tiny pictures' sake."""
    command = [sys.executable, "-m", "pipeline", "build", "parametric", "--out", str(out), "--workers", str(workers)]
    start = time.perf_counter()
    result = subprocess.run([*command, *changes], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode > 1:
        raise SystemExit(result.stderr)
    return time.perf_counter() - start


def make_up(out: Path, changes: list[str]) -> None:
    """A finished build of empty tars with records of real length."""
    plan, jobs = make_plan(read_recipe("parametric", parse_changes(changes)), None, str(out))
    out.mkdir()
    write_unfinished(plan, jobs)
    for job in jobs:
        _record(shapes_tar(plan.out, job.split, job.shard), plan.shapes_hash, job, ["colors.npy", "json", "points.npy"])
        _record(meshes_tar(plan.out, job.split, job.shard), plan.shapes_hash, job, ["mesh.glb"])
        for view_set in plan.view_sets:
            names = [f"v{v:02d}.{c}.png" for v in range(view_set.preset.num_views) for c in view_set.preset.channels]
            _record(views_tar(plan.out, view_set.name, job.split, job.shard), view_set.hash, job, ["json", *names])
    write_build_manifest(plan, jobs, FinishedRecords())


def _record(tar: str, hash: str, job: Job, suffixes: list[str]) -> None:
    keys = tuple(asset.key for asset in job.assets)
    offsets = tuple(400_000 * number for number in range(len(keys)))
    sizes = {suffix: tuple(10_000 + number for number in range(len(keys))) for suffix in suffixes}
    checks = {suffix: tuple(4_000_000_000 + number for number in range(len(keys))) for suffix in suffixes}
    record = Record(1, len(keys), 10240, "0" * 64, hash, keys, offsets, sizes=sizes, checks=checks)
    Path(tar).parent.mkdir(parents=True, exist_ok=True)
    Path(tar).touch()
    Path(record_path(tar)).write_text(json.dumps(record.to_json(), indent=1))


def measure(name: str, out: Path, changes: list[str], times: int) -> None:
    """Prints the seconds of reruns, and the most memory that one took."""
    taken = [run(out, 2, changes) for _ in range(times)]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{name}: {min(taken):.2f} s at best, {np.median(taken):.2f} median; children so far at most {memory:.0f} MB")


def main() -> None:
    """Prints one line a build."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as scratch:
        full = changes_of(256 * SHARDS, 256, FULL)
        make_up(Path(scratch) / "full", full)
        measure("1,000 shards, 256,000 objects (made up)", Path(scratch) / "full", full, options.times)
        tiny = changes_of(2 * SHARDS, 2, TINY)
        print(f"building 1,000 shards of two objects: {run(Path(scratch) / 'tiny', 2, tiny):.0f} s")
        measure("1,000 shards, 2,000 objects", Path(scratch) / "tiny", tiny, options.times)
    print(describe_machine())


if __name__ == "__main__":
    main()
