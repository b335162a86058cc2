"""The plan of an existing build, read from OUT: to draw new views, to repair, to compare with the source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from manifests import store
from manifests.config import parse_toml
from manifests.dataset_info import load_table, table_names
from manifests.errors import Refused
from manifests.layout import (
    ASSETS,
    RECIPE,
    BuildManifest,
    library_versions,
    read_view_set,
    require_manifest,
    view_set_names,
)
from manifests.records import Asset, parse_assets
from pipeline.plan.build_recipe import BuildRecipe, stored_recipe
from pipeline.plan.plan import (
    LIBRARIES,
    Job,
    Plan,
    ViewSet,
    complete_table,
    cut_jobs,
    existing_folder,
)
from pipeline.sources.source_files import refuse_links


def of_build(out: str, manifest: BuildManifest, recipe: BuildRecipe) -> tuple[Plan, list[Job]]:
    """The plan of the build at an absolute `out`, without view sets and without its raw dataset."""
    plan = Plan(
        recipe=recipe,
        table=load_table(manifest.dataset),
        source=None,
        out=out,
        classes=manifest.classes,
        prompt_names=manifest.prompt_names,
        shapes_hash=manifest.shapes_hash,
        assets_hash=manifest.assets_hash,
        view_sets=(),
        versions=library_versions(*LIBRARIES),
        passed_over=manifest.passed_over,
    )
    return plan, cut_jobs(_listed_assets(out, manifest), recipe.seed, recipe.shard_size)


def require_plugins(out: str, manifest: BuildManifest) -> None:
    """Raises Refused, naming what to pass, where the dataset of a build is that of a plugin and not known here."""
    if manifest.plugins and manifest.dataset not in table_names():
        words = " ".join(f"--plugin {name}" for name in sorted(manifest.plugins))
        raise Refused(f"{out} was built with {words}: give the same here (your own copy; the build holds none)")


def whole_plan(out: str, source: str | None) -> tuple[Plan, list[Job]]:
    """The plan that makes every shard of a build again, with all its drawn view sets and its limits.

    source: the raw dataset; without it the plan has no source. Raises Refused where OUT does not say enough.
    """
    manifest = require_manifest(out, out)
    require_plugins(out, manifest)
    plan, jobs = of_build(out, manifest, _recipe(out, manifest))
    if source is not None and plan.dataset.NEEDS_SOURCE:
        root = existing_folder(source, plan.table.name)
        refuse_links(root, [asset.source for job in jobs for asset in job.assets])
        plan = replace(plan, source=str(root), table=complete_table(plan.table, root))
    return replace(plan, view_sets=tuple(drawn_sets(plan, skip_damaged=True))), jobs


def _recipe(out: str, manifest: BuildManifest) -> BuildRecipe:
    """The recipe of a build with its limits, from OUT/recipe.toml; without them where that is gone or another's."""
    path = store.join(out, RECIPE)
    try:
        recipe = stored_recipe(parse_toml((store.read_bytes(path) or b"").decode()), path)
        if recipe.shapes_hash() == manifest.shapes_hash:
            return recipe
    except (ValueError, Refused):
        pass  # the manifest holds what changes bytes
    recipe = stored_recipe(manifest.recipe, f"{out}/manifest.json")
    if recipe.shapes_hash() != manifest.shapes_hash:
        raise Refused(f"{out} was made by another version of this program: it cannot make the same bytes")
    return recipe


def _listed_assets(out: str, manifest: BuildManifest) -> list[Asset]:
    """The assets of a build, from its own list. Raises Refused where that is missing or damaged."""
    path = store.join(out, ASSETS)
    try:
        data = store.read_bytes(path)
    except ValueError as error:
        raise Refused(str(error)) from error
    if data is None:
        raise Refused(f"{path} is missing: run the build again")
    if hashlib.sha256(data).hexdigest() != manifest.assets_hash:
        raise Refused(f"{path} is damaged: delete {out}/manifest.json and run the build again")
    try:
        return parse_assets(data)
    except ValueError as error:
        raise Refused(f"{path} is damaged ({error}): delete {out}/manifest.json and run the build again") from error


def drawn_sets(plan: Plan, skip_damaged: bool = False) -> Iterator[ViewSet]:
    """The view sets of OUT that its own shapes or frames give; pictures of files come from elsewhere.

    Raises Refused where the manifest of a view set is damaged, unless such sets are skipped.
    """
    for name in view_set_names(plan.out):
        try:
            known = read_view_set(plan.out, name)
        except ValueError as error:
            if skip_damaged:
                continue  # `check` reports it
            raise Refused(f"{error}; delete its folder to draw it again") from error
        if known is not None and known.shapes_hash == plan.shapes_hash and known.preset.reads != "files":
            yield ViewSet(name, known.preset, known.hash)
