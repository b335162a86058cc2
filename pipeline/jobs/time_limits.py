"""Time limits: for calls of a library that may never return, and for workers, by a clock that can tell a stop."""

from __future__ import annotations

import atexit
import os
import queue
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from manifests.patience import begin, fulfil

_STEP_SECONDS = 10.0  # a clock that is asked every second or two was stopped where more have passed
_HANGING: list[str] = []  # what did not return, of all threads
_T = TypeVar("_T")


class TooLong(Exception):
    """A call did not return within its limit; the message names call and limit."""


class LimitedThread:
    """A thread that runs calls one after the other; the caller waits for each no longer than its limit.

    A call that does not return blocks the thread for good, so every later one raises at once. The thread lives as long
    as the process, and does not keep it from ending.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._runs = False
        self._stuck: TooLong | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether a call has not returned within its limit."""
        return self._stuck is not None

    def call(self, what: str, seconds: float, function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        """What the function returns or raises. Raises TooLong, naming `what`, after `seconds`."""
        if self._stuck is not None:
            raise TooLong(str(self._stuck))
        if not self._runs:
            self._runs = True
            begin(self._serve)
        future: Future[_T] = Future()
        self._calls.put((future, lambda: function(*arguments, **named)))
        if not wait([future], seconds).done:
            self._stuck = TooLong(f"{what} takes more than {seconds:g} s")
            _HANGING.append(str(self._stuck))
            raise self._stuck
        return future.result(timeout=0)

    def _serve(self) -> None:
        while True:
            fulfil(*self._calls.get())


def leaving(code: int) -> int:
    """Returns the exit code; where a call hangs, makes the process end with it at once.

    What libraries do at the end of a process would wait for the call that hangs.
    """
    if _HANGING:
        atexit.register(_end_now, code)
    return code


def _end_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class AwakeClock:
    """Seconds that this process was awake: where it was stopped itself, by Ctrl-Z, no worker is blamed for it."""

    def __init__(self) -> None:
        self._before = time.monotonic()
        self._seconds = 0.0

    def seconds(self) -> float:
        """The seconds so far; call it every few seconds."""
        now = time.monotonic()
        self._seconds += min(now - self._before, _STEP_SECONDS)
        self._before = now
        return self._seconds
