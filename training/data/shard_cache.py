"""Tars of an object store kept on a local disk, by the sha256 of their bytes: for all processes of a machine.

They lie in a folder of its own below the one that a person names, with a marker, CACHEDIR.TAG; only files with the
names that are given here are counted or deleted, and no link is followed.

`<folder>/<sha256>.tar` is whole and right or not there: it is downloaded under another name, hashed on the way and
renamed. One that is used is touched, and the one that was not for longest goes first when room is needed; who reads it
meanwhile has it open and goes on. Of processes that want the same tar one downloads it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from manifests import remote, store
from manifests.errors import Refused, Stopped
from manifests.patience import store_seconds
from manifests.read_ahead import AheadFile

FOLDER = "cross-most-cache"  # below data.cache
MARKER = "CACHEDIR.TAG"  # bford.info/cachedir: programs that make backups leave such a folder out
_SIGNATURE = b"""Signature: 8a477f597d28d172789f06886806bc55
# Tars that Cross-MoST keeps of an object store (data.cache). It deletes them when it needs room.
"""
_OWN = re.compile(r"[0-9a-f]{64}\.(tar|[0-9a-f]{8}\.tmp)")  # a tar, or one on its way
_PIECE = 1 << 20
_LOCKS = 3  # hex digits of a sha256: so many tars at once have locks of their own
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Cache:
    """A folder, local, and how many bytes of tars it may hold."""

    folder: Path
    limit: int

    def open(self, path: str, sha256: str, size: int, trusted: bool = True) -> IO[bytes]:
        """The tar at a URL, downloaded if it is not here. trusted: else one that is here is hashed first.

        Raises ValueError where it is not that of `sha256` and `size`, Stopped where the store goes on failing or the
        disk is full, FileNotFoundError where there is none.
        """
        while True:
            try:
                return self._opened(sha256, size, trusted)
            except FileNotFoundError:
                with self._locked(sha256[:_LOCKS]) as alive:
                    if self._file(sha256).is_symlink() or not self._file(sha256).exists():
                        self._download(path, sha256, size, alive)

    def discard_damaged(self, sha256: str) -> bool:
        """Deletes a tar whose bytes are others than were downloaded; whether it did."""
        with self._locked(sha256[:_LOCKS]) as alive:
            found = hashlib.sha256()
            try:
                with self._reading(sha256) as file:
                    while piece := file.read(_PIECE):
                        found.update(piece)
                        alive()
            except FileNotFoundError:
                return True
            if found.hexdigest() == sha256:
                return False
            self._file(sha256).unlink(missing_ok=True)
            return True

    def _file(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def _reading(self, sha256: str) -> IO[bytes]:
        """The file of a tar. A link in its place is none: a download replaces it."""
        try:
            return open(self._file(sha256), "rb", buffering=0, opener=_no_link)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise FileNotFoundError(self._file(sha256)) from error

    def _opened(self, sha256: str, size: int, trusted: bool) -> IO[bytes]:
        file = self._reading(sha256)
        doubtful = os.fstat(file.fileno()).st_size != size or not trusted
        if doubtful and self.discard_damaged(sha256):
            file.close()
            raise FileNotFoundError(self._file(sha256))
        os.utime(file.fileno())
        return file

    def _download(self, path: str, sha256: str, size: int, alive: Callable[[], None]) -> None:
        temporary = self.folder / f"{sha256}.{secrets.token_hex(4)}.tmp"
        found = hashlib.sha256()
        try:
            with store.stopping(str(self.folder)), ExitStack() as stack:
                with self._locked("room"):
                    self._make_room(size)
                    file = stack.enter_context(open(temporary, "wb"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as long as it is written; nobody else has it
                    file.truncate(size)  # from now on it counts
                with AheadFile(path, [(0, size + 1)], size + 1) as reading:
                    while piece := reading.read(_PIECE):
                        found.update(piece)
                        file.write(piece)
                        alive()
                if file.tell() != size or found.hexdigest() != sha256:
                    raise ValueError("damaged: its sha256 is not that of its record")
                file.flush()
                os.replace(temporary, self._file(sha256))
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Deletes what killed processes left, and tars until so many bytes more are within the limit."""
        there = sorted(self._own_files(), reverse=True)
        for _, _, path in there:
            if path.suffix == ".tmp":
                with suppress(FileNotFoundError, BlockingIOError), open(path, "rb", opener=_no_link) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
        there = [each for each in there if each[2].exists()]
        total = sum(found for _, found, _ in there) + size
        while total > self.limit and there:
            _, found, path = there.pop()
            if path.suffix == ".tar":
                path.unlink(missing_ok=True)
                total -= found

    def _own_files(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of the tars here or on their way; no links, and nothing of other names."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _OWN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)

    @contextmanager
    def _locked(self, name: str) -> Iterator[Callable[[], None]]:
        """Of all processes of this machine one at a time; the kernel lets go of the lock of one that was killed.

        Gives what the holder calls whenever it got on. Raises Stopped naming the holder where that did not for long.
        """
        path = self.folder / f"{name}.lock"
        try:
            descriptor = _no_link(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise Stopped(f"{path} is a link in place of a lock: delete it, and run the same again") from error
        try:
            _wait_for(descriptor, path)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield lambda: os.utime(descriptor)
        finally:
            os.close(descriptor)


def _no_link(path: str | Path, flags: int) -> int:
    """`os.open` that takes no link; OSError, ELOOP, where one stands there."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _wait_for(descriptor: int, path: Path) -> None:
    """Takes the lock of a file. Raises Stopped where its holder has not got on for twice as long as a store may refuse.

    The holder itself may wait that long for its store between two signs of life.
    """
    limit = 2 * store_seconds()
    sign, since = None, time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = os.fstat(descriptor).st_mtime_ns
        if now != sign:
            sign, since = now, time.monotonic()
        elif time.monotonic() - since > limit:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            raise Stopped(
                f"{path}: process {holder} holds this lock of the cache and has not got on for {limit:g} s; "
                "end it, and run the same again"
            )
        time.sleep(_POLL_SECONDS)


def open_cache(folder: str, gigabytes: float, largest: int) -> Cache:
    """The cache below a folder, which is made. largest: bytes of the largest tar that will be read.

    Raises Refused where the folder cannot be written, that tar has no room, or files of others have the cache's place.
    """
    path = Path(folder).expanduser().absolute() / FOLDER
    if remote.is_url(folder):
        raise Refused(f"data.cache={folder}: a cache is a local folder")
    if largest > gigabytes * 1e9:
        raise Refused(f"data.cache_gb={gigabytes:g}: a tar of {largest / 1e9:.3g} GB has no room in it")
    try:
        path.mkdir(parents=True, exist_ok=True)
        _mark(path)
        probe = path / store.temporary_name("probe")
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        raise Refused(f"data.cache={folder}: {getattr(error, 'strerror', None) or error}") from error
    return Cache(path, int(gigabytes * 1e9))


def _mark(folder: Path) -> None:
    """Holds a folder to be a cache's own, by its marker; an empty one gets it. Raises Refused, OSError, ValueError."""
    if folder.is_symlink():
        raise Refused(f"{folder} is a link in place of the cache's folder: delete it, or name another data.cache")
    marker = folder / MARKER
    # listed before the marker is looked at: another process may make the cache just now
    others = [name for name in os.listdir(folder) if not name.startswith(f".{MARKER}.")]
    if not others:
        store.create_bytes(str(marker), _SIGNATURE)
    if store.read_bytes(str(marker)) != _SIGNATURE:
        raise Refused(f"{folder} holds files and no {MARKER} of a cache: move them away, or name another data.cache")
