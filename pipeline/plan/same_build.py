"""Whether OUT holds the build that a plan describes: another recipe, source or preset is refused before any work."""

from __future__ import annotations

from manifests import plugins, store
from manifests.config import first_difference
from manifests.errors import Refused
from manifests.layout import ASSETS, LOCK, SPLITS, VIEWS, read_manifest, read_view_set
from manifests.plain_text import number_of
from manifests.records import parse_assets
from pipeline.plan.plan import Job, Plan, ViewSet, assets_file

_BEFORE_MANIFEST = (LOCK, ASSETS, SPLITS)  # a build that is killed early leaves these without a manifest


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
        if change is None:
            raise Refused(
                f"{plan.out} was made by another version of this program, which reads some files otherwise: use it as "
                "it is, or choose another --out"
            )
        raise Refused(f"{plan.out} holds another recipe: {change}; choose another --out")
    own = plugins.offered("DATASETS").get(plan.table.name)
    if own is not None and manifest.plugins.get(own[0]) != plan.plugins.get(own[0]):
        raise Refused(f"{plan.out} was built with another version of plugin {own[0]}: choose another --out")
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
        return f"{come.source} is new ({number_of(len(old), 'asset')} then, {len(new):,} now)"
    return f"{gone.source if gone else 'the list'} is gone ({number_of(len(old), 'asset')} then, {len(new):,} now)"
