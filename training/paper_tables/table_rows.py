"""The tables of the papers: which rows there are, what each trains and how it is judged, and what the paper printed.

A table is a file of recipes/tables/PAPER. A row names a recipe, the keys that it changes and the run that it judges;
rows of several tables that judge the same run share it. A row without a recipe is a method of others: a figure alone.
A row may begin with the runs of others, which are trained before it; the pre-training that all rows begin with is a
row, too, which is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from manifests.config import Settings, load_toml, parse_recipe, unknown_name
from manifests.errors import Refused
from training.paper_tables.columns import EVALUATED, Column, named_columns

TABLES = Path(__file__).parent.parent / "recipes" / "tables"
FIRST_PAPER = "cross_most"  # whose tables have no name but their number
Name = Annotated[str, Field(pattern="^[a-z0-9_-]+$")]
Columns = Annotated[dict[Name, Column], BeforeValidator(named_columns)]
InitKey = Annotated[str, Field(pattern=r"^init\.[a-z_]+$")]


class Row(Settings):
    """One line of a table.

    name: for `--rows`; label: as printed. recipe: its base, empty for a method of others; preset: laid over the recipe
    (`--preset` gives the rows without one theirs), and changes: keys laid over both.
    points_from_scratch: without the weights that the point tower would begin with. run: the folder that is judged,
    shared by all rows (of any table) with the same training. shards: name of the build, by default the recipe's.
    begins: by key of `init`, the row whose run it begins with. step: the last checkpoint, or the `first`, which is
    zero-shot or a random network. judge: names of columns, or all; with none the row is a stage of others. evaluate:
    keys of `data` in the judgement alone. paper: percent by column, as printed. baseline: the row that it is compared
    with, seed by seed, in place of the table's.
    """

    name: Name
    label: str
    recipe: str = ""
    preset: str = ""
    changes: dict[str, Any] = Field(default_factory=dict)
    points_from_scratch: bool = False
    run: Annotated[str, Field(pattern="^([A-Za-z0-9_-][A-Za-z0-9_.-]*)?$")] = ""  # the name of a folder
    shards: str = ""
    begins: dict[InitKey, Name] = Field(default_factory=dict)
    step: Literal["last", "first"] = "last"
    judge: tuple[Name, ...] | None = None
    evaluate: dict[str, Any] = Field(default_factory=dict)
    paper: dict[Name, float] = Field(default_factory=dict)
    baseline: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _trains_into_a_run(self) -> Row:
        if bool(self.recipe) != bool(self.run):
            raise ValueError(f"row {self.name}: a row with a recipe has a run, and the other way round")
        if not self.recipe and (self.begins or self.judge is not None or self.evaluate):
            raise ValueError(f"row {self.name}: a method of others has figures alone (no begins, judge or evaluate)")
        return self

    @property
    def variant(self) -> str:
        """The name of the build that it is trained on."""
        return self.shards or self.recipe

    def judged_by(self, columns: dict[str, Column]) -> dict[str, Column]:
        """Those of the columns that judge it."""
        return {name: each for name, each in columns.items() if self.judge is None or name in self.judge}


class Table(Settings):
    """One file of recipes/tables. columns: what is compared; notes: what a reader must know, the paper's slips too.

    pretrain: what all rows but those with points from scratch begin with, where its shards are there and no weights of
    points are given: by `init.points`, or by `init.all` if their recipe names no weights of an image tower.
    baseline: the row that the others are compared with, seed by seed.
    """

    title: str
    columns: Columns = Field(default_factory=lambda: dict(EVALUATED))
    notes: tuple[str, ...] = ()
    pretrain: Row | None = None
    baseline: str = ""
    rows: tuple[Row, ...]

    @property
    def every_row(self) -> tuple[Row, ...]:
        """The rows, and before them the pre-training."""
        return (*([self.pretrain] if self.pretrain else []), *self.rows)

    @property
    def by_name(self) -> dict[str, Row]:
        """The rows by their names."""
        return {row.name: row for row in self.rows}

    @property
    def variants(self) -> set[str]:
        """Names of the builds that it trains and judges on."""
        trained = {row.variant for row in self.every_row if row.recipe}
        return trained | {column.shards for column in self.columns.values() if column.shards}

    @model_validator(mode="after")
    def _each_row_once(self) -> Table:
        names = [row.name for row in self.every_row]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the row {twice[0]} comes twice")
        return self

    @model_validator(mode="after")
    def _names_that_are_there(self) -> Table:
        trained = {row.name for row in self.rows if row.recipe}
        for row in self.every_row:
            for key in {**row.paper, **dict.fromkeys(row.judge or ())}:
                if key not in self.columns:
                    raise ValueError(f"row {row.name}: no column {key} ({', '.join(self.columns)})")
            for name in row.begins.values():
                if name not in trained:
                    raise ValueError(f"row {row.name}: it begins with {name}, which is no row that trains")
            if row.baseline and row.baseline not in self.by_name:
                raise ValueError(f"row {row.name}: its baseline {row.baseline} is no row")
        if self.baseline and self.baseline not in self.by_name:
            raise ValueError(f"the baseline {self.baseline} is no row")
        for row in self.rows:
            if row.name in self.before(row.name):
                raise ValueError(f"row {row.name}: it begins with itself")
        return self

    def before(self, name: str) -> list[str]:
        """The rows that a row begins with, directly or over others."""
        found: list[str] = []
        waiting = [*self.by_name[name].begins.values()] if name in self.by_name else []
        while waiting:
            each = waiting.pop()
            if each not in found:
                found.append(each)
                waiting += self.by_name[each].begins.values()
        return found


def table_names() -> list[str]:
    """The shipped tables, `PAPER-N`; those of FIRST_PAPER by N alone, first."""
    found = sorted((path.parent.name, path.stem.removeprefix("table_")) for path in TABLES.glob("*/table_*.toml"))
    found.sort(key=lambda each: (each[0] != FIRST_PAPER, each[0], not each[1].isdigit(), each[1].zfill(4)))
    return [number if paper == FIRST_PAPER else f"{paper}-{number}" for paper, number in found]


def read_table(name: str) -> Table:
    """A shipped table by its name, or a .toml file. Raises Refused."""
    return parse_recipe(Table, load_toml(table_path(name)), f"table {name}")


def table_path(name: str) -> Path:
    """The file of a table by its name, such as crosspoint-2, or by its path. Raises Refused."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise Refused(f"no file {name}")
        return Path(name)
    short = short_name(name)
    if short not in table_names():
        raise unknown_name("table", name, table_names())
    paper, _, number = short.rpartition("-")
    return TABLES / (paper or FIRST_PAPER) / f"table_{number}.toml"


