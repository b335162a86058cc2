"""Cleans up after a private Ray whose driver was killed: its processes would live on for a minute, its folder for good.

Every process of a private Ray has the name of its driver in its environment, so that the next build finds those whose
driver is gone. Processes of another Ray or of another person are left alone. Without /proc (outside Linux) nothing is
searched for: Ray's own processes end by themselves.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from manifests.errors import Refused, Stopped
from manifests.process_info import started

MARK = "CROSS_MOST_DRIVER"  # the environment variable that names the driver
_PREFIX = "crossmost-ray-"
_DRIVER = "driver"  # the file with the driver's name, beside Ray's own folder
_OF_RAY = "r"  # Ray's own folder, beside it
_LONGEST = 18  # characters of a folder for temporary files: below it lie sockets, whose paths may have 107
_END_SECONDS = 5


def driver_name() -> str:
    """`<pid>:<when it began>:<process namespace>` of this process: no other process has it, ever."""
    return f"{os.getpid()}:{started(os.getpid())}:{_namespace()}"


def new_folder() -> str:
    """A new folder of this process that only its user may enter; `delete_folder` or a later build deletes it.

    It holds the driver's name and the folder that `folder_of_ray` names. Raises Stopped where it cannot be made.
    """
    folder = None
    try:
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=_parent())
        Path(folder, _DRIVER).write_text(driver_name())
        Path(folder, _OF_RAY).mkdir()
    except OSError as error:
        if folder is not None:
            delete_folder(folder)
        raise Stopped(
            f"Ray's temporary files cannot be written ({error}); name another folder in RAY_TMPDIR and run the same "
            "again, or use --workers 0"
        ) from error
    return folder


def folder_of_ray(folder: str) -> str:
    """What a private Ray is given of a new folder: it opens its own to everybody (0777)."""
    return os.path.join(folder, _OF_RAY)


def refuse_temporary_folder() -> None:
    """Raises Refused where a private Ray has no folder for its temporary files."""
    try:
        folder = _parent()
    except OSError as error:  # not one of the system's own folders can be used
        raise Refused(f"no folder for temporary files ({error}): name one in RAY_TMPDIR or TMPDIR") from error
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise Refused(f"RAY_TMPDIR={folder}: no folder that can be written to; name another, or use --workers 0")


def delete_folder(folder: str) -> None:
    """Deletes what a private Ray wrote there, as far as it can be deleted."""
    shutil.rmtree(folder, ignore_errors=True)


def end_own() -> int:
    """Ends what is left of the private Rays of this process; the number of processes."""
    return _end([pid for pid, name in _marked() if name == driver_name()])


def end_left_behind() -> int:
    """Ends the processes and deletes the folders of private Rays whose driver is gone; the number of processes."""
    ended = _end([pid for pid, name in _marked() if _is_gone(name)])
    for folder in Path(_parent()).glob(f"{_PREFIX}*"):
        try:
            if _is_private(folder) and _is_gone((folder / _DRIVER).read_text()):
                delete_folder(str(folder))
        except (OSError, UnicodeDecodeError):
            continue  # gone meanwhile, or its driver has not written its name yet
    return ended


def _end(pids: list[int]) -> int:
    """Ends processes and waits a few seconds for it; how many they were."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline and any(started(pid) for pid in pids):
        time.sleep(0.05)
    return len(pids)


def _is_private(folder: Path) -> bool:
    """Whether only this user can have written to a folder: it is the user's own, no link, and closed to others.

    Earlier versions let Ray open the folder to everybody: anyone may have written the name there.
    """
    found = folder.lstat()
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not others_write


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
