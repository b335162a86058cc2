"""Runs a paper's small demonstration: builds from a seed, the rows of a table with several seeds, claims, a report.

    python -m training.paper_demo crosspoint --out runs/crosspoint-demo

A demonstration is a file of recipes/demos, with a table beside it. Every stage is a command that a person could type:
OUT/commands.txt lists them, those that the table runs, too. OUT/builds holds the builds, OUT/runs all runs and results,
OUT/logs what the stages said. One that was stopped goes on when it is called again. `--quick` shows the way, in fewer
objects, steps and seeds than the claims need.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console

from manifests import store
from manifests.cli import exit_code
from manifests.config import Settings, load_toml, parse_recipe, unknown_name
from manifests.errors import Refused
from manifests.plain_text import PlainConsole, tell
from manifests.records import read_json
from training.command_line import numbers
from training.demo_stages import Session, Stages
from training.paper_tables.seed_statistics import gain
from training.paper_tables.table_notes import remarks
from training.paper_tables.table_rows import Name, Table, read_table
from training.reports import demo_page

DEMOS = Path(__file__).parent / "recipes" / "demos"
ROWS = "_rows"  # ends the name of a demonstration's table
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"


class DemoBuild(Settings):
    """A build. name: of the folder, as rows and columns name it in `shards`. recipe: of the pipeline, with its keys."""

    name: Name
    recipe: str
    keys: tuple[str, ...] = ()


class QuickChanges(Settings):
    """What `--quick` changes. builds: further keys by build. rows: these alone, as `--rows` names them.

    changes: further keys of every row, below a row's own. seeds: in place of the others.
    """

    builds: dict[Name, tuple[str, ...]] = Field(default_factory=dict)
    rows: str = ""
    changes: tuple[str, ...] = ()
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)


class Claim(Settings):
    """A difference between two rows, seed by seed. bars: by column the points that are asked; one of them is enough.

    against_column: the column of the other row, where it is another one.
    """

    text: str
    row: Name
    against: Name
    bars: Annotated[dict[Name, float], Field(min_length=1)]
    against_column: str = ""


class PaperDemo(Settings):
    """One file of recipes/demos. about: paragraphs of the report. changes: keys of every row, below its own."""

    title: str
    about: tuple[str, ...] = ()
    builds: Annotated[tuple[DemoBuild, ...], Field(min_length=1)]
    changes: tuple[str, ...] = ()
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    quick: QuickChanges = QuickChanges()
    claims: tuple[Claim, ...] = ()


def demo_names() -> list[str]:
    """The shipped demonstrations."""
    return sorted(path.stem for path in DEMOS.glob("*.toml") if not path.stem.endswith(ROWS))


def read_demo(name: str) -> tuple[PaperDemo, Path]:
    """A shipped demonstration, or a .toml file, and its table. Raises Refused for what does not fit together."""
    if not name.endswith(".toml") and name not in demo_names():
        raise unknown_name("demonstration", name, demo_names())
    path = Path(name) if name.endswith(".toml") else DEMOS / f"{name}.toml"
    rows = path.with_name(f"{path.stem}{ROWS}.toml")
    for each in (path, rows):
        if not each.is_file():
            raise Refused(f"no file {each}")
    demo = parse_recipe(PaperDemo, load_toml(path), f"demonstration {path.stem}")
    _require_names(demo, read_table(str(rows)), path.stem)
    return demo, rows


def _require_names(demo: PaperDemo, table: Table, name: str) -> None:
    """Raises Refused unless builds, rows and columns that are named are there."""
    builds = {build.name for build in demo.builds}
    if missing := sorted(table.variants - builds):
        raise Refused(f"demonstration {name}: its table needs a build {missing[0]}, and there are {', '.join(builds)}")
    if other := sorted(set(demo.quick.builds) - builds):
        raise Refused(f"demonstration {name}: quick.builds.{other[0]} is none of its builds ({', '.join(builds)})")
    for claim in demo.claims:
        for row in (claim.row, claim.against):
            if row not in table.by_name:
                raise Refused(f"demonstration {name}: {unknown_name('row of a claim', row, list(table.by_name))}")
        for column in (*claim.bars, *([claim.against_column] if claim.against_column else [])):
            if column not in table.columns:
                raise Refused(f"demonstration {name}: {unknown_name('column of a claim', column, list(table.columns))}")


def run(demo: PaperDemo, rows: Path, out: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Runs every stage that is not finished and gives the object of report.json. Raises Stopped when a stage fails."""
    seeds = options.seeds or (demo.quick.seeds if options.quick else demo.seeds)
    changes = [*demo.changes, *(demo.quick.changes if options.quick else ()), *options.changes]
    keys = {build.name: [*build.keys, *_quick_keys(demo, build.name, options.quick)] for build in demo.builds}
    session = Session(out, {"demo": demo.title, "seeds": list(seeds), "changes": changes, "builds": keys})
    stages, runs = Stages(out, console), out / "runs"
    try:
        for build in demo.builds:
            place = ("--out", out / "builds" / build.name, "--workers", options.workers)
            name = f"build_{build.name}"
            stages.wait(stages.start(name, "pipeline", "build", build.recipe, *place, *keys[build.name]))
        chosen = ("--rows", demo.quick.rows) if options.quick and demo.quick.rows else ()
        how = (*chosen, "--seeds", ",".join(map(str, seeds)), "--parallel", max(options.workers, 1), "--device", "cpu")
        places = ("--shards", out / "builds", "--run", runs)
        stages.wait(stages.start("table", "training", "table", rows, *places, *how, *changes))
    finally:
        stages.end_all()
        _list_commands(out, runs)
        cost = session.end()
    found = read_json(str(runs / f"table_{rows.stem}.json"))
    assert found is not None  # the table has just been written
    claims = [judge(claim, found) for claim in demo.claims]
    return {"title": demo.title, "about": list(demo.about), "claims": claims, **cost, "table": found}


