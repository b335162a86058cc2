"""The files of OUT beside its tars: its manifest, the resolved recipe, the asset list, the manifests of view sets."""

from __future__ import annotations

from manifests import store
from manifests.config import to_toml
from manifests.layout import (
    ASSETS,
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
    write_manifest,
    write_view_set,
)
from manifests.records import Record
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.plan.plan import Job, Plan, ViewSet, assets_file


def write_unfinished(plan: Plan, jobs: list[Job]) -> None:
    """Deletes what killed writers left, and writes the manifests of an unfinished build."""
    inside = (SHAPES, MESHES, *(store.join(VIEWS, s.name) for s in plan.view_sets))
    for folder in (plan.out, *(store.join(plan.out, name) for name in inside)):
        store.delete_temporaries(folder)
    if read_manifest(plan.out) is None:
        store.write_bytes(store.join(plan.out, ASSETS), assets_file(jobs))
        _write_splits(plan, jobs)
        write_build_manifest(plan, jobs)
    recipe = to_toml(plan.recipe.model_dump(mode="json", exclude_none=True))
    header = f"# The resolved recipe of this build; shapes hash {plan.shapes_hash}\n"
    store.write_bytes(store.join(plan.out, RECIPE), (header + recipe).encode())
    for view_set in plan.view_sets:
        write_view_set_manifest(plan, view_set)


def _write_splits(plan: Plan, jobs: list[Job]) -> None:
    """OUT/splits/<split>.txt, an id a line, where the division is the recipe's own and not the dataset's."""
    if not plan.dataset.SAVES_SPLITS:
        return
    for split in sorted({job.split for job in jobs}):
        ids = sorted(asset.id for job in jobs if job.split == split for asset in job.assets)
        store.write_bytes(store.join(plan.out, SPLITS, f"{split}.txt"), "".join(f"{id}\n" for id in ids).encode())


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


def write_build_manifest(plan: Plan, jobs: list[Job], finished: FinishedRecords | None = None) -> None:
    """Writes OUT/manifest.json: of a finished build with the sums of its records, of an unfinished one without."""
    splits: dict[str, SplitCounts] = {}
    records: list[Record] = []
    for split in sorted({job.split for job in jobs}):
        of_split = [job for job in jobs if job.split == split]
        done = [finished[plan.raw_tars(job)[0]] for job in of_split] if finished is not None else []
        records += done
        splits[split] = SplitCounts(
            assets=sum(len(job.assets) for job in of_split),
            samples=sum(record.count for record in done),
            failures=sum(len(record.failures) for record in done),
            shards=len(of_split),
        )
    manifest = BuildManifest(
        dataset=plan.table.name,
        classes=plan.classes,
        prompt_names=plan.prompt_names,
        splits=splits,
        shapes_hash=plan.shapes_hash,
        assets_hash=plan.assets_hash,
        recipe=plan.recipe.identity(),
        complete=finished is not None,
        versions=plan.versions,
        passed_over=plan.passed_over,
        plugins=plan.plugins,
        seconds=round(sum(record.seconds for record in records), 3),
        max_rss_mb=max((record.max_rss_mb for record in records), default=0.0),
    )
    write_manifest(plan.out, manifest)
