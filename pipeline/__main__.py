"""Command line of the pipeline: build, views, check, inspect, export, recipes, presets, doctor.

Exit codes: 0 done; 1 finished, but too many failures or damage found; 2 refused before work began; 3 stopped midway by
the machine; 130 Ctrl-C. Progress and messages go to stderr, `--json` prints one object on stdout. Commands import what
they run when they run, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from manifests import plugins, store
from manifests.cli import exit_code, key_lines, parse_arguments, recipe_lines, recipe_titles
from manifests.config import find_recipe, parse_changes
from manifests.dataset_info import load_table
from manifests.errors import Refused, one_line
from manifests.plain_text import PlainConsole, log_to_stderr, number_of, tell
from manifests.presets import load_preset, preset_names
from manifests.records import json_text
from pipeline.arguments import PROGRAM, RETRY_KINDS, pipeline_parser
from pipeline.command_words import (
    check_lines,
    failure_lines,
    next_lines,
    plan_line,
    same_views,
    table_lines,
    too_many_words,
)
from pipeline.jobs.time_limits import leaving
from pipeline.sources.source_files import in_words

if TYPE_CHECKING:
    from pipeline.jobs.summary import Summary
    from pipeline.plan.plan import Job, Plan


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs one command and returns its exit code. prog: the program's name in its help."""
    return leaving(_run(arguments, prog))


def _run(arguments: list[str] | None, prog: str) -> int:
    options = parse_arguments(pipeline_parser(prog), arguments)
    console = PlainConsole(stderr=True, soft_wrap=True)
    log_to_stderr()
    interrupted = "stopped; what is finished is kept, run the same again to go on"

    def work() -> int:
        from pipeline.sources.source_files import following, linked_folders

        links = following(linked_folders(getattr(options, "follow_links", ())))
        with plugins.using(getattr(options, "plugin", ())), links:
            return _COMMANDS[options.command](options, console)

    return exit_code(work, console, "build", interrupted)


def _build(options: argparse.Namespace, console: Console) -> int:
    from pipeline.jobs.build import build, estimate_bytes
    from pipeline.jobs.driver import Workers, num_objects
    from pipeline.jobs.progress import BuildProgress
    from pipeline.plan.build_recipe import read_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.plan.same_build import refuse_other_build

    recipe = read_recipe(options.recipe, parse_changes(options.changes))
    retry = _retry_kinds(options.retry)
    plan, jobs = make_plan(recipe, options.source, options.out)
    size = estimate_bytes(plan, num_objects(jobs))
    line = f"{plan_line(plan, jobs)}, about {size / 1e9:.2g} GB"
    for note in (*plan.notes, *filter(None, [in_words(plan.passed_over)])):
        console.print(f"warning: {note}", style="yellow")
    if options.dry_run:
        refuse_other_build(plan, jobs)
        console.print(line)
        return _dry_run(plan, jobs, options.json)
    with BuildProgress(console) as progress:

        def on_start(todo: int, there: int) -> None:
            console.print(line)
            free = store.free_bytes(plan.out)
            if free is not None and free < size:
                console.print(f"warning: {free / 1e9:.2g} GB free for about {size / 1e9:.2g} GB", style="yellow")
            progress.start(todo, there)

        summary = build(plan, jobs, Workers(options.workers, options.ray), on_start, progress.event, retry)
    return _report(summary, plan, None, options, console)


def _dry_run(plan: Plan, jobs: list[Job], as_json: bool) -> int:
    from pipeline.jobs.build_forecast import forecast, lines
    from pipeline.jobs.driver import Workers, ready

    with ready(plan, Workers(), jobs):
        found = forecast(plan, jobs)
    tell(*([json_text(found.to_json())] if as_json else lines(found, plan.recipe.asset_memory_mb)))
    return 0


def _retry_kinds(text: str) -> frozenset[str]:
    kinds = frozenset(part.strip() for part in text.split(",") if part.strip())
    wrong = sorted(kinds - set(RETRY_KINDS))
    if wrong:
        raise Refused(f"--retry {wrong[0]}: not one of {', '.join(RETRY_KINDS)}")
    return kinds