def _quick_keys(demo: PaperDemo, build: str, quick: bool) -> Sequence[str]:
    return demo.quick.builds.get(build, ()) if quick else ()


def _list_commands(out: Path, runs: Path) -> None:
    """Adds to OUT/commands.txt what the table ran, as its logs have it."""
    logs = sorted((runs / "logs").glob("*.txt"), key=lambda path: path.stat().st_mtime)
    ran = [line[2:] for log in logs for line in log.read_text(errors="replace").splitlines() if line.startswith("$ ")]
    with open(out / "commands.txt", "a") as file:
        for line in dict.fromkeys(ran):
            file.write(f"OMP_NUM_THREADS=1 {line.replace(sys.executable, 'python', 1)}\n")


def judge(claim: Claim, comparison: dict[str, Any]) -> dict[str, Any]:
    """`{text, verdict, line, figures {column: {mean, interval, seeds, bar, verdict}}}`: the best of its columns.

    It holds where the mean difference is at least the bar and its whole 95% interval is above 0, does not where the
    whole interval is below the bar (or 0), and is undecided between, as it is with one seed.
    """
    figures: dict[str, Any] = {}
    for column, bar in claim.bars.items():
        new = _by_seed(comparison, claim.row, column)
        found = gain(new, _by_seed(comparison, claim.against, claim.against_column or column))
        if found:
            figures[column] = found | {"bar": bar, "verdict": _verdict(found, bar)}
    verdicts = [each["verdict"] for each in figures.values()]
    verdict = next((each for each in (HOLDS, OPEN, FAILS) if each in verdicts), OPEN)
    told = "; ".join(demo_page.difference(comparison["heads"][column], each) for column, each in figures.items())
    line = f"{claim.text}: {verdict}" + (f" ({told})" if told else " (no figures)")
    return {"text": claim.text, "verdict": verdict, "line": line, "figures": figures}


def _by_seed(comparison: dict[str, Any], row: str, column: str) -> dict[int, float]:
    (found,) = [each for each in comparison["rows"] if each["name"] == row]
    return {seed["seed"]: seed["values"][column] for seed in found["seeds"] if seed["values"][column] is not None}


def _verdict(found: dict[str, Any], bar: float) -> str:
    if found["interval"] is None:
        return OPEN
    low, high = found["interval"]
    if found["mean"] >= bar and low > 0:
        return HOLDS
    return FAILS if high < max(bar, 0.0) else OPEN


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit codes as those of `python -m training`."""
    parser = argparse.ArgumentParser(prog="python -m training.paper_demo", description="A paper's claim, in minutes.")
    parser.add_argument("name", help=f"{', '.join(demo_names())}, or a .toml file")
    parser.add_argument("--out", help="default: runs/NAME-demo")
    parser.add_argument("--quick", action="store_true", help="fewer objects, steps and seeds: shows the way alone")
    parser.add_argument("--seeds", type=numbers, default=(), metavar="0,1,2", help="of every row")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", default=cores, type=int, help="processes that build, and runs at once")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changed keys of every row; a row's own win")
    options = parser.parse_args(arguments)
    console = PlainConsole(stderr=True, soft_wrap=True)

    def work() -> int:
        demo, rows = read_demo(options.name)
        out = store.local_path(options.out or f"runs/{Path(options.name).stem}-demo", "--out")
        found = run(demo, rows, out, options, console)
        path = demo_page.write(found, remarks(found["table"]), out)
        tell(*(claim["line"] for claim in found["claims"]))
        console.print(f"{found['seconds']:,.0f} s, {found['cpu_seconds']:,.0f} CPU seconds: {path}")
        return 0

    return exit_code(work, console, "train", "stopped; what is finished is kept, run the same again to go on")


if __name__ == "__main__":
    sys.exit(main())
