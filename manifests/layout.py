"""The files of a build: where they lie, and the manifests of a build and of a view set.

A build is a folder, local or in an object store:

    OUT/manifest.json
    OUT/shapes/<split>-00017.tar          OUT/meshes/<split>-00017.tar
    OUT/views/<set>/manifest.json         OUT/views/<set>/<split>-00017.tar
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from manifests import store
from manifests.config import Settings, digest
from manifests.errors import Refused, first_problem
from manifests.presets import AnyViews, Preset, preset_hash
from manifests.records import Key, read_json, write_json
from manifests.samples import CONTENT, FORMAT, tar_name

SHAPES = "shapes"
MESHES = "meshes"
VIEWS = "views"
MANIFEST = "manifest.json"
RECIPE = "recipe.toml"
ASSETS = "assets.jsonl"
LOCK = "build.lock"
SPLITS = "splits"  # a folder with a list of ids for each split, where the recipe divided the dataset
MAX_SHARDS = 1_000_000  # of a split: a larger number is damage, and no reader looks for the files


class SplitCounts(Settings):
    """What one split of a build holds."""

    assets: Annotated[int, Field(ge=0)]
    samples: Annotated[int, Field(ge=0)]
    failures: Annotated[int, Field(ge=0)]
    shards: Annotated[int, Field(ge=0, le=MAX_SHARDS)]


class BuildManifest(Settings):
    """OUT/manifest.json.

    classes: names in label order; prompt_names: the same in words. recipe: the resolved keys that change bytes.
    shapes_hash: of those keys, FORMAT and CONTENT; assets_hash: sha256 of the ordered asset list. complete: every job
    has its record. seconds: of all jobs together. passed_over: suffix -> number of files of the source that look like
    shapes and are not read. plugins: name -> version of what `--plugin` named; absent where it named no plugin.
    """

    format: int = FORMAT
    dataset: str
    classes: tuple[str, ...]
    prompt_names: tuple[str, ...]
    splits: dict[Key, SplitCounts]
    shapes_hash: str
    assets_hash: str
    recipe: dict[str, Any]
    complete: bool
    versions: dict[str, str]
    seconds: float = 0.0
    max_rss_mb: float = 0.0
    passed_over: dict[str, int] = Field(default_factory=dict)
    plugins: dict[str, str] = Field(default_factory=dict)

    @property
    def num_shards(self) -> dict[str, int]:
        """Number of shards of each split."""
        return {split: counts.shards for split, counts in self.splits.items()}


class ViewSetManifest(Settings):
    """OUT/views/<set>/manifest.json."""

    format: int = FORMAT
    name: str
    preset: Preset
    hash: str
    shapes_hash: str
    versions: dict[str, str]


def view_set_hash(preset: AnyViews, shapes_hash: str) -> str:
    """Identity of a view set: its resolved preset, CONTENT and the shapes it was drawn from."""
    return digest({"preset": preset_hash(preset), "content": CONTENT, "shapes": shapes_hash})


def shapes_tar(out: str, split: str, shard: int) -> str:
    """Path of one tar of shapes."""
    return store.join(out, SHAPES, tar_name(split, shard))


def meshes_tar(out: str, split: str, shard: int) -> str:
    """Path of one tar of meshes."""
    return store.join(out, MESHES, tar_name(split, shard))


def views_tar(out: str, view_set: str, split: str, shard: int) -> str:
    """Path of one tar of a view set."""
    return store.join(out, VIEWS, view_set, tar_name(split, shard))


def view_set_names(out: str) -> list[str]:
    """Names of the view sets of a build, found by listing views/."""
    folder = store.join(out, VIEWS)
    return [name for name in store.list_names(folder) if store.exists(store.join(folder, name, MANIFEST))]


def read_manifest(out: str) -> BuildManifest | None:
    """The manifest of a build, or None where it is missing. Raises ValueError naming the file when it is damaged."""
    path = store.join(out, MANIFEST)
    values = read_json(path)
    return None if values is None else _typed(TypeAdapter(BuildManifest), values, path)


def require_manifest(out: str, name: str) -> BuildManifest:
    """The manifest of a build that a person named as `name`. Raises Refused where it is missing or damaged."""
    try:
        manifest = read_manifest(out)
    except ValueError as error:
        raise Refused(str(error)) from error
    if manifest is None:
        raise Refused(f"{name} holds no build (no manifest.json)")
    return manifest


def read_view_set(out: str, name: str) -> ViewSetManifest | None:
    """The manifest of a view set, or None where it is missing. Raises ValueError naming the file when damaged."""
    path = store.join(out, VIEWS, name, MANIFEST)
    values = read_json(path)
    found = None if values is None else _typed(TypeAdapter(ViewSetManifest), values, path)
    if found is not None and found.name != name:
        raise ValueError(f"{path}: it is of the view set {found.name[:60]}: rename the folder back")
    return found


def asked_view_set(out: str, name: str) -> ViewSetManifest | None:
    """As read_view_set, of a view set that a person named. Raises Refused where its manifest is damaged."""
    try:
        return read_view_set(out, name)
    except ValueError as error:
        raise Refused(str(error)) from error


def _typed(adapter: TypeAdapter[Any], values: dict[str, Any], path: str) -> Any:
    if values.get("format") != FORMAT:
        raise ValueError(f"{path}: format {str(values.get('format'))[:20]!r}, this version reads {FORMAT}")
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}") from error


def write_manifest(out: str, manifest: BuildManifest) -> None:
    """Writes OUT/manifest.json."""
    values = manifest.model_dump(mode="json", exclude=None if manifest.plugins else {"plugins"})
    write_json(store.join(out, MANIFEST), values)


def write_view_set(out: str, manifest: ViewSetManifest) -> None:
    """Writes OUT/views/<set>/manifest.json."""
    write_json(store.join(out, VIEWS, manifest.name, MANIFEST), manifest.model_dump(mode="json"))


def library_versions(*names: str) -> dict[str, str]:
    """Versions of Python and of the named distributions that are installed."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
