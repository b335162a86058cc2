"""Hostile files against every reader: cases are made here, read in a child process, and judged here.

A case is a folder with small valid files, of which one or two are changed. It may end well, with a typed error, or with
a Failure; in 20 seconds, under 2 GB, with nothing opened or written outside its own folders and no code run.

    python tests/support/fuzz.py KIND --seed 0 --case 17        one case again
    python tests/support/fuzz.py KIND --folder runs/fuzz/...    a saved case again
    python tests/support/fuzz.py all --seed 1 --count 10000     more of them
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_kinds import KINDS, Kind
from fuzz_mutations import Places, damage, mutate, png_bomb

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS, MEGABYTES = 20, 2000
KEPT = REPOSITORY / "runs" / "fuzz"  # cases that failed
_DAMAGED = 0.08  # share of cases with something that is no file


@dataclass
class Child:
    """One process that reads cases. It is started when needed, and again after it died."""

    home: Path
    process: subprocess.Popen | None = None

    def ask(self, order: dict[str, Any], limit: float) -> dict[str, Any]:
        """Its answer, or what ended it: `hang` or `crash`, with the last lines on its stderr."""
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self._line(limit)
        except BrokenPipeError:
            line = ""
        if line.endswith("\n"):
            return json.loads(line)
        return {"outcome": "hang" if line == "hang" else "crash", "message": self._end(), "violations": []}

    def _start(self) -> None:
        path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests" / "support")))
        names = ("PATH", "LANG", "LD_LIBRARY_PATH", "CROSS_MOST_SHARED")
        environment = {name: os.environ[name] for name in names if name in os.environ}
        environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HOME": str(self.home / "home")}
        environment |= {"TMPDIR": str(self.home / "tmp"), "HF_HUB_OFFLINE": "1", "CROSS_MOST_STORE_SECONDS": "1"}
        self.log = open(self.home / "child.log", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fuzz_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            cwd=REPOSITORY,
            start_new_session=True,
        )

    def _line(self, limit: float) -> str:
        """A line; `hang` after so many seconds of its processor's time, or three times as many without any news."""
        begun, cpu = time.monotonic(), self._cpu()
        while not select.select([self.process.stdout], [], [], 0.5)[0]:
            if self._cpu() - cpu > limit or time.monotonic() - begun > 3 * limit:
                return "hang"
        return self.process.stdout.readline()

    def _cpu(self) -> float:
        try:
            words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def _end(self) -> str:
        """Ends it; its exit code and the last that it said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.poll()
        self.close()
        return f"exit code {code}\n{Path(self.log.name).read_text(errors='replace')[-3000:]}"

    def close(self) -> None:
        """Ends the process and waits for it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout, self.log):
                with contextlib.suppress(OSError):
                    pipe.close()
            self.process = None


