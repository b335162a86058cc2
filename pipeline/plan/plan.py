"""The plan of a build: a recipe and a source give the list of assets, cut into jobs. One job is one shard.

Jobs are the assets of each split in the order of sha256(recipe seed, key), cut into slices of `shard_size`: every shard
is a random sample of its split, and shard 17 is shard 17 on any cluster.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from manifests import plugins, store
from manifests.dataset_info import DatasetTable, default_prompt_name, load_table
from manifests.errors import Refused
from manifests.layout import library_versions, meshes_tar, shapes_tar, view_set_hash, views_tar
from manifests.presets import AnyViews, load_preset
from manifests.records import Asset, asset_line, asset_list_hash, make_keys
from manifests.rng import seed_digest
from pipeline.datasets import Dataset, FramesHook, dataset_module
from pipeline.datasets.options import ListedSplit, NamedSplit
from pipeline.plan.build_recipe import BuildRecipe
from pipeline.sources.source_files import followed, refuse_links

LIBRARIES = ("numpy", "pillow", "trimesh", "dracopy", "meshopt", "open3d", "open3d-cpu", "webdataset")


@dataclass(frozen=True)
class ViewSet:
    """One view set to draw: its name in views/, its preset and its hash."""

    name: str
    preset: AnyViews
    hash: str


@dataclass(frozen=True)
class Job:
    """One shard: which split, which number, which assets in which order."""

    split: str
    shard: int
    assets: tuple[Asset, ...]


@dataclass(frozen=True)
class Plan:
    """Everything a worker must know. `source` is an absolute folder, or None for a made dataset or old shards.

    notes: what a person should know about the choice of objects, one line each. passed_over: suffix -> number of files
    of the source that look like shapes and are not read. followed: folders that links of the source may lead into, of
    the block of `following` in which the plan is made; a worker begins one with them. plugins: name -> version of
    those that are loaded then.
    """

    recipe: BuildRecipe
    table: DatasetTable
    source: str | None
    out: str
    classes: tuple[str, ...]
    prompt_names: tuple[str, ...]
    shapes_hash: str
    assets_hash: str
    view_sets: tuple[ViewSet, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    passed_over: dict[str, int] = field(default_factory=dict)
    followed: tuple[str, ...] = field(default_factory=followed)
    plugins: dict[str, str] = field(default_factory=plugins.versions)

    @property
    def root(self) -> Path | None:
        """The source's folder, or None."""
        return None if self.source is None else Path(self.source)

    @property
    def dataset(self) -> Dataset:
        """The module that reads the dataset."""
        return dataset_module(self.table)

    @property
    def axes(self) -> tuple[str, str, str]:
        return self.recipe.axes or self.table.axes

    def raw_tars(self, job: Job) -> list[str]:
        """Paths of what a job makes of the raw dataset: its tar of shapes and, where they are stored, of meshes."""
        makers = (shapes_tar, meshes_tar) if self.recipe.store_meshes else (shapes_tar,)
        return [path(self.out, job.split, job.shard) for path in makers]

    def tars(self, job: Job) -> list[str]:
        """Paths of all tars of a job, those of the plan's view sets last."""
        return [*self.raw_tars(job), *(views_tar(self.out, s.name, job.split, job.shard) for s in self.view_sets)]

    def label(self, class_name: str | None) -> int | None:
        """The class's number in the manifest's order, or None."""
        return self.classes.index(class_name) if class_name in self.classes else None


def make_view_sets(recipe: BuildRecipe, shapes_hash: str) -> tuple[ViewSet, ...]:
    """The view sets that a recipe asks for. Raises Refused on an unknown preset or when two get one name."""
    sets: list[ViewSet] = []
    for preset_name, changes in recipe.views.items():
        name, preset = load_preset(preset_name, changes)
        if preset.reads == "files":
            raise Refused(
                f"views.{preset_name} are pictures of files: build, then python -m pipeline views {preset_name}"
            )
        if preset.reads == "frames":
            require_frames(load_table(recipe.dataset), name)
        if any(known.name == name for known in sets):
            raise Refused(f"views: two view sets are named {name}")
        sets.append(ViewSet(name, preset, view_set_hash(preset, shapes_hash)))
    return tuple(sets)


def require_frames(table: DatasetTable, what: str) -> FramesHook:
    """The hook that gives the frames of an object. Raises Refused, naming `what`, where a dataset has no sequences."""
    frames = dataset_module(table).frames
    if frames is None:
        raise Refused(f"{what}: {table.name} has no sequences of frames")
    return frames


def make_plan(recipe: BuildRecipe, source: str | None, out: str) -> tuple[Plan, list[Job]]:
    """Lists the assets of a source and cuts them into jobs; reads no shape and writes nothing.

    Raises Refused when the source is missing, holds nothing of the dataset, or is a partial copy.
    """
    with _uncollected():
        return _plan_and_jobs(recipe, source, out)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Turns the collector of cycles off: it would go through all assets made so far, again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _plan_and_jobs(recipe: BuildRecipe, source: str | None, out: str) -> tuple[Plan, list[Job]]:
    table = load_table(recipe.dataset)
    root = source_folder(table, source)
    table = complete_table(table, root)
    shapes_hash = recipe.shapes_hash()
    view_sets = make_view_sets(recipe, shapes_hash)
    assets = list_assets(recipe, table, root)
    classes, prompt_names = _classes(recipe, table, assets)
    plan = Plan(
        recipe=recipe,
        table=table,
        source=None if root is None else str(root),
        out=store.absolute(out),
        classes=classes,
        prompt_names=prompt_names,
        shapes_hash=shapes_hash,
        assets_hash=asset_list_hash(assets),
        view_sets=view_sets,
        versions=library_versions(*LIBRARIES),
        notes=tuple(dataset_module(table).notes(recipe.options(), table)),
        passed_over=dataset_module(table).passed_over(recipe.options(), root),
    )
    return plan, cut_jobs(assets, recipe.seed, recipe.shard_size)


