"""Writes a folder about one evaluation: figures as JSON and CSV, confusion matrices and histograms as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from manifests import store
from manifests.errors import Refused
from manifests.plain_text import csv_text, number_of
from manifests.records import json_text
from training.evaluation.metrics import COLUMNS, PREDICTED, Examined, SplitAnswers
from training.plots.confusion import confusion_picture, histogram_picture

TITLES = {"image": "one view", "image_star": "averaged views (Image*)", "points": "point cloud"}


def write(examined: Examined, out: str) -> Path:
    """Writes OUT/evaluate.json and, of student and teacher, histogram_WHO.csv and .png. Gives OUT.

    With labels also accuracies.csv (top 1, 3 and 5 with 95% intervals), per_class.csv and confusion_WHO_COLUMN.csv and
    .png (rows: true classes, columns: predicted ones).
    Raises Refused where OUT cannot be written.
    """
    files = {"evaluate.json": (json_text(examined.result(), indent=1) + "\n").encode()}
    for who, answers in examined.models.items():
        files |= _histograms(examined, who, answers)
        if examined.labelled:
            for column in (name for name in PREDICTED if name in answers.logits):
                files |= _confusion(examined, who, answers, column)
    if examined.labelled:
        files["per_class.csv"] = _per_class(examined)
        files["accuracies.csv"] = _accuracies(examined)
    return write_files(out, files)


def write_files(out: str, files: dict[str, bytes]) -> Path:
    """Writes files by name into the folder of --out, and gives it. Raises Refused where it cannot be written."""
    folder = store.local_path(out, "--out")
    try:
        for name, data in files.items():
            store.write_bytes(str(folder / name), data)
    except OSError as error:
        raise Refused(f"--out {out} cannot be written: {error.strerror or error}") from error
    return folder


def _table(rows: Iterable[Sequence[Any]]) -> bytes:
    return csv_text(rows).encode()


def _title(examined: Examined, who: str, what: str) -> str:
    return f"{examined.dataset} {examined.split}, step {examined.step}, {who}: {what}"


def _confusion(examined: Examined, who: str, answers: SplitAnswers, column: str) -> dict[str, bytes]:
    counts, classes = answers.confusion(column), examined.classes
    rows = [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
    right = answers.percent()[column]
    title = _title(examined, who, f"{TITLES[column]}, {right:.1f}% of {len(answers.label):,} right")
    return {
        f"confusion_{who}_{column}.csv": _table([["true / predicted", *classes], *rows]),
        f"confusion_{who}_{column}.png": confusion_picture(counts, classes, title),
    }


def _histograms(examined: Examined, who: str, answers: SplitAnswers) -> dict[str, bytes]:
    found = answers.analysis(examined.settings)
    titles = {"image": "predicted, one view", "points": "predicted, point cloud"}
    series = {titles[name]: found[name]["histogram"] for name in answers.modalities}
    head, selected = ["class", *answers.modalities], ""
    if found["joint"]:
        series["joint pseudo-labels"] = found["joint"]["histogram"]
        head += ["joint_pseudo_labels"]
        selected = f", {found['joint']['selected']:.1f}% selected as pseudo-labels"
    rows = zip(examined.classes, *series.values(), strict=True)
    title = _title(examined, who, number_of(len(answers.label), "object") + selected)
    return {
        f"histogram_{who}.csv": _table([head, *rows]),
        f"histogram_{who}.png": histogram_picture(series, examined.classes, title),
    }


def _accuracies(examined: Examined) -> bytes:
    """A row for each figure: percent of the n objects whose label is among the `top` surest answers."""
    rows: list[Sequence[Any]] = [["model", "column", "top", "percent", "low", "high", "n"]]
    for who, answers in examined.models.items():
        found = answers.percent()
        for top, interval in found["interval"].items():
            for column, ends in ((column, ends) for column, ends in interval.items() if ends is not None):
                share = found.get(top, found)[column]
                rows.append([who, column, top.removeprefix("top"), share, *ends, len(answers.label)])
    return _table(rows)


def _per_class(examined: Examined) -> bytes:
    found = {who: answers.per_class() for who, answers in examined.models.items()}
    head = ["class", "objects", *(f"{who}_{column}" for who in found for column in COLUMNS)]
    values = [found[who][column] for who in found for column in COLUMNS]
    rows = zip(examined.classes, examined.student.objects().tolist(), *values, strict=True)
    return _table([head, *rows])
