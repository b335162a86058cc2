"""How long an object store is waited for, whether it refuses, hangs, or takes a request and never answers.

The limit, CROSS_MOST_STORE_SECONDS (120 s), is for one request together with all that it is made again: from its first
attempt to the error. What the store's own library does meanwhile (it asks again, too) counts. The largest request is
manifests.read_ahead.BLOCK_BYTES, and a large upload goes in parts of PART_BYTES, each of which that arrives gives the
next ones the whole time again. So a slow store is not cut as long as it moves one of these within the limit.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import fsspec
from fsspec.callbacks import Callback

from manifests.errors import Refused

PATIENCE = "CROSS_MOST_STORE_SECONDS"  # environment
READER_SECONDS = "CROSS_MOST_READER_SECONDS"  # environment
PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
_SECONDS = 120.0
_OF_A_READER = 900.0  # its first batch fills its shuffle buffer, maybe from a slow disk or into a cold cache
_SPARE_SECONDS = 10.0
_LEAST_SECONDS = 0.5  # of an attempt that begins near the end
_T = TypeVar("_T")


def seconds_of(name: str, default: float) -> float:
    """A limit from the environment, seconds. Raises Refused where it is no positive number."""
    text = os.environ.get(name, "")
    try:
        seconds = float(text or default)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise Refused(f"{name}={text}: a number of seconds, such as {default:g}")
    return seconds


def store_seconds() -> float:
    """For how long a store is asked for one thing."""
    return seconds_of(PATIENCE, _SECONDS)


def reader_seconds() -> float:
    """For how long training waits for a batch: longer than the process that reads it waits for a store."""
    return max(seconds_of(READER_SECONDS, _OF_A_READER), store_seconds() + _SPARE_SECONDS)


def begin(work: Callable[[], _T]) -> Future[_T]:
    """Starts work in a thread that no one waits for when the process ends."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="cross-most-reading").start()
    return future


def library_options(path: str) -> dict[str, Any]:
    """How the library of a URL's store is opened: of S3 with two attempts, not five, where nobody has said how many.

    manifests.store makes the others; the library waits seconds between its own, and nobody hears why.
    """
    scheme = path.partition("://")[0]
    said = any(name in os.environ for name in ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"))
    if scheme not in ("s3", "s3a") or said or "config_kwargs" in fsspec.config.conf.get("s3", {}):
        return {}
    return {"config_kwargs": {"retries": {"total_max_attempts": 2}}}


class NoAnswer(TimeoutError):
    """A request was given up when its time was over."""


class Patience(Callback):
    """The time that is left for one thing asked of a store; fsspec tells it, as a callback, how far an upload is."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = store_seconds()
        self._since, self._furthest = time.monotonic(), 0

    def left(self) -> float:
        """Seconds."""
        return self._since + self.seconds - time.monotonic()

    def call(self, hook_name: str | None = None, **options: Any) -> None:
        """Gives the whole time again where an upload is further than any attempt before: parts sent anew are none."""
        if self.value > self._furthest:
            self._since, self._furthest = time.monotonic(), self.value

    def ask(self, fs: fsspec.AbstractFileSystem, name: str, *arguments: Any, **options: Any) -> Any:
        """What a file system's method gives. Raises NoAnswer when the time is over; the request is then given up.

        What a file system does not do asynchronously (`modified`) cannot be given up: a thread goes on with it.
        """
        request = getattr(fs, f"_{name}", None) if getattr(fs, "async_impl", False) else None
        if request is not None:
            future = asyncio.run_coroutine_threadsafe(request(*arguments, **options), fs.loop)
        else:
            future = begin(lambda: getattr(fs, name)(*arguments, **options))
        while not future.done():
            left = max(self.left(), _LEAST_SECONDS)
            try:
                return future.result(timeout=left)
            except TimeoutError as error:
                if not future.done() and self.left() <= 0:
                    future.cancel()
                    raise NoAnswer(f"no answer for {self.seconds:g} s ({PATIENCE})") from error
        return future.result(timeout=0)

    def put(self, fs: fsspec.AbstractFileSystem, local: str, inner: str) -> None:
        """Copies a local file into a store, a large one in parts. Raises NoAnswer when none arrives for so long."""
        self.value = 0
        parts = {"chunksize": PART_BYTES, "max_concurrency": _PARTS_AT_ONCE} if "s3" in fs.protocol else {}
        self.ask(fs, "put_file", local, inner, callback=self, **parts)
