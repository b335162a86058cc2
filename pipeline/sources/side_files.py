"""Finds the files that a mesh refers to (textures, materials, buffers); they must lie inside the source folder, or in a
folder that its links may lead into (`source_files.following`).

Every repair of a name is a warning: one of the words below, counted.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from pipeline.sources.source_files import is_followed, stays_inside

TEXTURE_MISSING = "texture not found"  # the material's own colour is drawn
PATH_OUTSIDE = "path outside the folder"  # absolute, or above the model's folder: not opened
PATH_REPAIRED = "path repaired"  # backslashes, letter case, or a name found beside the mesh or in its images

_BESIDE = (".", "images", "textures", "../images", "../textures")


@dataclass
class SideFiles:
    """Finds what a mesh file refers to: relative to `folder` (the mesh's own), inside `root`.

    A link that leads out of `root` is followed into folders that a person named, and nowhere else.
    warnings: type -> count of what was mended or not found. behind: of a mesh that is a link, the folder where it leads
    to, which is searched where `folder` does not have the file.
    """

    folder: Path
    root: Path
    warnings: Counter[str] = field(default_factory=Counter)
    behind: Path | None = None

    @classmethod
    def of(cls, mesh: Path, root: Path) -> SideFiles:
        """Of a mesh file, which may be a link: what lies beside the link goes before what lies where it leads to."""
        folder, behind = _real(mesh.parent), _real(mesh).parent
        return cls(folder, root, behind=None if behind == folder else behind)

    def find(self, name: str, missing: str = TEXTURE_MISSING, instead: str = "") -> Path | None:
        """The file that a name means, or None with the warning `missing`, or PATH_OUTSIDE, counted.

        instead: a name that is tried last.
        """
        written = name.strip()
        name = written.strip('"').strip()
        path = name.replace("\\", "/")
        outside = path.startswith("~") or bool(PureWindowsPath(name).drive) or "\0" in path
        outside = outside or (path.startswith("/") and not is_followed(_real(Path(path))))
        if not outside:
            exact = self._inside(self.folder / path) or (self.behind and self._inside(self.behind / path))
            if exact:
                self.warnings.update([PATH_REPAIRED] * (path != written))
                return exact
            outside = not stays_inside(_real(self.folder / path), self.root)
        mended = None if outside else self._any_case(path) or ("%" in path and self._any_case(unquote(path))) or None
        last = path.replace("\0", "").rstrip("/").rpartition("/")[2]
        for other in [f"{folder}/{last}" for folder in _BESIDE if last not in ("", ".", "..")] + [instead]:
            mended = mended or (self._any_case(other) if other else None)
        self.warnings[PATH_REPAIRED if mended else PATH_OUTSIDE if outside else missing] += 1
        return mended

    def _inside(self, path: Path) -> Path | None:
        """The path of a file that lies in `root`, or None: a link by its own name, in the real path of its folder."""
        real = _real(path)
        try:
            if not stays_inside(real, self.root) or not real.is_file():
                return None
            return _real(path.parent) / path.name if path.is_symlink() else real
        except OSError:  # a name that is too long
            return None

    def _any_case(self, path: str) -> Path | None:
        """The file at a path in any letter case, or None. Folders above `root` are not listed."""
        found = self._any_case_in(_real(self.folder), path)
        return self._any_case_in(self.behind, path) if found is None and self.behind is not None else found

    def _any_case_in(self, here: Path, path: str) -> Path | None:
        for part in path.split("/"):
            if part == "..":
                here = here.parent
            elif part not in ("", "."):
                names = os.listdir(here) if here.is_dir() else []
                same = [name for name in names if name.casefold() == part.casefold()]
                if not same:
                    return None
                here = here / (part if part in same else min(same))
                here = _real(here) if here.is_dir() else here
            if not stays_inside(_real(here), self.root):
                return None
        return self._inside(here)


def _real(path: Path) -> Path:
    """The path without links; Path.resolve raises where they lead in a circle."""
    return Path(os.path.realpath(path))
