"""Time limits for object stores that refuse, hang, or accept a request and never answer.

The limit, CROSS_MOST_STORE_SECONDS (120 s), covers one request with all its repetitions, those of the store's own
library included. The largest request is manifests.read_ahead.BLOCK_BYTES. A large upload goes in parts of PART_BYTES,
and its time starts anew with each part that arrives. So a slow store is not given up as long as it moves one block or
part within the limit.
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
    """The limit for one request to a store and its repetitions."""
    return seconds_of(PATIENCE, _SECONDS)


def reader_seconds() -> float:
    """For how long training waits for a batch: longer than the process that reads it waits for a store."""
    return max(seconds_of(READER_SECONDS, _OF_A_READER), store_seconds() + _SPARE_SECONDS)


def begin(work: Callable[[], _T]) -> Future[_T]:
    """Starts work in a thread of its own, which does not keep the process from ending."""
    future: Future[_T] = Future()
    threading.Thread(target=fulfil, args=(future, work), daemon=True, name="cross-most-reading").start()
    return future


def fulfil(future: Future[_T], work: Callable[[], _T]) -> None:
    """Does the work and gives the future what it returns or raises."""
    try:
        future.set_result(work())
    except BaseException as error:  # whatever it is, it belongs to the one who waits
        future.set_exception(error)


def library_options(path: str) -> dict[str, Any]:
    """Options for the library of a URL's store: two attempts for S3 in place of five, unless the user set a number.

    manifests.remote repeats requests itself; the library would wait between its attempts without a word.
    """
    scheme = path.partition("://")[0]
    said = any(name in os.environ for name in ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"))
    if scheme not in ("s3", "s3a") or said or "config_kwargs" in fsspec.config.conf.get("s3", {}):
        return {}
    return {"config_kwargs": {"retries": {"total_max_attempts": 2}}}


class NoAnswer(TimeoutError):
    """A request was given up when its time was over."""


class Patience(Callback):
    """The time that is left for one request; as a callback of fsspec it follows how far an upload is."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = store_seconds()
        self._since, self._furthest = time.monotonic(), 0

    def left(self) -> float:
        """Seconds."""
        return self._since + self.seconds - time.monotonic()

    def call(self, hook_name: str | None = None, **options: Any) -> None:
        """Starts the time anew where an upload is further than in any attempt before; repeated parts do not count."""
        if self.value > self._furthest:
            self._since, self._furthest = time.monotonic(), self.value

    def ask(self, fs: fsspec.AbstractFileSystem, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a file system's method. When the time is over it gives the request up and raises NoAnswer.

        A method that is not asynchronous (`modified`) cannot be given up: its thread goes on.
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
        """Copies a local file into a store, a large one in parts. Raises NoAnswer when no part arrives in time."""
        self.value = 0
        parts = {"chunksize": PART_BYTES, "max_concurrency": _PARTS_AT_ONCE} if "s3" in fs.protocol else {}
        self.ask(fs, "put_file", local, inner, callback=self, **parts)
