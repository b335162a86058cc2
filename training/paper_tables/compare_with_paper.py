"""Puts our figures beside the paper's: as one object, as Markdown and as CSV.

Where rows were run with several seeds, our figure is their mean, and its deviation is the sample's (n - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from manifests import store
from manifests.layout import require_manifest
from manifests.plain_text import csv_text, for_markdown
from manifests.records import json_text
from training.paper_tables.columns import EVALUATED
from training.paper_tables.judged_rows import Judged
from training.paper_tables.results import Outcome, Outcomes
from training.paper_tables.seed_statistics import gain, interval
from training.paper_tables.table_notes import remarks, several
from training.paper_tables.table_rows import Row, Table
from training.settings.row_terms import terms_of

OURS = (
    "Ours is the student at the last step; no label chooses a checkpoint (the released code takes the best on the test "
    "set). Image is one view an object, chosen by its key and the recipe's seed; Image* averages all views in use.",
)


def compare(
    name: str, table: Table, outcomes: Outcomes, recipe: str = "", judged: Sequence[Judged] = ()
) -> dict[str, Any]:
    """The object that `table --json` prints; a row's status is `paper` where it is a method of others.

    rows: [{name, label, run, status, n, step, error, note, terms, lacks, seeds, figures {column: {ours, deviation,
    interval, paper, difference, gain}}}], in percent and points, null where unknown. n: objects; seeds: [{seed, status,
    n, step, error, values}], and `ours` is the mean of those that are done, `interval` its 95% interval, `status` that
    of a row whose seeds are all done, or of one that is not. gain: {mean, interval, seeds} over the row's baseline.
    terms: what the row's figures rest on, also by column; lacks: by column, why there is no figure. pretrain: run,
    status and error of the pre-training, or null. recipe: replaced those of the rows. judged: the rows, for terms.
    """
    replaced = (f"Every row was trained from the recipe {recipe}, not from the paper's.",) if recipe else ()
    rows = [_row(row, table, outcomes) | {"terms": _terms(row, judged, outcomes)} for row in table.rows]
    evaluated = OURS if any(column in EVALUATED.values() for column in table.columns.values()) else ()
    return {
        "table": name,
        "title": table.title,
        "columns": list(table.columns),
        "heads": {column: each.head for column, each in table.columns.items()},
        "pretrain": _pretrain(table.pretrain, outcomes) if table.pretrain else None,
        "rows": rows,
        "notes": [*replaced, *evaluated, *table.notes],
    }


def _pretrain(row: Row, outcomes: Outcomes) -> dict[str, Any] | None:
    found = [
        {"run": row.run, "status": each.status, "error": each.error or None}
        for each in outcomes.get(row.name, {}).values()
    ]
    return found[0] if found else None


def _row(row: Row, table: Table, outcomes: Outcomes) -> dict[str, Any]:
    of_seed = outcomes.get(row.name, {})
    done = {seed: outcome for seed, outcome in of_seed.items() if outcome.values}
    lacking = [each for each in of_seed.values() if each.status != "done"]
    lacking.sort(key=lambda each: each.status != "failed")
    shown = (*lacking, *of_seed.values())[0] if of_seed else None  # one that is done only if all seeds are
    against = table.by_name.get(row.baseline or table.baseline)
    figures = {}
    for column in table.columns:
        own, paper = _of_column(of_seed, column), row.paper.get(column)
        values = list(own.values())
        ours = round(mean(values), 2) if values else None
        difference = None if ours is None or paper is None else round(ours - paper, 2)
        old = _of_column(outcomes.get(against.name, {}), column) if against and against.name != row.name else {}
        figures[column] = {
            "ours": ours,
            "deviation": round(stdev(values), 2) if len(values) > 1 else None,
            "interval": interval(values),
            "paper": paper,
            "difference": difference,
            "gain": gain(own, old),
        }
    seeds = [
        {"seed": seed, "status": outcome.status, "n": outcome.n, "step": outcome.step, "error": outcome.error or None}
        | {"values": {column: outcome.values.get(column) for column in table.columns}}
        for seed, outcome in of_seed.items()
    ]
    return {
        "name": row.name,
        "label": row.label,
        "run": row.run or None,
        "status": shown.status if shown else "paper",
        "n": next((outcome.n for outcome in done.values()), None),
        "step": next((outcome.step for outcome in done.values()), None),
        "error": (shown and shown.error) or None,
        "note": row.note or None,
        "baseline": against.label if against and against.name != row.name else None,
        "lacks": {column: why for each in of_seed.values() for column, why in each.lacks.items()},
        "seeds": seeds,
        "figures": figures,
    }


def _of_column(of_seed: dict[int, Outcome], column: str) -> dict[int, float]:
    """The figures of a column by seed, of those that have it."""
    return {seed: each.values[column] for seed, each in of_seed.items() if column in each.values}


def _terms(row: Row, judged: Sequence[Judged], outcomes: Outcomes) -> dict[str, Any] | None:
    """What a row's figures rest on; None for a method of others, or where its build is not there."""
    own = [each for each in judged if each.row.name == row.name]
    if not own or own[0].shards is None:
        return None
    seeds = [each.recipe.seed for each in own]
    dataset = require_manifest(own[0].shards, f"--shards {own[0].shards}").dataset
    facts = {column: each for found in outcomes.get(row.name, {}).values() for column, each in found.facts.items()}
    return terms_of(own[0].recipe, dataset, seeds, row.step) | {"columns": facts}


