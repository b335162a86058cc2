"""The stages of a demonstration: commands that a person could type, watched, logged, and gone on with after a stop.

OUT/commands.txt lists them, OUT/logs holds their output, and OUT/demo.json the settings and what they cost so far.
"""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.text import Text

from manifests import store
from manifests.errors import Refused, Stopped
from manifests.plain_text import for_terminal
from manifests.records import json_text, read_json
from training.child_commands import ENDING_SECONDS, Child, end

SILENT_SECONDS = 7200.0  # of a stage
SAMPLING_SECONDS = 0.5
BESIDE_STATUS = 3  # columns of a terminal: a turning mark before a line, and one that stays free
ABOUT, COSTS = "demo.json", ("seconds", "max_rss_mb", "cpu_seconds")  # settings, and what the sessions have cost


class Usage(threading.Thread):
    """Measures what this process and its child processes use: the largest sum of resident memory, and CPU seconds.

    A process that lived less than SAMPLING_SECONDS may be missed, and the last moments of every other.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.max_rss_mb = 0.0
        self._cpu: dict[tuple[int, float], float] = {}
        self._over = threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        begun = sum(own.cpu_times()[:2])
        while not self._over.wait(SAMPLING_SECONDS):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                    used = sum(process.cpu_times()[:2]) - (begun if process == own else 0)
                    self._cpu[process.pid, process.create_time()] = used
                except psutil.NoSuchProcess:
                    continue
            self.max_rss_mb = max(self.max_rss_mb, total / 2**20)

    def stop(self) -> tuple[float, float]:
        """Ends the thread and gives the largest memory, MB, and CPU seconds."""
        self._over.set()
        self.join(ENDING_SECONDS)
        return self.max_rss_mb, sum(self._cpu.values())


class Stages:
    """Starts commands and waits for them; when one of them fails or hangs, it ends all."""

    def __init__(self, out: Path, console: Console) -> None:
        self.out, self.console = out, console
        self.seconds: dict[str, float] = {}
        self._running: list[Child] = []

    def start(self, name: str, *arguments: object, threads: int = 1) -> Child:
        """Starts `python -m ...` in the background."""
        command = [sys.executable, "-m", *map(str, arguments)]
        with open(self.out / "commands.txt", "a") as file:
            file.write(f"OMP_NUM_THREADS={threads} {shlex.join(['python', *command[1:]])}\n")
        # two threads that spin while they wait for each other are several times as slow on cores that others use, too
        variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        stage = Child(name, command, self.out / "logs" / f"{name}.log", SILENT_SECONDS, variables=variables)
        self._running.append(stage)
        return stage

    def wait(self, *stages: Child) -> None:
        """Waits for stages and shows their last lines. Raises Stopped where one of them fails or hangs."""
        waiting = list(stages)
        with self.console.status("") as status:
            while waiting:
                for stage in [s for s in waiting if s.process.poll() is not None]:
                    waiting.remove(stage)
                    self._running.remove(stage)
                    self._finish(stage)
                for stage in waiting:
                    if reason := stage.hangs():
                        raise Stopped(f"{stage.name}: {reason}; its last line: {stage.last_line()}")
                status.update(self.progress(waiting))
                time.sleep(0.2)

    def progress(self, stages: Sequence[Child]) -> Text:
        """What each stage does, a line of the terminal each: the last line of its log."""
        room = self.console.width - BESIDE_STATUS
        lines = (for_terminal(f"{stage.name:<13} {stage.last_line() or 'begins'}") for stage in stages)
        return Text("\n  ".join(line[:room] for line in lines))

    def _finish(self, stage: Child) -> None:
        self.seconds[stage.name] = round(time.monotonic() - stage.started, 1)
        if stage.process.returncode:
            raise Stopped(f"{stage.name} failed ({stage.last_line()}); see {stage.log}")
        self.console.print(f"{self.seconds[stage.name]:6.1f} s  {stage.name}")

    def end_all(self) -> None:
        """Ends the stages that still run."""
        for stage in self._running:
            stage.process.terminate()
        for stage in self._running:
            end(stage.process, ENDING_SECONDS)


class Session:
    """One session of a demonstration in OUT, and what all of them have cost: notes it at the beginning and at the end.

    Raises Refused where OUT holds anything but a demonstration of these settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out, self.settings = out, settings
        self._before = _sessions_before(out, settings)
        (out / "logs").mkdir(parents=True, exist_ok=True)
        self._note(self._before)
        (out / "commands.txt").write_text("")
        self._started, self._usage = time.monotonic(), Usage()
        self._usage.start()

    def end(self) -> dict[str, float]:
        """Ends it and gives the cost of all: seconds, the largest memory, and CPU seconds of all processes."""
        memory, cpu = self._usage.stop()
        cost = {
            "seconds": round(self._before["seconds"] + time.monotonic() - self._started, 1),
            "max_rss_mb": round(max(self._before["max_rss_mb"], memory), 1),
            "cpu_seconds": round(self._before["cpu_seconds"] + cpu, 1),
        }
        self._note(cost)
        return cost

    def _note(self, cost: dict[str, float]) -> None:
        about = json_text({"settings": self.settings, **cost}, indent=1).encode()
        store.write_bytes(str(self.out / ABOUT), about)


def _sessions_before(out: Path, settings: dict[str, Any]) -> dict[str, float]:
    """What sessions that were stopped have cost."""
    try:
        about = read_json(str(out / ABOUT))
    except ValueError as error:
        raise Refused(f"{out / ABOUT} is damaged: {error}; delete {out} to begin again") from error
    if about is None:
        if out.exists() and any(out.iterdir()):
            raise Refused(f"--out {out} is not empty and no demonstration (it has no {ABOUT})")
        return dict.fromkeys(COSTS, 0.0)
    if about.get("settings") != settings:
        raise Refused(
            f"--out {out} holds a demonstration of other settings: delete it, or choose another (make: DEMO=DIR)"
        )
    return {name: about.get(name, 0.0) for name in COSTS}  # earlier versions counted no CPU seconds
