"""Puts our figures beside the paper's: as one object, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifests import store
from manifests.plain_text import csv_text, for_markdown
from manifests.records import json_text
from training.paper_tables.runner import Outcome
from training.paper_tables.table_rows import HEADS, Table

OURS = (
    "Ours is the student at the last step; no label chooses a checkpoint (the released code takes the best on the test "
    "set). Image is one view an object, chosen by its key and the recipe's seed; Image* averages all views in use.",
)


def compare(name: str, table: Table, outcomes: Mapping[str, Outcome], recipe: str = "") -> dict[str, Any]:
    """The object that `table --json` prints; a row's status is `paper` where it is a method of others.

    rows: [{name, label, run, status, n, step, error, note, figures {column: {ours, paper, difference}}}], in percent
    and points, null where unknown. recipe: the base that replaced those of the rows.
    """
    rows = []
    for row in table.rows:
        outcome = outcomes.get(row.name)
        values = outcome.values if outcome else {}
        figures = {}
        for column in table.columns:
            ours, paper = values.get(column), row.paper.get(column)
            difference = None if ours is None or paper is None else round(ours - paper, 2)
            figures[column] = {"ours": ours, "paper": paper, "difference": difference}
        rows.append(
            {
                "name": row.name,
                "label": row.label,
                "run": row.run or None,
                "status": outcome.status if outcome else "paper",
                "n": outcome and outcome.n,
                "step": outcome and outcome.step,
                "error": (outcome and outcome.error) or None,
                "note": row.note or None,
                "figures": figures,
            }
        )
    replaced = (f"Every row was trained from the recipe {recipe}, not from the paper's.",) if recipe else ()
    return {
        "table": name,
        "title": table.title,
        "columns": list(table.columns),
        "rows": rows,
        "notes": [*replaced, *OURS, *table.notes],
    }


def heads(comparison: dict[str, Any]) -> list[str]:
    """Heads of the printed columns: three a figure."""
    figures = [head for column in comparison["columns"] for head in (HEADS[column], "paper", "+-")]
    return ["row", "n", *figures]


def cells(comparison: dict[str, Any]) -> list[list[str]]:
    """The printed lines: our figure, the paper's, the difference; in place of n, why ours is missing."""
    lines = []
    for row in comparison["rows"]:
        said = {"done": str(row["n"]), "paper": ""}.get(row["status"], row["status"])
        line = [row["label"], said]
        for figure in row["figures"].values():
            difference = figure["difference"]
            line += [
                _number(figure["ours"]),
                _number(figure["paper"]),
                "" if difference is None else f"{difference:+.2f}",
            ]
        lines.append(line)
    return lines


def remarks(comparison: dict[str, Any]) -> list[str]:
    """Notes of the table and of its rows, and why rows failed."""
    notes = list(comparison["notes"])
    notes += [f"{row['label']}: {row['note']}" for row in comparison["rows"] if row["note"]]
    return notes + [f"{row['label']}: failed, {row['error']}" for row in comparison["rows"] if row["error"]]


def write(comparison: dict[str, Any], folder: Path) -> Path:
    """Writes table_N.json, .md and .csv; gives the path of the first without its suffix."""
    stem = folder / f"table_{comparison['table']}"
    texts = {".json": json_text(comparison, indent=1) + "\n", ".md": _markdown(comparison), ".csv": _csv(comparison)}
    for suffix, text in texts.items():
        store.write_bytes(f"{stem}{suffix}", text.encode())
    return stem


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def _markdown(comparison: dict[str, Any]) -> str:
    head, *rows = ([for_markdown(cell) for cell in line] for line in (heads(comparison), *cells(comparison)))
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    notes = [f"- {for_markdown(note)}" for note in remarks(comparison)]
    title = for_markdown(f"Table {comparison['table']}: {comparison['title']}")
    return "\n".join([f"# {title}", "", *lines, "", *notes, ""])


def _csv(comparison: dict[str, Any]) -> str:
    """One line a row; the columns of a figure are `image`, `image_paper`, `image_difference`."""
    plain = ("name", "label", "run", "status", "n", "step")
    figures = [f"{column}{end}" for column in comparison["columns"] for end in ("", "_paper", "_difference")]
    rows = [[*plain, *figures]]
    for row in comparison["rows"]:
        values = [figure[key] for figure in row["figures"].values() for key in ("ours", "paper", "difference")]
        rows.append([*(row[key] for key in plain), *values])
    return csv_text(rows)
