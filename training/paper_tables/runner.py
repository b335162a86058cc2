"""Trains and judges the rows of a table, each by commands that a person could type; what is finished is not done again.

Several runs may be trained at once, each in a slot: a thread here, and a group of GPUs or a share of the cores. A run
waits for those that it begins with.

RUN/<run>/                  a run of `fit`, shared by all rows that judge it
RUN/recipes/<run>.toml      its resolved recipe        RUN/logs/<run>.txt      what its commands said
RUN/results/<run>-<8 hex>.json      the figures of one row, or one of them: of its recipe, shards and judgement
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from manifests import store
from manifests.config import to_toml
from manifests.process_info import end_with_parent, environment
from training.child_commands import ENDING_SECONDS, Watch, end
from training.paper_tables.judged_rows import Judged
from training.paper_tables.place import FIRST, Command, Place, assignments
from training.paper_tables.results import Outcome, Outcomes, is_known, keep_figure, keep_stage, known_outcome

POLL_SECONDS = 0.1
SILENT_SECONDS = 6 * 3600.0  # a row may take days, but a fit prints lines meanwhile, and an evaluation ends


def warnings(rows: Iterable[Judged]) -> list[str]:
    """What a person who begins these rows should know."""
    init = [judged.recipe.init for judged in rows if not judged.row.points_from_scratch]
    bare = sum(not (each.points or each.all) for each in init)
    words = "init.points is not given, nor a build of ShapeNet: the point towers of %d rows begin at random"
    return [words % bare] if bare else []


def plan_lines(rows: Iterable[Judged], place: Place) -> list[str]:
    """What would be done for each row: its state, its recipe with what it changes, and the commands."""
    lines = []
    for judged in with_beginnings(rows, place):
        row, state = judged.row, known_outcome(judged, place).status
        lines.append(f"{judged.title}: {'would be run' if state == 'not run' else state}")
        if state != "not run":
            continue
        extra = ["points from scratch"] * row.points_from_scratch + ["its first checkpoint"] * (row.step == "first")
        extra += [f"preset {row.preset}"] * bool(row.preset)
        extra += [f"after {each.row.run}" for each in judged.before]
        lines.append("  " + ", ".join([" ".join([row.recipe, *assignments(row.changes)]), *extra]))
        commands = [place.fit_command(judged), *(each.line for each in place.judge_commands(judged))]
        lines += [f"  {shlex.join(line)}" for line in commands]
    return lines


def with_beginnings(rows: Iterable[Judged], place: Place) -> list[Judged]:
    """The rows, and before them those that some of them need to begin with and that are not among them."""
    rows = list(rows)
    names = {judged.title for judged in rows}
    needed: dict[str, Judged] = {}

    def need(judged: Judged) -> None:
        if known_outcome(judged, place).status == "not run":
            for each in judged.before:
                need(each)
                if each.title not in names:
                    needed.setdefault(each.title, each)

    for judged in rows:
        need(judged)
    return [*needed.values(), *rows]


def run_rows(wanted: Iterable[Judged], rows: Iterable[Judged], place: Place) -> Outcomes:
    """Runs the wanted rows, as many runs at once as there are slots; gives the outcomes of all rows.

    What earlier calls found is not found again. If a row fails, that is reported and the others go on; Ctrl-C also ends
    the commands that are running.
    """
    wanted = with_beginnings(wanted, place)
    outcomes: Outcomes = {}
    for judged in (*rows, *wanted):
        outcomes.setdefault(judged.row.name, {})[judged.recipe.seed] = known_outcome(judged, place)
    runs: dict[str, list[Judged]] = {}
    for judged in wanted:
        outcome = outcomes[judged.row.name][judged.recipe.seed]
        if outcome.status == "no shards":
            place.say(f"{judged.title}: skipped, no shards of {_lacking(judged)}")
        elif outcome.status == "not run":
            runs.setdefault(judged.row.run, []).append(judged)
    for judged, outcome in _at_once(runs, place):
        outcomes[judged.row.name][judged.recipe.seed] = outcome
    return outcomes


def _lacking(judged: Judged) -> str:
    return judged.row.variant if judged.shards is None else ", ".join(each.lacks for each in judged.figures)


def _at_once(runs: dict[str, list[Judged]], place: Place) -> Iterator[tuple[Judged, Outcome]]:
    """Runs the rows of each run in a slot. Those that begin with others come after them, and wait for them."""
    board, free = _Board(place.status), SimpleQueue[dict[str, str]]()
    for slot in place.slots:
        free.put(slot)
    begun: dict[str, Future[list[tuple[Judged, Outcome]]]] = {}

    def run(number: int, name: str) -> list[tuple[Judged, Outcome]]:
        together = runs[name]
        before = {each.row.run: each for judged in together for each in judged.before if each.row.run in begun}
        while not all(begun[each].done() for each in before) and not place.stopping.is_set():
            time.sleep(POLL_SECONDS)
        if place.stopping.is_set():
            return []
        failed = [
            f"{each.row.name}: {outcome.error}"
            for each in before.values()
            for _, outcome in begun[each.row.run].result(0)
            if outcome.error
        ]
        slot = free.get(timeout=SILENT_SECONDS)  # there are as many as threads
        try:
            place.say(f"run {number} of {len(runs)}: {name} ({', '.join(judged.title for judged in together)})")
            own = replace(place, slots=(slot,), status=lambda line: board.show(name, line))
            return _rows_of_a_run(together, own, failed[0] if failed else "")
        finally:
            board.show(name, "")
            free.put(slot)

    depth = {name: max(map(_depth, runs[name])) for name in runs}
    with ThreadPoolExecutor(len(place.slots)) as pool:
        try:
            for number, name in enumerate(sorted(runs, key=lambda name: depth[name]), 1):
                begun[name] = pool.submit(run, number, name)
            pending = set(begun.values())
            while pending:
                done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for each in done:
                    yield from each.result(0)
        except BaseException:
            place.stopping.set()
            raise


def _depth(judged: Judged) -> int:
    """How many rows are trained before it, one after another."""
    return 1 + max(map(_depth, judged.before)) if judged.before else 0


class _Board:
    """What the commands that run at once say now, a line each."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._lines, self._lock = show, dict[str, str](), threading.Lock()

    def show(self, name: str, line: str) -> None:
        """Replaces a command's line; an empty one ends it."""
        with self._lock:
            self._lines[name] = line
            self._show("\n".join(filter(None, self._lines.values())))


