"""OUT/build.lock: saves two builds from doing the same work. Correctness never depends on it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from manifests import store
from manifests.errors import Refused, Stopped
from manifests.processes import started
from manifests.shards import LOCK

RENEW_SECONDS = 30
STALE_SECONDS = 600
_TRIES = 5  # at taking over a stale lock, while others try the same


class BuildLock:
    """A held lock; `renew` now and then, so that other machines see a live build."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._written = time.time()

    def renew(self) -> None:
        """Writes the present time into the lock, at most every RENEW_SECONDS."""
        if time.time() - self._written > RENEW_SECONDS:
            self._written = time.time()
            store.write_bytes(self._path, _line(self._written))


def _line(now: float) -> bytes:
    return json.dumps({**_own_name(), "renewed": now}).encode()


def _own_name() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}


@contextmanager
def build_lock(out: str) -> Iterator[BuildLock]:
    """Holds OUT/build.lock. Raises Refused naming the live build that has it; takes over a stale one."""
    path = store.join(out, LOCK)
    try:
        _take(out, path)
    except (OSError, ValueError) as error:
        raise Refused(f"{out} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield BuildLock(path)
    finally:
        with suppress(Stopped):  # a store that is down: this process ends, and so the lock is stale
            if _is_own(_holder(path)):
                store.remove(path)


def _take(out: str, path: str) -> None:
    """Of several that try at once, one gets the lock. Raises Refused where a live build has it."""
    for _ in range(_TRIES):
        if store.create_bytes(path, _line(time.time())):
            return
        held = store.read_bytes(path)
        if held is None:
            continue  # let go meanwhile
        holder = _parsed(held)
        if _is_live(holder):
            who = f"process {holder.get('pid')} on {holder.get('host')}"
            raise Refused(f"{out} is being built by {who} (delete {path} if it is not)")
        store.take_away(path, held)
    raise Refused(f"{path}: other builds take it over at the same moment; run the same again")


def _holder(path: str) -> dict[str, Any]:
    return _parsed(store.read_bytes(path) or b"")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_own(holder: dict[str, Any]) -> bool:
    return {name: holder.get(name) for name in _own_name()} == _own_name()


def _is_live(holder: dict[str, Any]) -> bool:
    """On this machine: the same process still runs. Elsewhere: the lock was renewed not long ago."""
    try:
        if holder.get("host") == socket.gethostname():
            return started(int(holder.get("pid", -1))) == holder.get("started") is not None
        return time.time() - float(holder.get("renewed", 0)) < STALE_SECONDS
    except (TypeError, ValueError, OverflowError):
        return False
