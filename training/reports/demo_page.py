"""The report of a paper's demonstration: its claims, the figures of all seeds, what they rest on, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manifests.records import json_text
from training.reports.evaluation_files import write_files
from training.reports.page import Page, PageTable, Section, to_html, to_markdown


def page_of(values: dict[str, Any], notes: list[str]) -> Page:
    """The page about the object of report.json. notes: under its table."""
    table = values["table"]
    heads = table["heads"]
    figures = tuple((row["label"], *(_cell(row["figures"][column]) for column in heads)) for row in table["rows"])
    single = tuple(
        (f"{row['label']}, seed {seed['seed']}", *(_number(seed["values"][column]) for column in heads))
        for row in table["rows"]
        for seed in row["seeds"]
        if any(value is not None for value in seed["values"].values())
    )
    claims = tuple(
        (claim["text"], claim["verdict"], "; ".join(difference(heads[name], each) for name, each in found.items()))
        for claim in values["claims"]
        if (found := claim["figures"]) is not None
    )
    counted = f"In all: {values['seconds']:,.0f} s, {values['cpu_seconds']:,.0f} CPU seconds of all processes, "
    cost = f"{counted}{values['max_rss_mb']:,.0f} MB of memory at most. commands.txt lists the commands."
    sections = (
        Section("Claims", (PageTable(("claim", "verdict", "difference in points"), claims), *_HOW)),
        Section("Figures", (*values["about"], PageTable(("percent", *heads.values()), figures), *notes)),
        Section("Each seed", (PageTable(("percent", *heads.values()), single),)),
        Section("Cost", (cost,)),
    )
    verdict = ". ".join(claim["line"] for claim in values["claims"][:1]) or values["title"]
    return Page(values["title"], f"{verdict}.", sections)


_HOW = (
    "Differences are seed by seed. Brackets: 95% intervals of their mean by Student's t; they hold what another seed "
    "of training would change, not what other objects would. A claim holds where the mean is at least what is asked "
    "and the whole interval above 0; it does not where the whole interval is below; else it is undecided.",
)


def _cell(figure: dict[str, Any]) -> str:
    if figure["ours"] is None:
        return ""
    ends = figure["interval"]
    return f"{figure['ours']:.1f}" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def difference(head: str, figure: dict[str, Any]) -> str:
    """`SVM +8.1 [+6.5, +9.7], asked +3`."""
    ends = figure["interval"]
    between = f" [{ends[0]:+.1f}, {ends[1]:+.1f}]" if ends else ""
    asked = f", asked {figure['bar']:+g}" if figure["bar"] else ""
    return f"{head} {figure['mean']:+.1f}{between}{asked}"


def write(values: dict[str, Any], notes: list[str], out: Path) -> Path:
    """Writes OUT/report.html, report.md and report.json; gives the path of the first. Raises Refused if it cannot."""
    shown = page_of(values, notes)
    files = {"report.json": (json_text(values, indent=1) + "\n").encode()}
    files |= {"report.md": to_markdown(shown).encode(), "report.html": to_html(shown).encode()}
    return write_files(str(out), files) / "report.html"
