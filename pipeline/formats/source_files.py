"""Lists and reads the files of a source, and never reads outside it.

A link that leads out of the source, a pipe and a folder in place of a file are reasons for a Failure. Nothing in a
source is ever written. Links to folders are listed as links and not followed.

Readers pass what they read through `noted`, so that an object can say which bytes it was made of (`watched`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_PASSED_OVER = (".", "__MACOSX")  # hidden files, and what a Mac puts into archives
_MESHES = (
    *(".off", ".obj", ".ply", ".stl", ".glb", ".gltf", ".fbx", ".dae", ".usd", ".usda", ".usdc", ".usdz", ".blend"),
    *(".3ds", ".3mf", ".max", ".c4d", ".ma", ".mb", ".skp", ".lwo", ".x3d", ".x3db", ".x3dv", ".wrl", ".vrml", ".vtk"),
    *(".vtp", ".abc", ".amf", ".msh", ".step", ".stp", ".iges", ".igs", ".brep", ".drc", ".vrm"),
)
_CLOUDS = (".pcd", ".npy", ".npz", ".xyz", ".pts", ".ptx", ".las", ".laz", ".e57", ".asc", ".h5", ".hdf5", ".mat")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")
SHAPES = (*_MESHES, *_CLOUDS, *(a + b for a in (*_MESHES, *_CLOUDS, ".txt", ".csv") for b in _PACKED))


class Fingerprint(NamedTuple):
    """What an object was made of: how many bytes, and their sha256 (that of a file, where they are one file's).

    Of several files (a mesh, its .mtl, its textures) it is the sha256 of their hex digests, one after the other in the
    order in which they are first read.
    """

    bytes: int
    sha256: str


class SeenEnough(BaseException):
    """The bytes so far are those that were expected: the rest of a reader's work is spared. No library may catch it."""


@dataclass
class SourceBytes:
    """The bytes of a source that were read, file by file.

    until: once they have this fingerprint, `seen` is set and SeenEnough raised.
    """

    until: Fingerprint | None = None
    seen: bool = False
    _size: int = 0
    _digests: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, data: bytes) -> None:
        """Counts a file or a row; one that is read twice counts once."""
        if name not in self._digests:
            self._size += len(data)
            self._digests[name] = hashlib.sha256(data).hexdigest()
            if self.until is not None and self.fingerprint == self.until:
                self.seen = True
                raise SeenEnough

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Of all bytes so far, None before the first."""
        digests = list(self._digests.values())
        if not digests:
            return None
        whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return Fingerprint(self._size, whole)


_WATCHED: ContextVar[SourceBytes | None] = ContextVar("bytes of a source", default=None)


@contextmanager
def watched(until: Fingerprint | None = None) -> Iterator[SourceBytes]:
    """Collects what is read of a source in the block."""
    found = SourceBytes(until)
    token = _WATCHED.set(found)
    try:
        yield found
    finally:
        _WATCHED.reset(token)


def noted(name: str | Path, data: bytes) -> bytes:
    """The same bytes, counted for the block of `watched` around it. name: of the file or row that they are."""
    found = _WATCHED.get()
    if found is not None:
        found.add(str(name), data)
    return data


def list_files(root: Path, suffixes: Collection[str]) -> Iterator[str]:
    """Paths relative to `root` (with `/`) of all files with these suffixes (lower case, any in the file), sorted.

    Links to folders are listed too: they are not followed, and who reads them says so. Files are not opened.
    """
    wanted = tuple(suffixes)
    todo, found = [""], []
    while todo:
        inside = todo.pop()
        with os.scandir(os.path.join(root, inside)) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(_PASSED_OVER):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    todo.append(f"{inside}{name}/")
                elif name.lower().endswith(wanted) or (entry.is_symlink() and os.path.isdir(entry.path)):
                    found.append(inside + name)
    return iter(sorted(found, key=lambda path: path.split("/")))


def passed_over_files(root: Path, wanted: Collection[str]) -> dict[str, int]:
    """How many files below `root` are shapes by their suffix and have none of the wanted ones: suffix -> files.

    The most frequent come first. What is packed (.ply.gz) counts as its two suffixes together.
    """
    others = tuple(suffix for suffix in SHAPES if suffix not in wanted)
    found: Counter[str] = Counter()
    for path in list_files(root, others):
        name = path.rpartition("/")[2].lower()
        found.update(suffix for suffix in others if name.endswith(suffix))
    return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))


def in_words(passed_over: dict[str, int]) -> str:
    """`12 files passed over: 7 .fbx, 5 .las` of the files of each suffix; empty where there are none."""
    if not passed_over:
        return ""
    total = sum(passed_over.values())
    kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in passed_over.items())
    return f"{total:,} {'file' if total == 1 else 'files'} passed over: {kinds}"


def plain_name(path: str) -> str:
    """A path as text that can be stored: bytes that are no UTF-8 become `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def source_file(root: Path, relative: str) -> Path:
    """The file of a source at a path relative to it. Raises ValueError when it leads out or is no file."""
    if os.path.isabs(relative) or "\0" in relative:
        raise ValueError(f"{relative[:100]!r} is no path inside the source")
    path = root / relative
    try:
        real, inside = path.resolve(strict=True), root.resolve()
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        if "\\x" in relative:
            raise ValueError("its name is not UTF-8: rename the file") from error
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or 'links in a circle'}") from error
    if not real.is_relative_to(inside):
        raise ValueError("leads out of the source folder")
    if stat.S_ISDIR(mode):
        raise ValueError("a link to a folder is not followed" if path.is_symlink() else "a folder in place of a file")
    if not stat.S_ISREG(mode):
        raise ValueError("a pipe or device in place of a file")
    return path


def read_source(root: Path, relative: str) -> bytes:
    """The bytes of one file of a source, noted. Raises ValueError as `source_file`, and when it is empty."""
    path = source_file(root, relative)
    try:
        data = noted(path, path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if not data.strip():
        raise ValueError("the file is empty")
    return data
