"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from manifests.plain_text import for_terminal
from training.evaluation.metrics import COLUMNS

NONE = "-"


def split_line(result: dict[str, Any]) -> str:
    """`test, n=60, step 100`."""
    return f"{result['split']}, n={result['n']}, step {result['step']}"


def accuracies(result: dict[str, Any]) -> Table:
    """Percent right of student and teacher, over objects and over classes."""
    table = _table(f"{result['dataset']} {split_line(result)}", "accuracy, %", COLUMNS)
    for who in [who for who in ("student", "teacher") if result[who]]:
        table.add_row(who, *(f"{result[who][name]:.1f}" for name in COLUMNS))
        table.add_row(f"{who}, mean per class", *(f"{result[who]['mean_per_class'][name]:.1f}" for name in COLUMNS))
    return table


def analysis(result: dict[str, Any]) -> Table:
    """What needs no label: entropy, biasedness, confident shares, agreement, whose the pseudo-labels are; and, where
    there are labels, how many of those are right.
    """
    models = {who: found for who, found in result["analysis"].items() if found}
    table = _table(f"analysis, {split_line(result)}", "", models)
    for name, unit in (("entropy", "nats"), ("biasedness", "nats"), ("confident", "%")):
        for modality, shown in (("image", "image"), ("points", "points")):
            table.add_row(f"{name}: {shown}, {unit}", *(_number(each[modality][name]) for each in models.values()))
    table.add_row("agreement, %", *(_number(each["agreement"]) for each in models.values()))
    table.add_row("joint pseudo-labels, % of objects", *(_number(m["joint"]["selected"]) for m in models.values()))
    table.add_row("  of these from the image, %", *(_number(m["joint"]["from_image"]) for m in models.values()))
    if result["pseudo_labels"]:
        quality = [result["pseudo_labels"][who]["joint"]["precision"] for who in models]
        table.add_row("  of these right, %", *map(_number, quality))
    return table


def predictions(rows: Sequence[dict[str, Any]]) -> Table:
    """A line a file: its label, how sure, by which modality, the next best; or what is wrong with it."""
    table = Table()
    for name in ("file", "label", "sure, %", "by", "next best, or what is wrong"):
        table.add_column(name, overflow="fold", justify="right" if name == "sure, %" else "left")
    for row in rows:
        if row["error"]:
            table.add_row(row["file"], NONE, NONE, NONE, Text(for_terminal(row["error"]), style="red"))
            continue
        others = ", ".join(f"{each['label']} {100 * each['confidence']:.1f}" for each in row["top5"][1:3])
        sure = f"{100 * row['confidence']:.1f}"
        table.add_row(row["file"], row["label"], sure, row["surer"], others)
    return table


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _table(title: str, first: str, columns: Any) -> Table:
    table = Table(title=title)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    return table
