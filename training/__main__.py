"""Command line of training: fit, evaluate, embed, predict, probe, report, table, weights, recipes.

Exit codes: 0 done; 1 rows of a table failed; 2 refused before work began; 3 stopped midway by the machine or by a loss
that is not finite; 130 Ctrl-C, 143 SIGTERM. Under torchrun all processes end with the same one, and the first speaks
for all. Progress and messages go to stderr, `--json` prints one object on stdout.

Each command imports what it needs: torch and the towers take seconds, which `--help` does not wait for.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from manifests import plugins, store
from manifests.cli import exit_code, parse_arguments, recipe_lines, recipe_titles
from manifests.config import find_recipe, parse_changes
from manifests.errors import Refused
from manifests.layout import require_manifest
from manifests.plain_text import PlainConsole, log_to_stderr, number_of, tell
from manifests.records import json_text
from training.command_line import parser
from training.parts_command import evaluate_run_of_parts, run_of_parts
from training.predict_command import predict
from training.probe_command import probe
from training.typed_keys import typed_candidates, typed_changes, typed_source, typed_weights

if TYPE_CHECKING:
    import torch

    from training.evaluation.held_out import HeldOut
    from training.loop.metric_log import Logged
    from training.settings.fit_recipe import FitRecipe

PROGRAM = "python -m training"
RECIPES = Path(__file__).parent / "recipes"
WIDTH = 124  # characters of the widest table
SEVERAL = ("fit", "evaluate", "embed")  # commands that torchrun may start in several processes
LOG_LINE = ("loss", "confident", "right", "labelled")  # beginnings of the names in the log that the line shows


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs one command and returns its exit code. prog: the program's name in its help."""
    options = parse_arguments(parser(prog), arguments)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    leads = not several or os.environ.get("RANK") == "0"  # of several processes one speaks
    console = PlainConsole(stderr=True, soft_wrap=True, quiet=not leads)
    log_to_stderr(logging.WARNING if leads else logging.ERROR)
    with ExitStack() as after_the_last_word:

        def work() -> int:
            if several:
                _join_processes(options.command, after_the_last_word)
            with plugins.using(getattr(options, "plugin", ())):
                return COMMANDS[options.command](options, console)

        return exit_code(work, console, "train", "stopped; the last checkpoint is kept, run the same again to go on")


def _join_processes(command: str, after_the_last_word: ExitStack) -> None:
    """Meets the processes that torchrun started beside this one, and leaves them when all is said."""
    from training import distributed

    after_the_last_word.callback(distributed.finish)
    distributed.start()
    if command not in SEVERAL:
        raise Refused(f"{command} runs in one process: start it without torchrun")


def _device(name: str) -> torch.device:
    from training import distributed

    return distributed.device_of(name)


