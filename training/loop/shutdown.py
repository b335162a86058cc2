"""Stopping between two steps: a signal is remembered until the loop asks, so that it can save before it ends.

Slurm and other schedulers send SIGTERM some seconds before they kill; torchrun passes on what it is sent. Ctrl-C does
the same, and a second one ends the command at once.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal ended a run after a checkpoint was written. number: the signal's; the exit code is 128 more."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


@dataclass
class Pending:
    """The last signal that arrived and is not yet handled, or 0."""

    number: int = 0


@contextmanager
def remembered(*numbers: signal.Signals) -> Iterator[Pending]:
    """Inside the block these signals are only remembered; but a second Ctrl-C interrupts, as it does without the block.

    Outside the main thread, where that cannot be set, it does nothing.
    """
    pending = Pending()

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if pending.number:
                raise KeyboardInterrupt
            log.warning("a checkpoint is written after this step; Ctrl-C again ends at once, without")
        pending.number = number

    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
