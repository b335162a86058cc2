"""What a killed driver leaves of its private Ray: processes that nobody would end for a minute, and a folder.

Every process of a private Ray carries the name of its driver in its environment, so that the next build finds those
whose driver is gone. Another Ray's processes carry no such name, and another person's are not looked at. Without a
/proc (elsewhere than on Linux) nothing is looked for: Ray's own processes end by themselves.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from manifests.processes import started

MARK = "CROSS_MOST_DRIVER"  # the environment variable that names the driver
_PREFIX = "crossmost-ray-"
_LONGEST = 20  # characters of a folder for temporary files: below it lie sockets, whose paths may have 107
_END_SECONDS = 5


def driver_name() -> str:
    """`<pid>:<when it began>:<process namespace>` of this process: no other process has it, ever."""
    return f"{os.getpid()}:{started(os.getpid())}:{_namespace()}"


def new_folder() -> str:
    """A new folder for a private Ray of this process; `delete_folder` or a later build deletes it."""
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=_parent())
    Path(folder, "driver").write_text(driver_name())
    return folder


def delete_folder(folder: str) -> None:
    """Deletes what a private Ray wrote there, as far as it can be deleted."""
    shutil.rmtree(folder, ignore_errors=True)


def end_left_behind() -> int:
    """Ends the processes and deletes the folders of private Rays whose driver is gone; the number of processes."""
    ended = [pid for pid, name in _marked() if _is_gone(name)]
    for pid in ended:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline and any(started(pid) for pid in ended):
        time.sleep(0.05)
    for folder in Path(_parent()).glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid == os.getuid() and _is_gone((folder / "driver").read_text()):
                delete_folder(str(folder))
        except OSError:
            continue  # gone meanwhile, or its driver has not written its name yet
    return len(ended)


def _parent() -> str:
    chosen = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return chosen if len(chosen) <= _LONGEST else "/tmp"


def _namespace() -> str:
    """Which process namespace this is: a container's process 7 is not the host's."""
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return ""


def _is_gone(name: str) -> bool:
    """Whether the driver of a name ran in this process namespace and does not run any more."""
    pid, _, rest = name.partition(":")
    start, _, namespace = rest.partition(":")
    return bool(namespace) and namespace == _namespace() and pid.isdigit() and started(int(pid)) != start


def _marked() -> Iterator[tuple[int, str]]:
    """(pid, driver's name) of every process of this user that carries one."""
    mark = f"{MARK}=".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            values = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile, or not ours to read
        name = next((value[len(mark) :] for value in values if value.startswith(mark)), b"")
        if name and int(entry.name) != os.getpid():
            yield int(entry.name), name.decode(errors="replace")
