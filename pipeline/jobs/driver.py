"""A whole build or a whole view set: OUT is compared with the plan, missing jobs are run, the manifest is finished."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import FrameType

from manifests import store
from manifests.config import first_difference, to_toml
from manifests.errors import Refused
from manifests.layout import (
    ASSETS,
    LOCK,
    MESHES,
    RECIPE,
    SHAPES,
    SPLITS,
    VIEWS,
    BuildManifest,
    SplitCounts,
    ViewSetManifest,
    read_manifest,
    read_view_set,
    shapes_tar,
    view_set_names,
    views_tar,
    write_manifest,
    write_view_set,
)
from manifests.presets import is_files_preset, is_mesh_preset
from manifests.records import Failure, Record, parse_assets, record_path
from pipeline.datasets import dataset_module
from pipeline.jobs import ray_cluster
from pipeline.jobs.build_lock import BuildLock, build_lock
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.plan.plan import (
    Job,
    Plan,
    ViewSet,
    assets_file,
)
from pipeline.shards.build_shard import JobEvent, PlainMaker, is_missing, missing_tars, run_job
from renderers import backend_table

_BEFORE_MANIFEST = (LOCK, ASSETS, SPLITS)  # a build that is killed early leaves these without a manifest


@dataclass(frozen=True)
class Workers:
    """Where jobs run: `count` processes of this machine (0: this very process), or the Ray cluster at `address`."""

    count: int = 0
    address: str | None = None


@dataclass(frozen=True)
class Summary:
    """How a build or a view set ended.

    failures: of assets (a build) or of the view set. skipped: reason -> count. samples: objects written. expected: how
    many of the failures are of objects that the dataset's table knows to be broken.
    """

    samples: int
    failures: tuple[Failure, ...]
    skipped: dict[str, int]
    attempted: int
    expected: int = 0

    @property
    def failed_fraction(self) -> float:
        """Share of the attempted that failed; expected failures are in neither number."""
        attempted = self.attempted - self.expected
        return (len(self.failures) - self.expected) / attempted if attempted else 0.0


OnStart = Callable[[int, int], None]  # (objects to make, objects already there)
OnEvent = Callable[[JobEvent], None]


def run_here(jobs: list[Job], plan: Plan) -> Iterator[JobEvent]:
    """Runs jobs one after the other in this process (`--workers 0`): for debuggers, without isolation."""
    maker = PlainMaker(plan)
    with _remembered_interrupts() as pressed:
        for job in jobs:
            for progress in run_job(job, plan, maker):
                if pressed.is_set():
                    raise KeyboardInterrupt
                yield JobEvent(job, progress)
            yield JobEvent(job, state="done")


@contextmanager
def _remembered_interrupts() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C: mesh libraries catch BaseException, and with it the KeyboardInterrupt."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def handler(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ready(plan: Plan, workers: Workers, jobs: list[Job]) -> Iterator[ray_cluster.Demand | None]:
    """What each job asks of a machine of the cluster, None where there is none.

    Raises Refused, before anything is written, where a library is missing or the cluster is not fit for the jobs.
    """
    if workers.address is not None:
        with ray_cluster.joined(workers.address, plan, jobs) as demand:
            yield demand
        return
    for view_set in plan.view_sets:
        backend_table.require(view_set.preset)
    if workers.count:
        ray_cluster.require(private=True)
    yield None


def run_on(jobs: list[Job], plan: Plan, workers: Workers, demand: ray_cluster.Demand | None) -> Iterator[JobEvent]:
    """Runs jobs wherever they are to run; yields what happens."""
    if not jobs:
        return iter(())
    if workers.address is None and workers.count == 0:
        return run_here(jobs, plan)
    return ray_cluster.run_jobs(jobs, plan, workers.count, workers.address, demand)


def refuse_other_build(plan: Plan, jobs: list[Job]) -> None:
    """Raises Refused, naming the first difference, when OUT holds a build of another recipe or another source."""
    try:
        manifest = read_manifest(plan.out)
    except ValueError as error:
        raise Refused(f"{error}; delete it to build again") from error
    if manifest is None:
        if any(not name.startswith(".") and name not in _BEFORE_MANIFEST for name in store.list_names(plan.out)):
            raise Refused(f"--out {plan.out} is not empty and no build (it has no manifest.json)")
        return
    if manifest.shapes_hash != plan.shapes_hash:
        change = first_difference(manifest.recipe, plan.recipe.identity())
        raise Refused(f"{plan.out} holds another recipe: {change or 'made by another version'}; choose another --out")
    if manifest.assets_hash != plan.assets_hash:
        raise Refused(
            f"{plan.out} was built from another source: {_asset_difference(plan, jobs)}; choose another --out"
        )
    for view_set in plan.view_sets:
        refuse_other_view_set(plan.out, view_set)


def refuse_other_view_set(out: str, view_set: ViewSet) -> None:
    """Raises Refused when OUT holds a view set of this name drawn with another preset."""
    try:
        known = read_view_set(out, view_set.name)
    except ValueError as error:
        raise Refused(f"{error}; delete its folder to draw it again") from error
    if known is not None and known.hash != view_set.hash:
        change = first_difference(known.preset.model_dump(), view_set.preset.model_dump()) or "drawn from other shapes"
        folder = store.join(out, VIEWS, view_set.name)
        raise Refused(f"{folder} holds another preset: {change}; give it another name=, or delete the folder")


def _asset_difference(plan: Plan, jobs: list[Job]) -> str:
    """The first asset that one list has and the other has not, or that differs."""
    try:
        old = parse_assets(store.read_bytes(store.join(plan.out, ASSETS)) or b"")
    except ValueError as error:
        return f"its {ASSETS} is damaged ({error})"
    new = parse_assets(assets_file(jobs))
    known_old, known_new = set(old), set(new)
    gone = next((asset for asset in old if asset not in known_new), None)
    come = next((asset for asset in new if asset not in known_old), None)
    if gone and come and gone.key == come.key:
        return f"{gone.key} was {gone.source} and is {come.source}"
    if come:
        return f"{come.source} is new ({len(old):,} assets then, {len(new):,} now)"
    return f"{gone.source if gone else 'the list'} is gone ({len(old):,} assets then, {len(new):,} now)"


def build(
    plan: Plan,
    jobs: list[Job],
    workers: Workers,
    on_start: OnStart,
    on_event: OnEvent,
    retry: frozenset[str] = frozenset(),
) -> Summary:
    """Runs the missing jobs of a plan and finishes the manifest.

    retry: kinds of failures (timeout, memory, crash, data) whose shards are built anew.
    Where nothing is missing, no renderer is loaded and no Ray: looking at the records is all, and OUT may be read-only.
    Raises Refused (OUT of another recipe or source, a live build) before anything is written, Stopped midway.
    """
    refuse_other_build(plan, jobs)
    records = FinishedRecords()
    if retry:
        plan = with_existing(plan)
    missing = [job for job in jobs if is_missing(job, plan, records.is_done) or has_failed(job, plan, records, retry)]
    needed = bool(missing) or not _is_whole(plan)
    with ready(plan, workers, missing) if missing else nullcontext() as demand, build_lock(plan.out, needed) as lock:
        if lock is None:
            on_start(0, sum(len(job.assets) for job in jobs))
            return summed_up(plan, jobs, records)
        _prepare(plan, jobs)
        if missing:
            records = FinishedRecords()  # another build may have made some until the lock was ours
            if retry:
                forget([tar for job in missing for tar in tars_of(job, plan) if failed(tar, records, retry)])
                forget_files(plan, missing)
                records = FinishedRecords()
            missing = [job for job in jobs if is_missing(job, plan, records.is_done)]
        run_missing(jobs, missing, run_on(missing, plan, workers, demand), lock, on_start, on_event)
        return finish(plan, jobs, FinishedRecords() if missing else records)


def _is_whole(plan: Plan) -> bool:
    """Whether the manifests of a build and of the plan's view sets say that they are finished."""
    manifest = read_manifest(plan.out)
    sets = all(read_view_set(plan.out, view_set.name) is not None for view_set in plan.view_sets)
    return manifest is not None and manifest.complete and sets


