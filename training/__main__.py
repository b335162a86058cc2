"""Command line of training: fit, evaluate, embed, predict, report, table, recipes.

Exit codes: 0 done; 1 rows of a table failed; 2 refused before work began; 3 stopped midway by the machine or by a loss
that is not finite; 130 Ctrl-C, 143 SIGTERM. Under torchrun all processes end with the same one, and the first speaks
for all. Progress and messages go to stderr, `--json` prints one object on stdout.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from manifests import store
from manifests.cli import exit_code, parse_arguments, recipe_titles
from manifests.config import parse_changes
from manifests.errors import Refused
from manifests.plain_text import PlainConsole, log_to_stderr, tell
from manifests.records import json_text

PROGRAM = "python -m training"
RECIPES = Path(__file__).parent / "recipes"
WIDTH = 124  # characters of the widest table
SEVERAL = ("fit", "evaluate", "embed")  # commands that torchrun may start in several processes
DEVICES = {"default": "auto", "choices": ("auto", "cpu", "cuda"), "help": "auto: CUDA where torch sees a GPU"}
LOG_LINE = ("loss", "confident", "right")  # beginnings of the names in the log that the line shows


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs one command and returns its exit code. prog: the program's name in its help."""
    options = parse_arguments(_parser(prog), arguments)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    leads = not several or os.environ.get("RANK") == "0"  # of several processes one speaks
    console = PlainConsole(stderr=True, soft_wrap=True, quiet=not leads)
    log_to_stderr(logging.WARNING if leads else logging.ERROR)

    def work() -> int:
        if several:
            _join_processes(options)
        return options.run_command(options, console)

    try:
        return exit_code(work, console, "train", "stopped; the last checkpoint is kept, run the same again to go on")
    finally:
        if "training.distributed" in sys.modules:
            sys.modules["training.distributed"].finish()


def _join_processes(options: argparse.Namespace) -> None:
    """Meets the processes that torchrun started beside this one."""
    from training import distributed

    distributed.start()
    if options.command not in SEVERAL:
        raise Refused(f"{options.command} runs in one process: start it without torchrun")