def _report(summary: Summary, plan: Plan, view_set: str | None, options: argparse.Namespace, console: Console) -> int:
    """Shows how a build, or the drawing of one view set, ended; the exit code."""
    what = plan.out if view_set is None else f"{plan.out}/views/{view_set}"
    skipped = "".join(f", {n:,} skipped: {reason}" for reason, n in summary.skipped.items())
    console.print(f"{what}: {summary.in_words()}{skipped}")
    console.print(*failure_lines(summary, plan), sep="\n", end="\n" if summary.failures else "")
    if options.json:
        failures = [vars(failure) for failure in summary.failures]
        tell(json.dumps({"samples": summary.samples, "failures": failures, "skipped": summary.skipped}))
    limit = plan.recipe.max_failed_fraction
    if not summary.samples:
        console.print("no object was made", style="red")
        return 1
    if summary.failed_fraction > limit:
        console.print(too_many_words(summary, limit, view_set is None), style="red")
        return 1
    console.print(*next_lines(plan, view_set), sep="\n")
    return 0


def _views(options: argparse.Namespace, console: Console) -> int:
    from pipeline.jobs.driver import Workers
    from pipeline.jobs.progress import BuildProgress
    from pipeline.jobs.redraw import draw_view_set, plan_views

    retry = _retry_kinds(options.retry)
    plan, jobs = plan_views(options.preset, parse_changes(options.changes), options.shards, options.source)
    for line in same_views(plan):
        console.print(f"warning: {line}", style="yellow")
    with BuildProgress(console) as progress:
        where = Workers(options.workers, options.ray)
        summary = draw_view_set(plan, jobs, where, progress.start, progress.event, retry)
    (view_set,) = plan.view_sets
    if not summary.samples and summary.skipped:
        presets = {name: load_preset(name)[1] for name in preset_names()}
        fitting = ", ".join(name for name, each in presets.items() if each.draws == "points" and not each.needs_colors)
        reasons = ", ".join(summary.skipped)
        console.print(f"{view_set.name} fits no object ({reasons}); presets that draw points: {fitting}", style="red")
        return 1
    return _report(summary, plan, view_set.name, options, console)


def _repair(options: argparse.Namespace, damaged: list[str], console: Console) -> None:
    from pipeline.jobs.driver import Workers
    from pipeline.jobs.progress import BuildProgress
    from pipeline.jobs.repair import repair

    console.print(number_of(len(damaged), "damaged tar"))
    where = Workers(options.workers, options.ray)
    with BuildProgress(console) as progress:
        done = repair(options.out, damaged, options.source, where, progress.start, progress.event)
    for tar in done.same:
        console.print(f"{tar}: made again, the same bytes")
    for tar in done.other:
        console.print(f"{tar}: made again, not with the bytes of its record")
    for line in done.left:
        console.print(line, style="yellow")


def _check(options: argparse.Namespace, console: Console) -> int:
    from pipeline.inspect.check import check
    from pipeline.inspect.check_source import compare_source
    from pipeline.inspect.compare_builds import compare

    if options.repair:
        found = check(options.out, deep=options.deep)
        if found.damaged:
            _repair(options, list(found.damaged), console)
    origins = None
    with console.status("checking") as status:

        def on_object(done: int, total: int) -> None:
            status.update(f"comparing with the source: {done:,} of {total:,} objects")

        start = time.monotonic()
        found = check(options.out, lambda tar: status.update(f"checking {tar}"), options.deep)
        seconds = time.monotonic() - start
        differences = compare(options.out, options.against) if options.against else []
        if options.source and not options.repair:
            origins = compare_source(options.out, options.source, on_object)
    found.problems += [f"differs: {line}" for line in differences]
    if origins is not None:
        found.problems += [f"{key}: its source {words}" for key, words in origins.changed.items()]
    if options.json:
        tell(json_text(found.to_json() | ({} if origins is None else {"source": origins.to_json()})))
    else:
        tell(*check_lines(found, origins, options, seconds))
    return 1 if found.problems else 0


def _inspect(options: argparse.Namespace, console: Console) -> int:
    try:
        data, size = _inspected(options)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError) as error:
        words = one_line(error, 200)
        raise Refused(f"{options.out} is damaged ({words}): python -m pipeline check {options.out}") from error
    path = options.html or options.png or os.path.join(tempfile.mkdtemp(prefix="inspect-"), "page.html")
    store.write_bytes(store.absolute(path), data)
    console.print(f"{path}: {size}")
    if not (options.html or options.png) and sys.stderr.isatty() and (os.environ.get("DISPLAY") or os.name == "nt"):
        webbrowser.open(f"file://{path}")
    return 0