def short_name(name: str) -> str:
    """`cross_most-1` -> `1`, as results are named; other names as they are, of a file its name without folder."""
    return Path(name).stem if name.endswith(".toml") else name.removeprefix(f"{FIRST_PAPER}-")


def with_preset(table: Table, preset: str) -> Table:
    """The table with a preset for its rows without one; their runs are others, named after the preset."""

    def laid_over(row: Row) -> Row:
        changed = {"preset": preset, "run": f"{row.run}-{preset}"}
        return row.model_copy(update=changed if preset and row.recipe and not row.preset else {})

    changes = {"rows": tuple(map(laid_over, table.rows)), "pretrain": table.pretrain and laid_over(table.pretrain)}
    return table.model_copy(update=changes)


def chosen(table: Table, patterns: str) -> list[Row]:
    """The rows whose names match one of the comma-separated patterns (`*` and `?`); all for an empty text.

    A row brings along those that it begins with.
    """
    if not patterns:
        return list(table.rows)
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatch(row.name, pattern) for row in table.every_row):
            raise unknown_name("row", pattern, [row.name for row in table.every_row])
    names = {row.name for row in table.every_row if any(fnmatch(row.name, pattern) for pattern in wanted)}
    names |= {before for name in names for before in table.before(name)}
    return [row for row in table.every_row if row.name in names]


def trained(rows: Iterable[Row]) -> list[Row]:
    """Those that train something, not methods of others."""
    return [row for row in rows if row.recipe]