def _parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Shards into a label-free 3D classifier.")
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="train")
    fit.add_argument("recipe", help="name of a shipped recipe (`recipes` lists them) or a .toml file")
    fit.add_argument("changes", nargs="*", metavar="key=value", help="changed keys, such as optimizer.steps=100")
    fit.add_argument("--shards", required=True, help="a finished build")
    fit.add_argument("--run", required=True, help="folder of this run; a run that was stopped goes on")
    fit.add_argument("--device", **DEVICES)
    fit.add_argument("--dry-run", action="store_true", help="steps, memory and time from one measured step; no writing")
    fit.add_argument("--json", action="store_true", help="with --dry-run")
    fit.set_defaults(run_command=_fit)
    evaluate = commands.add_parser("evaluate", help="accuracies of a checkpoint")
    evaluate.add_argument("checkpoint", help="a run (its last step) or one of its checkpoints/step-* folders")
    evaluate.add_argument("changes", nargs="*", metavar="data.key=value", help="such as data.classes=medium")
    evaluate.add_argument("--shards", required=True)
    evaluate.add_argument("--split", default="test")
    evaluate.add_argument("--device", **DEVICES)
    evaluate.add_argument("--classes-from-text", action="store_true", help="a classifier from the shards' class names")
    evaluate.add_argument(
        "--classes", metavar="NAME|A,B,...", help="objects of these classes alone: a subset (medium, hard) or a list"
    )
    evaluate.add_argument(
        "--candidates", choices=("subset", "all"), help="with --classes: answers are among these, or among all classes"
    )
    evaluate.add_argument("--without-labels", action="store_true", help="read no label: the label-free analysis alone")
    evaluate.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of the towers")
    evaluate.add_argument("--out", metavar="DIR", help="confusion matrices, histograms and per-class figures")
    _add_workers(evaluate)
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(run_command=_evaluate)
    embed = commands.add_parser("embed", help="features of a split as one .npz file, and a picture of them")
    embed.add_argument("checkpoint", help="as of evaluate")
    embed.add_argument("changes", nargs="*", metavar="data.key=value", help="such as data.classes=medium")
    embed.add_argument("--shards", required=True)
    embed.add_argument("--out", required=True, metavar="FILE.npz")
    embed.add_argument("--split", default="test")
    embed.add_argument("--who", default="student", choices=("student", "teacher"))
    embed.add_argument("--per-view", action="store_true", help="also the features of every view")
    embed.add_argument("--picture", choices=("tsne", "umap"), help="also FILE.tsne.png or FILE.umap.png")
    embed.add_argument("--device", **DEVICES)
    _add_workers(embed)
    embed.set_defaults(run_command=_embed)
    predict = commands.add_parser("predict", help="labels of files, or of shards")
    predict.add_argument("checkpoint", help="as of evaluate")
    predict.add_argument("files", nargs="*", metavar="FILE", help="meshes or clouds; drawn by `python -m pipeline`")
    predict.add_argument("--shards", help="predict the objects of a build instead of files")
    predict.add_argument("--split", default="test", help="of --shards")
    predict.add_argument("--classes", metavar="A,B,...", help="other names than the checkpoint's, by its text tower")
    predict.add_argument("--axes", default="", help="of FILEs, such as y,z,x where +Z is up; default: as trained")
    predict.add_argument("--who", default="student", choices=("student", "teacher"))
    predict.add_argument("--device", **DEVICES)
    predict.add_argument("--workers", type=_count, default=0, metavar="N", help="processes that draw FILEs; 0: one")
    predict.add_argument("--json", action="store_true")
    predict.set_defaults(run_command=_predict)
    report = commands.add_parser("report", help="compare runs: a table, curves and contact sheets")
    report.add_argument(
        "runs", nargs="+", metavar="RUN", help="runs of the methods; zero-shot is the first one's step 0"
    )
    report.add_argument("--shards", required=True, help="what the runs were trained on")
    report.add_argument("--source", help="shards of the source domain, to show some of them")
    report.add_argument("--oracle", metavar="RUN", help="a run that was trained with labels: an upper bound")
    report.add_argument("--split", default="test")
    report.add_argument("--out", metavar="DIR", help="default: the folder that holds the first RUN")
    report.add_argument("--device", **DEVICES)
    report.set_defaults(run_command=_report)
    table = commands.add_parser("table", help="run a table of the paper and print it beside the paper's figures")
    table.add_argument("table", metavar="N", help="1 to 7, or a .toml file of one's own")
    table.add_argument("changes", nargs="*", metavar="key=value", help="changed keys of every row; a row's own win")
    table.add_argument(
        "--shards",
        action="append",
        required=True,
        metavar="DIR",
        help="a folder with a build for each variant, or a build, or VARIANT=BUILD; may be given again",
    )
    table.add_argument("--run", required=True, help="folder of all runs and results; what is finished is not run again")
    table.add_argument("--rows", default="", metavar="a,b", help="these rows alone, by name; * and ? match")
    table.add_argument("--recipe", default="", help="the base of every row in place of its own")
    table.add_argument("--device", **DEVICES)
    table.add_argument("--processes", type=int, default=1, metavar="N", help="of each fit, by torchrun: one a GPU")
    table.add_argument("--dry-run", action="store_true", help="say what would be run")
    table.add_argument("--json", action="store_true")
    table.set_defaults(run_command=_table)
    weights = commands.add_parser("weights", help="what a weights file holds, and what of our towers it fills")
    weights.add_argument("file", help="a weights file of any kind, a run or one of its checkpoints")
    weights.add_argument("--take", default="student", choices=("student", "teacher"), help="of a file that holds both")
    weights.add_argument("--out", metavar="FILE", help="also write a run or checkpoint as one .safetensors file")
    weights.add_argument("--json", action="store_true")
    weights.set_defaults(run_command=_weights)
    commands.add_parser("recipes", help="list the shipped recipes").set_defaults(run_command=_recipes)
    return parser


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_count, metavar="N", help="reader processes; default: data.workers, or 0")


