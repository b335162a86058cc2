"""`check`: MB/s on one core, hash included, beside sha256 alone over the same bytes in the same run.

    python tests/bench/bench_check.py [--out OUT] [--objects 192] [--times 7]

Without --out it builds parametric objects (12 RGB and depth views, 10 depth views, 224 px, 8,192 points, meshes) into a
temporary folder first. The tars are in the page cache: the disk is not measured. The last line is of pictures of 64 px,
where a tar's headers and small members count for more.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe_machine, one_core, repeat

one_core()

from pipeline.inspect.check import check  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_BLOCK = 256 << 10


def build(out: Path, objects: int, image_size: int) -> Path:
    """Shards of parametric objects."""
    keys = {
        "parametric.objects": objects,
        "parametric.test_fraction": 0.0,
        "shard_size": 64,
        "num_points": 8192,
        "views.rgb12.image_size": image_size,
        "views.depth10.image_size": image_size,
    }
    changes = [f"{name}={value}" for name, value in keys.items()]
    command = [sys.executable, "-m", "pipeline", "build", "parametric", "--out", str(out), "--workers", "0", *changes]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return out


def hash_alone(tars: list[Path]) -> None:
    """Reads and hashes every tar, and does nothing else."""
    room = memoryview(bytearray(_BLOCK))
    for tar in tars:
        sha256 = hashlib.sha256()
        with open(tar, "rb", buffering=0) as file:
            while count := file.readinto(room):
                sha256.update(room[:count])


def measure(out: Path, times: int, deep: bool) -> None:
    """Prints the rates over one build. Raises SystemExit where `check` finds something wrong."""
    tars = sorted(out.rglob("*.tar"))
    size = sum(tar.stat().st_size for tar in tars) / 1e6
    if problems := check(str(out)).problems:
        raise SystemExit(problems[0])
    kinds = {"sha256 alone": lambda: hash_alone(tars), "check": lambda: check(str(out))}
    if deep:
        kinds["check --deep"] = lambda: check(str(out), deep=True)
    print(f"{size:.0f} MB in {len(tars)} tars")
    for name, call in kinds.items():
        best, median = repeat(call, times if name != "check --deep" else 2)
        print(f"  {name:14} {1000 * size / best:7.0f} MB/s at best, {1000 * size / median:7.0f} median")


def main() -> None:
    """Prints the machine and a table a build."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--objects", type=int, default=192)
    parser.add_argument("--times", type=int, default=7)
    options = parser.parse_args()
    print(describe_machine())
    if options.out is not None:
        measure(options.out, options.times, deep=True)
        return
    with tempfile.TemporaryDirectory(prefix="bench-check-") as scratch:
        measure(build(Path(scratch) / "b224", options.objects, 224), options.times, deep=True)
        measure(build(Path(scratch) / "b64", options.objects, 64), options.times, deep=False)
    print(describe_machine())


if __name__ == "__main__":
    main()
