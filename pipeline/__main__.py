"""Command line of the pipeline: build, views, check, inspect, export, recipes, presets, doctor.

Exit codes: 0 done; 1 finished, but too many failures or damage found; 2 refused before work began; 3 stopped midway by
the machine; 130 Ctrl-C. Progress and messages go to stderr, `--json` prints one object on stdout.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections import Counter

from rich.console import Console

from manifests import store
from manifests.cli import exit_code, parse_arguments, recipe_titles
from manifests.config import parse_changes, to_toml
from manifests.errors import Refused, one_line
from manifests.plain_text import PlainConsole, log_to_stderr, tell
from manifests.presets import (
    is_files_preset,
    is_frames_preset,
    is_mesh_preset,
    load_preset,
    needs_colors,
    preset_names,
)
from manifests.records import json_text
from pipeline.jobs.time_limits import leaving

PROGRAM = "python -m pipeline"
RETRY_KINDS = ("timeout", "memory", "crash", "data")


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs one command and returns its exit code. prog: the program's name in its help."""
    return leaving(_run(arguments, prog))


def _run(arguments: list[str] | None, prog: str) -> int:
    options = parse_arguments(_parser(prog), arguments)
    console = PlainConsole(stderr=True, soft_wrap=True)
    log_to_stderr()
    interrupted = "stopped; what is finished is kept, run the same again to go on"
    return exit_code(lambda: options.run(options, console), console, "build", interrupted)


def _parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="3D datasets into training shards.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="a dataset into shards")
    build.add_argument("recipe", help="name of a shipped recipe (`recipes` lists them) or a .toml file")
    build.add_argument(
        "changes", nargs="*", metavar="key=value", help="changed keys, such as views.rgb12.image_size=128"
    )
    build.add_argument("--source", help="folder of the raw dataset")
    build.add_argument("--out", required=True, help="folder or URL (s3://...) of the shards")
    build.add_argument("--dry-run", action="store_true", help="count, time three objects, predict; write nothing")
    _add_retry(build)
    _add_workers(build)
    build.set_defaults(run=_build)
    views = commands.add_parser("views", help="a new view set for old shards")
    views.add_argument("preset", help="name of a view preset (`presets` lists them)")
    views.add_argument(
        "changes", nargs="*", metavar="key=value", help="changed keys of the preset; name= names the set"
    )
    views.add_argument("--shards", required=True, help="a finished build")
    views.add_argument("--source", help="the raw dataset, needed where meshes are not stored")
    _add_retry(views)
    _add_workers(views)
    views.set_defaults(run=_views)
    check = commands.add_parser("check", help="verify every byte of a build")
    check.add_argument("out", metavar="OUT")
    check.add_argument("--against", metavar="OTHER", help="also compare with another build of the same recipe")
    check.add_argument("--deep", action="store_true", help="also decode every picture (ten times as long)")
    check.add_argument("--repair", action="store_true", help="make damaged shards again")
    check.add_argument(
        "--source", help="the raw dataset: compared with what the objects were made of; with --repair read where needed"
    )
    _add_workers(check)
    check.set_defaults(run=_check)
    inspect = commands.add_parser("inspect", help="a contact sheet, or a page with filters")
    inspect.add_argument("out", metavar="OUT")
    kinds = inspect.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--png", metavar="FILE", help="a contact sheet")
    kinds.add_argument("--html", metavar="FILE", help="a page in one file: views, clouds, warnings and failures")
    inspect.add_argument("--objects", type=_count, help="so many of a build (12 on a sheet, 60 on a page)")
    inspect.add_argument("--views", type=_count, default=6, help="views a view set")
    inspect.add_argument("--split")
    inspect.set_defaults(run=_inspect)
    _add_export(commands.add_parser("export", help="a build for other tools: Hugging Face, wids, COLMAP"))
    commands.add_parser("recipes", help="list the shipped recipes").set_defaults(run=_recipes)
    presets = commands.add_parser("presets", help="list the view presets, or show one")
    presets.add_argument("name", nargs="?")
    presets.set_defaults(run=_presets)
    doctor = commands.add_parser("doctor", help="what this machine lacks, and the command for each")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("out", metavar="OUT")
    export.add_argument(
        "--format",
        required=True,
        choices=("hf", "wids", "colmap"),
        help="hf: a dataset card and a table of samples; wids: indexes of the shards; colmap: one object's cameras",
    )
    export.add_argument("--to", metavar="DIR", help="a folder of its own (hf and wids link the shards there)")
    export.add_argument("--copy", action="store_true", help="hf, wids: copy the shards to --to in place of links")
    export.add_argument("--views", default="", metavar="SETS", help="these view sets only, with commas between them")
    export.add_argument("--key", help="colmap: the object (default: the first)")
    export.add_argument("--license", metavar="ID", help="hf: the source dataset's, such as cc-by-4.0")
    export.add_argument("--overwrite", action="store_true", help="write over a README.md or a COLMAP model")
    export.add_argument("--json", action="store_true")
    export.set_defaults(run=_export)


