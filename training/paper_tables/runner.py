"""Trains and judges the rows of a table, each by commands that a person could type; what is finished is not done again.

Several runs may be trained at once, each in a slot: a thread here, and a group of GPUs or a share of the cores.

RUN/<run>/                  a run of `fit`, shared by all rows that judge it
RUN/recipes/<run>.toml      its resolved recipe        RUN/logs/<run>.txt      what its commands said
RUN/results/<run>-<8 hex>.json      the figures of one row: of its recipe, shards and judgement
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from pydantic import BaseModel

from manifests import store
from manifests.config import Value, to_toml
from manifests.errors import Refused
from manifests.process_info import end_with_parent, environment
from manifests.records import json_text
from training.child_commands import ENDING_SECONDS, Watch, end
from training.paper_tables.table_rows import HEADS, Judged
from training.settings.checkpoint_recipe import checkpoint_data
from training.settings.fit_recipe import FitRecipe

FIRST = "checkpoints/step-00000000"
POLL_SECONDS = 0.1
SILENT_SECONDS = 6 * 3600.0  # a row may take days, but a fit prints lines meanwhile, and an evaluation ends


@dataclass(frozen=True)
class Outcome:
    """What became of a row, of one seed. values: percent by column, of the student; error: why it failed, in a line."""

    status: Literal["done", "failed", "no shards", "not run"]
    values: dict[str, float] = field(default_factory=dict)
    n: int | None = None
    step: int | None = None
    error: str = ""


Outcomes = dict[str, dict[int, Outcome]]  # by the row's name, and by seed


class _Student(BaseModel):
    """Percent by column."""

    image: float
    image_star: float
    points: float


class _Result(BaseModel):
    """What is used of a file in RUN/results; that of a pre-training has no figures."""

    identity: str
    student: _Student | None = None
    n: int | None = None
    step: int | None = None


def _own_data(recipe: FitRecipe) -> dict[str, Value]:
    """Keys of data that a checkpoint does not bring along, where they are given."""
    given, brought = recipe.data.model_dump(exclude_defaults=True), checkpoint_data(recipe).model_dump()
    return {name: value for name, value in given.items() if value != brought[name]}


@dataclass(frozen=True)
class Place:
    """Where and how rows are run. processes: of one fit, by torchrun. say: a line; status: what goes on now.

    slots: for each run that is trained at once, the variables of its commands' environment. plugins: as `--plugin` of
    the table names them, and of its commands. stopping: set to end all.
    """

    folder: Path
    device: str = "cpu"
    processes: int = 1
    say: Callable[[str], None] = lambda line: None
    status: Callable[[str], None] = lambda line: None
    slots: tuple[dict[str, str], ...] = ({},)
    plugins: tuple[str, ...] = ()
    stopping: threading.Event = field(default_factory=threading.Event)

    def program(self, processes: int = 1) -> list[str]:
        """How `training` is called."""
        if processes == 1:
            return [sys.executable, "-m", "training"]
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return [sys.executable, "-m", *torchrun, "-m", "--", "training"]  # without --, it takes --run as one of its own

    def fit_command(self, judged: Judged) -> list[str]:
        """Trains the row's run, or goes on with it."""
        recipe = str(self.folder / "recipes" / f"{judged.row.run}.toml")
        places = ["--shards", str(judged.shards), "--run", str(self.folder / judged.row.run), "--device", self.device]
        return [*self.program(self.processes), "fit", recipe, *places, *self._with_plugins()]

    def evaluate_command(self, judged: Judged) -> list[str]:
        """Judges the row's checkpoint."""
        run = self.folder / judged.row.run
        checkpoint = str(run / FIRST if judged.row.step == "first" else run)
        changes = assignments(_own_data(judged.recipe) | judged.row.evaluate, "data.")
        places = ["--shards", str(judged.shards), "--device", self.device, "--json"]
        return [*self.program(), "evaluate", checkpoint, *places, *changes, *self._with_plugins()]

    def _with_plugins(self) -> list[str]:
        return [word for name in self.plugins for word in ("--plugin", name)]

    def result_path(self, judged: Judged) -> Path:
        """The file with a row's figures."""
        return self.folder / "results" / f"{judged.row.run}-{judged.identity[:8]}.json"


