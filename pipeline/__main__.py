"""Command line of the pipeline: build, views, check, inspect, recipes, presets, doctor.

Exit codes: 0 done; 1 finished, but too many failures or damage found; 2 refused before work began; 3 stopped midway by
the machine; 130 Ctrl-C. Progress and messages go to stderr, `--json` prints one object on stdout.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections import Counter
from importlib.util import find_spec

from rich.console import Console

from manifests import store
from manifests.commands import parse_arguments, recipe_titles
from manifests.errors import Refused, Stopped
from manifests.presets import is_files_preset, is_mesh_preset, load_preset, needs_colors, preset_names
from manifests.recipes import parse_changes, to_toml

RETRY_KINDS = ("timeout", "memory", "crash", "data")
LIBRARIES = {"ray": "--workers N", "open3d": "mesh views", "trimesh": "reading meshes", "webdataset": "writing tars"}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = parse_arguments(_parser(), arguments)
    console = Console(stderr=True, soft_wrap=True)
    try:
        return options.run(options, console)
    except Refused as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except Stopped as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 3
    except KeyboardInterrupt:
        console.print("stopped; what is finished is kept, run the same again to go on")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description="3D datasets into training shards.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="a dataset into shards")
    build.add_argument("recipe", help="name of a shipped recipe (`recipes` lists them) or a .toml file")
    build.add_argument(
        "changes", nargs="*", metavar="key=value", help="changed keys, such as views.rgb12.image_size=128"
    )
    build.add_argument("--source", help="folder of the raw dataset")
    build.add_argument("--out", required=True, help="folder or URL (s3://...) of the shards")
    build.add_argument("--dry-run", action="store_true", help="count objects and shards, write nothing")
    build.add_argument(
        "--retry", default="", metavar="KINDS", help=f"build shards with these failures again: {','.join(RETRY_KINDS)}"
    )
    _add_workers(build)
    build.set_defaults(run=_build)
    views = commands.add_parser("views", help="a new view set for old shards")
    views.add_argument("preset", help="name of a view preset (`presets` lists them)")
    views.add_argument(
        "changes", nargs="*", metavar="key=value", help="changed keys of the preset; name= names the set"
    )
    views.add_argument("--shards", required=True, help="a finished build")
    views.add_argument("--source", help="the raw dataset, needed where meshes are not stored")
    _add_workers(views)
    views.set_defaults(run=_views)
    check = commands.add_parser("check", help="verify every byte of a build")
    check.add_argument("out", metavar="OUT")
    check.add_argument("--against", metavar="OTHER", help="also compare with another build of the same recipe")
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check)
    inspect = commands.add_parser("inspect", help="a contact sheet")
    inspect.add_argument("out", metavar="OUT")
    inspect.add_argument("--png", required=True, metavar="FILE")
    inspect.add_argument("--objects", type=int, default=12)
    inspect.add_argument("--views", type=int, default=6, help="views a view set")
    inspect.add_argument("--split")
    inspect.set_defaults(run=_inspect)
    commands.add_parser("recipes", help="list the shipped recipes").set_defaults(run=_recipes)
    presets = commands.add_parser("presets", help="list the view presets, or show one")
    presets.add_argument("name", nargs="?")
    presets.set_defaults(run=_presets)
    commands.add_parser("doctor", help="what is installed and what is missing").set_defaults(run=_doctor)
    return parser


def _count(text: str) -> int:
    """A number of processes, 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes")
    return int(text)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=_count, default=os.cpu_count() or 1, help="processes; 0: in this one, for debuggers"
    )
    where.add_argument("--ray", metavar="ADDRESS", help="join a running Ray cluster")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on stdout")


