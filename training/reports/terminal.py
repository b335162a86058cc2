"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from manifests.plain_text import for_terminal
from training.evaluation.metrics import COLUMNS, MODALITIES
from training.evaluation.part_iou import RULES

ABSENT = "-"


def split_line(result: dict[str, Any]) -> str:
    """`test, n=60, step 100, bf16`, and `, 10 votes` where clouds had several."""
    votes = f", {result['votes']} votes" if result.get("votes", 1) > 1 else ""
    return f"{result['split']}, n={result['n']}, step {result['step']}, {result['precision']}{votes}"


def accuracies(result: dict[str, Any]) -> Table:
    """Percent right of student and teacher, over objects with 95% intervals, and over classes."""
    rows = []
    for who in [who for who in ("student", "teacher") if result[who]]:
        found = result[who]
        for top, interval in found["interval"].items():
            shares = found.get(top, found)  # those of top 1 stand at the head
            rows.append([f"{who}, {top.replace('top', 'top ')}", *(_percent(shares.get(name)) for name in COLUMNS)])
            rows.append(["  95% interval", *(_ends(interval.get(name)) for name in COLUMNS)])
        rows.append([f"{who}, mean per class", *(_percent(found["mean_per_class"][name]) for name in COLUMNS)])
    return table(f"{result['dataset']} {split_line(result)}", ["accuracy, %", *COLUMNS], rows)


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1f}"


def _ends(interval: list[float] | None) -> str:
    return ABSENT if interval is None else "-".join(map(_percent, interval))


def analysis(result: dict[str, Any]) -> Table:
    """What needs no label: entropy, biasedness, confident shares, agreement, and which modality gave the pseudo-labels.

    Where the split has labels, also how many pseudo-labels are right.
    """
    models = {who: found for who, found in result["analysis"].items() if found}
    rows = [
        [f"{name}: {modality}, {unit}", *(_number((each[modality] or {}).get(name)) for each in models.values())]
        for name, unit in (("entropy", "nats"), ("biasedness", "nats"), ("confident", "%"))
        for modality in MODALITIES
    ]
    rows.append(["agreement, %", *(_number(each["agreement"]) for each in models.values())])
    joint = [each["joint"] or {} for each in models.values()]
    rows.append(["joint pseudo-labels, % of objects", *(_number(each.get("selected")) for each in joint)])
    rows.append(["  of these from the image, %", *(_number(each.get("from_image")) for each in joint)])
    if result["pseudo_labels"]:
        quality = [result["pseudo_labels"][who]["joint"]["precision"] for who in models]
        rows.append(["  of these right, %", *map(_number, quality)])
    return table(f"analysis, {split_line(result)}", ["", *models], rows)


def parts(result: dict[str, Any]) -> Table:
    """mIoU in percent by both arg-max rules: over objects, over classes, and of each class with its objects."""
    rules, backbone = result["miou"], result["backbone"] + (f", k {result['k']}" if result["k"] else "")
    which = f"{'last' if result['last_step'] else 'earlier'} checkpoint, seed {result['seed']}"
    title = f"{result['dataset']} {split_line(result)}, {which}, {backbone}, {result['num_points']} points"
    rows = [
        [f"{name} mIoU", str(result["n"]), *(_percent(rules[rule][name]) for rule in rules)]
        for name in ("instance", "class")
    ]
    rows += [
        [f"  {name}", str(count), *(_percent(each["per_class"][name]) for each in rules.values())]
        for name, count in result["objects"].items()
    ]
    return table(title, ["mIoU, %", "objects", *(f"arg-max: {RULES[rule]}" for rule in rules)], rows)


def part_shares(rows: Sequence[dict[str, Any]]) -> Table:
    """A line an object: its class, the percents of its points by part, its IoU where known; or what is wrong."""
    shown = Table()
    for name in ("object", "class", "parts, % of points", "IoU, %"):
        shown.add_column(name, overflow="fold", justify="right" if name == "IoU, %" else "left")
    for row in rows:
        if row["error"]:
            shown.add_row(row["file"], ABSENT, Text(for_terminal(row["error"]), style="red"), ABSENT)
            continue
        shares = ", ".join(f"{part}: {100 * share:.0f}" for part, share in row["parts"].items())
        shown.add_row(row["file"], row["class"], shares, _percent(row["iou"]))
    return shown


def predictions(rows: Sequence[dict[str, Any]]) -> Table:
    """A line a file: its label, how sure, by which modality of those asked, the next best; or what is wrong with it."""
    shown = Table()
    for name in ("file", "label", "sure, %", "by", "towers", "next best, or what is wrong"):
        shown.add_column(name, overflow="fold", justify="right" if name == "sure, %" else "left")
    for row in rows:
        if row["error"]:
            shown.add_row(row["file"], *[ABSENT] * 4, Text(for_terminal(row["error"]), style="red"))
            continue
        others = ", ".join(f"{each['label']} {100 * each['confidence']:.1f}" for each in row["top5"][1:3])
        sure = f"{100 * row['confidence']:.1f}"
        shown.add_row(row["file"], row["label"], sure, row["surer"], ", ".join(row["towers"]), others)
    return shown


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], whole: bool = False) -> Table:
    """Figures, right-justified, with a name before each row. whole: a cell of figures is never broken."""
    shown = Table(title=title)
    shown.add_column(head[0], overflow="fold")
    for name in head[1:]:
        shown.add_column(name, justify="right", no_wrap=whole)
    for row in rows:
        shown.add_row(*row)
    return shown
