"""OUT/build.lock: saves two builds from doing the same work. Correctness never depends on it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manifests import store
from manifests.errors import Refused
from manifests.shards import LOCK

RENEW_SECONDS = 30
STALE_SECONDS = 600


class BuildLock:
    """A held lock; `renew` now and then, so that other machines see a live build."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._written = 0.0

    def renew(self) -> None:
        """Writes the present time into the lock, at most every RENEW_SECONDS."""
        if time.time() - self._written > RENEW_SECONDS:
            self._written = time.time()
            values = {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}
            store.write_bytes(self._path, json.dumps({**values, "renewed": self._written}).encode())


@contextmanager
def build_lock(out: str) -> Iterator[BuildLock]:
    """Holds OUT/build.lock. Raises Refused naming the live build that has it; takes over a stale one."""
    path = store.join(out, LOCK)
    holder = _holder(path)
    if holder is not None and _is_live(holder):
        raise Refused(
            f"{out} is being built by process {holder['pid']} on {holder['host']} (delete {path} if it is not)"
        )
    lock = BuildLock(path)
    try:
        lock.renew()
    except OSError as error:
        raise Refused(f"{out} cannot be written: {error.strerror or error}") from error
    try:
        yield lock
    finally:
        store.remove(path)


def _holder(path: str) -> dict[str, Any] | None:
    data = store.read_bytes(path)
    try:
        return None if data is None else json.loads(data)
    except ValueError:
        return None


def _is_live(holder: dict[str, Any]) -> bool:
    """On this machine: the same process still runs. Elsewhere: the lock was renewed not long ago."""
    if holder.get("host") == socket.gethostname():
        return started(int(holder.get("pid", -1))) == holder.get("started") is not None
    return time.time() - float(holder.get("renewed", 0)) < STALE_SECONDS


def started(pid: int) -> str | None:
    """When a process of this machine began (its 22nd /proc field), None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return _alive(pid)


def _alive(pid: int) -> str | None:
    """Where there is no /proc: whether a signal could be sent."""
    try:
        os.kill(pid, 0)
    except (OSError, ValueError, OverflowError):
        return None
    return "alive" if pid > 0 and not Path("/proc/self").exists() else None
