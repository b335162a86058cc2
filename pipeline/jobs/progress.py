"""What a person sees while a build runs: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from manifests.plain_text import number_of
from pipeline.shards.build_shard import JobEvent

LINE_SECONDS = 10.0


class BuildProgress:
    """Counts objects and failures of running jobs; a job that is run again is counted anew."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = self._said = time.monotonic()
        self._total = 0
        self._objects = self._failures = 0
        self._running: dict[tuple[str, int], list[int]] = {}  # (objects, failures) of jobs that may yet be run again
        self._died: set[tuple[str, int]] = set()
        self._bar: Progress | None = None

    def __enter__(self) -> BuildProgress:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[failures]} failures"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, todo: int, there: int) -> None:
        """Says how much is to do and how much an earlier run has left done."""
        self._total = todo
        self._started = time.monotonic()
        if there:
            self._console.print(f"{number_of(there, 'object')} {'is' if there == 1 else 'are'} already there")
        if self._bar is not None:
            self._bar.add_task("objects", total=todo, rate="", failures=0)

    def event(self, event: JobEvent) -> None:
        """Takes in what happened to a job."""
        key = (event.job.split, event.job.shard)
        if event.state == "again":
            objects, failures = self._running.pop(key, (0, 0))
            self._objects, self._failures = self._objects - objects, self._failures - failures
            if key not in self._died:  # once a shard, however often it loses a worker
                self._console.print(f"shard {key[0]}-{key[1]:05d}: its worker died; again, an asset at a time")
            self._died.add(key)
        if event.state == "done":
            self._running.pop(key, None)
        if event.progress is not None:
            counts = self._running.setdefault(key, [0, 0])
            counts[0] += event.progress.objects
            counts[1] += event.progress.failures
            self._objects += event.progress.objects
            self._failures += event.progress.failures
        self._show()

    def _show(self) -> None:
        objects, failures = self._objects, self._failures
        seconds = time.monotonic() - self._started
        rate = f"{objects / seconds:.1f} objects/s" if seconds > 0 else ""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=objects, rate=rate, failures=failures)
        elif time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            line = f"{objects:,} of {number_of(self._total, 'object')}, {rate}, {number_of(failures, 'failure')}"
            if objects:  # before the first nobody knows how long the others take
                line += f", {(self._total - objects) * seconds / objects:.0f} s left"
            self._console.print(line)
