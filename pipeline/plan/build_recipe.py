"""The recipe of a build: every key of it, its type and its meaning."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from manifests import plugins
from manifests.config import Value, digest, find_recipe, load_toml, merge, parse_recipe
from manifests.dataset_info import axes_matrix, load_table
from manifests.samples import CONTENT, FORMAT
from pipeline.datasets import options_of
from pipeline.datasets.options import MAX_POINTS, DatasetOptions

RECIPES = Path(__file__).parent.parent / "recipes"
POLICY = frozenset({"asset_seconds", "asset_memory_mb", "max_points", "max_failed_fraction", "allow_partial"})
PATHS = frozenset({"listing", "split_list"})  # what they say is in the hash of the list of assets
ONCE_IN_ALL = {"split": "", "split_list": "", "max_points": MAX_POINTS}  # each stored recipe of 0.1.0 holds these keys
ONCE_IN_ALL_TABLES = ("parametric", "redwood", "co3d_v1", "co3d_v2")  # and these tables, whatever its dataset


class BuildRecipe(BaseModel):
    """What to make of which dataset: the keys of every recipe. `recipe_kind` adds those that the dataset reads.

    dataset: its table and reader. seed: of the samples and of the order of objects. num_points: samples of a surface.
    fps_prefix: how many of them come first, in farthest-point order. normalize: what becomes the centre and the size of
    1. axes: replaces the dataset's own. store_meshes: keeps meshes, for later views without the source. shard_size:
    objects a shard. classes: keeps these only, in this label order (for folders without classes: the candidates).
    splits: keeps these only. views: a table of preset name -> changed keys, or a list of names. asset_seconds: the most
    without progress on an object. asset_memory_mb: the most that a process holds. max_failed_fraction: the share of
    failures above which a build ends with exit code 1. allow_partial: builds a copy that lacks objects.
    The last four are policy: they change no byte and are in no hash.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str
    seed: int = 0
    num_points: Annotated[int, Field(ge=1)] = 8192
    fps_prefix: Annotated[int, Field(ge=0)] = 1024
    normalize: Literal["sphere_mean_points", "sphere_mean_verts", "bbox_unit_cube", "bbox_0.8", "none"] = (
        "sphere_mean_points"
    )
    axes: tuple[str, str, str] | None = None
    store_meshes: bool = True
    shard_size: Annotated[int, Field(ge=1)] = 256
    classes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    views: dict[str, dict[str, Any]] = {}
    asset_seconds: Annotated[float, Field(gt=0)] = 120.0
    asset_memory_mb: Annotated[int, Field(ge=200)] = 2000
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    allow_partial: bool = False

    @field_validator("views", mode="before")
    @classmethod
    def _list_of_names(cls, views: Value) -> Value:
        return _view_table(views)

    @field_validator("axes")
    @classmethod
    def _turns(cls, axes: tuple[str, str, str] | None) -> tuple[str, str, str] | None:
        if axes is not None:
            axes_matrix(axes)
        return axes

    def __reduce__(self) -> tuple[Callable[..., BuildRecipe], tuple[dict[str, Any], tuple[plugins.Plugin, ...]]]:
        """Pickles the values, as `recipe_kind` makes classes that an import does not find, and the plugins."""
        return _unpickled, (self.model_dump(), plugins.loaded())

    def options(self) -> DatasetOptions:
        """The keys that only the dataset reads: its own table, or this recipe itself where it has no table."""
        return cast(DatasetOptions, getattr(self, self.dataset, self))

    def identity(self) -> dict[str, Any]:
        """The keys that change shapes and meshes, as plain values."""
        values = self.model_dump(mode="json", exclude={*POLICY, *PATHS, "views"})
        if values.get("split") == "":
            del values["split"]
        for limit in self.options().LIMITS:
            del values[self.dataset][limit]
        return values

    def shapes_hash(self) -> str:
        """sha256 of what changes shapes and meshes, FORMAT and CONTENT."""
        return digest({"recipe": self.identity(), "format": FORMAT, "content": CONTENT})


def _view_table(views: Value) -> Value:
    """A list of preset names as a table of presets without changes; a table as it is."""
    return {str(name): {} for name in views} if isinstance(views, list) else views


def _unpickled(values: dict[str, Any], with_plugins: tuple[plugins.Plugin, ...]) -> BuildRecipe:
    plugins.load(with_plugins)
    return stored_recipe(values, "recipe")


def recipe_kind(dataset: str) -> type[BuildRecipe]:
    """The class of a dataset's recipes: the keys of every recipe, then its own. Raises Refused on an unknown one."""
    return _kind_with(dataset, options_of(load_table(dataset)))


@cache
def _kind_with(dataset: str, options: type[DatasetOptions]) -> type[BuildRecipe]:
    table: dict[str, Any] = {dataset: (options, options())} if options.IN_TABLE else {}
    bases = (BuildRecipe,) if table else cast(tuple[type[BuildRecipe], ...], (options, BuildRecipe))
    return create_model("BuildRecipe", __base__=bases, **table)


def _parse(values: dict[str, Value], where: str) -> BuildRecipe:
    """A typed recipe. Raises Refused on a key that its dataset does not read, naming those that it reads."""
    dataset = values.get("dataset")
    if not isinstance(dataset, str):
        return parse_recipe(BuildRecipe, values, where)
    kind = recipe_kind(dataset)
    own = sorted(set(kind.model_fields) - set(BuildRecipe.model_fields))
    keys = [f"{name}.*" if name == dataset else name for name in own]
    reads = f"{dataset} reads {' and '.join(keys) or 'no key'} beside the keys of every dataset"
    return parse_recipe(kind, values, where, reads)


def _without_other_datasets(values: dict[str, Value]) -> dict[str, Value]:
    """The values of a stored recipe without the keys that only other datasets read, where these have their defaults."""
    dataset = values.get("dataset")
    if not isinstance(dataset, str):
        return values
    others = {**ONCE_IN_ALL, **{name: _own_defaults(name) for name in ONCE_IN_ALL_TABLES if name in values}}
    read = recipe_kind(dataset).model_fields
    return {k: value for k, value in values.items() if k in read or k not in others or value != others[k]}


def _own_defaults(dataset: str) -> dict[str, Value]:
    return options_of(load_table(dataset))().model_dump(mode="json", exclude_none=True)


def stored_recipe(values: dict[str, Value], where: str) -> BuildRecipe:
    """The recipe of a build from its recipe.toml or manifest, of older versions too. Raises Refused on other values."""
    return _parse(_without_other_datasets(values), where)


def read_recipe(name: str, changes: dict[str, Value]) -> BuildRecipe:
    """A recipe file with changes applied, presets included. Raises Refused naming what does not fit."""
    values = _without_other_datasets(load_toml(find_recipe(name, RECIPES)))
    values["views"] = _view_table(values.get("views", {}))
    if str(values.get("dataset")) in plugins.offered("DATASETS"):  # the hash and later readers know no table but ours
        values = {"axes": load_table(values["dataset"]).axes} | values
    return _parse(merge(values, changes), f"recipe {name}")
