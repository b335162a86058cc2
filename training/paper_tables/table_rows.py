"""The paper's tables: which rows there are, what each trains and how it is judged, and what the paper printed.

A table is a file of recipes/tables. A row names a recipe, the keys that it changes and the run that it judges; rows of
several tables that judge the same run share it. A row without a recipe is a method of others: a figure alone. The
pre-training that rows begin with is a row, too, which is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from manifests import plugins, store
from manifests.config import (
    Settings,
    Value,
    digest,
    find_recipe,
    first_difference,
    load_toml,
    merge,
    names_in,
    parse_recipe,
    unknown_name,
)
from manifests.errors import Refused
from manifests.layout import MANIFEST, asked_view_set, require_manifest
from training.settings.fit_recipe import FitRecipe, changes_of, keys_in, keys_of_method, method_of, read_recipe

TABLES = Path(__file__).parent.parent / "recipes" / "tables"
Name = Annotated[str, Field(pattern="^[a-z0-9_-]+$")]
Column = Literal["image", "image_star", "points"]
HEADS = {"image": "Image", "image_star": "Image*", "points": "Point cloud"}


class Row(Settings):
    """One line of a table.

    name: for `--rows`; label: as printed. recipe: its base, empty for a method of others; preset: laid over the recipe
    (`--preset` gives the rows without one theirs), and changes: keys laid over both.
    points_from_scratch: without the weights that the point tower would begin with. run: the folder that is judged,
    shared by all rows (of any table) with the same training. shards: name of the build, by default the recipe's.
    step: the last checkpoint, or the `first`, which is zero-shot. evaluate: keys of `data` in the judgement alone.
    paper: percent by column, as printed.
    """

    name: Name
    label: str
    recipe: str = ""
    preset: str = ""
    changes: dict[str, Any] = Field(default_factory=dict)
    points_from_scratch: bool = False
    run: Annotated[str, Field(pattern="^([A-Za-z0-9_-][A-Za-z0-9_.-]*)?$")] = ""  # the name of a folder
    shards: str = ""
    step: Literal["last", "first"] = "last"
    evaluate: dict[str, Any] = Field(default_factory=dict)
    paper: dict[Column, float] = Field(default_factory=dict)
    note: str = ""

    @model_validator(mode="after")
    def _trains_into_a_run(self) -> Row:
        if bool(self.recipe) != bool(self.run):
            raise ValueError(f"row {self.name}: a row with a recipe has a run, and the other way round")
        return self


class Table(Settings):
    """One file of recipes/tables. columns: what is compared; notes: what a reader must know, the paper's slips too.

    pretrain: what all rows but those with points from scratch begin with, where its shards are there and no weights of
    points are given: by `init.points`, or by `init.all` if their recipe names no weights of an image tower.
    """

    title: str
    columns: tuple[Column, ...] = ("image", "image_star", "points")
    notes: tuple[str, ...] = ()
    pretrain: Row | None = None
    rows: tuple[Row, ...]

    @property
    def every_row(self) -> tuple[Row, ...]:
        """The rows, and before them the pre-training."""
        return (*([self.pretrain] if self.pretrain else []), *self.rows)

    @model_validator(mode="after")
    def _each_row_once(self) -> Table:
        names = [row.name for row in self.every_row]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the row {twice[0]} comes twice")
        return self


def table_names() -> list[str]:
    """The shipped tables' numbers, as text."""
    return [name.removeprefix("table_") for name in names_in(TABLES)]


def read_table(name: str) -> Table:
    """A shipped table by its number, or a .toml file. Raises Refused."""
    if not name.endswith(".toml") and name not in table_names():
        raise unknown_name("table", name, table_names())
    path = find_recipe(name if name.endswith(".toml") else f"table_{name}", TABLES)
    return parse_recipe(Table, load_toml(path), f"table {name}")


def with_preset(table: Table, preset: str) -> Table:
    """The table with a preset for its rows without one; their runs are others, named after the preset."""

    def laid_over(row: Row) -> Row:
        changed = {"preset": preset, "run": f"{row.run}-{preset}"}
        return row.model_copy(update=changed if preset and row.recipe and not row.preset else {})

    changes = {"rows": tuple(map(laid_over, table.rows)), "pretrain": table.pretrain and laid_over(table.pretrain)}
    return table.model_copy(update=changes)


