"""Tars of an object store kept on a local disk, by the sha256 of their bytes: for all processes of a machine.

`<folder>/<sha256>.tar` is whole and right or not there: it is downloaded under another name, hashed on the way and
renamed. One that is used is touched, and the one that was not for longest goes first when room is needed; who reads it
meanwhile has it open and goes on. Of processes that want the same tar one downloads it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from manifests import store
from manifests.ahead import AheadFile
from manifests.errors import Refused

_PIECE = 4 << 20
_LOCKS = 3  # hex digits of a sha256: so many tars at once have locks of their own


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
                with self._locked(sha256[:_LOCKS]):
                    if not self._file(sha256).exists():
                        self._download(path, sha256, size)

    def discard_damaged(self, sha256: str) -> bool:
        """Deletes a tar whose bytes are others than were downloaded; whether it did."""
        with self._locked(sha256[:_LOCKS]):
            try:
                with open(self._file(sha256), "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                        return False
            except FileNotFoundError:
                return True
            self._file(sha256).unlink(missing_ok=True)
            return True

    def _file(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def _opened(self, sha256: str, size: int, trusted: bool) -> IO[bytes]:
        file = open(self._file(sha256), "rb", buffering=0)  # noqa: SIM115
        doubtful = os.fstat(file.fileno()).st_size != size or not trusted
        if doubtful and self.discard_damaged(sha256):
            file.close()
            raise FileNotFoundError(self._file(sha256))
        os.utime(file.fileno())
        return file

    def _download(self, path: str, sha256: str, size: int) -> None:
        temporary = self.folder / f"{sha256}.{secrets.token_hex(4)}.tmp"
        found = hashlib.sha256()
        try:
            with store.stopping(str(self.folder)), ExitStack() as stack:
                with self._locked("room"):
                    self._make_room(size)
                    file = stack.enter_context(open(temporary, "wb"))
                    fcntl.flock(file, fcntl.LOCK_EX)  # as long as it is written
                    file.truncate(size)  # from now on it counts
                with AheadFile(path, [(0, size + 1)], size + 1) as reading:
                    while piece := reading.read(_PIECE):
                        found.update(piece)
                        file.write(piece)
                if file.tell() != size or found.hexdigest() != sha256:
                    raise ValueError("damaged: its sha256 is not that of its record")
                file.flush()
                os.replace(temporary, self._file(sha256))
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Deletes what killed processes left, and tars until so many bytes more are within the limit."""
        for path in self.folder.glob("*.tmp"):
            with suppress(FileNotFoundError, BlockingIOError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        there = sorted(self._sizes(), reverse=True)
        total = sum(found for _, found, _ in there) + size
        while total > self.limit and there:
            _, found, path = there.pop()
            if path.suffix == ".tar":
                path.unlink(missing_ok=True)
                total -= found

    def _sizes(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of the tars here or on their way."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith((".tar", ".tmp")):
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        continue
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Of all processes of this machine one at a time; the kernel lets go of the lock of one that was killed."""
        descriptor = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def open_cache(folder: str, gigabytes: float, largest: int) -> Cache:
    """The cache of a folder, which is made. largest: bytes of the largest tar that will be read.

    Raises Refused where the folder cannot be written, or that tar has no room.
    """
    path = Path(folder).expanduser().absolute()
    if store.is_url(folder):
        raise Refused(f"data.cache={folder}: a cache is a local folder")
    if largest > gigabytes * 1e9:
        raise Refused(f"data.cache_gb={gigabytes:g}: a tar of {largest / 1e9:.3g} GB has no room in it")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / store.temporary_name("probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Refused(f"data.cache={folder}: {error.strerror or error}") from error
    return Cache(path, int(gigabytes * 1e9))
