"""The command `predict`: what it is asked about, its answers as a table, as JSON and as a page."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from manifests import store
from manifests.errors import Refused
from manifests.plain_text import PlainConsole, number_of, tell
from manifests.records import json_text
from training.parts_command import predict_parts, run_of_parts
from training.typed_keys import typed_weights


def predict(options: argparse.Namespace, console: Console) -> int:
    """Answers, and gives the exit code: 1 where an object has no answer."""
    from training import distributed
    from training.evaluation.predict import predict_files, predict_shards
    from training.reports import terminal
    from training.reports.prediction_page import PredictionPage
    from training.weights.checkpoint import open_checkpoint

    if bool(options.files) == bool(options.shards):
        raise Refused("predict needs FILEs or --shards OUT, one of the two")
    if (parts_run := run_of_parts(options.checkpoint)) is not None:
        return predict_parts(options, console, parts_run, _files(options.files, console))
    if options.png:
        raise Refused(f"--png draws parts, and {options.checkpoint} predicts classes: --html PAGE shows those")
    out = store.local_path(options.html, "--html") if options.html else None
    files = _files(options.files, console)
    checkpoint, device = open_checkpoint(options.checkpoint), distributed.device_of(options.device)
    classes = [name.strip() for name in options.classes.split(",")] if options.classes else []
    how = (classes, options.who, device)
    page = PredictionPage() if out else None
    with console.status("opening") as status:
        weights = typed_weights(options, {"views_weight": options.views_weight} if options.views_weight else {})
        last = (status.update, options.precision, page.look if page else None)
        if files:
            rows = predict_files(checkpoint, files, *how, options.axes, options.workers, *last, views_weight=weights)
        else:
            rows = predict_shards(checkpoint, options.shards, options.split, *how, *last, views_weight=weights)
    if options.json:
        tell(json_text(rows))
    else:
        PlainConsole().print(terminal.predictions(rows))
    if page and out:
        title = f"{options.checkpoint}: {number_of(len(rows), 'prediction')}"
        text = page.html(title, rows, classes or checkpoint.classes)
        store.write_bytes(str(out), text.encode())
        console.print(f"{out}: {len(text) / 1e6:.1f} MB")
    return int(any(row["error"] for row in rows))


def _files(given: Sequence[str], console: Console) -> list[str]:
    """The files themselves, and those of known formats in the folders. Raises Refused for a folder without one."""
    from training.evaluation.predict import files_in

    found: list[str] = []
    for each in given:
        if not os.path.isdir(each):
            found.append(each)
            continue
        inside, others = files_in(each)
        counts = Counter(suffix or "no suffix" for suffix in others)
        kinds = ", ".join(f"{suffix} {count:,}" for suffix, count in sorted(counts.items()))
        over = f", {number_of(len(others), 'other')} passed over ({kinds})" if others else ""
        if not inside:
            raise Refused(f"{each}: no mesh or cloud in it{over}")
        console.print(f"{each}: {number_of(len(inside), 'file')}{over}")
        found += inside
    return found
