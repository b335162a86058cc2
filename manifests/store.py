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
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from manifests.errors import Refused, Stopped
from manifests.patience import NoAnswer, Patience
from manifests.process_info import started
from manifests.remote import filesystem, is_url, patiently, stopped_by

_TEMPORARY = re.compile(r"^\.(?P<name_and_host>.+\.[A-Za-z0-9_.-]+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")
_ELSEWHERE_SECONDS = 600  # a temporary file of another machine that was not written for longer is left behind
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
_COMMAND = re.compile(r"\s*pipe:", re.IGNORECASE)
_KEYS = re.compile(r"\w+://[^/]*@")


def absolute(path: str) -> str:
    """A local path made absolute; a URL as it is, without a slash at its end.

    Raises Refused for what is no place of files: commands (`pipe:`), chains of file systems (`::`), and URLs with keys
    in them, which would end in logs. Keys are not repeated in the message.
    """
    scheme = path.partition(":")[0]
    if _COMMAND.match(path) or (is_url(path) and "::" in path):
        raise Refused(f"{scheme}: paths are folders, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER; no commands, no chains")
    if is_url(path) and (_KEYS.match(path) or "?" in path):
        raise Refused(
            f"{scheme}://...: no keys in a path, they would end in logs; set them as the store's own tools read them "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if is_url(path):
        return path.rstrip("/")
    return str(Path(path.removeprefix("file://")).absolute())


def local_path(path: str, option: str) -> Path:
    """The absolute path of a file or folder that an option names and that only a local disk can hold.

    Raises Refused naming the option for a URL, which would become a local folder `s3:`, and as `absolute` does.
    """
    found = absolute(path)
    if is_url(found):
        raise Refused(f"{option} {found}: this is written to a local disk; name a path of this machine")
    return Path(found)


def join(folder: str, *names: str) -> str:
    """A path below a folder, for local paths and URLs alike."""
    return "/".join([folder.rstrip("/"), *names])


@contextmanager
def stopping(path: str) -> Iterator[None]:
    """Turns errors of the disk into Stopped, naming the path and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise stopped_by(path, error) from error


def upload(local: str, path: str) -> None:
    """Copies a finished local file to a URL. Raises Stopped when the store keeps refusing it."""
    fs, inner = filesystem(path)
    try:
        patiently(path, "write", lambda patience: patience.put(fs, local, inner))
    except OSError as error:
        raise stopped_by(path, error) from error


def read_bytes(path: str) -> bytes | None:
    """The whole file, or None where it is missing.

    Raises ValueError naming the path where something else stands in its place, such as a folder or a pipe.
    """
    if not is_url(path):
        try:
            with open_reading(path) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    fs, inner = filesystem(path)
    try:
        return patiently(path, "read", lambda patience: patience.ask(fs, "cat_file", inner))
    except FileNotFoundError:
        return None


def read_many(paths: list[str]) -> list[bytes | None]:
    """Whole files of one folder, None for a missing one; an object store is asked for many at a time."""
    if not paths or not is_url(paths[0]):
        return [read_bytes(path) for path in paths]
    fs, _ = filesystem(paths[0])
    found: dict[str, bytes | None] = {}

    def attempt(patience: Patience) -> None:
        missing = [path for path in paths if path not in found]
        inner = [fs._strip_protocol(path) for path in missing]
        # not `cat`, and not without a start: s3fs would ask for the size of each first
        several = patience.ask(fs, "cat_ranges", inner, 0, None, on_error="return")
        answers = dict(zip(missing, several, strict=True))
        found.update({path: data for path, data in answers.items() if isinstance(data, bytes)})
        found.update({path: None for path, data in answers.items() if isinstance(data, FileNotFoundError)})
        failed = next((path for path in missing if path not in found), None)
        if failed is not None:
            raise answers[failed]

    patiently(paths[0], "read", attempt)
    return [found[path] for path in paths]


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file atomically. Raises Stopped when the disk is full or the store is down."""
    with writing(path) as file:
        file.write(data)


def create_bytes(path: str, data: bytes) -> bool:
    """Writes a whole file unless it exists, and returns whether it did; of several processes, exactly one does.

    A store or disk without such an operation is asked first and then written to.
    """
    if is_url(path):
        fs, inner = filesystem(path)

        def attempt(patience: Patience) -> bool:
            try:
                patience.ask(fs, "pipe_file", inner, data, mode="create")
            except (FileExistsError, NoAnswer):
                raise
            except Exception:  # not possible there, or failing just now: `write_bytes` finds out
                return False
            return True

        try:
            return patiently(path, "write", attempt) or _create_asking(path, data)
        except FileExistsError:
            return False
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / temporary_name(final.name)
    with stopping(path):
        try:
            temporary.write_bytes(data)
            os.link(temporary, final)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            return _create_asking(path, data)
        finally:
            temporary.unlink(missing_ok=True)


def _create_asking(path: str, data: bytes) -> bool:
    if read_bytes(path) is not None:
        return False
    write_bytes(path, data)
    return True


def take_away(path: str, data: bytes) -> None:
    """Deletes a file, if it is there and holds just this; another one that came meanwhile stays."""
    if is_url(path):
        if read_bytes(path) == data:
            remove(path)
        return
    aside = Path(path).parent / temporary_name(Path(path).name)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    try:
        if aside.read_bytes() != data:
            os.link(aside, path)
    except FileExistsError:
        pass  # a third process has it by now
    finally:
        aside.unlink(missing_ok=True)


def exists(path: str) -> bool:
    """Whether there is a file or folder at the path."""
    if not is_url(path):
        return Path(path).exists()
    fs, inner = filesystem(path)
    fs.invalidate_cache(inner)  # a listing of before does not know what others have written
    return bool(patiently(path, "read", lambda patience: patience.ask(fs, "exists", inner)))


def age_seconds(path: str) -> float | None:
    """For how long a file has not been written, by the clock of the disk or store that holds it and no other.

    A small file is written beside it for a moment, which tells that clock. None where the file is gone or the store
    tells no times.
    """
    folder, _, name = path.rpartition("/")
    probe = join(folder, temporary_name(name))
    write_bytes(probe, b"")
    try:
        return _written(probe) - _written(path)
    except (FileNotFoundError, NotImplementedError):
        return None
    finally:
        remove(probe)


def _written(path: str) -> float:
    """When a file was written last, in seconds."""
    if not is_url(path):
        with open(path, "rb") as file:  # a file of another machine's is asked for anew when it is opened
            return os.fstat(file.fileno()).st_mtime
    fs, inner = filesystem(path)
    fs.invalidate_cache()
    return patiently(path, "read", lambda patience: patience.ask(fs, "modified", inner)).timestamp()


def list_names(folder: str) -> list[str]:
    """Names of the files and folders directly inside a folder, sorted; [] where there is no such folder."""
    if not is_url(folder):
        return sorted(os.listdir(folder)) if Path(folder).is_dir() else []
    fs, inner = filesystem(folder)
    fs.invalidate_cache()
    try:
        found = patiently(folder, "read", lambda patience: patience.ask(fs, "ls", inner, detail=False))
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found})
    except FileNotFoundError:
        return []