@dataclass(frozen=True)
class Judged:
    """A row with the recipe that it resolves to; shards: None where there is no such build.

    seeded: it is one of several seeds. after: the pre-training that it begins with. figures: whether it is judged.
    """

    row: Row
    recipe: FitRecipe
    shards: str | None
    identity: str
    seeded: bool = False
    after: Judged | None = None
    figures: bool = True

    @property
    def title(self) -> str:
        """Its name, with its seed if it is one of several."""
        return f"{self.row.name}, seed {self.recipe.seed}" if self.seeded else self.row.name


def chosen(table: Table, patterns: str) -> list[Row]:
    """The rows whose names match one of the comma-separated patterns (`*` and `?`); all for an empty text."""
    if not patterns:
        return list(table.rows)
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatch(row.name, pattern) for row in table.every_row):
            raise unknown_name("row", pattern, [row.name for row in table.every_row])
    return [row for row in table.every_row if any(fnmatch(row.name, pattern) for pattern in wanted)]


def pretraining(table: Table, builds: Builds, changes: dict[str, Value], recipe: str = "") -> Judged | None:
    """The pre-training that rows begin with; None where weights are given, its build is not, or `recipe` is."""
    row, given = table.pretrain, changes.get("init", {})
    shards = row and builds.own(row.shards or row.recipe)
    if row is None or shards is None or recipe or given.get("points") or given.get("all"):
        return None
    return replace(_judged(row, builds, changes, "", None), figures=False)


def resolve(
    rows: Iterable[Row],
    builds: Builds,
    changes: dict[str, Value],
    recipe: str = "",
    seeds: Sequence[int] = (),
    after: Judged | None = None,
    folder: Path = Path(),
) -> list[Judged]:
    """The rows that train something. changes: of every row whose method reads them; a row's own go over them.

    recipe: the base of every row, in place of its own. seeds: a row for each, or its recipe's own; a run of another
    seed than that is named after it. after: the pre-training whose run in `folder` they begin with. Raises Refused
    naming the row whose recipe does not fit, or a key that no row reads.
    """
    if seeds and "seed" in changes:
        raise Refused(f"seed={changes['seed']}: --seeds {','.join(map(str, seeds))} says it")
    found: list[Judged] = []
    for row in rows:
        if not row.recipe:
            continue
        begun = _judged(row, builds, changes, recipe, None if row.points_from_scratch else after, folder)
        each = [_of_seed(begun, seed) for seed in seeds] or [begun]
        for judged in each:
            found.append(judged)
            first = next(other for other in found if other.row.run == judged.row.run)
            change = first_difference(first.recipe.model_dump(mode="json"), judged.recipe.model_dump(mode="json"))
            if change:
                names = f"{first.row.name} and {row.name} are of the run {judged.row.run}"
                raise Refused(f"rows {names}, but differ in {change}")
    methods = sorted({each.recipe.method for judged in found for each in (judged, judged.after) if each})
    for key in keys_in(changes):
        if found and not any(key in keys_of_method(method) for method in methods):
            raise Refused(f"{key}: no row of this table reads it; its methods are {', '.join(methods)}")
    return found


def _judged(
    row: Row, builds: Builds, changes: dict[str, Value], recipe: str, after: Judged | None, folder: Path = Path()
) -> Judged:
    try:
        typed = _recipe_of(row, changes, recipe)
    except Refused as error:
        raise Refused(f"row {row.name}: {error}") from error
    shards = builds.find(row.shards or row.recipe)
    if after is not None and not (typed.init.points or typed.init.all):
        key = "points" if typed.init.image or typed.image.pretrained else "all"
        init = typed.init.model_copy(update={key: str(folder / after.row.run)})
        judged = Judged(row, typed.model_copy(update={"init": init}), shards, "", after=after)
    else:
        judged = Judged(row, typed, shards, "")
    return replace(judged, identity=_identity(judged))


