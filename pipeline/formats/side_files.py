"""Finds the files that a mesh refers to (textures, materials, buffers); they must lie inside the source folder.

Every repair of a name is a warning: one of the words below, counted.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

TEXTURE_MISSING = "texture not found"  # the material's own colour is drawn
PATH_OUTSIDE = "path outside the folder"  # absolute, or above the model's folder: not opened
PATH_REPAIRED = "path repaired"  # backslashes, letter case, or a name found beside the mesh or in its images

_BESIDE = (".", "images", "textures", "../images", "../textures")


@dataclass
class SideFiles:
    """Finds what a mesh file refers to: relative to `folder` (the mesh's own), inside `root`.

    A link that leads out of `root` is not followed.
    warnings: type -> count of what was mended or not found.
    """

    folder: Path
    root: Path
    warnings: Counter[str] = field(default_factory=Counter)

    def find(self, name: str, missing: str = TEXTURE_MISSING, instead: str = "") -> Path | None:
        """The file that a name means, or None with the warning `missing`, or PATH_OUTSIDE, counted.

        instead: a name that is tried last.
        """
        written = name.strip()
        name = written.strip('"').strip()
        path = name.replace("\\", "/")
        outside = path.startswith(("/", "~")) or bool(PureWindowsPath(name).drive) or "\0" in path
        if not outside:
            exact = self._inside(self.folder / path)
            if exact is not None:
                self.warnings.update([PATH_REPAIRED] * (path != written))
                return exact
            outside = not _real(self.folder / path).is_relative_to(_real(self.root))
        mended = None if outside else self._any_case(path) or ("%" in path and self._any_case(unquote(path))) or None
        last = path.replace("\0", "").rstrip("/").rpartition("/")[2]
        for other in [f"{folder}/{last}" for folder in _BESIDE if last not in ("", ".", "..")] + [instead]:
            mended = mended or (self._any_case(other) if other else None)
        self.warnings[PATH_REPAIRED if mended else PATH_OUTSIDE if outside else missing] += 1
        return mended

    def _inside(self, path: Path) -> Path | None:
        """The real path of a file that lies in `root`, or None."""
        real = _real(path)
        try:
            return real if real.is_relative_to(_real(self.root)) and real.is_file() else None
        except OSError:  # a name that is too long
            return None

    def _any_case(self, path: str) -> Path | None:
        """The file at a path in any letter case, or None. Folders above `root` are not listed."""
        here, root = _real(self.folder), _real(self.root)
        for part in path.split("/"):
            if part == "..":
                here = here.parent
            elif part not in ("", "."):
                names = os.listdir(here) if here.is_dir() else []
                same = [name for name in names if name.casefold() == part.casefold()]
                if not same:
                    return None
                here = _real(here / (part if part in same else min(same)))
            if not here.is_relative_to(root):
                return None
        return self._inside(here)


def _real(path: Path) -> Path:
    """The path without links; Path.resolve raises where they lead in a circle."""
    return Path(os.path.realpath(path))