def _inspected(options: argparse.Namespace) -> tuple[bytes, str]:
    """The bytes of a sheet or page, and their size in words."""
    if not options.png:
        from pipeline.inspect.html_gallery import gallery

        page = gallery(options.out, 60 if options.objects is None else options.objects, options.views, options.split)
        return page.encode(), f"{len(page) / 1e6:.1f} MB"
    from pipeline.inspect.view_sheet import contact_sheet

    sheet = contact_sheet(options.out, 12 if options.objects is None else options.objects, options.views, options.split)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue(), f"{sheet.width} x {sheet.height}"


def _export(options: argparse.Namespace, console: Console) -> int:
    from pipeline.export.colmap import write_object
    from pipeline.export.finished_build import open_build
    from pipeline.export.hub_and_wids import lay_out, write_hub, write_wids

    names = tuple(dict.fromkeys(name.strip() for name in options.views.split(",") if name.strip()))
    _refuse_odd_export(options)
    build = open_build(options.out, names)
    values: dict[str, object] = {"format": options.format}
    if options.format == "colmap":
        folder, key, view_set, files = write_object(build, options.to, options.key, options.overwrite)
        values |= {"folder": folder, "key": key, "views": view_set}
        line = f"{folder}: {key} in {view_set}, {number_of(len(files), 'file')}"
    elif options.format == "hf":
        folder = lay_out(build, options.to, options.copy)
        files = write_hub(build, folder, options.license, options.overwrite)
        values["folder"] = folder
        line = f"{folder}: README.md and index/; hf upload USER/NAME {folder} . --repo-type dataset"
    else:
        folder = lay_out(build, options.to, options.copy)
        files = write_wids(build, folder)
        values["folder"] = folder
        line = f"{folder}: {number_of(len(files), 'index')} in wids/"
    if options.json:
        tell(json.dumps(values | {"files": files}))
    console.print(line)
    if options.format == "hf" and not options.license:
        console.print("the license field of README.md is yours to fill in (or --license ID)")
    return 0


def _refuse_odd_export(options: argparse.Namespace) -> None:
    of = {"key": ("colmap",), "license": ("hf",), "copy": ("hf", "wids")}
    for name, formats in of.items():
        if getattr(options, name) and options.format not in formats:
            raise Refused(f"--{name} is for --format {' and '.join(formats)}")
    if options.copy and options.to is None:
        raise Refused("--copy: give --to DIR, the folder to copy the shards to")


def _recipes(options: argparse.Namespace, console: Console) -> int:
    from pipeline.plan.build_recipe import RECIPES, read_recipe

    if options.name:
        recipe = read_recipe(options.name, {})
        tell(*recipe_lines(find_recipe(options.name, RECIPES), recipe), *table_lines(load_table(recipe.dataset)))
        return 0
    for name, title in recipe_titles(RECIPES):
        tell(f"{name:18} {title}")
    return 0


def _presets(options: argparse.Namespace, console: Console) -> int:
    if options.name:
        tell(*key_lines(load_preset(options.name)[1]))
        return 0
    for name in preset_names():
        preset = load_preset(name)[1]
        tell(f"{name:16} {preset.backend:9} {preset.num_views or '?':>3} views  {preset.title}")
    return 0


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from pipeline.doctor import examine

    found = []
    for finding in examine():
        found.append(finding)
        if not options.json:
            mark = {"ok": "ok ", "note": "-- ", "missing": "NO "}[finding.state]
            mend = f"; {finding.command}" if finding.command else ""
            tell(f"{mark} {finding.name:12} {finding.detail}{mend}", flush=True)
    lost = [finding for finding in found if finding.state == "missing"]
    if options.json:
        tell(json.dumps({"ok": not lost, "findings": [vars(finding) for finding in found]}))
    return 1 if lost else 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "build": _build,
    "views": _views,
    "check": _check,
    "inspect": _inspect,
    "export": _export,
    "recipes": _recipes,
    "presets": _presets,
    "doctor": _doctor,
}


def script() -> None:
    """`cross-most-pipeline`: the same, whatever modules the current folder holds (`python -m` runs those)."""
    sys.exit(main(prog="cross-most-pipeline"))


if __name__ == "__main__":
    sys.exit(main())