def tars_of(job: Job, plan: Plan) -> list[str]:
    """The tars of a job that have failures of their own: its shapes, and its views in each of the plan's sets."""
    views = [views_tar(plan.out, s.name, job.split, job.shard) for s in plan.view_sets]
    return [shapes_tar(plan.out, job.split, job.shard), *views]


def failed(tar: str, records: FinishedRecords, kinds: frozenset[str]) -> bool:
    """Whether a finished tar has failures of some kinds."""
    try:
        return any(failure.kind in kinds for failure in records[tar].failures)
    except ValueError:
        return False  # not finished, and so made anyway


def has_failed(job: Job, plan: Plan, records: FinishedRecords, kinds: frozenset[str]) -> bool:
    """Whether a finished tar of a job has failures of some kinds."""
    return bool(kinds) and any(failed(tar, records, kinds) for tar in tars_of(job, plan))


def forget(tars: Iterable[str]) -> None:
    """Removes the records of tars: they are made again."""
    for tar in tars:
        store.remove(record_path(tar))


def run_missing(
    jobs: list[Job],
    missing: list[Job],
    events: Iterable[JobEvent],
    lock: BuildLock,
    on_start: OnStart,
    on_event: OnEvent,
) -> None:
    """Lets the missing ones of all jobs run, keeping the lock fresh and telling what happens."""
    todo = sum(len(job.assets) for job in missing)
    on_start(todo, sum(len(job.assets) for job in jobs) - todo)
    for event in events:
        lock.renew()
        on_event(event)


