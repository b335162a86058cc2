"""Lists and reads the files of a source, and never reads outside it.

Links may lead to files inside the source, and to files and folders inside those that a person names (`--follow-links`,
`following`). A source whose links lead elsewhere is refused before any work. A pipe and a folder in place of a file are
reasons for a Failure. Nothing in a source is ever written.

Readers pass what they read through `noted`, so that an object can say which bytes it was made of (`watched`).
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from manifests.errors import Refused

_PASSED_OVER = (".", "__MACOSX")  # hidden files, and what a Mac puts into archives
_MESHES = (
    *(".off", ".obj", ".ply", ".stl", ".glb", ".gltf", ".fbx", ".dae", ".usd", ".usda", ".usdc", ".usdz", ".blend"),
    *(".3ds", ".3mf", ".max", ".c4d", ".ma", ".mb", ".skp", ".lwo", ".x3d", ".x3db", ".x3dv", ".wrl", ".vrml", ".vtk"),
    *(".vtp", ".abc", ".amf", ".msh", ".step", ".stp", ".iges", ".igs", ".brep", ".drc", ".vrm"),
)
_CLOUDS = (".pcd", ".npy", ".npz", ".xyz", ".pts", ".ptx", ".las", ".laz", ".e57", ".asc", ".h5", ".hdf5", ".mat")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")
SHAPES = (*_MESHES, *_CLOUDS, *(a + b for a in (*_MESHES, *_CLOUDS, ".txt", ".csv") for b in _PACKED))
_BESIDE = (".mtl", ".bin", ".png", ".jpg", ".jpeg", ".bmp", ".tga", ".tif", ".tiff", ".gif", ".webp", ".ktx2", ".dds")
_NAMED = 4  # folders that a refusal names one by one


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


_FOLLOWED: ContextVar[tuple[str, ...]] = ContextVar("folders that links of a source may lead into", default=())


@contextmanager
def following(folders: Sequence[str]) -> Iterator[None]:
    """Lets links of a source, and paths in its files, lead into these folders (real paths) in the block."""
    token = _FOLLOWED.set(tuple(folders))
    try:
        yield
    finally:
        _FOLLOWED.reset(token)


def followed() -> tuple[str, ...]:
    """The folders of the block of `following` around this, for the plan: workers are other processes."""
    return _FOLLOWED.get()


def linked_folders(values: Iterable[str]) -> tuple[str, ...]:
    """The real paths of the folders that `--follow-links` names: one a value, or several with commas between them.

    Raises Refused where one is no folder.
    """
    parts = [part for value in values for part in ([value] if os.path.isdir(value) else value.split(","))]
    for part in parts:
        if not os.path.isdir(part):
            raise Refused(f"--follow-links {part or repr(part)}: no such folder")
    return tuple(dict.fromkeys(os.path.realpath(part) for part in parts))


def is_followed(real: str | Path) -> bool:
    """Whether a real path lies in a folder that a person named."""
    return any(Path(real).is_relative_to(folder) for folder in _FOLLOWED.get())


def stays_inside(real: str | Path, root: Path) -> bool:
    """Whether a real path lies in a source, or in a folder that its links may lead into."""
    return Path(real).is_relative_to(os.path.realpath(root)) or is_followed(real)


def list_files(root: Path, suffixes: Collection[str]) -> Iterator[str]:
    """Paths relative to `root` (with `/`) of all files with these suffixes (lower case, any in the file), sorted.

    A linked folder is entered where `following` lets it, each once. Other linked folders inside the source are listed
    themselves, and `source_file` says why they are not read. Files are not opened. Raises Refused where links lead out.
    """
    wanted = tuple(suffixes)
    todo, links, found = [""], list[str](), list[str]()
    entered, out = set[str](), dict[str, str]()
    while todo or links:
        if not todo:  # what lies in the source itself comes first, then the links in their order
            links.sort(reverse=True)
            link = links.pop()
            real = os.path.realpath(os.path.join(root, link))
            if real in entered or _leads_up(os.path.join(root, link), real):
                found.append(link)
                continue
            entered.add(real)
            todo.append(f"{link}/")
        inside = todo.pop()
        with os.scandir(os.path.join(root, inside)) as entries:
            for entry in entries:
                name, is_link = entry.name, entry.is_symlink()
                if name.startswith(_PASSED_OVER):
                    continue
                is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
                matters = is_folder or name.lower().endswith(wanted + _BESIDE if is_link else wanted)
                real = os.path.realpath(entry.path) if is_link and matters else ""
                if real and os.path.exists(real) and not stays_inside(real, root):
                    out[inside + name] = real if is_folder else os.path.dirname(real)
                elif is_folder and not is_link:
                    todo.append(f"{inside}{name}/")
                elif is_folder and is_followed(real):
                    links.append(inside + name)
                elif is_folder or name.lower().endswith(wanted):
                    found.append(inside + name)
    if out:
        raise Refused(_leading_out(root, out, len(found) + len(out), "files and linked folders"))
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


def _leads_up(link: str, real: str) -> bool:
    """Whether a link leads to a folder above itself: who followed it would come by here again."""
    return Path(os.path.realpath(os.path.dirname(link))).is_relative_to(real)


def subfolders(root: Path, folder: Path) -> list[str]:
    """Names of the folders in a folder of a source, sorted; hidden ones and links inside the source are passed over.

    Raises Refused where a linked one leads out.
    """
    found, out = list[str](), dict[str, str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_PASSED_OVER) or not os.path.isdir(entry.path):
                continue
            real = os.path.realpath(entry.path) if entry.is_symlink() else ""
            if not real or (is_followed(real) and not _leads_up(entry.path, real)):
                found.append(entry.name)
            elif not stays_inside(real, root):
                out[os.path.relpath(entry.path, root)] = real
    if out:
        raise Refused(_leading_out(root, out, len(found) + len(out), "folders"))
    return sorted(found)


def refuse_links(root: Path, sources: Collection[str], what: str = "objects") -> None:
    """Raises Refused where links of these paths (relative to `root`) lead out: every such object would be a Failure.

    A path that is absolute or names no file is left to its reader. Each folder is looked at once.
    """
    by_folder: dict[str, list[str]] = {}
    for source in sources:
        folder, _, name = source.rpartition("/")
        if os.path.isabs(source):
            continue
        by_folder.setdefault(folder, []).append(name)
    out: dict[str, str] = {}
    top = os.path.realpath(root)
    for folder, names in by_folder.items():
        path = os.path.join(top, folder)
        real = os.path.realpath(path)
        if not os.path.isdir(real):
            continue
        if not real.startswith(top + os.sep) and not stays_inside(real, root):
            target = _link_out(root, folder) or real
            out |= {f"{folder}/{name}".removeprefix("/"): target for name in names}
            continue
        with os.scandir(path) as entries:
            links = {entry.name for entry in entries if entry.is_symlink()}
        for name in links.intersection(names):
            real = os.path.realpath(os.path.join(path, name))
            if os.path.exists(real) and not stays_inside(real, root):
                out[f"{folder}/{name}".removeprefix("/")] = real if os.path.isdir(real) else os.path.dirname(real)
    if out:
        raise Refused(_leading_out(root, out, len(sources), what))


def _link_out(root: Path, folder: str) -> str | None:
    """Where the topmost link on the way to a folder leads that leads out of the source; None where `..` leads out."""
    parts = folder.split("/")
    above = (os.path.realpath(os.path.join(root, *parts[: n + 1])) for n in range(len(parts)))
    return None if ".." in parts else next((real for real in above if not stays_inside(real, root)), None)


def _leading_out(root: Path, out: dict[str, str], total: int, what: str) -> str:
    """The one line for links that lead out. out: the path of each -> the folder that it leads into."""
    folders = sorted(set(out.values()))
    common = os.path.commonpath(folders)
    if common == os.path.sep or Path(os.path.realpath(root)).is_relative_to(common):  # too wide a permission
        more = f" and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
    else:
        folders, more = [common], ""
    flags = " ".join(f"--follow-links {shlex.quote(folder)}" for folder in folders[:_NAMED])
    first = min(out)
    return (
        f"{root}: a link leads out of the source for {len(out):,} of {total:,} {what}, such as {plain_name(first)} "
        f"into {out[first]}: to read them add {flags}{more}"
    )


def plain_name(path: str) -> str:
    """A path as text that can be stored: bytes that are no UTF-8 become `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def source_file(root: Path, relative: str) -> Path:
    """The file of a source at a path relative to it, named as its link is. Raises ValueError when it leads out or is no
    file."""
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
    if not real.is_relative_to(inside) and not is_followed(real):
        raise ValueError(f"leads out of the source folder (--follow-links {shlex.quote(str(real.parent))} allows it)")
    if stat.S_ISDIR(mode):
        raise ValueError(_why_no_file(path, real))
    if not stat.S_ISREG(mode):
        raise ValueError("a pipe or device in place of a file")
    return path


def _why_no_file(path: Path, real: Path) -> str:
    """What is wrong with a folder in the place of a file, or with a link to one that `list_files` does not enter."""
    if not path.is_symlink():
        return "a folder in place of a file"
    if _leads_up(str(path), str(real)):
        return "a link to a folder above it: links in a circle"
    if is_followed(real):
        return "a link to a folder that another link leads to: read there"
    return f"a link to a folder is not followed (--follow-links {shlex.quote(str(real))} allows it)"


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
