"""Commands that this program starts: one that shows no sign of life for too long is ended, with all that it started.

Some take days by right, so their time is not limited. A sign of life is any change of the files that they write: what
they say (a build says a line every ten seconds, a fit one every `log_every` steps), shards, checkpoints.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from manifests.patience import seconds_of

COMMAND_SECONDS = "CROSS_MOST_COMMAND_SECONDS"  # environment: in place of each command's own limit
ENDING_SECONDS = 60.0  # for a command that was told to end
_LOOK_SECONDS = 5.0


class Watch:
    """Looks for signs of life of a command in these files and folders. seconds: without any, until it `hangs`."""

    def __init__(self, places: Sequence[Path], seconds: float) -> None:
        self.seconds = seconds_of(COMMAND_SECONDS, seconds)
        self._places = places
        self._seen = _signature(places)
        self._since = self._looked = time.monotonic()

    def hangs(self) -> bool:
        """Whether nothing has changed for so long. It looks every few seconds, however often it is asked."""
        now = time.monotonic()
        if now - self._looked < min(_LOOK_SECONDS, self.seconds / 4):
            return False
        self._looked = now
        seen = _signature(self._places)
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since > self.seconds

    def words(self) -> str:
        """What is said of a command that hangs."""
        return f"no sign of life for {self.seconds:g} s ({COMMAND_SECONDS}), so it was ended"


def _signature(places: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Path -> size, time of the last change, of all files."""
    found = {}
    for place in places:
        inside = [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names]
        for path in (str(place), *inside):
            with suppress(OSError):
                status = os.stat(path)
                found[path] = status.st_size, status.st_mtime_ns
    return found


def end(process: subprocess.Popen, patience: float = 0.0) -> None:
    """Ends a command that was told to end and has not within so many seconds, and all that it started.

    What the kernel itself keeps alive (a process that waits for a broken disk) is left to it.
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