def _prepare(plan: Plan, jobs: list[Job]) -> None:
    """Deletes what killed writers left, and writes the manifests of an unfinished build."""
    inside = (SHAPES, MESHES, *(store.join(VIEWS, s.name) for s in plan.view_sets))
    for folder in (plan.out, *(store.join(plan.out, name) for name in inside)):
        store.delete_temporaries(folder)
    if read_manifest(plan.out) is None:
        store.write_bytes(store.join(plan.out, ASSETS), assets_file(jobs))
        _write_splits(plan, jobs)
        write_manifest(plan.out, _manifest(plan, jobs, {}, complete=False))
    store.write_bytes(store.join(plan.out, RECIPE), _resolved(plan).encode())
    for view_set in plan.view_sets:
        write_view_set_manifest(plan, view_set)


def _write_splits(plan: Plan, jobs: list[Job]) -> None:
    """OUT/splits/<split>.txt, an id a line, where the division is the recipe's own and not the dataset's."""
    if not dataset_module(plan.table).SAVES_SPLITS:
        return
    for split in sorted({job.split for job in jobs}):
        ids = sorted(asset.id for job in jobs if job.split == split for asset in job.assets)
        store.write_bytes(store.join(plan.out, SPLITS, f"{split}.txt"), "".join(f"{id}\n" for id in ids).encode())


def _resolved(plan: Plan) -> str:
    recipe = plan.recipe.model_dump(mode="json", exclude_none=True)
    return f"# The resolved recipe of this build; shapes hash {plan.shapes_hash}\n{to_toml(recipe)}"


def write_view_set_manifest(plan: Plan, view_set: ViewSet) -> None:
    """Writes OUT/views/<set>/manifest.json unless it is there."""
    if read_view_set(plan.out, view_set.name) is None:
        manifest = ViewSetManifest(
            name=view_set.name,
            preset=view_set.preset,
            hash=view_set.hash,
            shapes_hash=plan.shapes_hash,
            versions=plan.versions,
        )
        write_view_set(plan.out, manifest)


def with_existing(plan: Plan) -> Plan:
    """The plan with all view sets of OUT that are drawn: a shard built anew is drawn anew in every one."""
    sets = {s.name: s for s in plan.view_sets}
    for name in view_set_names(plan.out):
        known = read_view_set(plan.out, name)
        if known is not None and known.shapes_hash == plan.shapes_hash and not is_files_preset(known.preset):
            sets.setdefault(name, ViewSet(name, known.preset, known.hash))
    return replace(plan, view_sets=tuple(sets.values()))