def remove(path: str) -> None:
    """Deletes one file, if it is there. Raises Stopped where a folder stands in its place."""
    if not is_url(path):
        try:
            Path(path).unlink(missing_ok=True)
        except IsADirectoryError as error:
            raise Stopped(f"{path} is a folder in place of a file: move it away") from error
        return
    fs, inner = filesystem(path)
    try:
        if exists(path):
            patiently(path, "delete", lambda patience: patience.ask(fs, "rm_file", inner))
    except FileNotFoundError:
        return  # gone meanwhile


def open_reading(path: str, ahead: bool = True) -> IO[bytes]:
    """A file opened for reading; object stores read ahead (manifests.read_ahead). Raises FileNotFoundError.

    ahead=False: a local file gives what is asked for and reads no more (an object store reads ahead all the same: there
    a few large requests cost less than many small ones). A pipe or device in place of a file is an OSError.
    """
    if not is_url(path):
        if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):  # `open` would wait for it
            raise OSError(errno.EINVAL, "a pipe or device in place of a file", path)
        return open(path, "rb", buffering=-1 if ahead else 0)
    from manifests.read_ahead import AheadFile  # here: it imports this module

    fs, inner = filesystem(path)
    fs.invalidate_cache(inner)
    size = patiently(path, "read", lambda patience: patience.ask(fs, "size", inner))
    return cast("IO[bytes]", AheadFile(path, [(0, size)], size))  # a RawIOBase that reads has all that readers use


def read_text(path: str | Path) -> str:
    """The text of a local file that a person wrote: UTF-8, a byte order mark allowed, line ends as they are.

    Raises OSError, also where a pipe or a device stands in its place, and UnicodeDecodeError.
    """
    with open_reading(os.path.abspath(path)) as file:
        return file.read().decode("utf-8-sig")


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
            fsync_folder(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Makes renames inside a local folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(name: str) -> str:
    """`.<name>.<host>-<pid>-<random>.tmp`: no two processes, also on different machines, share one."""
    return f".{name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())


def delete_temporaries(folder: str) -> int:
    """Deletes what killed writers left in a local folder and returns how many; what live writers hold stays."""
    if is_url(folder) or not Path(folder).is_dir():
        return 0
    found = [p for p in Path(folder).iterdir() if (match := _TEMPORARY.match(p.name)) and _is_left(p, match)]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(found)


def _is_left(path: Path, name: re.Match[str]) -> bool:
    """Whether a temporary file is abandoned: on this machine, its process has ended or is this one."""
    if name["name_and_host"].endswith(f".{_host()}"):
        return int(name["pid"]) == os.getpid() or started(int(name["pid"])) is None
    try:
        return time.time() - path.stat().st_mtime > _ELSEWHERE_SECONDS
    except FileNotFoundError:
        return False


def free_bytes(folder: str) -> int | None:
    """Free space of the disk that holds (or will hold) a local folder; None for object stores."""
    if is_url(folder):
        return None
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
