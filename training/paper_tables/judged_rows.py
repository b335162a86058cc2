"""The rows of a table with the recipes that they resolve to: what each is trained from, begins with and is judged by.

A figure belongs to a hash of all that it depends on (`identity`): the recipe, the build, the judgement, and the same of
every row before it. Where a figure of that identity is in RUN/results, it is not found again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from manifests import plugins
from manifests.config import Value, digest, first_difference, merge
from manifests.errors import Refused
from manifests.layout import asked_view_set, require_manifest
from training.paper_tables.columns import EVALUATED, Column
from training.paper_tables.table_builds import Builds
from training.paper_tables.table_rows import Row, Table, trained
from training.settings.fit_recipe import FitRecipe, changes_of, keys_in, keys_of_method, method_of, read_recipe


@dataclass(frozen=True)
class Figure:
    """What one column takes of a judgement, or EVALUATED's of theirs. values: dotted paths by column.

    shards: the build that is judged on; None where it is not there, which `lacks` names.
    """

    column: Column
    values: dict[str, str]
    shards: str | None
    identity: str
    lacks: str = ""


@dataclass(frozen=True)
class Judged:
    """A row with the recipe that it resolves to; shards: None where there is no such build.

    seeded: it is one of several seeds. after: the pre-training that it begins with; begins: by key of `init`, the rows
    of the table that it begins with. own: what it is judged by, where that is not EVALUATED.
    """

    row: Row
    recipe: FitRecipe
    shards: str | None
    identity: str
    seeded: bool = False
    after: Judged | None = None
    begins: dict[str, Judged] = field(default_factory=dict)
    own: tuple[Figure, ...] | None = None

    @property
    def title(self) -> str:
        """Its name, with its seed if it is one of several."""
        return f"{self.row.name}, seed {self.recipe.seed}" if self.seeded else self.row.name

    @property
    def before(self) -> tuple[Judged, ...]:
        """What is trained before it."""
        return (*([self.after] if self.after else []), *self.begins.values())

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What it is judged by; empty for a stage of others."""
        if self.own is not None:
            return self.own
        values = {name: column.value for name, column in EVALUATED.items()}
        return (Figure(EVALUATED["points"], values, self.shards, self.identity),)


def pretraining(table: Table, builds: Builds, changes: dict[str, Value], recipe: str = "") -> Judged | None:
    """The pre-training that rows begin with; None where weights are given, its build is not, or `recipe` is."""
    row, given = table.pretrain, changes.get("init", {})
    shards = row and builds.own(row.variant)
    if row is None or shards is None or recipe or given.get("points") or given.get("all"):
        return None
    return replace(_Resolver(builds, changes, "", None, Path(), EVALUATED, {}).judged(row), own=())


def resolve(
    rows: Iterable[Row],
    builds: Builds,
    changes: dict[str, Value],
    recipe: str = "",
    seeds: Sequence[int] = (),
    after: Judged | None = None,
    folder: Path = Path(),
    columns: Mapping[str, Column] = EVALUATED,
) -> list[Judged]:
    """The rows that train something. changes: of every row whose method reads them; a row's own go over them.

    recipe: the base of every row, in place of its own. seeds: a row for each, or its recipe's own; a run of another
    seed than that is named after it. after: the pre-training whose run in `folder` they begin with. columns: of the
    table. Raises Refused naming the row whose recipe does not fit, or a key that no row reads.
    """
    if seeds and "seed" in changes:
        raise Refused(f"seed={changes['seed']}: --seeds {','.join(map(str, seeds))} says it")
    rows = trained(rows)
    resolver = _Resolver(builds, changes, recipe, after, folder, columns, {row.name: row for row in rows})
    found: list[Judged] = []
    for row in rows:
        for seed in seeds or (None,):
            judged = resolver.judged(row, seed)
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


