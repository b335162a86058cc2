"""Puts our figures beside the paper's: as one object, as Markdown and as CSV.

Where rows were run with several seeds, our figure is their mean, and its deviation is the sample's (n - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from manifests import store
from manifests.plain_text import csv_text, for_markdown
from manifests.records import json_text
from training.paper_tables.runner import Outcome, Outcomes
from training.paper_tables.table_rows import HEADS, Column, Row, Table

OURS = (
    "Ours is the student at the last step; no label chooses a checkpoint (the released code takes the best on the test "
    "set). Image is one view an object, chosen by its key and the recipe's seed; Image* averages all views in use.",
)


def compare(name: str, table: Table, outcomes: Outcomes, recipe: str = "") -> dict[str, Any]:
    """The object that `table --json` prints; a row's status is `paper` where it is a method of others.

    rows: [{name, label, run, status, n, step, error, note, seeds, figures {column: {ours, deviation, paper,
    difference}}}], in percent and points, null where unknown. n: objects; seeds: [{seed, status, n, step, error,
    values}], and `ours` is the mean of those that are done, `status` that of a row whose seeds are all done, or of one
    that is not. pretrain: run, status and error of the pre-training, or null. recipe: replaced those of the rows.
    """
    replaced = (f"Every row was trained from the recipe {recipe}, not from the paper's.",) if recipe else ()
    return {
        "table": name,
        "title": table.title,
        "columns": list(table.columns),
        "pretrain": _pretrain(table.pretrain, outcomes) if table.pretrain else None,
        "rows": [_row(row, table.columns, outcomes.get(row.name, {})) for row in table.rows],
        "notes": [*replaced, *OURS, *table.notes],
    }


def _pretrain(row: Row, outcomes: Outcomes) -> dict[str, Any] | None:
    found = [
        {"run": row.run, "status": each.status, "error": each.error or None}
        for each in outcomes.get(row.name, {}).values()
    ]
    return found[0] if found else None


def _row(row: Row, columns: Sequence[Column], of_seed: dict[int, Outcome]) -> dict[str, Any]:
    done = [outcome for outcome in of_seed.values() if outcome.status == "done"]
    lacking = sorted((each for each in of_seed.values() if each not in done), key=lambda each: each.status != "failed")
    shown = (*lacking, *done)[0] if of_seed else None  # one of `done` only if all seeds are
    figures = {}
    for column in columns:
        values, paper = [outcome.values[column] for outcome in done], row.paper.get(column)
        ours = round(mean(values), 2) if values else None
        difference = None if ours is None or paper is None else round(ours - paper, 2)
        deviation = round(stdev(values), 2) if len(values) > 1 else None
        figures[column] = {"ours": ours, "deviation": deviation, "paper": paper, "difference": difference}
    seeds = [
        {"seed": seed}
        | asdict(outcome)
        | {"error": outcome.error or None, "values": {column: outcome.values.get(column) for column in columns}}
        for seed, outcome in of_seed.items()
    ]
    return {
        "name": row.name,
        "label": row.label,
        "run": row.run or None,
        "status": shown.status if shown else "paper",
        "n": done[0].n if done else None,
        "step": done[0].step if done else None,
        "error": (shown and shown.error) or None,
        "note": row.note or None,
        "seeds": seeds,
        "figures": figures,
    }


def _several(comparison: dict[str, Any]) -> bool:
    """Whether some row was asked for with several seeds."""
    return any(len(row["seeds"]) > 1 for row in comparison["rows"])


def heads(comparison: dict[str, Any]) -> list[str]:
    """Heads of the printed columns: three a figure."""
    figures = [head for column in comparison["columns"] for head in (HEADS[column], "paper", "+-")]
    return ["row", "n", *(["seeds"] if _several(comparison) else []), *figures]


def cells(comparison: dict[str, Any]) -> list[list[str]]:
    """The printed lines: our figure, the paper's, the difference; in place of n, why ours is missing.

    Of several seeds our figure is `mean +- deviation`, and `2 of 3` says that one is missing.
    """
    lines = []
    for row in comparison["rows"]:
        line = [row["label"], str(row["n"]) if row["n"] else row["status"].removeprefix("paper")]
        if _several(comparison):
            done = sum(seed["status"] == "done" for seed in row["seeds"])
            line.append(f"{done} of {len(row['seeds'])}" if 0 < done < len(row["seeds"]) else f"{done or ''}")
        for figure in row["figures"].values():
            difference, deviation = figure["difference"], figure["deviation"]
            line += [
                _number(figure["ours"]) + ("" if deviation is None else f" +- {deviation:.2f}"),
                _number(figure["paper"]),
                "" if difference is None else f"{difference:+.2f}",
            ]
        lines.append(line)
    return lines


def remarks(comparison: dict[str, Any]) -> list[str]:
    """Notes of the table and of its rows, and why rows, or seeds of a row, are missing."""
    notes = list(comparison["notes"])
    if _several(comparison):
        notes.append("+- after a figure is the sample deviation of its seeds (n - 1); all begin with the same weights.")
    if seeds := sorted({seed["seed"] for row in comparison["rows"] for seed in row["seeds"]}):
        notes.append(f"Seed{'s' * (len(seeds) > 1)} of every row of ours: {', '.join(map(str, seeds))}.")
    notes += [f"{row['label']}: {row['note']}" for row in comparison["rows"] if row["note"]]
    before = comparison["pretrain"]
    notes += [f"{before['run']}: failed, {before['error']}"] if before and before["error"] else []
    for row in comparison["rows"]:
        missing = [seed for seed in row["seeds"] if seed["error"] or (row["n"] and seed["status"] != "done")]
        for seed in missing:
            of = f", seed {seed['seed']}" if len(row["seeds"]) > 1 else ""
            notes.append(f"{row['label']}{of}: {seed['status']}" + (f", {seed['error']}" if seed["error"] else ""))
    return notes


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
    """One line a row; the columns of a figure are `image`, `image_paper`, `image_difference`, `image_deviation`.

    seeds: how many are in the figures.
    """
    plain = ("name", "label", "run", "status", "n", "step")
    figures = [f"{column}{end}" for column in comparison["columns"] for end in ("", "_paper", "_difference")]
    rows = [[*plain, *figures, "seeds", *(f"{column}_deviation" for column in comparison["columns"])]]
    for row in comparison["rows"]:
        values = [figure[key] for figure in row["figures"].values() for key in ("ours", "paper", "difference")]
        deviations = [figure["deviation"] for figure in row["figures"].values()]
        done = sum(seed["status"] == "done" for seed in row["seeds"])
        rows.append([*(row[key] for key in plain), *values, done, *deviations])
    return csv_text(rows)
