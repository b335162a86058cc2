"""What writers that were killed left in a run: files and folders under temporary names."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from pathlib import Path

LEFTOVER = re.compile(r"^\..+\.(?P<host>[A-Za-z0-9_.-]+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")  # manifests.store names them
STALE_SECONDS = 600


def delete_leftovers(run: Path) -> int:
    """Deletes them and says how many there were. A live writer's are left alone: of this machine by its process, of
    another by the time of its last change.
    """
    found = [p for folder in (run, run / "text", run / "checkpoints") if folder.is_dir() for p in folder.iterdir()]
    dead = [path for path in found if _is_dead(path)]
    for path in dead:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(dead)


def _is_dead(path: Path) -> bool:
    named = LEFTOVER.match(path.name)
    if named is None:
        return False
    if named["host"] != re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname()):
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    pid = int(named["pid"])
    return pid == os.getpid() or not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
