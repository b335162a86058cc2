"""Very many objects of trivial cost: seconds and the driver's memory of planning, building, resuming and checking.

    python tests/bench/scale.py [--objects 10000 30000 100000] [--workers 2]

The objects are rows of a listing over a thousand clouds of 64 points, each drawn as ten depth maps of 8 px, 256 to a
shard. Every phase is a command of its own, its start included; `build` starts Ray. Its memory is the largest of the
command's own process (Linux: VmHWM), not of its workers. Bars: no phase takes more seconds an object with ten times the
objects, and no driver takes 1 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import describe_machine

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FILES, POINTS = 1000, 64
TINY = (f"num_points={POINTS}", "fps_prefix=16", "views={}", "views.depth10.image_size=8")
LOST = 100  # of so many shards, one loses its record
MAX_FRACTION = "max_failed_fraction=1"  # tiny pictures may show too little


@dataclass(frozen=True)
class Phase:
    """One command. memory: the most of its own process, MB."""

    seconds: float
    memory: float


def run(*arguments: str) -> Phase:
    """Runs one command of the pipeline to its end, looking at its memory all the time."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        command = [sys.executable, "-m", "pipeline", *arguments]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=told, stderr=told)
        memory = 0.0
        while process.poll() is None:
            memory = max(memory, own_peak(process.pid))
            time.sleep(0.02)
        if process.returncode:
            told.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{told.read()[-2000:]}")
    return Phase(time.perf_counter() - start, memory)


def own_peak(pid: int) -> float:
    """The most memory in MB that a process had up to now; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def make_source(folder: Path, objects: int) -> Path:
    """Clouds and a listing of `objects` rows over them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(min(FILES, objects)):
        np.save(folder / f"{number:04d}.npy", rng.standard_normal((POINTS, 3)).astype(np.float32))
    rows = (
        {"path": f"{n % FILES:04d}.npy", "id": f"object-{n:08d}", "class": f"class{n % 40}", "split": "train"}
        for n in range(objects)
    )
    listing = folder / "list.jsonl"
    listing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return listing


def lose(out: Path) -> int:
    """Deletes the record of every hundredth shard's shapes: these shards are made again. How many."""
    records = sorted((out / "shapes").glob("*.json"))[::LOST]
    for record in records:
        record.unlink()
    return len(records)


def measure(objects: int, workers: int, scratch: Path) -> dict[str, Phase]:
    """The phases of one build."""
    listing, out = make_source(scratch / "source", objects), scratch / "out"
    command = ["build", "points", "--source", str(listing.parent), "--out", str(out), f"listing={listing}", *TINY]
    command += [MAX_FRACTION, "--workers", str(workers)]
    phases = {"plan": run(*command, "--dry-run")}
    phases["build"] = run(*command)
    phases["again, finished"] = run(*command)
    lost = lose(out)
    phases[f"again, {lost} shards lost"] = run(*command)
    phases["check"] = run("check", str(out))
    return phases


def main() -> None:
    """Prints a line a phase: seconds, microseconds an object, memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--objects", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for objects in options.objects:
        print(f"{objects:,} objects, {-(-objects // 256):,} shards, --workers {options.workers}; {describe_machine()}")
        with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
            for name, phase in measure(objects, options.workers, Path(scratch)).items():
                each = 1e6 * phase.seconds / objects
                print(f"  {name:24} {phase.seconds:8.2f} s {each:8.0f} us each, {phase.memory:5.0f} MB", flush=True)


if __name__ == "__main__":
    main()
