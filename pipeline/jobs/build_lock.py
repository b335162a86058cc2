"""OUT/build.lock: keeps two builds from doing the same work. Correctness never depends on it."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from manifests import store
from manifests.errors import Refused, Stopped
from manifests.layout import LOCK
from manifests.process_info import started

RENEW_SECONDS = 30
STALE_SECONDS = 600
QUIET_SECONDS = RENEW_SECONDS + 15  # a live build has written its lock again by then
_AHEAD_SECONDS = 60  # a lock dated further in the future than that is of a machine with another clock
_LOOK_SECONDS = 1.0
_TRIES = 5  # at taking over a stale lock, while others try the same

log = logging.getLogger(__name__)


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
def build_lock(out: str, needed: bool = True) -> Iterator[BuildLock | None]:
    """Holds OUT/build.lock. Raises Refused naming the live build that has it; takes over a stale one.

    needed: False where nothing is to do: an OUT that cannot be written is then left without a lock (None).
    """
    path = store.join(out, LOCK)
    taken = True
    try:
        _take(out, path)
    except (OSError, ValueError, Stopped) as error:
        if needed and isinstance(error, Stopped):
            raise
        if needed:
            raise Refused(f"{out} cannot be written: {getattr(error, 'strerror', None) or error}") from error
        taken = False
    if not taken:
        yield None
        return
    try:
        yield BuildLock(path)
    finally:
        with suppress(Stopped):  # a store that is down: this process ends, and so the lock is stale
            if _is_own(_holder(path)):
                store.remove(path)


def _take(out: str, path: str) -> None:
    """Takes the lock; exactly one of several processes gets it. Raises Refused where a live build has it."""
    for _ in range(_TRIES):
        if store.create_bytes(path, _line(time.time())):
            return
        held = store.read_bytes(path)
        if held is None:
            continue  # let go meanwhile
        holder = _parsed(held)
        if _is_live(path, held, holder):
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


def _is_live(path: str, held: bytes, holder: dict[str, Any]) -> bool:
    """On this machine: the same process still runs. Elsewhere: the lock was renewed not long ago.

    held: the bytes of the lock. A lock dated in the future, by a machine whose clock runs ahead, is live only if it is
    renewed: else a dead build would be waited for until that date.
    """
    try:
        if holder.get("host") == socket.gethostname():
            return started(int(holder.get("pid", -1))) == holder.get("started") is not None
        age = time.time() - float(holder.get("renewed", 0))
    except (TypeError, ValueError, OverflowError):
        return False
    return age < STALE_SECONDS if age > -_AHEAD_SECONDS else _is_renewed(path, held)


def _is_renewed(path: str, held: bytes) -> bool:
    """Whether a lock is written again within QUIET_SECONDS of its last writing, by the clock of the disk or store that
    holds it; a lock that has been quiet for longer is not waited for."""
    quiet = store.age_seconds(path)
    left = QUIET_SECONDS - max(quiet or 0.0, 0.0)
    if left > 0:
        log.warning("%s is dated in the future: looking for up to %.0f s whether its build renews it", path, left)
    deadline = time.monotonic() + left
    while time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        now = store.read_bytes(path)
        if now != held:
            return now is not None
    return False
