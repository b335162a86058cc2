"""The commands `evaluate` and `predict` for a run of part segmentation, which labels the points of objects."""

from __future__ import annotations

import argparse
from collections.abc import Callable
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


def predict_parts(options: argparse.Namespace, console: Console, checkpoint: Checkpoint) -> int:
    """Prints the shares of each object's parts, by the arg-max over those of its class; --png draws them."""
    from training.data.dataset import open_source
    from training.evaluation.part_iou import label_points, object_iou, part_data, table_of
    from training.reports import terminal
    from training.reports.part_sheet import part_sheet

    if not options.shards:
        raise Refused("a run of part segmentation predicts --shards: build the files first, and say --classes NAME")
    if options.html or options.who != "student":
        raise Refused("of a run of part segmentation: --png FILE in place of --html, and it has no teacher")
    out = store.local_path(options.png, "--png") if options.png else None
    opened = _opened(options, checkpoint)
    settings = part_data(opened, options.split, {"classes": [], "objects": ""})
    source = open_source(options.shards, settings, warn=False)
    table = table_of(opened, source)
    category = table.label(options.classes) if options.classes else None
    if options.classes and category is None:
        raise unknown_name("class in --classes (one of all objects)", options.classes, table.classes)
    found: list[LabelledPoints] = []
    with console.status("labelling"):
        found.extend(label_points(opened, source, settings, False, category))
    rows: list[dict[str, Any]] = []
    for each in found:
        parts, own = each.found["class"], table.parts_of(each.category)
        iou = None if each.parts is None else round(100 * object_iou(parts, each.parts, own), 4)
        shares = {str(part): round(float((parts == part).mean()), 4) for part in own}
        rows.append({"file": each.key, "class": table.classes[each.category], "parts": shares, "iou": iou})
    tell(json_text(rows)) if options.json else PlainConsole().print(terminal.part_shares(rows))
    if out:
        store.write_bytes(str(out), part_sheet(found, rows, checkpoint.recipe.seed))
        console.print(f"{out}: {number_of(len(rows), 'object')} labelled")
    return 0


def _opened(options: argparse.Namespace, checkpoint: Checkpoint) -> OpenedParts:
    from training import distributed
    from training.networks.precision import require_precision
    from training.weights.open_models import as_trained
    from training.weights.part_weights import open_parts

    device = distributed.device_of(options.device)
    precision = as_trained(checkpoint.recipe, device, options.precision)
    require_precision(precision, device)
    return open_parts(checkpoint, device, precision)