def _of_seed(judged: Judged, seed: int) -> Judged:
    """The same of a seed; of another than its own in a run that is named after the seed."""
    own = judged.recipe.seed == seed
    row = judged.row if own else judged.row.model_copy(update={"run": f"{judged.row.run}-seed_{seed}"})
    other = replace(judged, row=row, recipe=judged.recipe.model_copy(update={"seed": seed}), seeded=True)
    return replace(other, identity=_identity(other))


def _recipe_of(row: Row, changes: dict[str, Value], recipe: str) -> FitRecipe:
    base = recipe or row.recipe
    method = method_of(base, merge(changes, row.changes))
    all_changes = merge(changes_of(method, changes), row.changes)
    typed = read_recipe(base, all_changes, row.preset)
    if not row.points_from_scratch:
        return typed
    init = typed.init.model_dump()
    alone = {"points": "", "image": init.get("image") or init["all"], "all": ""}
    return read_recipe(base, merge(all_changes, {"init": alone}), row.preset)


def _identity(judged: Judged) -> str:
    """A hash of everything that a row's figures depend on: recipe, shards, judgement, the pre-training before it."""
    row, recipe, shards, after = judged.row, judged.recipe, judged.shards, judged.after
    if shards is None:
        return ""
    manifest = require_manifest(shards, f"--shards {shards}")
    view_set = asked_view_set(shards, recipe.data.views)
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    if after is not None:  # wherever its folder is
        values["init"] = {key: value for key, value in values["init"].items() if key not in ("points", "all")}
    return digest(
        {
            "recipe": values,
            "step": row.step,
            "evaluate": row.evaluate,
            "shapes": manifest.shapes_hash,
            "assets": manifest.assets_hash,
            "views": view_set and view_set.hash,
            **({"after": after.identity} if after else {}),
            **({"plugins": plugins.versions()} if plugins.loaded() else {}),
        }
    )


@dataclass(frozen=True)
class Builds:
    """Where the builds of variants lie. named: by variant; folders: that hold one a variant; other: for all else."""

    named: dict[str, str]
    folders: tuple[str, ...]
    other: str | None

    def find(self, variant: str) -> str | None:
        """The build of a variant, or the one that stands for all, or None. Raises Refused where a folder holds two."""
        return self.own(variant) or self.other

    def own(self, variant: str) -> str | None:
        """The variant's own build, or None."""
        if variant in self.named:
            return self.named[variant]
        for folder in self.folders:
            there = [name for name in store.list_names(folder) if _is_of(name, variant)]
            found = [name for name in there if store.exists(store.join(folder, name, MANIFEST))]
            if variant in found:
                return store.join(folder, variant)
            if len(found) > 1:
                raise Refused(f"--shards {folder} holds {' and '.join(found)}: say which by {variant}=DIR")
            if found:
                return store.join(folder, found[0])
        return None


def _is_of(name: str, variant: str) -> bool:
    """Whether a dataset or a folder is of a variant: of its name, or a version of it, as co3d_v2 of co3d."""
    return name == variant or fnmatch(name, f"{variant}_v[0-9]")


def builds_of(given: Sequence[str], rows: Iterable[Row]) -> Builds:
    """Sorts what `--shards` was given: `VARIANT=DIR`, a folder of builds named as the variants, or a build.

    A build whose dataset is one of the table's variants stands for that variant, any other build for all variants
    without a build. Raises Refused where there is no build, or the table has no such variant.
    """
    named: dict[str, str] = {}
    folders: list[str] = []
    other = None
    known = sorted({row.shards or row.recipe for row in rows if row.recipe})
    for text in given:
        variant, equals, path = text.partition("=")
        out = store.absolute(path if equals else text)
        if equals:
            if variant not in known:
                raise unknown_name("variant in --shards", variant, known)
            require_manifest(out, f"--shards {text}")
            named[variant] = out
        elif store.exists(store.join(out, MANIFEST)):
            dataset = require_manifest(out, f"--shards {text}").dataset
            same = [name for name in known if _is_of(dataset, name)]
            if same:
                named[same[0]] = out
            else:
                other = out
        elif any(store.exists(store.join(out, name, MANIFEST)) for name in store.list_names(out)):
            folders.append(out)
        else:
            raise Refused(f"--shards {text} holds no build and no folder of builds")
    return Builds(named, tuple(folders), other)