def _count(text: str) -> int:
    """A number, 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number, 0 or more")
    return int(text)


def _add_retry(parser: argparse.ArgumentParser) -> None:
    kinds = ",".join(RETRY_KINDS)
    parser.add_argument("--retry", default="", metavar="KINDS", help=f"make shards with these failures again: {kinds}")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=_count, default=os.cpu_count() or 1, help="processes; 0: in this one, for debuggers"
    )
    where.add_argument("--ray", metavar="ADDRESS", help="join a running Ray cluster")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on stdout")


def _build(options: argparse.Namespace, console: Console) -> int:
    from pipeline.jobs.driver import Workers, build, estimate_bytes, refuse_other_build
    from pipeline.plan.build_recipe import read_recipe
    from pipeline.plan.plan import make_plan

    recipe = read_recipe(options.recipe, parse_changes(options.changes))
    retry = _retry_kinds(options.retry)
    plan, jobs = make_plan(recipe, options.source, options.out)
    objects = sum(len(job.assets) for job in jobs)
    size = estimate_bytes(plan, objects)
    splits = Counter()
    for job in jobs:
        splits[job.split] += len(job.assets)
    what = ", ".join(f"{split} {n:,}" for split, n in sorted(splits.items()))
    sets = ", ".join(f"{s.name} ({s.preset.num_views} views)" for s in plan.view_sets) or "no views"
    line = f"{plan.table.name}: {objects:,} objects ({what}), {len(jobs)} shards, {sets}, about {size / 1e9:.2g} GB"
    for note in plan.notes:
        console.print(f"warning: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if options.dry_run:
        refuse_other_build(plan, jobs)
        console.print(line, highlight=False)
        return _dry_run(plan, jobs, options.json)
    with _progress(console) as progress:

        def on_start(todo: int, there: int) -> None:
            console.print(line, highlight=False)
            _warn_of_space(plan.out, size, console)
            progress.start(todo, there)

        summary = build(plan, jobs, Workers(options.workers, options.ray), on_start, progress.event, retry)
    return _report(summary, plan, plan.out, options, console)


def _dry_run(plan, jobs, as_json: bool) -> int:
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


def _warn_of_space(out: str, size: int, console: Console) -> None:
    free = store.free_bytes(out)
    if free is not None and free < size:
        console.print(
            f"warning: {free / 1e9:.2g} GB free for about {size / 1e9:.2g} GB", style="yellow", highlight=False
        )


def _progress(console: Console):
    from pipeline.jobs.progress import BuildProgress

    return BuildProgress(console)


def _report(summary, plan, what: str, options: argparse.Namespace, console: Console) -> int:
    skipped = "".join(f", {n:,} skipped: {reason}" for reason, n in summary.skipped.items())
    expected = f" ({summary.expected:,} expected)" if summary.expected else ""
    console.print(
        f"{what}: {summary.samples:,} objects, {len(summary.failures):,} failures{expected}{skipped}", highlight=False
    )
    for failure in summary.failures[:10]:
        known = plan.table.expected_failures.get(failure.id)
        why = f" (expected: {known})" if known else ""
        console.print(
            f"  {failure.key}: {failure.stage}: {failure.reason}{why}", markup=False, highlight=False, soft_wrap=True
        )
    if len(summary.failures) > 10:
        console.print(
            f"  and {len(summary.failures) - 10:,} more: python -m pipeline check {plan.out}", highlight=False
        )
    if options.json:
        failures = [vars(failure) for failure in summary.failures]
        tell(json.dumps({"samples": summary.samples, "failures": failures, "skipped": summary.skipped}))
    limit = plan.recipe.max_failed_fraction
    if not summary.samples:
        console.print("no object was made", style="red")
        return 1
    if summary.failed_fraction > limit:
        console.print(
            f"failures: {summary.failed_fraction:.1%}, more than max_failed_fraction={limit:g}",
            style="red",
        )
        return 1
    return 0


def _views(options: argparse.Namespace, console: Console) -> int:
    from pipeline.jobs.driver import Workers
    from pipeline.jobs.redraw import draw_view_set, plan_views

    retry = _retry_kinds(options.retry)
    plan, jobs = plan_views(options.preset, parse_changes(options.changes), options.shards, options.source)
    with _progress(console) as progress:
        where = Workers(options.workers, options.ray)
        summary = draw_view_set(plan, jobs, where, progress.start, progress.event, retry)
    (view_set,) = plan.view_sets
    if not summary.samples and summary.skipped:
        presets = {name: load_preset(name)[1] for name in preset_names()}
        others = (is_mesh_preset, is_files_preset, is_frames_preset, needs_colors)
        fitting = ", ".join(name for name, preset in presets.items() if not any(kind(preset) for kind in others))
        reasons = ", ".join(summary.skipped)
        console.print(f"{view_set.name} fits no object ({reasons}); presets that draw points: {fitting}", style="red")
        return 1
    return _report(summary, plan, f"{plan.out}/views/{view_set.name}", options, console)


def _repair(options: argparse.Namespace, damaged: list[str], console: Console) -> None:
    from pipeline.jobs.driver import Workers
    from pipeline.jobs.repair import repair

    console.print(f"{len(damaged)} damaged tars", highlight=False)
    where = Workers(options.workers, options.ray)
    with _progress(console) as progress:
        done = repair(options.out, damaged, options.source, where, progress.start, progress.event)
    for tar in done.same:
        console.print(f"{tar}: made again, the same bytes", markup=False, highlight=False)
    for tar in done.other:
        console.print(f"{tar}: made again, not with the bytes of its record", markup=False, highlight=False)
    for line in done.left:
        console.print(line, style="yellow", markup=False, highlight=False)


def _check(options: argparse.Namespace, console: Console) -> int:
    from pipeline.inspect.check import check
    from pipeline.inspect.compare_builds import compare

    if options.repair:
        found = check(options.out, deep=options.deep)
        if found.damaged:
            _repair(options, list(found.damaged), console)
    with console.status("checking") as status:
        start = time.monotonic()
        found = check(options.out, lambda tar: status.update(f"checking {tar}"), options.deep)
        seconds = time.monotonic() - start
        differences = compare(options.out, options.against) if options.against else []
        origins = None if options.repair or not options.source else _origins(options, status)
    found.problems += [f"differs: {line}" for line in differences]
    if origins is not None:
        found.problems += [f"{key}: its source {words}" for key, words in origins.changed.items()]
    values = found.to_json() | ({} if origins is None else {"source": origins.to_json()})
    if options.json:
        tell(json_text(values))
        return 0 if values["ok"] else 1
    expected = f" ({found.expected_failures:,} expected)" if found.expected_failures else ""
    tell(f"{options.out}: {values['samples']:,} objects, {len(values['failures']):,} failures{expected}")
    tell("  " + ", ".join(f"{name} {hash[:12]}" for name, hash in values["hashes"].items()))
    tell("  keys: " + ", ".join(f"{split} {n:,}" for split, n in values["keys"].items()))
    for name, sums in values["view_sets"].items():
        gates = "".join(f", {gate} {value:.3g}" for gate, value in values["gates"][name].items())
        counts = f"{sums['samples']:,} objects, {sums['failures']:,} failures, {sums['skipped']:,} skipped"
        tell(f"  views/{name}: {counts}{gates}")
    for split, counts in values["classes"].items():
        widest = max(counts.values(), default=1)
        tell(f"  {split}: {sum(counts.values()):,} objects, {len(counts)} classes")
        for name, n in counts.items():
            tell(f"    {name or 'no class':24} {n:>8,} {'#' * max(1, round(32 * n / widest))}")
    for kind, n in values["warnings"].items():
        tell(f"  warning: {kind}: {n:,}")
    for failure in values["failures"]:
        tell(f"  failure: {failure['key']}: {failure['stage']}: {failure['reason']}")
    for name, failures in found.view_failures.items():
        for failure in failures:
            tell(f"  failure: views/{name}: {failure.key}: {failure.stage}: {failure.reason}")
    for problem in values["problems"]:
        tell(f"  PROBLEM: {problem}")
    if origins is not None:
        unknown = f", {origins.unknown:,} say nothing of theirs (an older build)" if origins.unknown else ""
        tell(f"  source: {origins.objects:,} objects compared, {len(origins.changed):,} differ{unknown}")
    pictures = "every picture decoded" if options.deep else "pictures by their headers, --deep decodes them"
    tell(f"  {found.bytes / 1e6:,.0f} MB in {seconds:.1f} s ({pictures})")
    tell("every byte is right" if values["ok"] else f"{len(values['problems'])} problems")
    return 0 if values["ok"] else 1


def _origins(options: argparse.Namespace, status):
    from pipeline.inspect.check_source import compare_source

    def on_object(done: int, total: int) -> None:
        status.update(f"comparing with the source: {done:,} of {total:,} objects")

    return compare_source(options.out, options.source, on_object)


def _inspect(options: argparse.Namespace, console: Console) -> int:
    try:
        data, size = _inspected(options)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError) as error:
        words = one_line(error, 200)
        raise Refused(f"{options.out} is damaged ({words}): python -m pipeline check {options.out}") from error
    path = options.html or options.png
    store.write_bytes(store.absolute(path), data)
    console.print(f"{path}: {size}", highlight=False)
    return 0


def _inspected(options: argparse.Namespace) -> tuple[bytes, str]:
    """The bytes of a sheet or page, and their size in words."""
    if options.html:
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
        line = f"{folder}: {key} in {view_set}, {len(files)} files"
    elif options.format == "hf":
        folder = lay_out(build, options.to, options.copy)
        files = write_hub(build, folder, options.license, options.overwrite)
        values["folder"] = folder
        line = f"{folder}: README.md and index/; hf upload USER/NAME {folder} . --repo-type dataset"
    else:
        folder = lay_out(build, options.to, options.copy)
        files = write_wids(build, folder)
        values["folder"] = folder
        line = f"{folder}: {len(files)} indexes in wids/"
    if options.json:
        tell(json.dumps(values | {"files": files}))
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options.format == "hf" and not options.license:
        console.print("the license field of README.md is yours to fill in (or --license ID)", highlight=False)
    return 0


def _refuse_odd_export(options: argparse.Namespace) -> None:
    of = {"key": ("colmap",), "license": ("hf",), "copy": ("hf", "wids")}
    for name, formats in of.items():
        if getattr(options, name) and options.format not in formats:
            raise Refused(f"--{name} is for --format {' and '.join(formats)}")
    if options.copy and options.to is None:
        raise Refused("--copy: give --to DIR, the folder to copy the shards to")


def _recipes(options: argparse.Namespace, console: Console) -> int:
    from pipeline.plan.build_recipe import RECIPES

    for name, title in recipe_titles(RECIPES):
        tell(f"{name:18} {title}")
    return 0


def _presets(options: argparse.Namespace, console: Console) -> int:
    if options.name:
        tell(*to_toml(load_preset(options.name)[1].model_dump()).removesuffix("\n").split("\n"))
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


def script() -> None:
    """`cross-most-pipeline`: the same, whatever modules the current folder holds (`python -m` runs those)."""
    sys.exit(main(prog="cross-most-pipeline"))


if __name__ == "__main__":
    sys.exit(main())