def _build(options: argparse.Namespace, console: Console) -> int:
    from pipeline.plan import make_plan, read_recipe
    from pipeline.run import Workers, build, estimate_bytes, refuse_other_build

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
        return 0
    with _progress(console) as progress:

        def on_start(todo: int, there: int) -> None:
            console.print(line, highlight=False)
            _warn_of_space(plan.out, size, console)
            progress.start(todo, there)

        summary = build(plan, jobs, Workers(options.workers, options.ray), on_start, progress.event, retry)
    return _report(summary, plan, plan.out, options, console)


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
    from pipeline.progress import BuildProgress

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
        print(json.dumps({"samples": summary.samples, "failures": failures, "skipped": summary.skipped}))
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
    from pipeline.run import Workers, draw_view_set, plan_views

    plan, jobs = plan_views(options.preset, parse_changes(options.changes), options.shards, options.source)
    with _progress(console) as progress:
        summary = draw_view_set(plan, jobs, Workers(options.workers, options.ray), progress.start, progress.event)
    (view_set,) = plan.view_sets
    if not summary.samples and summary.skipped:
        presets = {name: load_preset(name)[1] for name in preset_names()}
        others = (is_mesh_preset, is_files_preset, needs_colors)
        fitting = ", ".join(name for name, preset in presets.items() if not any(kind(preset) for kind in others))
        reasons = ", ".join(summary.skipped)
        console.print(f"{view_set.name} fits no object ({reasons}); presets that draw points: {fitting}", style="red")
        return 1
    return _report(summary, plan, f"{plan.out}/views/{view_set.name}", options, console)


def _check(options: argparse.Namespace, console: Console) -> int:
    from pipeline.check import check, compare

    with console.status("checking") as status:
        found = check(options.out, lambda tar: status.update(f"checking {tar}"))
        differences = compare(options.out, options.against) if options.against else []
    found.problems += [f"differs: {line}" for line in differences]
    values = found.to_json()
    if options.json:
        print(json.dumps(values))
        return 0 if values["ok"] else 1
    expected = f" ({found.expected_failures:,} expected)" if found.expected_failures else ""
    print(f"{options.out}: {values['samples']:,} objects, {len(values['failures']):,} failures{expected}")
    for name, sums in values["view_sets"].items():
        print(
            f"  views/{name}: {sums['samples']:,} objects, {sums['failures']:,} failures, {sums['skipped']:,} skipped"
        )
    for split, counts in values["classes"].items():
        print(f"  {split}: " + ", ".join(f"{name or 'no class'} {n:,}" for name, n in counts.items()))
    for kind, n in values["warnings"].items():
        print(f"  warning: {kind}: {n:,}")
    for failure in values["failures"]:
        print(f"  failure: {failure['key']}: {failure['stage']}: {failure['reason']}")
    for name, failures in found.view_failures.items():
        for failure in failures:
            print(f"  failure: views/{name}: {failure.key}: {failure.stage}: {failure.reason}")
    for problem in values["problems"]:
        print(f"  PROBLEM: {problem}")
    print("every byte is right" if values["ok"] else f"{len(values['problems'])} problems")
    return 0 if values["ok"] else 1


def _inspect(options: argparse.Namespace, console: Console) -> int:
    from pipeline.inspect import contact_sheet

    sheet = contact_sheet(options.out, options.objects, options.views, options.split)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    store.write_bytes(store.absolute(options.png), file.getvalue())
    console.print(f"{options.png}: {sheet.width} x {sheet.height}", highlight=False)
    return 0


def _recipes(options: argparse.Namespace, console: Console) -> int:
    from pipeline.plan import RECIPES

    for name, title in recipe_titles(RECIPES):
        print(f"{name:18} {title}")
    return 0


def _presets(options: argparse.Namespace, console: Console) -> int:
    if options.name:
        print(to_toml(load_preset(options.name)[1].model_dump()), end="")
        return 0
    for name in preset_names():
        preset = load_preset(name)[1]
        print(f"{name:16} {preset.backend:9} {preset.num_views or '?':>3} views  {preset.title}")
    return 0


def _doctor(options: argparse.Namespace, console: Console) -> int:
    missing = 0
    for name, purpose in LIBRARIES.items():
        there = find_spec(name) is not None
        problem = "" if there else "missing: pip install 'cross-most[build]'"
        if name == "open3d" and there:
            try:
                import renderers.raycast  # noqa: F401 - loading it is the test
            except Refused as error:
                there, problem = False, str(error)
        missing += not there
        print(f"{'ok ' if there else 'NO '} {name:12} {purpose}{'; ' + problem if problem else ''}")
    print(f"    {os.cpu_count()} cores")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
