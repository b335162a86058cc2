"""Forecasts the time, disk and memory of a build: three of its objects are built, timed, weighed and thrown away."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from manifests.plain_text import number_of
from manifests.records import Asset, Failure
from manifests.rng import seed_digest
from manifests.samples import BLOCK
from pipeline.jobs.isolated_worker import CarefulMaker
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.plan.plan import Job, Plan
from pipeline.shards.build_shard import is_missing, missing_tars, stored_objects
from pipeline.shards.object import BuiltObject

TRIALS = 3
ATTEMPTS = 9  # at most, where objects fail
WORKER_COUNTS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Trial:
    """One object that was built to see what it costs. bytes: in all tars, their headers included."""

    key: str
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Cost:
    """What a number of workers needs. memory_gb: of all workers together, each as large as the trials' process grew."""

    workers: int
    hours: float
    disk_gb: float
    memory_gb: float


@dataclass(frozen=True)
class BuildForecast:
    """What a build will cost. objects: of the whole plan; left: those of shards that are not finished yet.

    input_bytes: the size of the objects' own files (textures and other side files not counted), or None where the
    source names no files. trials and costs are empty where no tried object could be built.
    """

    objects: int
    left: int
    shards: int
    splits: dict[str, int]
    input_bytes: int | None
    trials: tuple[Trial, ...]
    failures: tuple[Failure, ...]
    worker_memory_mb: float
    costs: tuple[Cost, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `build --dry-run --json` prints."""
        return asdict(self)


def forecast(plan: Plan, jobs: list[Job]) -> BuildForecast:
    """Counts, sums and times a plan; writes nothing. Raises Refused where a library is missing."""
    splits: dict[str, int] = {}
    for job in jobs:
        splits[job.split] = splits.get(job.split, 0) + len(job.assets)
    records = FinishedRecords()
    left = [asset for job in jobs if is_missing(job, plan, records.is_done) for asset in job.assets]
    trials, failures, memory_mb = _try(plan, left)
    return BuildForecast(
        objects=sum(splits.values()),
        left=len(left),
        shards=len(jobs),
        splits=splits,
        input_bytes=_input_bytes(plan, jobs),
        trials=trials,
        failures=failures,
        worker_memory_mb=memory_mb,
        costs=_costs(trials, len(left), memory_mb),
    )


def _try(plan: Plan, assets: list[Asset]) -> tuple[tuple[Trial, ...], tuple[Failure, ...], float]:
    """Builds objects in a child process, as a careful worker does; (trials, failures, its largest memory in MB)."""
    chosen = sorted(assets, key=lambda asset: seed_digest(plan.recipe.seed, f"trial {asset.key}"))[:ATTEMPTS]
    trials: list[Trial] = []
    failures: list[Failure] = []
    if not chosen:
        return (), (), 0.0
    with CarefulMaker(plan) as maker:
        maker.build(chosen[0])  # the first object also pays for loading the libraries
        for asset in chosen:
            start = time.monotonic()
            outcome = maker.build(asset)
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                trials.append(Trial(asset.key, round(time.monotonic() - start, 4), tar_bytes(outcome)))
            if len(trials) == TRIALS:
                break
        memory_mb = maker.largest_mb()
    return tuple(trials), tuple(failures), memory_mb


def weigh(job: Job, plan: Plan) -> float:
    """The most memory in MB of a process that makes a few objects of a job, or draws them where only views are missing.

    0 where all of them failed. A shard is a random sample of its split, and so are its first objects.
    """
    shapes_missing, view_sets = missing_tars(job, plan)
    made = 0
    with CarefulMaker(plan) as maker:
        if shapes_missing or not view_sets:
            for asset in job.assets[:ATTEMPTS]:
                made += not isinstance(maker.build(asset), Failure)
                if made == TRIALS:
                    break
        else:
            for shape, glb in itertools.islice(stored_objects(job, plan, with_meshes=True), TRIALS):
                maker.redraw(shape, glb, tuple(view_sets))
                made += 1
        return maker.largest_mb() if made else 0.0


def tar_bytes(built: BuiltObject) -> int:
    """Bytes that an object takes in its tars: each member has a header and fills whole blocks."""
    groups = [built.shape, built.mesh or {}, *(views for views in built.views.values() if isinstance(views, dict))]
    return sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for members in groups for data in members.values())


def _costs(trials: tuple[Trial, ...], objects: int, memory_mb: float) -> tuple[Cost, ...]:
    if not trials:
        return ()
    seconds = sum(trial.seconds for trial in trials) / len(trials)
    size = sum(trial.bytes for trial in trials) / len(trials)
    return tuple(
        Cost(
            workers=workers,
            hours=round(objects * seconds / 3600 / workers, 6),
            disk_gb=round(objects * size / 1e9, 4),
            memory_gb=round(workers * memory_mb / 1000, 2),
        )
        for workers in WORKER_COUNTS
    )


def _input_bytes(plan: Plan, jobs: list[Job]) -> int | None:
    """Bytes of the files that assets name, each counted once; None where none of them is a file."""
    if plan.source is None:
        return None
    sizes: dict[str, int] = {}
    for source in {asset.source for job in jobs for asset in job.assets}:
        for name in (source, source.rpartition("#")[0]):  # FILE, or FILE#ROW
            if name in sizes:
                break
            try:
                sizes[name] = os.stat(os.path.join(plan.source, name)).st_size if name else 0
                break
            except OSError:
                continue
    return sum(sizes.values()) or None


def lines(found: BuildForecast, asset_memory_mb: int) -> list[str]:
    """What a person reads of a forecast."""
    cores = os.cpu_count() or 1
    told = [] if found.input_bytes is None else [f"input: {found.input_bytes / 1e9:.3g} GB of files"]
    if found.left < found.objects:
        told.append(f"left to do: {found.left:,} of {number_of(found.objects, 'object')}")
    for failure in found.failures:
        told.append(f"tried {failure.key}: {failure.stage}: {failure.reason}")
    if not found.costs:
        return [*told, "nothing is left to do" if not found.left else "no tried object could be built: no forecast"]
    for trial in found.trials:
        told.append(f"tried {trial.key}: {trial.seconds:.2f} s, {trial.bytes / 1e6:.2f} MB")
    told.append(f"{'workers':>8} {'time':>10} {'disk GB':>9} {'memory GB':>10} {'at most GB':>11}")
    for cost in found.costs:
        beyond = f"   (this machine has {number_of(cores, 'core')})" if cost.workers > cores else ""
        told.append(
            f"{cost.workers:>8} {_duration(cost.hours):>10} {cost.disk_gb:>9.3g} {cost.memory_gb:>10.3g} "
            f"{cost.workers * asset_memory_mb / 1000:>11.3g}{beyond}"
        )
    return told


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"