def known_outcome(judged: Judged, place: Place) -> Outcome:
    """What an earlier call found; `not run` if it found nothing."""
    if judged.shards is None:
        return Outcome("no shards")
    try:
        found = _Result.model_validate_json(store.read_text(place.result_path(judged)))
    except (OSError, ValueError):
        return Outcome("not run")  # missing or damaged: it is judged again
    if found.identity != judged.identity:
        return Outcome("not run")
    if not judged.figures:
        return Outcome("done" if (place.folder / judged.row.run).is_dir() else "not run")
    if found.student is None:
        return Outcome("not run")
    return Outcome("done", found.student.model_dump(), found.n, found.step)


def slots_of(parallel: int, processes: int, gpus: Sequence[str] | None, cores: int) -> tuple[dict[str, str], ...]:
    """The environments of `parallel` runs at once, each of `processes` processes, one a GPU; gpus: None on the CPU.

    Raises Refused where there are too few GPUs.
    """
    wanted = parallel * processes
    if gpus is not None and wanted > len(gpus):
        raise Refused(f"--parallel {parallel} --processes {processes} needs {wanted} GPUs, and {len(gpus)} are visible")
    if parallel == 1:
        return ({},)
    if gpus is None:
        return ({"OMP_NUM_THREADS": str(max(cores // wanted, 1))},) * parallel
    groups = [gpus[first : first + processes] for first in range(0, wanted, processes)]
    return tuple({"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups)


def warnings(rows: Iterable[Judged]) -> list[str]:
    """What a person who begins these rows should know."""
    init = [judged.recipe.init for judged in rows if not judged.row.points_from_scratch]
    bare = sum(not (each.points or each.all) for each in init)
    words = "init.points is not given, nor a build of ShapeNet: the point towers of %d rows begin at random"
    return [words % bare] if bare else []


def plan_lines(rows: Iterable[Judged], place: Place) -> list[str]:
    """What would be done for each row: its state, its recipe with what it changes, and the commands."""
    lines = []
    for judged in with_pretraining(rows, place):
        row, state = judged.row, known_outcome(judged, place).status
        lines.append(f"{judged.title}: {'would be run' if state == 'not run' else state}")
        if state != "not run":
            continue
        extra = ["points from scratch"] * row.points_from_scratch + ["its first checkpoint"] * (row.step == "first")
        extra += [f"preset {row.preset}"] * bool(row.preset)
        extra += [f"after {judged.after.row.run}"] if judged.after else []
        lines.append("  " + ", ".join([" ".join([row.recipe, *assignments(row.changes)]), *extra]))
        commands = [place.fit_command(judged), *([place.evaluate_command(judged)] if judged.figures else [])]
        lines += [f"  {' '.join(line)}" for line in commands]
    return lines


def with_pretraining(rows: Iterable[Judged], place: Place) -> list[Judged]:
    """The rows, and before them the pre-training that some of them need and that is not among them."""
    rows = list(rows)
    needed = [judged.after for judged in rows if known_outcome(judged, place).status == "not run" and judged.after]
    return [*(needed[:1] if all(judged.figures for judged in rows) else []), *rows]


def assignments(changes: dict[str, Value], prefix: str = "") -> list[str]:
    """Nested values as `key=value` arguments."""
    found = []
    for key, value in changes.items():
        inside = isinstance(value, dict)
        found += assignments(value, f"{prefix}{key}.") if inside else [f"{prefix}{key}={json.dumps(value)}"]
    return found


def run_rows(wanted: Iterable[Judged], rows: Iterable[Judged], place: Place) -> Outcomes:
    """Runs the wanted rows, as many runs at once as there are slots; gives the outcomes of all rows.

    What earlier calls found is not found again. If a row fails, that is reported and the others go on; Ctrl-C also ends
    the commands that are running.
    """
    wanted = with_pretraining(wanted, place)
    outcomes: Outcomes = {}
    for judged in (*rows, *wanted):
        outcomes.setdefault(judged.row.name, {})[judged.recipe.seed] = known_outcome(judged, place)
    runs: dict[str, list[Judged]] = {}
    for judged in wanted:
        outcome = outcomes[judged.row.name][judged.recipe.seed]
        if outcome.status == "no shards":
            place.say(f"{judged.title}: skipped, no shards of {judged.row.shards or judged.row.recipe}")
        elif outcome.status == "not run":
            runs.setdefault(judged.row.run, []).append(judged)
    for judged, outcome in _at_once(runs, place):
        outcomes[judged.row.name][judged.recipe.seed] = outcome
    return outcomes


def _at_once(runs: dict[str, list[Judged]], place: Place) -> Iterator[tuple[Judged, Outcome]]:
    """Runs the rows of each run in a slot. Those that begin with a pre-training come last, and wait for it."""
    board, free = _Board(place.status), SimpleQueue[dict[str, str]]()
    for slot in place.slots:
        free.put(slot)
    begun: dict[str, Future[list[tuple[Judged, Outcome]]]] = {}

    def run(number: int, name: str) -> list[tuple[Judged, Outcome]]:
        together = runs[name]
        after = next((judged.after for judged in together if judged.after), None)
        before = begun.get(after.row.run) if after else None
        while before and not before.done() and not place.stopping.is_set():
            time.sleep(POLL_SECONDS)
        if place.stopping.is_set():
            return []
        failed = [outcome.error for _, outcome in before.result(0) if outcome.error] if before and after else []
        slot = free.get(timeout=SILENT_SECONDS)  # there are as many as threads
        try:
            place.say(f"run {number} of {len(runs)}: {name} ({', '.join(judged.title for judged in together)})")
            own = replace(place, slots=(slot,), status=lambda line: board.show(name, line))
            return _rows_of_a_run(together, own, f"{after.row.name}: {failed[0]}" if after and failed else "")
        finally:
            board.show(name, "")
            free.put(slot)

    last = sorted(runs, key=lambda name: any(judged.after for judged in runs[name]))
    with ThreadPoolExecutor(len(place.slots)) as pool:
        try:
            for number, name in enumerate(last, 1):
                begun[name] = pool.submit(run, number, name)
            pending = set(begun.values())
            while pending:
                done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for each in done:
                    yield from each.result(0)
        except BaseException:
            place.stopping.set()
            raise


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
        if error:
            outcome = Outcome("failed", error=error)
        else:
            outcome = _evaluate(judged, place) if judged.figures else _pretrained(judged, place)
        found.append((judged, outcome))
        place.say(f"{judged.title}: {outcome.error or _words(outcome)}")
    return found


def _words(outcome: Outcome) -> str:
    if not outcome.values:
        return outcome.status
    figures = "  ".join(f"{name} {outcome.values[name]:.2f}" for name in HEADS)
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


def _pretrained(judged: Judged, place: Place) -> Outcome:
    kept = json_text({"identity": judged.identity, "row": judged.row.name}, indent=1) + "\n"
    store.write_bytes(str(place.result_path(judged)), kept.encode())
    return Outcome("done")


def _evaluate(judged: Judged, place: Place) -> Outcome:
    code, error, out = _command(place.evaluate_command(judged), judged.row.run, place)
    if code:
        return Outcome("failed", error=f"evaluate, exit {code}: {error}")
    result: dict[str, Any] = json.loads(out)
    kept = {name: result[name] for name in ("dataset", "split", "n", "step", "student", "teacher")}
    kept |= {"identity": judged.identity, "row": judged.row.name, "evaluate": judged.row.evaluate}
    store.write_bytes(str(place.result_path(judged)), (json_text(kept, indent=1) + "\n").encode())
    return Outcome("done", result["student"], result["n"], result["step"])


def _command(command: list[str], name: str, place: Place, until: Path | None = None) -> tuple[int, str, str]:
    """Runs a command and keeps its stderr in RUN/logs; gives exit code, last line of stderr, stdout.

    until: the command is stopped, as by Ctrl-C, as soon as this folder exists; so it is when all are to stop. One that
    neither prints anything nor writes into its run for SILENT_SECONDS is ended, and the last line says so.
    """
    log = place.folder / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    last, out, hung = [""], [""], ""
    with open(log, "a") as file:
        file.write(f"$ {' '.join(command)}\n")
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
