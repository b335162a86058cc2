"""The recipe of a build: every key of it, its type and its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from manifests.config import Value, digest, find_recipe, load_toml, merge, parse_recipe
from manifests.dataset_info import axes_matrix
from manifests.samples import CONTENT, FORMAT
from pipeline.datasets.co3d import Co3dV1Options, Co3dV2Options
from pipeline.datasets.redwood import RedwoodOptions
from pipeline.datasets.splits import MAX_POINTS, Division
from pipeline.datasets.synthetic.generator import ParametricOptions

RECIPES = Path(__file__).parent.parent / "recipes"
POLICY = frozenset({"asset_seconds", "asset_memory_mb", "max_points", "max_failed_fraction", "allow_partial"})
OPTIONS = ("parametric", "redwood", "co3d_v1", "co3d_v2")  # datasets with a table of their own in the recipe
LISTED = ("meshes", "points")  # datasets that take `listing`


class BuildRecipe(BaseModel):
    """What to make of which dataset.

    num_points: samples of a surface. fps_prefix: how many of them come first, in farthest-point order. axes: replaces
    the dataset's own. classes: keeps these only, in this label order (for folders without classes: the candidates).
    splits: keeps these only. split: another division of the dataset than its own, by name (mvcnn80_20). split_list: a
    file or folder that says which object is in which split (the shipped recipes say which kinds are read). listing: a
    csv or jsonl file that names the objects of `meshes` and `points`. The paths of both are in no hash, the list of
    assets that they give is. views: a table of preset name -> changed keys, or a list of names.
    Policy keys (asset_seconds without progress, asset_memory_mb a process, max_points that one object of a dataset of
    clouds may declare, max_failed_fraction, allow_partial) change no byte and are in no hash.
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
    split: str = ""
    split_list: str = ""
    listing: str | None = None
    views: dict[str, dict[str, Any]] = {}
    parametric: ParametricOptions = ParametricOptions()
    redwood: RedwoodOptions = RedwoodOptions()
    co3d_v1: Co3dV1Options = Co3dV1Options()
    co3d_v2: Co3dV2Options = Co3dV2Options()
    asset_seconds: Annotated[float, Field(gt=0)] = 120.0
    asset_memory_mb: Annotated[int, Field(ge=200)] = 2000
    max_points: Annotated[int, Field(ge=1)] = MAX_POINTS
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

    def options(self) -> ParametricOptions | RedwoodOptions | Co3dV2Options | Division | str | None:
        """The dataset's own table, or the path of its listing, else how it is divided into splits."""
        if self.dataset in LISTED:
            return self.listing
        if self.dataset in OPTIONS:
            return getattr(self, self.dataset)
        return Division(self.split, self.split_list, self.max_points)

    def identity(self) -> dict[str, Any]:
        """The keys that change shapes and meshes, as plain values."""
        left_out = {*POLICY, "views", "listing", "split_list", *(name for name in OPTIONS if name != self.dataset)}
        if not self.split:
            left_out.add("split")
        values = self.model_dump(mode="json", exclude=left_out)
        for limit in getattr(self.options(), "LIMITS", ()):
            del values[self.dataset][limit]
        return values

    def shapes_hash(self) -> str:
        """sha256 of what changes shapes and meshes, FORMAT and CONTENT."""
        return digest({"recipe": self.identity(), "format": FORMAT, "content": CONTENT})


def _view_table(views: Value) -> Value:
    """A list of preset names as a table of presets without changes; a table as it is."""
    return {str(name): {} for name in views} if isinstance(views, list) else views


def read_recipe(name: str, changes: dict[str, Value]) -> BuildRecipe:
    """A recipe file with changes applied, presets included. Raises Refused naming what does not fit."""
    values = load_toml(find_recipe(name, RECIPES))
    values["views"] = _view_table(values.get("views", {}))
    return parse_recipe(BuildRecipe, merge(values, changes), f"recipe {name}")
