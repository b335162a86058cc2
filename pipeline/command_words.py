"""What the pipeline's commands say to a person: the line of a plan, the end of a build, the lines of a check."""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from manifests.layout import read_view_set, require_manifest, view_set_names
from manifests.plain_text import number_of
from pipeline.sources.source_files import in_words

if TYPE_CHECKING:
    from manifests.dataset_info import DatasetTable
    from pipeline.inspect.check import Findings
    from pipeline.inspect.check_source import Compared
    from pipeline.jobs.summary import Summary
    from pipeline.plan.plan import Job, Plan

SHOWN_FAILURES = 5


def plan_line(plan: Plan, jobs: list[Job]) -> str:
    """How many objects of which splits, and which views of them, in one line."""
    splits: Counter[str] = Counter()
    for job in jobs:
        splits[job.split] += len(job.assets)
    what = ", ".join(f"{split} {n:,}" for split, n in sorted(splits.items()))
    sets = ", ".join(f"{s.name} ({number_of(s.preset.num_views, 'view')})" for s in plan.view_sets) or "no views"
    return f"{plan.table.name}: {number_of(splits.total(), 'object')} ({what}), {number_of(len(jobs), 'shard')}, {sets}"


def failure_lines(summary: Summary, plan: Plan) -> Iterator[str]:
    """The first failures by the files they are of, and the command that lists all."""
    for failure in summary.failures[:SHOWN_FAILURES]:
        known = plan.table.expected_failures.get(failure.id)
        why = f" (expected: {known})" if known else ""
        yield f"  {failure.id}: {failure.stage}: {failure.reason}{why}"
    if len(summary.failures) > SHOWN_FAILURES:
        yield f"  and {len(summary.failures) - SHOWN_FAILURES:,} more: python -m pipeline check {shlex.quote(plan.out)}"


def too_many_words(summary: Summary, limit: float, of_build: bool) -> str:
    """Why a build or view set whose tars are all written ends with exit code 1, and which key lets it pass."""
    share = summary.failed_fraction
    enough = min(1.0, math.ceil(share * 1000) / 1000)
    mend = f"; max_failed_fraction={enough:g} lets this pass, and what is made is not made again" if of_build else ""
    return f"failures: {share:.1%}, more than max_failed_fraction={limit:g}: exit code 1, though all else is made{mend}"


def next_lines(plan: Plan, view_set: str | None = None) -> Iterator[str]:
    """What to type after a build, or after a view set was drawn."""
    out = shlex.quote(plan.out)
    yield f"next: python -m pipeline inspect {out}"
    if plan.classes:
        views = f" data.views={view_set}" if view_set else ""
        yield f"  or: python -m training fit RECIPE --shards {out} --run RUN{views}"
        yield "      (python -m training recipes lists RECIPE)"
        return
    split = min(require_manifest(plan.out, plan.out).splits)
    asked = f"CHECKPOINT --shards {out} --split {split}"
    yield "no folder names a class; names of your own serve as candidates:"
    yield f"  python -m training embed {asked} --out features.npz"
    yield f"  python -m training predict {asked} --classes NAME,NAME"
    yield f"  python -m training evaluate {asked} --classes NAME,NAME --classes-from-text --without-labels"
    keys = f"""data.split={split} 'data.classes=["NAME", "NAME"]'"""
    yield f"  python -m training fit RECIPE --shards {out} --run RUN {keys}"


def same_views(plan: Plan) -> Iterator[str]:
    """A warning for each view set of OUT that holds the very views of one of the plan's under another name.

    One whose manifest is damaged is passed over: `check` reports it.
    """
    others = {}
    for name in view_set_names(plan.out):
        with contextlib.suppress(ValueError):
            others[name] = read_view_set(plan.out, name)
    for view_set in plan.view_sets:
        for name, known in others.items():
            if known is not None and name != view_set.name and known.hash == view_set.hash:
                yield f"views/{name} already holds the same views as {view_set.name}: drawn twice, stored twice"


def check_lines(
    found: Findings, origins: Compared | None, options: argparse.Namespace, seconds: float
) -> Iterator[str]:
    """What a person reads of a check."""
    expected = f" ({found.expected_failures:,} expected)" if found.expected_failures else ""
    yield f"{options.out}: {number_of(found.samples, 'object')}, {number_of(len(found.failures), 'failure')}{expected}"
    yield "  " + ", ".join(f"{name} {hash[:12]}" for name, hash in found.hashes.items())
    yield "  keys: " + ", ".join(f"{split} {n:,}" for split, n in found.keys.items())
    for name, sums in found.view_sets.items():
        gates = "".join(f", {gate} {value:.3g}" for gate, value in found.gates[name].items())
        yield (
            f"  views/{name}: {number_of(sums['samples'], 'object')}, {number_of(sums['failures'], 'failure')}, "
            f"{sums['skipped']:,} skipped{gates}"
        )
    for split, counts in found.classes.items():
        widest = max(counts.values(), default=1)
        yield f"  {split}: {number_of(sum(counts.values()), 'object')}, {number_of(len(counts), 'class')}"
        for name, n in sorted(counts.items()):
            yield f"    {name or 'no class':24} {n:>8,} {'#' * max(1, round(32 * n / widest))}"
    for kind, n in sorted(found.warnings.items(), key=lambda each: (-each[1], each[0])):
        yield f"  warning: {kind}: {n:,} ({', '.join(found.warning_examples[kind])})"
    if found.passed_over:
        yield f"  source: {in_words(found.passed_over)}"
    sets = {f"views/{name}: ": failures for name, failures in found.view_failures.items()}
    for prefix, failures in {"": found.failures, **sets}.items():
        for failure in failures:
            yield f"  failure: {prefix}{failure.key}: {failure.stage}: {failure.reason}"
    for problem in found.problems:
        yield f"  PROBLEM: {problem}"
    if origins is not None:
        unknown = f", {origins.unknown:,} say nothing of theirs (an older build)" if origins.unknown else ""
        yield f"  source: {number_of(origins.objects, 'object')} compared, {len(origins.changed):,} differ{unknown}"
    pictures = "every picture decoded" if options.deep else "pictures by their headers, --deep decodes them"
    yield f"  {found.bytes / 1e6:,.0f} MB in {seconds:.1f} s ({pictures})"
    yield number_of(len(found.problems), "problem") if found.problems else "every byte is right"


def table_lines(table: DatasetTable) -> Iterator[str]:
    """What is fixed about a recipe's dataset, as comments below its keys."""
    counts = ", ".join(f"{split} {number_of(n, 'object')}" for split, n in table.counts.items())
    known = [number_of(len(table.classes), "class") if table.classes else "classes from the source", counts]
    yield ""
    yield f"# dataset {table.name}: {'; '.join(filter(None, known))}; axes {', '.join(table.axes)}"
    if table.split_counts:
        yield f"# split: the dataset's own, or {', '.join(table.split_counts)}"
