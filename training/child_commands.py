"""Starts commands beside this program, watches them, and ends those that hang, with all their child processes.

A training may take days, so the total time has no limit. A command hangs when none of its files changes for too long:
its log (a build writes a line every ten seconds, a fit every `log_every` steps), its shards, its checkpoints.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from manifests.patience import seconds_of
from manifests.process_info import environment

COMMAND_SECONDS = "CROSS_MOST_COMMAND_SECONDS"  # environment: replaces each command's own limit
ENDING_SECONDS = 60.0  # for a command to end after a signal
_LOOK_SECONDS = 5.0


class Watch:
    """Looks for signs of life of a command: changes in these files and folders. seconds: the limit without any."""

    def __init__(self, places: Sequence[Path], seconds: float) -> None:
        self.seconds = seconds_of(COMMAND_SECONDS, seconds)
        self._places = places
        self._seen = _signature(places)
        self._since = self._looked = time.monotonic()

    def hangs(self) -> bool:
        """Whether nothing has changed for that long. It looks every few seconds, even if it is called more often."""
        now = time.monotonic()
        if now - self._looked < min(_LOOK_SECONDS, self.seconds / 4):
            return False
        self._looked = now
        seen = _signature(self._places)
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since > self.seconds

    def words(self) -> str:
        """The message about a command that hangs."""
        return f"no sign of life for {self.seconds:g} s ({COMMAND_SECONDS}), so it was ended"


class Child:
    """A command that runs beside this program. process: its process; started: when, by `time.monotonic`.

    log: the file for its output; stdout: subprocess.DEVNULL, to log stderr alone. seconds: without a change in `log` or
    `watched`, until it hangs. variables: of its environment.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        seconds: float,
        watched: Sequence[Path] = (),
        stdout: int | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.name, self.log, self.started = name, log, time.monotonic()
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                command, stdout=file if stdout is None else stdout, stderr=file, env=environment() | (variables or {})
            )
        self._watch = Watch([log, *watched], seconds)

    def hangs(self) -> str:
        """Ends a command that hangs, and gives the reason; empty for any other."""
        if not self._watch.hangs():
            return ""
        end(self.process)
        return self._watch.words()

    def last_line(self) -> str:
        """The last line of its log so far, or empty."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _signature(places: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Path -> (size, time of the last change) of all files."""
    found = {}
    for place in places:
        inside = [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names]
        for path in (str(place), *inside):
            with suppress(OSError):
                status = os.stat(path)
                found[path] = status.st_size, status.st_mtime_ns
    return found


def end(process: subprocess.Popen[Any], patience: float = 0.0) -> None:
    """Waits `patience` seconds for a command to end, then kills it and all its child processes.

    A process that the kernel cannot kill, such as one that waits for a broken disk, is left alone.
    """
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=patience)
        return
    tree = []
    with suppress(psutil.NoSuchProcess):
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in tree:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=ENDING_SECONDS)