def complete_table(table: DatasetTable, root: Path | None) -> DatasetTable:
    """The table, with classes and counts from the source where that holds them (the dataset's `complete`)."""
    return dataset_module(table).complete(table, root)


def source_folder(table: DatasetTable, source: str | None) -> Path | None:
    """The absolute folder of a dataset that is read from files, None for a made one. Raises Refused where missing."""
    if not dataset_module(table).NEEDS_SOURCE:
        return None
    return existing_folder(source, table.name)


def existing_folder(source: str | None, what: str) -> Path:
    """The absolute folder that --source names. Raises Refused where it is not given or names no folder."""
    if source is None:
        raise Refused(f"{what} is read from files: give --source DIR")
    root = Path(source).absolute()
    if not root.is_dir():
        raise Refused(f"--source {source}: no such folder")
    return root


def list_assets(recipe: BuildRecipe, table: DatasetTable, root: Path | None) -> list[Asset]:
    """The dataset's assets with their keys, restricted to the recipe's classes and splits, sorted by split and key."""
    _refuse_division(recipe, table)
    found = list(dataset_module(table).assets(root, table, recipe.options()))
    _refuse_partial(recipe, table, found)
    for class_name in recipe.classes:
        if table.classes and class_name not in table.classes:
            raise Refused(f"classes: {table.name} has no class {class_name}; it has {', '.join(table.classes)}")
    splits = {asset.split for asset in found}
    for split in recipe.splits:
        if split not in splits:
            raise Refused(f"splits: no split {split} in the source; it has {', '.join(sorted(splits))}")
    with_classes = any(asset.class_name in recipe.classes for asset in found)
    kept = [
        asset
        for asset in found
        if (not recipe.splits or asset.split in recipe.splits)
        and (not recipe.classes or not with_classes or asset.class_name in recipe.classes)
    ]
    if not kept:
        raise Refused(f"no object of {table.name} is left in {root}")
    if root is not None:
        refuse_links(root, [asset.source for asset in kept])
    try:
        keys = make_keys([asset.id for asset in kept], [asset.source for asset in kept])
    except ValueError as error:
        raise Refused(f"{root}: {error}") from error
    named = (Asset(a.id, a.source, a.split, a.class_name, key) for a, key in zip(kept, keys, strict=True))
    return sorted(named, key=lambda asset: (asset.split, asset.key))


def _refuse_division(recipe: BuildRecipe, table: DatasetTable) -> None:
    options = recipe.options()
    if isinstance(options, NamedSplit) and options.split and options.split not in table.split_counts:
        known = ", ".join(table.split_counts)
        raise Refused(f"split: {table.name} is not divided by {options.split}; known: {known}")
    if isinstance(options, ListedSplit) and options.split_list and not os.path.exists(options.split_list):
        raise Refused(f"split_list: no such file {options.split_list}")


def _refuse_partial(recipe: BuildRecipe, table: DatasetTable, found: list[Asset]) -> None:
    """Compares with the expected counts, or asks the dataset's own `shortfalls`."""
    wrong = dataset_module(table).shortfalls(recipe.options(), table, found, recipe.splits)
    if wrong and not recipe.allow_partial:
        raise Refused(f"not the whole {table.name}: {', '.join(wrong)}; to build it all the same: allow_partial=true")


def _classes(recipe: BuildRecipe, table: DatasetTable, assets: list[Asset]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names in label order and their prompt names: the recipe's, else the table's, else the folders'."""
    words = dict(zip(table.classes, table.prompt_names, strict=True))
    names = recipe.classes or table.classes
    if not names:
        names = tuple(sorted({asset.class_name for asset in assets if asset.class_name is not None}))
    return names, tuple(words.get(name, default_prompt_name(name)) for name in names)


def cut_jobs(assets: list[Asset], seed: int, shard_size: int) -> list[Job]:
    """One job for each `shard_size` assets of a split, in the order of sha256(seed, key)."""
    jobs = []
    for split in sorted({asset.split for asset in assets}):
        ordered = sorted(
            (asset for asset in assets if asset.split == split),
            key=lambda asset: seed_digest(seed, asset.key),
        )
        for shard, start in enumerate(range(0, len(ordered), shard_size)):
            jobs.append(Job(split, shard, tuple(ordered[start : start + shard_size])))
    return jobs


def assets_file(jobs: list[Job]) -> bytes:
    """OUT/assets.jsonl: every asset, in the order in which the asset list's hash is taken."""
    assets = sorted((asset for job in jobs for asset in job.assets), key=lambda a: (a.split, a.key))
    return b"".join(asset_line(asset) for asset in assets)