def _bar(console: Console, transient: bool = False) -> Progress:
    """A progress bar on a terminal, elsewhere nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=transient)


@contextmanager
def _objects_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar of objects on a terminal; gives the function that moves it: (done, total)."""
    with _bar(console, transient=True) as bar:
        task = bar.add_task("objects", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _fit(options: argparse.Namespace, console: Console) -> int:
    from training import distributed
    from training.loop.fit import fit
    from training.settings.fit_recipe import read_recipe

    with distributed.together():
        recipe = read_recipe(options.recipe, parse_changes(options.changes), options.preset)
        device = _device(options.device)
        judge = _held_out(options, recipe, device)
    if options.dry_run:
        return _forecast(options, recipe, device, console)
    with _bar(console) as bar:
        task = bar.add_task("steps", total=None)

        def on_log(logged: Logged) -> None:
            pace = _pace(logged)
            bar.update(task, description=f"loss {logged.values['loss']:.3f}  {pace}")
            chosen = {name: value for name, value in logged.values.items() if name.startswith(LOG_LINE)}
            shown = "  ".join(f"{name.removeprefix('loss_')} {value:.3g}" for name, value in chosen.items())
            left = timedelta(seconds=round(logged.seconds_left))
            console.print(f"{left} left  step {logged.step}/{logged.total_steps}  {shown}  {pace}")

        folder = fit(
            recipe,
            options.shards,
            options.run,
            device,
            on_log,
            lambda step, total: bar.update(task, completed=step, total=total),
            lambda loaded: console.print(*loaded.lines(), sep="\n"),
            judge,
        )
    splits = require_manifest(store.absolute(options.shards), f"--shards {options.shards}").splits
    split = "" if "test" in splits else f" --split {recipe.data.split}"  # without it `evaluate` reads test
    console.print(f"{folder}: python -m training evaluate {options.run} --shards {options.shards}{split}")
    return 0


def _held_out(options: argparse.Namespace, recipe: FitRecipe, device: torch.device) -> HeldOut | None:
    """What measures the curve of held-out accuracy. Raises Refused unless key and flag ask for it together."""
    if recipe.eval_every and not options.looks_at_labels:
        raise Refused(
            f"eval_every={recipe.eval_every} reads the labels of the test split: say --looks-at-labels as well, and "
            "that the run is no label-free result; or eval_every=0"
        )
    if options.looks_at_labels and not recipe.eval_every:
        raise Refused("--looks-at-labels needs to know how often: eval_every=STEPS")
    if not recipe.eval_every:
        return None
    from training.evaluation.held_out import HeldOut

    return HeldOut(recipe, options.shards, device)


def _pace(logged: Logged) -> str:
    values = logged.values
    speed = f"{values['samples_per_second']:.0f} samples/s  data wait {values['data_wait']:.0%}"
    return f"{speed}  {values['memory_mb']:,.0f} MB"


def _forecast(options: argparse.Namespace, recipe: FitRecipe, device: torch.device, console: Console) -> int:
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
    from training.evaluation.evaluate import Options
    from training.evaluation.judged_models import TOWER_KEYS, asked_prompts, open_judged
    from training.evaluation.rgb_beside_depth import judge_pictures, sanity_line
    from training.reports import evaluation_files, terminal

    if (parts_run := run_of_parts(options.checkpoint)) is not None:
        with _objects_bar(console) as on_progress:
            return evaluate_run_of_parts(options, parts_run, on_progress)
    source = typed_source(options)
    changes = typed_changes(options, ("data", "prompts", "classes", "views_weight", *TOWER_KEYS))
    with distributed.together():
        if options.out:
            store.local_path(options.out, "--out")
        how = Options(
            options.classes_from_text,
            labels=not options.without_labels,
            workers=options.workers,
            changes=changes["data"] | typed_candidates(options, changes),
            prompts=asked_prompts(changes["prompts"]) if "prompts" in changes else (),
            votes=options.votes,
            views_weight=typed_weights(options, changes),
        )
        towers = {key: changes[key] for key in TOWER_KEYS if key in changes} | {"data": how.changes}
        device = _device(options.device)
        about = (device, options.precision, options.recipe, lambda lines: console.print(*lines, sep="\n"))
        opened = open_judged(source, options.shards, towers, *about, options.other_neighbours)
    where = (options.shards, options.split, device)
    with _objects_bar(console) as on_progress:
        found, beside = judge_pictures(opened, *where, how, options.search_view_weights, options.beside, on_progress)
    if not distributed.leads():
        return 0
    result = found.result() | ({"rgb_beside_depth": beside} if beside else {})
    if beside:
        console.print(sanity_line(beside))
    if options.json:
        tell(json_text(result))
    else:
        for table in ([terminal.accuracies(result)] if found.labelled else []) + [terminal.analysis(result)]:
            PlainConsole().print(table)
    if options.out:
        console.print(str(evaluation_files.write(found, options.out)))
    return 0


def _embed(options: argparse.Namespace, console: Console) -> int:
    from training import distributed
    from training.evaluation.embed import embed, require, write
    from training.evaluation.judged_models import with_points
    from training.weights.checkpoint import open_checkpoint

    with distributed.together():
        require(options.out, options.picture)
        changes, device = typed_changes(options, ("data", "points")), _device(options.device)
        data, points = changes["data"], changes.get("points", {})
        checkpoint = with_points(open_checkpoint(options.checkpoint), points, options.other_neighbours)
    with _objects_bar(console) as on_progress:
        how = (options.split, options.who, device, options.per_view, options.workers, data, options.precision)
        found = embed(checkpoint, options.shards, *how, on_progress)
    if distributed.leads():
        with console.status("writing"):
            paths = write(found, options.out, options.picture, checkpoint.recipe.seed)
        width = (found.points if len(found.points) else found.image).shape[1]
        features = f"{number_of(width, 'feature')} each, {found.about['precision']}"
        counted = f"{number_of(len(found.keys), 'object')}, {features}"
        console.print(f"{', '.join(paths)}: {counted}")
    return 0


def _report(options: argparse.Namespace, console: Console) -> int:
    from training.reports import terminal
    from training.reports.page import accuracy_table, gain_lines, verdict
    from training.reports.report import collect, write
    from training.settings.row_terms import term_lines

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
    if options.json:
        tell(json_text(report.values))
    else:
        tell(verdict(report.values))
        words = accuracy_table(report.values)
        title = f"{report.values['dataset']} {options.split}, n={report.values['n']}"
        PlainConsole(width=WIDTH).print(terminal.table(title, words.head, words.rows, whole=True))
        tell(*gain_lines(report.values), *term_lines(report.values))
    console.print(str(path))
    return 0


def _table(options: argparse.Namespace, console: Console) -> int:
    from training.paper_tables.compare_with_paper import cells, compare, heads, write
    from training.paper_tables.judged_rows import pretraining, resolve
    from training.paper_tables.missing import missing
    from training.paper_tables.place import Place
    from training.paper_tables.runner import plan_lines, run_rows, warnings
    from training.paper_tables.table_builds import builds_of
    from training.paper_tables.table_notes import remarks
    from training.paper_tables.table_rows import chosen, read_table, short_name, table_path, with_preset
    from training.reports import terminal

    table = with_preset(read_table(options.table), options.preset)
    builds, changes = builds_of(options.shards, table.variants), parse_changes(options.changes)
    place = Place(store.local_path(options.run, "--run"), options.device, options.processes, console.print)
    place = replace(place, slots=_slots(options), plugins=tuple(options.plugin))
    after = pretraining(table, builds, changes, options.recipe)
    of_all = (builds, changes, options.recipe, options.seeds, after, place.folder, table.columns)
    rows = resolve(table.rows, *of_all)
    names = {row.name for row in chosen(table, options.rows)}
    wanted = [judged for judged in ([after] if after else []) + rows if judged.row.name in names]
    for line in warnings(wanted) if table.pretrain else ():
        console.print(line)
    lacking = missing(wanted, place, table_path(options.table).read_text())
    if options.dry_run:
        tell(*plan_lines(wanted, place), *(["missing:"] if lacking else []), *(f"  {each.line()}" for each in lacking))
        return 2 if any(each.stops for each in lacking) else 0
    if files := [each.line() for each in lacking if each.is_file]:
        raise Refused("; ".join(files))
    if wanted and not any(judged.shards for judged in wanted):
        raise Refused(f"--shards {' '.join(options.shards)}: no build for a chosen row ({wanted[0].row.variant}, ...)")
    with console.status("table") as status:
        outcomes = run_rows(wanted, rows, replace(place, status=status.update))
    comparison = compare(short_name(options.table), table, outcomes, options.recipe, rows)
    stem = write(comparison, place.folder)
    if options.json:
        tell(json_text(comparison))
    else:
        title = f"Table {comparison['table']}: {table.title} (%)"
        PlainConsole(width=WIDTH).print(terminal.table(title, heads(comparison), cells(comparison), whole=True))
        tell(*(f"- {note}" for note in remarks(comparison)))
    console.print(f"{stem}.json, .md, .csv")
    return int(any(outcome.status == "failed" for seeds in outcomes.values() for outcome in seeds.values()))


def _slots(options: argparse.Namespace) -> tuple[dict[str, str], ...]:
    """The environments of runs at once: a group of GPUs for each, or a share of the cores."""
    from training.paper_tables.place import slots_of

    several, gpus = options.parallel * options.processes > 1, None
    if several and options.device != "cpu":
        from training.distributed import visible_gpus

        gpus = visible_gpus()
        gpus = None if options.device == "auto" and not gpus else gpus
    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    cores = int(threads) * options.parallel * options.processes if threads.isdigit() else cores  # as it was asked
    return slots_of(options.parallel, options.processes, gpus, cores)


def _weights(options: argparse.Namespace, console: Console) -> int:
    from training.evaluation.classifier import load
    from training.weights import public_files
    from training.weights.describe import describe, in_words

    if options.where == bool(options.file):
        raise Refused("weights needs a FILE or --where, one of the two")
    if options.where:
        tell(*([json_text(public_files.as_json())] if options.json else public_files.in_words()))
        return 0
    out = store.absolute(options.out) if options.out else ""
    about = describe(options.file, options.take)
    if out:
        load(options.file, options.take).save(out)
    tell(*([json_text(about)] if options.json else in_words(about)))
    return 0


def _recipes(options: argparse.Namespace, console: Console) -> int:
    if options.name:
        from training.settings.fit_recipe import read_recipe

        tell(*recipe_lines(find_recipe(options.name, RECIPES), read_recipe(options.name, {})))
        return 0
    for name, title in recipe_titles(RECIPES):
        tell(f"{name:18} {title}")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "fit": _fit,
    "evaluate": _evaluate,
    "embed": _embed,
    "predict": predict,
    "probe": probe,
    "report": _report,
    "table": _table,
    "weights": _weights,
    "recipes": _recipes,
}


def script() -> None:
    """`cross-most-training`: the same, whatever modules the current folder holds (`python -m` runs those)."""
    sys.exit(main(prog="cross-most-training"))


if __name__ == "__main__":
    sys.exit(main())