def forget_files(plan: Plan, jobs: list[Job]) -> None:
    """Removes the records of sets of files where shapes are built anew: `views` with their --source fills them in."""
    for name in view_set_names(plan.out):
        known = read_view_set(plan.out, name)
        if known is not None and is_files_preset(known.preset):
            forget(views_tar(plan.out, name, job.split, job.shard) for job in jobs if missing_tars(job, plan)[0])


def finish(plan: Plan, jobs: list[Job], finished: FinishedRecords) -> Summary:
    """Writes the finished manifest and sums the records up."""
    records = {(job.split, job.shard): finished[shapes_tar(plan.out, job.split, job.shard)] for job in jobs}
    write_manifest(plan.out, _manifest(plan, jobs, records, complete=True))
    return summed_up(plan, jobs, finished)


def summed_up(plan: Plan, jobs: list[Job], finished: FinishedRecords) -> Summary:
    """What the records of a finished build say, those of the plan's view sets included."""
    records = [finished[shapes_tar(plan.out, job.split, job.shard)] for job in jobs]
    failures = [f for record in records for f in record.failures]
    skipped: Counter[str] = Counter()
    for view_set in plan.view_sets:
        summary = view_set_summary(plan, jobs, view_set, finished)
        known = {failure.key for failure in failures}
        failures += [failure for failure in summary.failures if failure.key not in known]
        skipped.update(summary.skipped)
    samples = sum(record.count for record in records)
    attempted = sum(len(job.assets) for job in jobs)
    return Summary(samples, tuple(failures), dict(skipped), attempted, _expected(plan, failures))


def _expected(plan: Plan, failures: Iterable[Failure]) -> int:
    return sum(failure.id in plan.table.expected_failures for failure in failures)


def view_set_summary(plan: Plan, jobs: list[Job], view_set: ViewSet, finished: FinishedRecords) -> Summary:
    """Samples, failures and skipped of one finished view set."""
    records = [finished[views_tar(plan.out, view_set.name, job.split, job.shard)] for job in jobs]
    skipped = Counter(s.reason for record in records for s in record.skipped)
    failures = tuple(f for record in records for f in record.failures)
    samples = sum(record.count for record in records)
    return Summary(samples, failures, dict(skipped), samples + len(failures), _expected(plan, failures))


def _manifest(plan: Plan, jobs: list[Job], records: dict[tuple[str, int], Record], complete: bool) -> BuildManifest:
    splits = {}
    for split in sorted({job.split for job in jobs}):
        of_split = [job for job in jobs if job.split == split]
        done = [records[split, job.shard] for job in of_split if (split, job.shard) in records]
        splits[split] = SplitCounts(
            assets=sum(len(job.assets) for job in of_split),
            samples=sum(record.count for record in done),
            failures=sum(len(record.failures) for record in done),
            shards=len(of_split),
        )
    return BuildManifest(
        dataset=plan.table.name,
        classes=plan.classes,
        prompt_names=plan.prompt_names,
        splits=splits,
        shapes_hash=plan.shapes_hash,
        assets_hash=plan.assets_hash,
        recipe=plan.recipe.identity(),
        complete=complete,
        versions=plan.versions,
        seconds=round(sum(record.seconds for record in records.values()), 3),
        max_rss_mb=max((record.max_rss_mb for record in records.values()), default=0.0),
    )


def estimate_bytes(plan: Plan, num_assets: int) -> int:
    """A rough size of the build: measured averages of one object (a point, a coloured point, a view by pixels)."""
    pixels = sum(
        s.preset.num_views * s.preset.image_size**2 * (0.95 if is_mesh_preset(s.preset) else 0.35)
        for s in plan.view_sets
    )
    meshes = 250_000 if plan.recipe.store_meshes else 0
    return int(num_assets * (plan.recipe.num_points * 15 + pixels + meshes + 4096))
