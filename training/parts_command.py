"""The commands `evaluate` and `predict` for a run of part segmentation, which labels the points of objects."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from manifests import store
from manifests.config import load_toml, unknown_name
from manifests.errors import Refused
from manifests.plain_text import PlainConsole, number_of, tell
from manifests.records import json_text
from training.typed_keys import typed_candidates, typed_changes

if TYPE_CHECKING:
    from manifests.dataset_info import DatasetTable
    from training.evaluation.part_iou import LabelledPoints
    from training.weights.checkpoint import Checkpoint
    from training.weights.part_weights import OpenedParts

CLASSES_ONLY = ("classes_from_text", "candidates", "without_labels", "recipe", "out")  # flags of `evaluate`


def run_of_parts(source: str) -> Checkpoint | None:
    """The checkpoint that a path names, where it is of part segmentation."""
    from training.settings.part_settings import METHOD
    from training.weights.checkpoint import open_checkpoint
    from training.weights.run_folder import RECIPE, last_step

    recipe = last_step(Path(source)) / RECIPE
    if not recipe.is_file() or load_toml(recipe).get("method") != METHOD:
        return None
    return open_checkpoint(source)


def evaluate_run_of_parts(
    options: argparse.Namespace, checkpoint: Checkpoint, on_progress: Callable[[int, int], None]
) -> int:
    """Prints both mIoUs by both arg-max rules, and of each class."""
    from training.evaluation.part_iou import evaluate_parts
    from training.reports import terminal

    for flag in CLASSES_ONLY:
        if getattr(options, flag):
            words = f"--{flag.replace('_', '-')} is for runs that classify objects"
            raise Refused(f"{words}, and {options.checkpoint} labels points")
    changes = typed_changes(options, ("data", "classes"))
    data = changes["data"] | typed_candidates(options, changes)
    result = evaluate_parts(_opened(options, checkpoint), options.shards, options.split, data, on_progress)
    tell(json_text(result)) if options.json else PlainConsole().print(terminal.parts(result))
    return 0


def predict_parts(options: argparse.Namespace, console: Console, checkpoint: Checkpoint, files: Sequence[str]) -> int:
    """Prints the shares of each object's parts, by the arg-max over those of its class; --png draws them.

    Gives the exit code: 1 where a file has no answer.
    """
    from training.evaluation.part_iou import run_table
    from training.reports import terminal
    from training.reports.part_sheet import part_sheet

    if options.html or options.who != "student":
        raise Refused("of a run of part segmentation: --png FILE in place of --html, and it has no teacher")
    if files and not options.classes:
        raise Refused("a file does not say of which class it is, which part segmentation needs: say --classes NAME")
    out = store.local_path(options.png, "--png") if options.png else None
    opened = _opened(options, checkpoint)
    table = run_table(opened)
    category = table.label(options.classes) if options.classes else None
    if options.classes and category is None:
        raise unknown_name("class in --classes (one of all objects)", options.classes, table.classes)
    with console.status("labelling") as status:
        if files:
            found, rows = _of_files(opened, files, table, category, options, status.update)
        else:
            found, _ = _of_shards(opened, options.shards, options.split, table, category)
            rows = [_row(each.key, each, table) for each in found]
    tell(json_text(rows)) if options.json else PlainConsole().print(terminal.part_shares(rows))
    if out:
        answered = [row for row in rows if not row["error"]]
        store.write_bytes(str(out), part_sheet(found, answered, checkpoint.recipe.seed))
        console.print(f"{out}: {number_of(len(found), 'object')} labelled")
    return int(any(row["error"] for row in rows))


def _of_shards(
    opened: OpenedParts, shards: str, split: str, table: DatasetTable, category: int | None
) -> tuple[list[LabelledPoints], dict[str, str]]:
    """The objects of a split, and by key why others are not among them."""
    from training.data.dataset import open_source
    from training.evaluation.part_iou import label_points, part_data, require_same_parts

    settings = part_data(opened, split, {"classes": [], "objects": ""})
    source = open_source(shards, settings, warn=False, pictures=False)
    if category is None:
        require_same_parts(opened, source)
    return list(label_points(opened, source, settings, table, False, category)), source.absent


def _of_files(
    opened: OpenedParts,
    files: Sequence[str],
    table: DatasetTable,
    category: int | None,
    options: argparse.Namespace,
    say: Callable[[str], None],
) -> tuple[list[LabelledPoints], list[dict[str, Any]]]:
    """The files that could be read, in their order, and a row for each file."""
    from training.evaluation.predict import SPLIT, absence, shards_of_files

    found: dict[int, LabelledPoints] = {}
    reasons = {number: absence(file) for number, file in enumerate(files)}
    for out, numbers in shards_of_files(opened.checkpoint, files, options.axes, options.workers, say):
        objects, absent = _of_shards(opened, out, SPLIT, table, category)
        found |= {numbers[each.key]: each for each in objects}
        reasons |= {numbers[key]: reason for key, reason in absent.items()}
    rows = []
    for number, file in enumerate(files):
        failed: dict[str, Any] = {"file": file, "class": None, "parts": {}, "iou": None, "error": reasons[number]}
        rows.append(_row(file, found[number], table) if number in found else failed)
    return [found[number] for number in sorted(found)], rows


def _row(file: str, each: LabelledPoints, table: DatasetTable) -> dict[str, Any]:
    from training.evaluation.part_iou import object_iou

    parts, own = each.found["class"], table.parts_of(each.category)
    iou = None if each.parts is None else round(100 * object_iou(parts, each.parts, own), 4)
    shares = {str(part): round(float((parts == part).mean()), 4) for part in own}
    return {"file": file, "class": table.classes[each.category], "parts": shares, "iou": iou, "error": None}


def _opened(options: argparse.Namespace, checkpoint: Checkpoint) -> OpenedParts:
    from training import distributed
    from training.networks.precision import require_precision
    from training.weights.open_models import as_trained
    from training.weights.part_weights import open_parts

    device = distributed.device_of(options.device)
    precision = as_trained(checkpoint.recipe, device, options.precision)
    require_precision(precision, device)
    return open_parts(checkpoint, device, precision)