def _paired(comparison: dict[str, Any], column: str) -> bool:
    """Whether a column stands beside the paper's; one of ours that no paper has stands alone."""
    return column in EVALUATED or any(row["figures"][column]["paper"] is not None for row in comparison["rows"])


def heads(comparison: dict[str, Any]) -> list[str]:
    """Heads of the printed columns: three a figure, or one where the paper has none."""
    figures = [
        head
        for column, own in comparison["heads"].items()
        for head in ((own, "paper", "+-") if _paired(comparison, column) else (own,))
    ]
    return ["row", "n", *(["seeds"] if several(comparison) else []), *figures]


def cells(comparison: dict[str, Any]) -> list[list[str]]:
    """The printed lines: our figure, the paper's, the difference; in place of n, why ours is missing.

    Of several seeds our figure is `mean +- deviation`, and `2 of 3` says that one is missing.
    """
    lines = []
    for row in comparison["rows"]:
        line = [row["label"], str(row["n"]) if row["n"] else row["status"].removeprefix("paper")]
        if several(comparison):
            done = sum(seed["status"] == "done" for seed in row["seeds"])
            line.append(f"{done} of {len(row['seeds'])}" if 0 < done < len(row["seeds"]) else f"{done or ''}")
        for column, figure in row["figures"].items():
            difference, deviation = figure["difference"], figure["deviation"]
            found = [
                _number(figure["ours"]) + ("" if deviation is None else f" +- {deviation:.2f}"),
                _number(figure["paper"]),
                "" if difference is None else f"{difference:+.2f}",
            ]
            line += found if _paired(comparison, column) else found[:1]
        lines.append(line)
    return lines


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
    """One line a row; the columns of a figure are `image`, `image_paper`, `image_difference`, `image_deviation`,
    and the ends of its interval, `image_low` and `image_high`.

    seeds: how many are in the figures.
    """
    plain = ("name", "label", "run", "status", "n", "step")
    figures = [f"{column}{end}" for column in comparison["columns"] for end in ("", "_paper", "_difference")]
    spread = [f"{column}{end}" for column in comparison["columns"] for end in ("_deviation", "_low", "_high")]
    rows = [[*plain, *figures, "seeds", *spread]]
    for row in comparison["rows"]:
        values = [figure[key] for figure in row["figures"].values() for key in ("ours", "paper", "difference")]
        ends = [(figure["deviation"], *(figure["interval"] or ("", ""))) for figure in row["figures"].values()]
        done = sum(seed["status"] == "done" for seed in row["seeds"])
        rows.append([*(row[key] for key in plain), *values, done, *(end for each in ends for end in each)])
    return csv_text(rows)