@dataclass
class Fuzz:
    """Seeds, cases and the child below one folder. outcomes: how many cases ended how, by kind."""

    home: Path
    child: Child = field(init=False)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[float, str] = (0.0, "")
    _ready: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for name in ("home", "tmp", "canary", "seeds", "cases"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        canary = self.home / "canary"
        (canary / "secret.png").write_bytes(png_bomb(8, 8, 8, 2))
        (canary / "secret.json").write_text('{"secret": [1, 2]}')
        (canary / "secret.mtl").write_text("newmtl m\nKd 0.5 0.5 0.5\n")
        (canary / "secret.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
        self.child = Child(self.home)

    @property
    def outside(self) -> tuple[str, ...]:
        """Files that no reader may open."""
        return tuple(str(path) for path in sorted((self.home / "canary").iterdir()))

    def seed_of(self, kind: Kind) -> Path:
        """The valid files of a kind; the child must read them well before it is given others."""
        folder = self.home / "seeds" / kind.name
        if not folder.is_dir():
            made = self.child.ask({"do": "make", "kind": kind.name, "case": str(folder)}, 300)
            assert made["outcome"] == "ok", f"{kind.name}: no seed: {made['message']}"
        if kind.name not in self._ready or self.child.process is None:
            copy = self._copied(kind, folder, "good")
            found = self.child.ask({"do": "run", "kind": kind.name, "case": str(copy), "armed": False}, 120)
            told = f"{found.get('message')}\n{found.get('trace', '')}"
            assert found["outcome"] == "ok", f"{kind.name}: its own valid files: {told}"
            self._ready.add(kind.name)
        return folder

    def _copied(self, kind: Kind, folder: Path, name: str) -> Path:
        case = self.home / "cases" / f"{kind.name}-{name}"
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(folder, case)
        (case / "out").mkdir(exist_ok=True)
        return case

    def case_of(self, kind: Kind, seed: int, number: int) -> tuple[Path, str]:
        """A case's folder and what was changed in it, from the seed and the number alone."""
        rng = random.Random(zlib.crc32(f"{kind.name}/{seed}/{number}".encode()))
        case = self._copied(kind, self.seed_of(kind), f"{seed}-{number}")
        files = [path for pattern in kind.files for path in sorted(case.glob(pattern)) if path.is_file()]
        assert files, f"{kind.name}: no file fits {kind.files}"
        told = []
        for _ in range(rng.choice((1, 1, 1, 2))):
            path = rng.choice(files)
            if not path.is_file() or path.is_symlink():
                continue
            others = tuple(other.read_bytes() for other in rng.sample(files, min(2, len(files))) if other.is_file())
            outside = self.outside if path.is_relative_to(case / "in") else ()
            places = Places(outside, tuple(data for data in others if data))
            if rng.random() < _DAMAGED:
                what = damage(rng, path, places)
            else:
                data = mutate(rng, path.name, path.read_bytes(), places)
                path.write_bytes(data)
                what = f"{len(data):,} bytes"
                if kind.seal is not None and rng.random() < 0.8:
                    kind.seal(case, path)
            told.append(f"{path.relative_to(case)}: {what}")
        return case, "; ".join(told)

    def judge(self, kind: Kind, case: Path) -> tuple[str, str]:
        """(outcome, what is wrong with it or nothing) of one case."""
        before = self._listing(case, kind.writable)
        canary = "" if kind.follows else str((self.home / "canary").resolve())
        found = self.child.ask({"do": "run", "kind": kind.name, "case": str(case), "canary": canary}, SECONDS)
        if self.child.process is None:
            self._ready.clear()
        outcome, wrong = found["outcome"], list(found["violations"])
        if outcome in ("hang", "crash"):
            wrong.append(f"{outcome}: {found['message']}")
        elif outcome == "error":
            outcome = found["types"][0]
            if not set(kind.errors) & set(found["types"]):
                wrong.append(f"an error without a type of ours\n{found['trace']}")
            elif "\n" in found["message"] and not set(found["types"]) & {"UnicodeError"}:
                wrong.append(f"not one line: {found['message']!r}")
        if found.get("peak_mb", 0) > MEGABYTES:
            wrong.append(f"{found['peak_mb']:,.0f} MB")
        if found.get("cpu", 0) > SECONDS:
            wrong.append(f"{found['cpu']} s")
        after = self._listing(case, kind.writable)
        if after != before:
            changed = sorted({*before.items()} ^ {*after.items()})[:3]
            wrong.append(f"files outside of its OUT are others than before: {changed}")
        self.slowest = max(self.slowest, (found.get("cpu", 0.0), case.name))
        self.largest = max(self.largest, (found.get("peak_mb", 0.0), case.name))
        return outcome, "\n".join(wrong)

    def _listing(self, case: Path, writable: str) -> dict[str, tuple]:
        """What lies in a case but for its OUT, beside the canaries, at home and among temporary files."""
        found, free = {}, str(case / writable)
        for top in (case, self.home / "canary", self.home / "home", self.home / "tmp"):
            for folder, names, files in os.walk(top):
                if folder == free or folder.startswith(free + os.sep):
                    names.clear()
                    continue
                for name in (*names, *files):
                    path = os.path.join(folder, name)
                    if path != free:
                        about = os.lstat(path)
                        found[path] = (about.st_size, about.st_mtime_ns, about.st_mode) if name in files else ()
        return found

    def run(self, kind: Kind, seed: int, number: int) -> str:
        """Runs one case; what is wrong with it, with the command that runs it again, or nothing."""
        case, told = self.case_of(kind, seed, number)
        shutil.rmtree(KEPT / case.name, ignore_errors=True)
        shutil.rmtree(self.home / "kept", ignore_errors=True)
        kept = shutil.copytree(case, self.home / "kept", symlinks=True, copy_function=_copied, dirs_exist_ok=False)
        outcome, wrong = self.judge(kind, case)
        self.outcomes.setdefault(kind.name, Counter())[outcome] += 1
        if wrong:
            KEPT.mkdir(parents=True, exist_ok=True)
            shutil.move(kept, KEPT / case.name)
            again = f"{sys.executable} tests/support/fuzz.py {kind.name}"
            wrong = f"{kind.name} {seed}/{number} ({told})\n{wrong}\nagain: {again} --seed {seed} --case {number}"
            wrong += f"\n   or: {again} --folder {KEPT / case.name}"
        shutil.rmtree(self.home / "kept", ignore_errors=True)
        shutil.rmtree(case, ignore_errors=True)
        return wrong

    def run_many(self, kind: Kind, seed: int, count: int) -> list[str]:
        """What is wrong with so many cases of a kind."""
        return [wrong for number in range(count) if (wrong := self.run(kind, seed, number))]

    def close(self) -> None:
        """Ends the child."""
        self.child.close()


def _copied(source: str, target: str) -> None:
    """Copies a file; a pipe is made anew."""
    if os.path.isfile(source):
        shutil.copyfile(source, target)
    else:
        os.mkfifo(target)


def shares(kinds: list[Kind], count: int) -> dict[str, int]:
    """How many of `count` cases each kind gets, by its weight; at least one."""
    total = sum(kind.weight for kind in kinds)
    return {kind.name: max(1, round(count * kind.weight / total)) for kind in kinds}


def signature(problem: str) -> str:
    """What problems of one cause have in common: the last line of ours that was run, and the error's type."""
    lines = problem.splitlines()
    frames = [line.strip() for line in lines if line.strip().startswith("File")]
    places = [line for line in frames if str(REPOSITORY) in line and ".venv" not in line]
    errors = [line.partition(":")[0] for line in lines if not line.startswith((" ", "again")) and "Error" in line]
    return " ".join([lines[1][:30], *places[-1:], *errors[-1:]])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("all", "pipeline", "training", *KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    kinds = [k for k in KINDS.values() if options.kind in ("all", k.role, k.name)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:
        fuzz, wrong, signatures = Fuzz(Path(home)), [], set()
        begun = time.monotonic()
        if options.folder:
            fuzz.seed_of(kinds[0])
            case = fuzz.home / "cases" / "again"
            shutil.copytree(options.folder, case, symlinks=True, copy_function=_copied)
            outcome, told = fuzz.judge(kinds[0], case)
            print(outcome, told)
            return int(bool(told))
        for name, count in shares(kinds, options.count).items():
            numbers = range(count) if options.case is None else [options.case]
            fuzz.seed_of(KINDS[name])
            start, found = time.monotonic(), []
            for number in numbers:
                if problem := fuzz.run(KINDS[name], options.seed, number):
                    mark = signature(problem)
                    told = problem if mark not in signatures else f"{problem.splitlines()[0][:200]}: as before"
                    print("\n".join(line[:300] for line in told.splitlines()), flush=True)
                    signatures.add(mark)
                    found.append(problem)
            wrong += found
            each = 1000 * (time.monotonic() - start) / len(numbers)
            print(f"{name}: {dict(fuzz.outcomes[name])}, {len(found)} wrong, {each:.0f} ms a case", flush=True)
        done = sum(sum(counts.values()) for counts in fuzz.outcomes.values())
        took = time.monotonic() - begun
        print(f"{done:,} cases in {took:.0f} s, {len(wrong)} wrong, slowest {fuzz.slowest}, {fuzz.largest} MB")
        fuzz.close()
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
