"""Whole builds: objects a second and core, memory of a worker, and what workers bring.

    python tests/bench/bench_build.py [--shared ../shared] [--objects 96]

The first part builds the ModelNet samples (every file many times over, as `meshes`), the second parametric objects with
0, 1 and 4 workers. Ray's start is not counted: a job's seconds are those of its record.
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


def build(out: Path, *arguments: str) -> dict:
    """Runs one build; its wall-clock seconds, and what its records and manifest say."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pipeline", "build", *arguments, "--out", str(out)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    manifest = json.loads((out / "manifest.json").read_text())
    records = [json.loads(p.read_text()) for p in (out / "shapes").glob("*.json")]
    first = min(p.stat().st_mtime - json.loads(p.read_text())["seconds"] for p in (out / "shapes").glob("*.json"))
    last = max(p.stat().st_mtime for p in out.rglob("views/*/*-*.json"))
    return {
        "wall": wall,
        "working": last - first,
        "samples": sum(r["count"] for r in records),
        "seconds": manifest["seconds"],
        "max_rss_mb": manifest["max_rss_mb"],
    }


def main() -> None:
    """Prints one line a build."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--objects", type=int, default=96)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-build-"))
    print(describe_machine())
    try:
        files = sorted((options.shared / "samples").rglob("ModelNet*/**/*.off"))
        if files:
            source = scratch / "source" / "thing"
            source.mkdir(parents=True)
            for i in range(3):
                for j, path in enumerate(files):
                    shutil.copy(path, source / f"{i}_{j}_{path.name}")
            result = build(scratch / "real", "meshes", "--source", str(source.parent), "--workers", "0")
            rate = result["samples"] / result["seconds"]
            print(
                f"ModelNet samples, 12 RGB + 10 depth views: {result['samples']} objects, {rate:.2f} objects/s/core, "
                f"peak {result['max_rss_mb']:.0f} MB"
            )
        parametric = (f"parametric.objects={options.objects}", "parametric.test_fraction=0", "num_points=8192")
        parametric += ("shard_size=6", "views=['rgb12', 'depth10']")
        times = {}
        for workers in (0, 1, 2, 4):
            out = scratch / f"w{workers}"
            result = build(out, "parametric", "--workers", str(workers), *parametric)
            times[workers] = result["working"]
            print(
                f"--workers {workers}: {result['working']:6.1f} s of work ({result['wall']:.1f} s with start), "
                f"{result['samples'] / result['working']:.2f} objects/s, peak {result['max_rss_mb']:.0f} MB a worker"
            )
        print(f"4 workers against 1: {times[1] / times[4]:.2f} x as fast")
        print(f"1 Ray worker against --workers 0: {times[1] / times[0]:.2f} x the time")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
