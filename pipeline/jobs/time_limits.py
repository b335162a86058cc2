"""Waits that have a limit: calls of a library that may never return, and a clock for those who may be stopped."""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

_STEP_SECONDS = 10.0  # a clock that is asked every second or two was stopped where more have passed
_HANGING: list[str] = []  # what did not return, of all threads
_T = TypeVar("_T")
_Call = tuple[Callable[[], Any], "queue.SimpleQueue[tuple[Any, BaseException | None]]"]


class TooLong(Exception):
    """A call did not return within its limit; the message names both."""


class LimitedThread:
    """A thread in which calls run one after the other, while whoever calls waits so long and no longer.

    A call that does not return has the thread for good, so every later one raises at once. The thread lives as long as
    the process, and does not keep it from ending.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stuck: TooLong | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether a call has not returned within its limit."""
        return self._stuck is not None

    def call(self, what: str, seconds: float, function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        """What the function returns or raises. Raises TooLong, naming `what`, after so many seconds."""
        if self._stuck is not None:
            raise TooLong(str(self._stuck))
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._calls.put((lambda: function(*arguments, **named), answer))
        try:
            value, error = answer.get(timeout=seconds)
        except queue.Empty:
            self._stuck = TooLong(f"{what} takes more than {seconds:g} s")
            _HANGING.append(str(self._stuck))
            raise self._stuck from None
        if error is not None:
            raise error
        return value

    def _serve(self) -> None:
        while True:
            function, answer = self._calls.get()
            try:
                answer.put((function(), None))
            except BaseException as error:  # whatever it is, it is the caller's
                answer.put((None, error))
            del function, answer


def leaving(code: int) -> int:
    """The exit code that it is given. Where a call hangs, the process will end with it at once.

    A library's own farewells would wait for what hangs, in the interpreter's last steps and after them.
    """
    if _HANGING:
        atexit.register(_end_now, code)
    return code


def _end_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class AwakeClock:
    """Seconds that this process was awake: one that was stopped itself, by Ctrl-Z, blames no worker for it."""

    def __init__(self) -> None:
        self._before = time.monotonic()
        self._seconds = 0.0

    def seconds(self) -> float:
        """So many by now; it is to be asked every few seconds."""
        now = time.monotonic()
        self._seconds += min(now - self._before, _STEP_SECONDS)
        self._before = now
        return self._seconds
