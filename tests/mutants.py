"""Mutation testing: changes one line of the product at a time and looks whether a test notices.

    python tests/mutants.py [--only TEXT] [--processes N] [--json FILE]

The mutants stand in tests/mutant_lists/<package>.toml, each with what a user would lose by it. A mutant names a line by
its text, which must be in its file once: a line that was rewritten makes this program, and tests/test_mutants.py, fail
until the mutant is rewritten or dropped. Each is tried in a copy of the checkout, against the fast tests of its module.
It is killed when a test fails, or when the tests hang for LIMIT_SECONDS. The tests must pass without it first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
LISTS = Path(__file__).parent / "mutant_lists"
LEAST_KILLED = 0.92
LIMIT_SECONDS = 900  # of the tests of one mutant
_FAILED, _PASSED = 1, 0  # pytest's exit codes; others mean that it could not run
Outcome = Literal["killed", "survived", "broken"]


@dataclass(frozen=True)
class Mutant:
    """One changed line. line, becomes: text that is in `file` once, and what stands there instead.

    harm: what a user would lose. tests: files or node ids that should notice; slow: look at slow tests, too.
    """

    file: str
    line: str
    becomes: str
    harm: str
    tests: tuple[str, ...]
    slow: bool = False

    def apply(self, root: Path) -> None:
        """Changes the line in a checkout. Raises ValueError where it is not there exactly once, or stays the same."""
        path = root / self.file
        text = path.read_text()
        if text.count(self.line) != 1:
            raise ValueError(f"{self.file}: this is there {text.count(self.line)} times, not once: {self.line!r}")
        changed = text.replace(self.line, self.becomes)
        if changed == text:
            raise ValueError(f"{self.file}: changes nothing: {self.line!r}")
        compile(changed, self.file, "exec")
        path.write_text(changed)
        _forget_compiled(path)

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.line.split())}  ->  {' '.join(self.becomes.split())}"


@dataclass(frozen=True)
class Tried:
    """A mutant and what came of it. said: pytest's last line."""

    mutant: Mutant
    outcome: Outcome
    seconds: float
    said: str


def read_mutants(folder: Path = LISTS) -> list[Mutant]:
    """All mutants of the lists. Raises ValueError where one names no tests, or its file has none in the table."""
    found: list[Mutant] = []
    for path in sorted(folder.glob("*.toml")):
        values = tomllib.loads(path.read_text())
        for row in values.get("mutant", []):
            tests = (*row.pop("tests", ()), *values["tests"].get(row["file"], ()))
            if not tests:
                raise ValueError(f"{path.name}: no tests for {row['file']}")
            found.append(Mutant(tests=tests, **row))
    return found


def _forget_compiled(path: Path) -> None:
    """A file that is written twice in a second with the same size would be taken from its old bytecode."""
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


@contextmanager
def _checkouts(count: int) -> Iterator[Queue[Path]]:
    """Copies of this checkout as it stands, committed or not."""
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout.split(
        "\n"
    )
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        free: Queue[Path] = Queue()
        for number in range(count):
            copy = Path(folder, str(number))
            for name in names:
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            free.put(copy)
        yield free


def _pytest(root: Path, tests: Iterable[str], slow: bool, *more: str) -> tuple[int | None, str]:
    """Exit code (None: it hung) and last line of the tests in a checkout."""
    shared = os.environ.get("CROSS_MOST_SHARED", str(ROOT.parent / "shared"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "CROSS_MOST_SHARED": shared}
    marks = "not gpu" if slow else "not slow and not gpu"
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-m", marks]
    process = subprocess.Popen(
        [*command, *more, *dict.fromkeys(tests)],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        return None, f"hung for {LIMIT_SECONDS} s"
    lines = [line for line in said.splitlines() if line.strip()]
    first_failure = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")
    return process.returncode, first_failure or (lines[-1] if lines else "")


def _try(mutant: Mutant, free: Queue[Path]) -> Tried:
    """Runs the tests of a mutant in a free checkout, and puts its line back."""
    root = free.get()
    began = time.monotonic()
    path = root / mutant.file
    before = path.read_text()
    try:
        mutant.apply(root)
        code, said = _pytest(root, mutant.tests, mutant.slow, "-x")
    finally:
        path.write_text(before)
        _forget_compiled(path)
        free.put(root)
    outcome: Outcome = "killed" if code in (_FAILED, None) else "survived" if code == _PASSED else "broken"
    return Tried(mutant, outcome, time.monotonic() - began, said)


def main(arguments: list[str] | None = None) -> int:
    """Tries the mutants; 0 where enough of them are killed and none is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose file or line holds this")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests without a mutant first")
    parser.add_argument("--json", metavar="FILE", help="also write every outcome here")
    options = parser.parse_args(arguments)
    mutants = [mutant for mutant in read_mutants() if options.only in str(mutant)]
    if not mutants:
        parser.error(f"no mutant holds {options.only!r}")
    tried: list[Tried] = []
    with _checkouts(options.processes) as free:
        if not options.no_baseline:
            tests = [test for mutant in mutants for test in mutant.tests]
            root = free.get()
            code, said = _pytest(root, tests, False, "-n", str(options.processes), "--dist", "loadfile")
            free.put(root)
            if code != _PASSED:
                print(f"the tests do not pass without a mutant: {said}", file=sys.stderr)
                return 2
        with ThreadPoolExecutor(options.processes) as pool:
            for number, one in enumerate(pool.map(lambda mutant: _try(mutant, free), mutants), 1):
                tried.append(one)
                print(f"{number}/{len(mutants)} {one.outcome:8} {one.seconds:4.0f} s  {one.mutant}", flush=True)
                about = one.mutant.harm if one.outcome == "survived" else one.said[:160]
                print(f"{'':12}{about}", flush=True)
    if options.json:
        rows = [{**vars(one.mutant), "outcome": one.outcome, "said": one.said} for one in tried]
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return _summary(tried)


def _summary(tried: list[Tried]) -> int:
    counts = {outcome: sum(one.outcome == outcome for one in tried) for outcome in ("killed", "survived", "broken")}
    share = counts["killed"] / len(tried)
    print(f"\n{len(tried)} mutants: {counts['killed']} killed ({share:.1%}), {counts['survived']} survived")
    for one in tried:
        if one.outcome == "survived":
            print(f"survived  {one.mutant}\n          {one.mutant.harm}")
        if one.outcome == "broken":
            print(f"BROKEN, its tests could not run ({one.said})  {one.mutant}")
    return int(share < LEAST_KILLED or counts["broken"] > 0)


if __name__ == "__main__":
    sys.exit(main())