@dataclass(frozen=True)
class _Resolver:
    """Resolves rows, each with those that it begins with. rows: of the table, by name."""

    builds: Builds
    changes: dict[str, Value]
    recipe: str
    after: Judged | None
    folder: Path
    columns: Mapping[str, Column]
    rows: Mapping[str, Row]

    def judged(self, row: Row, seed: int | None = None) -> Judged:
        """A row, of a seed or of its recipe's own. A run of another seed than that is named after it."""
        begins = {key: self.judged(self.rows[name], seed) for key, name in row.begins.items()}
        begun = {key.removeprefix("init."): str(self.folder / each.row.run) for key, each in begins.items()}
        try:
            typed = _recipe_of(row, self.changes, self.recipe, begun)
        except Refused as error:
            raise Refused(f"row {row.name}: {error}") from error
        after = None if row.points_from_scratch or typed.init.points or typed.init.all else self.after
        if after is not None:
            key = "points" if typed.init.image or typed.image.pretrained else "all"
            init = typed.init.model_copy(update={key: str(self.folder / after.row.run)})
            typed = typed.model_copy(update={"init": init})
        if seed is not None and seed != typed.seed:
            row = row.model_copy(update={"run": f"{row.run}-seed_{seed}"})
            typed = typed.model_copy(update={"seed": seed})
        shards = self.builds.find(row.variant)
        judged = Judged(row, typed, shards, "", seed is not None, after, begins)
        judged = replace(judged, identity=_identity(judged))
        wanted = row.judged_by(dict(self.columns))
        theirs = all(column == EVALUATED.get(name) for name, column in wanted.items())
        if wanted and theirs and len(typed.towers) > 1:  # with one tower some of EVALUATED are no numbers
            return judged
        return replace(judged, own=tuple(self._figure(judged, name, column) for name, column in wanted.items()))

    def _figure(self, judged: Judged, name: str, column: Column) -> Figure:
        """The figure of a column, whose identity holds the row's and that of the build that judges it."""
        variant = column.shards or judged.row.variant
        shards = self.builds.find(variant)
        values = {name: column.value}
        if shards is None or judged.shards is None:
            return Figure(column, values, None, "", variant if shards is None else judged.row.variant)
        manifest = require_manifest(shards, f"--shards {shards}")
        about = column.model_dump(mode="json", exclude={"head"})
        build = {"shapes": manifest.shapes_hash, "assets": manifest.assets_hash}
        return Figure(column, values, shards, digest({"row": judged.identity, "column": about, "build": build}))


def _recipe_of(row: Row, changes: dict[str, Value], recipe: str, begun: dict[str, Value]) -> FitRecipe:
    base = recipe or row.recipe
    own = merge(row.changes, {"init": begun} if begun else {})
    method = method_of(base, merge(changes, own))
    all_changes = merge(changes_of(method, changes), own)
    typed = read_recipe(base, all_changes, row.preset)
    if not row.points_from_scratch:
        return typed
    init = typed.init.model_dump()
    alone = {"points": "", "image": init.get("image") or init["all"], "all": ""}
    return read_recipe(base, merge(all_changes, {"init": alone}), row.preset)


def _identity(judged: Judged) -> str:
    """A hash of everything that a row's figures depend on: recipe, shards, judgement, all that is trained before it."""
    row, recipe, shards, after = judged.row, judged.recipe, judged.shards, judged.after
    if shards is None:
        return ""
    manifest = require_manifest(shards, f"--shards {shards}")
    view_set = asked_view_set(shards, recipe.data.views)
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    elsewhere = {key.removeprefix("init.") for key in judged.begins} | ({"points", "all"} if after else set())
    if elsewhere:  # wherever its folder is
        values["init"] = {key: value for key, value in values["init"].items() if key not in elsewhere}
    return digest(
        {
            "recipe": values,
            "step": row.step,
            "evaluate": row.evaluate,
            "shapes": manifest.shapes_hash,
            "assets": manifest.assets_hash,
            "views": view_set and view_set.hash,
            **({"after": after.identity} if after else {}),
            **({"begins": {key: each.identity for key, each in judged.begins.items()}} if judged.begins else {}),
            **({"plugins": plugins.versions()} if plugins.loaded() else {}),
        }
    )
