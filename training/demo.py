"""Runs the demonstration: makes two domains from a seed, pre-trains, self-trains, and writes a report.

    python -m training.demo --out runs/demo --seed 0

Every stage is a command that a person could type. OUT/commands.txt lists them, and OUT/logs holds their output. The
target is built while the small towers pre-train on the source; then both methods and the oracle train at the same time.
Thread counts are fixed, so that the figures do not depend on the number of cores. A demonstration that was stopped goes
on when it is called again: every stage keeps what it has finished. `--quick` has fewer objects and fewer steps.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from manifests import store
from manifests.cli import exit_code
from manifests.config import parse_changes
from manifests.errors import Refused
from manifests.plain_text import PlainConsole, tell
from training.child_commands import Child
from training.demo_stages import Session, Stages
from training.reports import report
from training.settings.fit_recipe import changes_of, keys_in, read_recipe

PRETRAIN_THREADS = REPORT_THREADS = 2
ADAPT_THREADS = 1
TRAININGS = {  # name: its recipe and method
    "pretrain": ("small_pretrain", "pretrain"),
    "self_training": ("small_self_training", "self_training"),
    "cross_most": ("small_cross_most", "cross_most"),
    "oracle": ("small_cross_most", "supervised"),
}
QUICK = {  # name of a build or a training: its changed keys
    "build_source": ["parametric.objects=760"],
    "build_target": ["parametric.objects=855"],
    "pretrain": ["optimizer.steps=550"],  # at 300 zero-shot is 16 %, too little to learn from
    **{name: ["optimizer.steps=70", "ema.steps=50", "optimizer.lr=2e-3"] for name in ("self_training", "cross_most")},
    "oracle": ["optimizer.steps=60"],
}


@dataclass(frozen=True)
class DemoSettings:
    """What the figures of a demonstration depend on. changes: keys of each training; builds: of both builds."""

    seed: int
    quick: bool
    changes: dict[str, list[str]]
    builds: list[str]

    def changes_of(self, name: str) -> list[str]:
        """The changed keys of a build or training; those that were typed come last and win."""
        return [*(QUICK[name] if self.quick else ()), *self.changes.get(name, self.builds)]


def run(out: Path, settings: DemoSettings, workers: int, console: Console) -> Path:
    """Runs every stage that is not finished and gives the path of the report. Raises Stopped when a stage fails.

    Raises Refused where OUT holds anything but a demonstration of these settings.
    """
    session, demo = Session(out, asdict(settings)), Stages(out, console)
    try:
        _stages(demo, out, settings, workers)
        reporting = time.monotonic()
        torch.set_num_threads(REPORT_THREADS)
        with console.status("report") as status:
            found = report.collect(
                runs=[out / "self_training", out / "cross_most"],
                shards=str(out / "target"),
                source=str(out / "source"),
                oracle=out / "oracle",
                on_progress=lambda words: status.update(f"report        {words}"),
            )
    finally:
        demo.end_all()
        cost = session.end()
    console.print(f"{time.monotonic() - reporting:6.1f} s  report")
    return report.write(found, out, cost["seconds"], cost["max_rss_mb"])


def _changes_of_trainings(changes: list[str]) -> dict[str, list[str]]:
    """Of the typed changes those that each training reads. Raises Refused for one that does not fit any, or one."""
    found = {}
    for name, (recipe, method) in TRAININGS.items():
        found[name] = [change for change in changes if list(keys_in(changes_of(method, parse_changes([change]))))]
        read_recipe(recipe, parse_changes([f"method={method}", *found[name]]))
    for change in changes:
        if not any(change in read for read in found.values()):
            raise Refused(f"{change}: no training of the demonstration reads this key")
    return found


def _stages(demo: Stages, out: Path, settings: DemoSettings, workers: int) -> None:
    source, target, seeded = out / "source", out / "target", f"seed={settings.seed}"

    def build(name: str, recipe: str, place: Path, count: int) -> Child:
        changes = (seeded, f"parametric.{seeded}", *settings.changes_of(name))
        return demo.start(name, "pipeline", "build", recipe, "--out", place, "--workers", count, *changes)

    demo.wait(build("build_source", "parametric_source", source, workers))
    # the target is drawn on the cores that pre-training leaves free
    drawn = build("build_target", "parametric_target", target, max(workers - PRETRAIN_THREADS, 1))
    pretrained = out / "pretrain"
    demo.wait(
        demo.start(
            "pretrain",
            *("training", "fit", TRAININGS["pretrain"][0]),
            *("--shards", source, "--run", pretrained, "data.workers=1", seeded),
            *settings.changes_of("pretrain"),
            threads=PRETRAIN_THREADS,
        ),
        drawn,
    )
    begin = ("--shards", target, f"init.all={pretrained}", seeded)
    demo.wait(
        *(
            demo.start(
                *(name, *command, TRAININGS[name][0], "--run", out / name, *begin, *settings.changes_of(name)),
                threads=ADAPT_THREADS,
            )
            for name, command in (
                ("self_training", ("training", "fit")),
                ("cross_most", ("training", "fit")),
                ("oracle", ("training.oracle",)),
            )
        )
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit codes as those of `python -m training`."""
    parser = argparse.ArgumentParser(prog="python -m training.demo", description="What the paper claims, in minutes.")
    parser.add_argument("--out", default="runs/demo")
    parser.add_argument("--seed", default=0, type=int, help="of the data and of every training")
    parser.add_argument("--quick", action="store_true", help="fewer objects and steps: minutes on two cores")
    parser.add_argument("--workers", default=os.cpu_count() or 2, type=int, help="worker processes that build shards")
    parser.add_argument(
        "--build", action="append", default=[], metavar="key=value", help="a changed key of both builds"
    )
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changed keys of every training")
    options = parser.parse_args(arguments)
    console = PlainConsole(stderr=True, soft_wrap=True)

    def work() -> int:
        out = store.local_path(options.out, "--out")
        changes = _changes_of_trainings(options.changes)
        path = run(out, DemoSettings(options.seed, options.quick, changes, options.build), options.workers, console)
        tell(*(out / "report.md").read_text().split("\n"))
        console.print(str(path))
        console.print(f"for files or folders of your own: python -m training predict {out / 'cross_most'} FILE...")
        return 0

    return exit_code(work, console, "train", "stopped; what is finished is kept, run the same again to go on")


if __name__ == "__main__":
    sys.exit(main())