def _count(text: str) -> int:
    """A number, 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number, 0 or more")
    return int(text)


def _device(name: str):
    from training import distributed

    return distributed.device_of(name)


def _fit(options: argparse.Namespace, console: Console) -> int:
    from training import distributed
    from training.loop.fit import fit
    from training.loop.metric_log import Logged
    from training.settings.fit_recipe import read_recipe

    with distributed.together():
        recipe = read_recipe(options.recipe, parse_changes(options.changes))
        device = _device(options.device)
    if options.dry_run:
        return _forecast(options, recipe, device, console)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("steps", total=None)

        def on_log(logged: Logged) -> None:
            values = logged.values
            pace = (
                f"{values['samples_per_second']:.0f} samples/s  data wait {values['data_wait']:.0%}  "
                f"{values['memory_mb']:,.0f} MB"
            )
            bar.update(task, description=f"loss {values['loss']:.3f}  {pace}")
            chosen = {name: value for name, value in values.items() if name.startswith(LOG_LINE)}
            shown = "  ".join(f"{name.removeprefix('loss_')} {value:.3g}" for name, value in chosen.items())
            left = timedelta(seconds=round(logged.seconds_left))
            line = f"step {logged.step}/{logged.total_steps}  {shown}  {pace}  {left} left"
            console.print(line, highlight=False)

        folder = fit(
            recipe,
            options.shards,
            options.run,
            device,
            on_log,
            lambda step, total: bar.update(task, completed=step, total=total),
            lambda loaded: console.print(*loaded.lines(), sep="\n"),
        )
    console.print(f"{folder}: python -m training evaluate {options.run} --shards {options.shards}", highlight=False)
    return 0


def _forecast(options: argparse.Namespace, recipe, device, console: Console) -> int:
    from training import distributed
    from training.loop.fit_forecast import forecast

    with console.status("measuring a step"):
        found = forecast(recipe, options.shards, options.run, device)
    if not distributed.leads():
        return 0
    if options.json:
        tell(json_text(found.json()))
        return 0
    table = Table(title=f"{options.recipe}, nothing written", show_header=False)
    for name, words in found.lines():
        table.add_row(name, words)
    PlainConsole(width=WIDTH).print(table)
    return 0


def _evaluate(options: argparse.Namespace, console: Console) -> int:
    from training import distributed
    from training.evaluation.evaluate import Options, examine
    from training.reports import evaluation_files, terminal
    from training.weights.checkpoint import open_checkpoint

    data = _data_changes(options) | _candidates(options)
    how = Options(
        options.classes_from_text,
        labels=not options.without_labels,
        workers=options.workers,
        precision=options.precision,
        changes=data,
    )
    with distributed.together():
        if options.out:
            store.local_path(options.out, "--out")
        checkpoint, device = open_checkpoint(options.checkpoint), _device(options.device)
    with _objects_bar(console) as on_progress:
        (found,) = examine([checkpoint], options.shards, options.split, device, how, on_progress)
    if not distributed.leads():
        return 0
    result = found.result()
    if options.json:
        tell(json_text(result))
    else:
        for table in ([terminal.accuracies(result)] if found.labelled else []) + [terminal.analysis(result)]:
            PlainConsole().print(table)
    if options.out:
        console.print(f"{evaluation_files.write(found, options.out)}", highlight=False, markup=False)
    return 0


def _data_changes(options: argparse.Namespace) -> dict[str, object]:
    """Keys of data that are given as key=value."""
    changes = parse_changes(options.changes)
    if set(changes) - {"data"}:
        raise Refused(f"{options.command} takes keys of data alone, not {min(set(changes) - {'data'})}")
    return changes.get("data", {})


def _candidates(options: argparse.Namespace) -> dict[str, object]:
    """Keys of data that --classes and --candidates stand for."""
    keys: dict[str, object] = {}
    if options.classes:
        names = options.classes.split(",")
        keys["classes"] = names[0] if len(names) == 1 else names
    if options.candidates:
        keys["candidates"] = options.candidates
    return keys


def _embed(options: argparse.Namespace, console: Console) -> int:
    from training import distributed
    from training.evaluation.embed import embed, require, write
    from training.weights.checkpoint import open_checkpoint

    with distributed.together():
        require(options.out, options.picture)
        data, device = _data_changes(options), _device(options.device)
        checkpoint = open_checkpoint(options.checkpoint)
    with _objects_bar(console) as on_progress:
        how = (options.split, options.who, device, options.per_view, options.workers, data)
        found = embed(checkpoint, options.shards, *how, on_progress)
    if distributed.leads():
        with console.status("writing"):
            paths = write(found, options.out, options.picture, checkpoint.recipe.seed)
        counted = f"{len(found.keys):,} objects, {found.points.shape[1]} features each"
        console.print(f"{', '.join(paths)}: {counted}", highlight=False, markup=False)
    return 0


def _predict(options: argparse.Namespace, console: Console) -> int:
    from training.evaluation.predict import predict_files, predict_shards
    from training.reports import terminal
    from training.weights.checkpoint import open_checkpoint

    if bool(options.files) == bool(options.shards):
        raise Refused("predict needs FILEs or --shards OUT, one of the two")
    checkpoint, device = open_checkpoint(options.checkpoint), _device(options.device)
    logging.getLogger("training.data.dataset").setLevel(logging.ERROR)  # what has no views is told row by row
    classes = [name.strip() for name in options.classes.split(",")] if options.classes else []
    how = (classes, options.who, device)
    with console.status("opening") as status:
        if options.files:
            rows = predict_files(checkpoint, options.files, *how, options.axes, options.workers, status.update)
        else:
            rows = predict_shards(checkpoint, options.shards, options.split, *how, status.update)
    if options.json:
        tell(json_text(rows))
    else:
        PlainConsole().print(terminal.predictions(rows))
    return int(any(row["error"] for row in rows))


@contextmanager
def _objects_bar(console: Console):
    """A bar of objects on a terminal; gives what is told (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("objects", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _report(options: argparse.Namespace, console: Console) -> int:
    from training.reports.page import accuracy_table, gain_lines
    from training.reports.report import collect, write

    out = store.local_path(options.out, "--out") if options.out else Path(options.runs[0]).absolute().parent
    with console.status("reading the runs") as status:
        report = collect(
            options.runs,
            options.shards,
            options.source,
            options.oracle,
            options.split,
            _device(options.device),
            status.update,
        )
    path = write(report, out)
    words = accuracy_table(report.values)
    table = Table(title=f"{report.values['dataset']} {options.split}, n={report.values['n']}")
    for number, name in enumerate(words.head):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in words.rows:
        table.add_row(*row)
    PlainConsole(width=WIDTH).print(table)
    for line in gain_lines(report.values):
        tell(line)
    console.print(f"{path}", highlight=False)
    return 0


def _table(options: argparse.Namespace, console: Console) -> int:
    from training.paper_tables.compare_with_paper import cells, compare, heads, remarks, write
    from training.paper_tables.runner import Place, plan_lines, run_rows, warnings
    from training.paper_tables.table_rows import builds_of, chosen, read_table, resolve

    table = read_table(options.table)
    builds = builds_of(options.shards, table.rows)
    rows = resolve(table.rows, builds, parse_changes(options.changes), options.recipe)
    names = {row.name for row in chosen(table, options.rows)}
    wanted = [judged for judged in rows if judged.row.name in names]
    if wanted and not any(judged.shards for judged in wanted):
        raise Refused(f"--shards {' '.join(options.shards)}: no build for a chosen row ({wanted[0].row.recipe}, ...)")

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    place = Place(store.local_path(options.run, "--run"), options.device, options.processes, say)
    for line in warnings(wanted):
        say(line)
    if options.dry_run:
        for line in plan_lines(wanted, place):
            tell(line)
        return 0
    with console.status("table") as status:
        place = replace(place, status=status.update)
        outcomes = run_rows(wanted, rows, place)
    comparison = compare(Path(options.table).stem, table, outcomes, options.recipe)
    stem = write(comparison, place.folder)
    if options.json:
        tell(json_text(comparison))
    else:
        shown = Table(title=f"Table {comparison['table']}: {table.title} (%)")
        for number, head in enumerate(heads(comparison)):
            shown.add_column(head, justify="right" if number else "left", no_wrap=bool(number))
        for line in cells(comparison):
            shown.add_row(*line)
        PlainConsole(width=WIDTH).print(shown)
        for note in remarks(comparison):
            tell(f"- {note}")
    say(f"{stem}.json, .md, .csv")
    return int(any(row["status"] == "failed" for row in comparison["rows"]))


def _weights(options: argparse.Namespace, console: Console) -> int:
    from training.evaluation.classifier import load
    from training.weights.describe import describe, in_words

    out = store.absolute(options.out) if options.out else ""
    about = describe(options.file, options.take)
    if out:
        load(options.file, options.take).save(out)
    tell(*([json_text(about)] if options.json else in_words(about)))
    return 0


def _recipes(options: argparse.Namespace, console: Console) -> int:
    for name, title in recipe_titles(RECIPES):
        tell(f"{name:18} {title}")
    return 0


def script() -> None:
    """`cross-most-training`: the same, whatever modules the current folder holds (`python -m` runs those)."""
    sys.exit(main(prog="cross-most-training"))


if __name__ == "__main__":
    sys.exit(main())
