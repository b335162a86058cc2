"""Keeps tars of an object store on a local disk, by their sha256, for all processes of a machine.

The cache has a folder of its own below the one in data.cache, with a marker, CACHEDIR.TAG. It counts and deletes only
files that have the names of its tars, and follows no link.

`<folder>/<sha256>.tar` is always complete: a tar is downloaded under another name, hashed meanwhile, then renamed. Each
use updates its time, and the tar that was not used for longest is deleted first; a process that reads it goes on, since
it has the file open. If several processes want the same tar, only one downloads it.
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
_OWN = re.compile(r"[0-9a-f]{64}\.(tar|[0-9a-f]{8}\.tmp)")  # a tar, or an unfinished download
_PIECE = 1 << 20
_LOCKS = 3  # hex digits of a sha256 that name a lock: 4,096 locks for all tars
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Cache:
    """A local folder. limit: bytes of tars that it may hold."""

    folder: Path
    limit: int

    def open(self, path: str, sha256: str, size: int, trusted: bool = True) -> IO[bytes]:
        """Opens the tar of a URL, after a download if it is not here. trusted: else a tar that is here is hashed first.

        Raises ValueError where the download does not have `sha256` and `size`, FileNotFoundError where the store has no
        such file, Stopped where the store goes on failing or the disk is full.
        """
        while True:
            try:
                return self._opened(sha256, size, trusted)
            except FileNotFoundError:
                with self._locked(sha256[:_LOCKS]) as alive:
                    if self._file(sha256).is_symlink() or not self._file(sha256).exists():
                        self._download(path, sha256, size, alive)

    def discard_damaged(self, sha256: str) -> bool:
        """Deletes a tar whose bytes have changed since the download. Gives whether the tar is gone."""
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
        """Opens the file of a tar. FileNotFoundError also for a link in its place, which a download replaces."""
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
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # while it is written; its name is new
                    file.truncate(size)  # other processes count its size from now on
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
        """Deletes what killed processes left, then tars, until `size` more bytes are within the limit."""
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
        """(time of last use, bytes, path) of all tars here, complete or not; no links and no files of other names."""
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
        """A lock between the processes of this machine; the kernel releases that of a killed process.

        Gives a function that the holder calls whenever it made progress. Raises Stopped, naming the holder, where that
        made no progress for long.
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
    """`os.open` that refuses a link: OSError with errno ELOOP."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _wait_for(descriptor: int, path: Path) -> None:
    """Takes the lock of a file. Raises Stopped where its holder makes no progress for twice the patience with a store.

    Between two signs of progress the holder itself may wait that long for its store.
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
    """Makes or opens the cache below a folder. largest: bytes of the largest tar that will be read.

    Raises Refused where the folder cannot be written, that tar does not fit, or other files are in the cache's place.
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
    """Checks that a folder has the marker of a cache; an empty one gets it. Raises Refused, OSError, ValueError."""
    if folder.is_symlink():
        raise Refused(f"{folder} is a link in place of the cache's folder: delete it, or name another data.cache")
    marker = folder / MARKER
    # listed before the marker is read: another process may be making the cache
    others = [name for name in os.listdir(folder) if not name.startswith(f".{MARKER}.")]
    if not others:
        store.create_bytes(str(marker), _SIGNATURE)
    if store.read_bytes(str(marker)) != _SIGNATURE:
        raise Refused(f"{folder} holds files and no {MARKER} of a cache: move them away, or name another data.cache")