def _rows_of_a_run(together: list[Judged], place: Place, error: str) -> list[tuple[Judged, Outcome]]:
    """Trains a run and judges it for each of its rows. error: why it cannot be begun, or empty."""
    error, found = error or _fit(together, place), []
    for judged in together:
        outcome = Outcome("failed", error=error) if error else _judge(judged, place)
        found.append((judged, outcome))
        place.say(f"{judged.title}: {outcome.error or _words(judged, outcome)}")
    return found


def _words(judged: Judged, outcome: Outcome) -> str:
    if not outcome.values:
        return outcome.status
    heads = [name for figure in judged.figures for name in figure.values if name in outcome.values]
    figures = "  ".join(f"{name} {outcome.values[name]:.2f}" for name in heads)
    return f"{figures}  (n={outcome.n}, step {outcome.step})"


def _fit(together: list[Judged], place: Place) -> str:
    """Trains the run of these rows as far as they need it; gives the reason if that failed, else an empty text."""
    judged = together[0]
    recipe = to_toml(judged.recipe.model_dump(mode="json")).encode()
    store.write_bytes(str(place.folder / "recipes" / f"{judged.row.run}.toml"), recipe)
    first = place.folder / judged.row.run / FIRST
    only_first = all(each.row.step == "first" for each in together)
    if only_first and first.is_dir():
        return ""
    code, error, _ = _command(place.fit_command(judged), judged.row.run, place, first if only_first else None)
    return "" if code == 0 or (only_first and first.is_dir()) else f"fit, exit {code}: {error}"


def _judge(judged: Judged, place: Place) -> Outcome:
    """Finds the figures that are not in RUN/results. Where one fails, the others are still found."""
    if not judged.figures:
        keep_stage(judged, place)
    missing = [figure for figure in judged.figures if not is_known(judged, place, figure)]
    errors = []
    for command in place.judge_commands(judged, missing):
        code, error, out = _command(command.line, judged.row.run, place)
        kind = command.figures[0][0].column.command
        if error := f"{kind}, exit {code}: {error}" if code else _kept(judged, place, command, out):
            errors.append(error)
    outcome = known_outcome(judged, place)
    return replace(outcome, status="failed", error=errors[0]) if errors else outcome


def _kept(judged: Judged, place: Place, command: Command, out: str) -> str:
    """Keeps what a command printed; gives what was wrong with it, or an empty text."""
    result = json.loads(out)
    for figure, task in command.figures:
        try:
            keep_figure(judged, place, figure, result, task)
        except ValueError as error:
            return f"{' and '.join(figure.values)}: {error}"
    return ""


def _command(command: list[str], name: str, place: Place, until: Path | None = None) -> tuple[int, str, str]:
    """Runs a command and keeps its stderr in RUN/logs; gives exit code, last line of stderr, stdout.

    until: the command is stopped, as by Ctrl-C, as soon as this folder exists; so it is when all are to stop. One that
    neither prints anything nor writes into its run for SILENT_SECONDS is ended, and the last line says so.
    """
    log = place.folder / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    last, out, hung = [""], [""], ""
    with open(log, "a") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(end_with_parent, signal.SIGTERM),  # or a rerun would train into the same folder
            env=environment() | place.slots[0],
        )

        def listen() -> None:
            over = False  # torchrun's own lines at the end explain nothing
            for line in process.stderr or ():
                file.write(line)
                file.flush()
                over = over or "torch/distributed/elastic" in line
                last[0] = last[0] if over else line.strip() or last[0]

        def collect() -> None:
            out[0] = process.stdout.read() if process.stdout else ""

        watch = Watch([log, place.folder / name], SILENT_SECONDS)
        threads = [threading.Thread(target=each, daemon=True) for each in (listen, collect)]
        for thread in threads:
            thread.start()
        while process.poll() is None:
            place.status(f"{name}: {last[0]}")
            if until is not None and until.is_dir():
                _stop(process)
            if watch.hangs():
                end(process)
                hung = watch.words()
            if place.stopping.wait(POLL_SECONDS):
                time.sleep(10 * POLL_SECONDS)  # a terminal has told the command as well
                _stop(process)
        for thread in threads:
            thread.join(ENDING_SECONDS)
    if place.stopping.is_set():
        raise KeyboardInterrupt
    return process.returncode, hung or last[0], out[0]


def _stop(process: subprocess.Popen) -> None:
    """Ends a command as Ctrl-C does; a fit keeps its last checkpoint whenever it ends."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    end(process, ENDING_SECONDS)
