"""Files, local or in an object store, written whole or not at all.

Locally: `.<name>.<host>-<pid>-<random>.tmp` in the same folder, fsync, rename. In an object store: finished in local
scratch, then uploaded straight to the final name (leaving an open upload by an exception would publish half a file).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec

from manifests.errors import Refused, Stopped

_TEMPORARY = re.compile(r"^\..+\.[A-Za-z0-9_.-]+-\d+-[0-9a-f]{8}\.tmp$")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def is_url(path: str) -> bool:
    """Whether a path names an object store (`s3://...`) rather than a local file."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str) -> str:
    """A local path made absolute; a URL as it is, without a slash at its end."""
    if is_url(path):
        return path.rstrip("/")
    return str(Path(path.removeprefix("file://")).absolute())


def join(folder: str, *names: str) -> str:
    """A path below a folder, for local paths and URLs alike."""
    return "/".join([folder.rstrip("/"), *names])


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a path and the path inside it. Raises Refused naming the missing library."""
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise Refused(f"cannot open {path}: {error}") from error


@contextmanager
def stopping(path: str) -> Iterator[None]:
    """Turns errors of the disk into Stopped, naming the path and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise _stopped(path, error) from error


def _stopped(path: str, error: Exception) -> Stopped:
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if number else " ".join(str(error).split()) or type(error).__name__
    return Stopped(f"cannot write {path}: {reason}; what is finished is kept, run the same again")


def upload(local: str, path: str) -> None:
    """Copies a finished local file to a URL. Raises Stopped when the store does not take it."""
    fs, inner = filesystem(path)
    try:
        fs.put_file(local, inner)
    except Exception as error:  # every store library has its own errors; all of them mean that the file is not there
        raise _stopped(path, error) from error


def read_bytes(path: str) -> bytes | None:
    """The whole file, or None where there is none."""
    if not is_url(path):
        try:
            return Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    fs, inner = filesystem(path)
    try:
        return fs.cat_file(inner)
    except FileNotFoundError:
        return None


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file atomically. Raises Stopped when the disk is full or the store is down."""
    with writing(path) as file:
        file.write(data)


def exists(path: str) -> bool:
    """Whether there is a file or folder at the path."""
    if not is_url(path):
        return Path(path).exists()
    fs, inner = filesystem(path)
    return bool(fs.exists(inner))


def list_names(folder: str) -> list[str]:
    """Names of the files and folders directly inside a folder, sorted; [] where there is no such folder."""
    if not is_url(folder):
        return sorted(os.listdir(folder)) if Path(folder).is_dir() else []
    fs, inner = filesystem(folder)
    fs.invalidate_cache()
    try:
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(inner, detail=False)})
    except FileNotFoundError:
        return []


def remove(path: str) -> None:
    """Deletes one file, if it is there."""
    if not is_url(path):
        Path(path).unlink(missing_ok=True)
        return
    fs, inner = filesystem(path)
    if fs.exists(inner):
        fs.rm_file(inner)


def open_reading(path: str, ahead: bool = True) -> IO[bytes]:
    """A file opened for reading; object stores read ahead in 32 MB blocks. Raises FileNotFoundError.

    ahead=False: a local file gives what is asked for and reads no more (an object store reads ahead all the same: there
    a few large requests cost less than many small ones).
    """
    if not is_url(path):
        return open(path, "rb", buffering=-1 if ahead else 0)
    fs, inner = filesystem(path)
    return fs.open(inner, "rb", block_size=32 << 20, cache_type="readahead")


@contextmanager
def writing(path: str) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` when the block ends without an error, and not at all otherwise.

    Raises Stopped when the disk is full or the store is down.
    """
    with stopping(path):
        if is_url(path):
            with tempfile.TemporaryDirectory(prefix="cross-most-") as scratch:
                local = Path(scratch) / "file"
                with open(local, "wb") as file:
                    yield file
                upload(str(local), path)
            return
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / temporary_name(final.name)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
            _fsync_folder(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(name: str) -> str:
    """`.<name>.<host>-<pid>-<random>.tmp`: no two processes, also on different machines, share one."""
    host = re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())
    return f".{name}.{host}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def delete_temporaries(folder: str) -> int:
    """Deletes what killed writers left in a local folder; returns how many. Call it while holding the build lock."""
    if is_url(folder) or not Path(folder).is_dir():
        return 0
    found = [p for p in Path(folder).iterdir() if _TEMPORARY.match(p.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def free_bytes(folder: str) -> int | None:
    """Free space of the disk that holds (or will hold) a local folder; None for object stores."""
    if is_url(folder):
        return None
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
