"""CrossPoint's tables: every figure is printed by the paper, runs are shared, and the ablations change one thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from manifests.cli import parse_arguments
from training.command_line import parser
from training.paper_tables.judged_rows import Judged, resolve
from training.paper_tables.place import Place
from training.paper_tables.table_builds import Builds
from training.paper_tables.table_rows import Table, read_table, table_names, table_path

NAMES = [name for name in table_names() if name.startswith("crosspoint-")]
FOUND_BY_TEXT = {90.0, 81.0}  # 91.2 and 81.7 less the 1.2 and 0.7 that the text gives


def resolved(table: Table) -> dict[str, Judged]:
    return {each.row.name: each for each in resolve(table.rows, Builds({}, (), None), {}, columns=table.columns)}


def test_all_tables_are_there() -> None:
    assert {name: len(read_table(name).rows) for name in NAMES} == {
        "crosspoint-1": 23,
        "crosspoint-2": 10,
        "crosspoint-3": 17,
        "crosspoint-4": 10,
        "crosspoint-5": 10,
        "crosspoint-6": 5,
        "crosspoint-figure_3": 8,
    }
    assert any("Table 7 (CIFAR-FS" in note for note in read_table("crosspoint-1").notes)


@pytest.mark.parametrize("number", [3, 4])
def test_episodes_are_as_printed(shared: Path, number: int) -> None:
    """Row by row and in the paper's order, with its deviations in the notes."""
    text = (shared / "papers/crosspoint.txt").read_text()
    whole = text[text.index(f"Table {number}. Few-shot") :]
    line_of = r"^(.*?)(?: \[\d+\])? " + " ".join([r"([\d.]+)±([\d.]+)"] * 4) + "$"
    found = re.findall(line_of, whole, re.MULTILINE)
    rows = read_table(f"crosspoint-{number}").rows
    for row, (label, *cells) in zip(rows, found, strict=False):
        assert list(row.paper.values()) == [float(cell) for cell in cells[::2]], label
        assert row.note == f"in the paper +- {', '.join(cells[1::2])}"
        assert row.label.replace(", random", " + Rand") == label
    assert len(rows) == (17 if number == 3 else 10)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("crosspoint-3", "crosspoint-4")])
def test_figures_are_as_printed(shared: Path, name: str) -> None:
    text = (shared / "papers/crosspoint.txt").read_text()
    for row in read_table(name).rows:
        for figure in set(row.paper.values()) - FOUND_BY_TEXT:
            assert re.search(rf"(?<![\d.]){figure:.1f}(?![\d.])", text), (row.name, figure)
    for row in read_table("crosspoint-1").rows:
        label = row.label.replace("CrossPoint", "CrossPoint (Ours)")
        (figure,) = row.paper.values() if row.paper else (None,)
        assert figure is None or re.search(rf"^{re.escape(label)}(?: \[\d+\])? {figure:.1f}$", text, re.M), label


def test_what_rows_change_and_share() -> None:
    of_run: dict[str, dict] = {}
    for name in NAMES:
        for each in resolved(read_table(name)).values():
            recipe = each.recipe.model_dump(mode="json")
            assert of_run.setdefault(each.row.run, recipe) == recipe, (name, each.row.name)
    joint = of_run["crosspoint-dgcnn"]
    assert of_run["crosspoint-dgcnn-imid"] == joint | {"crosspoint": joint["crosspoint"] | {"cross": 0.0}}
    assert of_run["crosspoint-dgcnn-cmid"] == joint | {"crosspoint": joint["crosspoint"] | {"intra": 0.0}}
    assert [of_run[f"crosspoint-dgcnn-images_{n}"]["crosspoint"]["images"] for n in range(2, 6)] == [2, 3, 4, 5]
    assert (joint["points"]["k"], of_run["crosspoint-pointnet"]["points"]["backbone"]) == (15, "pointnet")
    last = resolved(read_table("crosspoint-5"))["crosspoint"]
    assert last.recipe.init.points == "crosspoint-dgcnn_parts"
    assert last.begins["init.points"].recipe.points.model_dump()["k"] == 40
    assert last.begins["init.points"].figures == ()


def test_commands_that_judge_are_commands_and_both_readings_one_of_them() -> None:
    for name in NAMES:
        table = read_table(name)
        for row in resolved(table).values():
            known = [figure.column for figure in row.figures]
            assert all(column.shards or row.row.shards for column in known)
        header = table_path(name).read_text().partition("\ntitle")[0]
        for build in table.variants - {"shapenet"}:
            assert f"--out shards/{build} " in header, (name, build)
    table = read_table("crosspoint-1")
    for column in table.columns.values():
        words = ["probe", "run", "--shards", "build", *column.arguments]
        parse_arguments(parser("training"), words)
    tasks = {column.shared for column in table.columns.values()}
    assert len(tasks) == 1
    assert len({column.task for column in table.columns.values()}) == 2
    assert Place(Path("run")).judge_commands(resolved(table)["dgcnn-crosspoint"]) == []  # no build, no command
