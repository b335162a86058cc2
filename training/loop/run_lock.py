"""One `fit` at a time in a run: two would write each other's checkpoints and rows."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manifests.errors import Refused

LOCK = ".lock"


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Locks a run inside the block, and makes its folder if it is missing. Raises Refused if another process holds it.

    The kernel releases the lock when the process ends in any way, so a lock never has to be deleted by hand. Reader
    processes do not inherit it. On a file system without locks the run is not locked.
    """
    run.mkdir(parents=True, exist_ok=True)
    file = _locked(run / LOCK)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{socket.gethostname()}, process {os.getpid()}".encode(), 0)
        yield
    finally:
        (run / LOCK).unlink(missing_ok=True)
        os.close(file)


def _locked(path: Path) -> int:
    """Opens and locks the file at the path; gives its descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            who = os.pread(file, 200, 0).decode(errors="replace")
            os.close(file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise Refused(f"--run {path.parent} is being trained ({who or 'by another process'})") from error
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if path.exists() and os.path.samestat(os.fstat(file), os.stat(path)):
            return file
        os.close(file)  # the process that held it has deleted it meanwhile
