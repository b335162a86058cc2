"""What grows with the number of objects, piece by piece: the plan, the records, the join at the start of training.

    python tests/bench/bench_records.py [--objects 100000 300000 1000000] [--shards 1000]

Plans are of the parametric recipe and write nothing. Records are made up, of full shards of 256 objects with meshes,
rgb12 and depth10; their tars are empty. Each piece runs in a process of its own: seconds of processor time, and how
much its memory grew. Last, how much of the join a reader process makes its own by only using it.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bench_resume
from machine import describe_machine

from manifests.config import parse_changes
from manifests.layout import shapes_tar, views_tar
from manifests.records import read_record, record_path, write_json
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import Job, Plan, assets_file, make_plan
from pipeline.shards.build_shard import is_missing
from training.data.dataset import Source, open_source
from training.settings.data import DataSettings

STRIDE = 400_000  # bytes between samples in the made-up records


def apart(piece: Callable[..., str], *arguments: object) -> None:
    """Runs a piece in a fresh process and prints what it says."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("  " + pool.apply(piece, arguments), flush=True)


def peak() -> float:
    """The most memory of this process up to now, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """The memory of this process now, MB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def plan_of(objects: int, out: str) -> tuple[Plan, list[Job]]:
    """The plan of a build of full shards."""
    changes = bench_resume.changes_of(objects, 256, bench_resume.FULL)
    return make_plan(read_recipe("parametric", parse_changes(changes)), None, out)


def plan_piece(objects: int) -> str:
    """Listing, keys, hash and jobs, then the file of assets."""
    plan_of(1000, "/nowhere")
    before, start = peak(), time.process_time()
    _, jobs = plan_of(objects, "/nowhere")
    seconds, memory = time.process_time() - start, peak() - before
    size = len(assets_file(jobs))
    return (
        f"plan of {objects:,}: {seconds:.2f} s ({1e6 * seconds / objects:.1f} us each), {memory:.0f} MB "
        f"({1e6 * memory / objects:.0f} B each); assets.jsonl {size / 1e6:.0f} MB, with it {peak() - before:.0f} MB"
    )


def resume_piece(objects: int, out: str) -> str:
    """Looking at all records, as a rerun does."""
    plan, jobs = plan_of(objects, out)
    before, start = resident(), time.process_time()
    records = FinishedRecords()
    missing = sum(is_missing(job, plan, records) for job in jobs)
    seconds = time.process_time() - start
    each = 1e3 * seconds / len(jobs)
    return (
        f"records of {len(jobs):,} shards, {4 * len(jobs):,} files: {seconds:.2f} s ({each:.2f} ms a shard), "
        f"{resident() - before:.0f} MB kept; {missing} missing"
    )


def join_piece(out: str) -> str:
    """Opening a source for training, and a reader's own copy of what it only reads."""
    before, start = resident(), time.process_time()
    source = open_source(out, DataSettings(views="rgb12"))
    seconds, memory, total, shards = time.process_time() - start, resident() - before, source.total, len(source.shards)
    gc.freeze()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, str(own_after_use(source)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    own = float(os.read(read, 100))
    return (
        f"join of {shards:,} shards, {total:,} objects: {seconds:.2f} s ({1e3 * seconds / shards:.2f} ms a shard), "
        f"{memory:.0f} MB ({1e6 * memory / total:.0f} B an object); a forked reader's own {own:.0f} MB"
    )


def own_after_use(source: Source) -> float:
    """MB that a forked process has to itself after every key and place was looked at."""
    for shard in source.shards:
        for number, key in enumerate(shard.keys):
            assert len(key) + shard.shapes_places.offsets[number] > 0
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Private_Dirty"))


def stretch(plan: Plan, jobs: list[Job]) -> dict[str, float]:
    """Makes the records' tars as long as their offsets say; mean bytes of a record, by what it is of."""
    sizes: dict[str, float] = {}
    for job in jobs:
        tars = {"shapes": shapes_tar(plan.out, job.split, job.shard)}
        tars |= {s.name: views_tar(plan.out, s.name, job.split, job.shard) for s in plan.view_sets}
        for name, tar in tars.items():
            record = read_record(record_path(tar))
            write_json(record_path(tar), replace(record, bytes=STRIDE * (record.count + 1)).to_json())
            sizes[name] = sizes.get(name, 0) + os.path.getsize(record_path(tar)) / len(jobs)
    return sizes


def main() -> None:
    """Prints a line a piece."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--objects", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--shards", type=int, default=1000)
    options = parser.parse_args()
    print(describe_machine())
    for objects in options.objects:
        apart(plan_piece, objects)
    with tempfile.TemporaryDirectory(prefix="bench-records-") as scratch:
        out, objects = str(Path(scratch) / "out"), 256 * options.shards
        bench_resume.make_up(Path(out), bench_resume.changes_of(objects, 256, bench_resume.FULL))
        sizes = stretch(*plan_of(objects, out))
        print("  bytes a record: " + ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items()))
        apart(resume_piece, objects, out)
        apart(join_piece, out)
    print(describe_machine())


if __name__ == "__main__":
    main()
