"""Where the files of a release lie: its folder inside the source, and the files that its own lists name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

from manifests.errors import Refused
from pipeline.sources.source_files import read_source, refuse_links, subfolders

_DEPTH = 3  # SOURCE/data/modelnet40_ply_hdf5_2048


def folders(root: Path, fits: Callable[[Path], bool]) -> list[Path]:
    """The source and the folders in it, three levels deep, for which `fits` is true, sorted.

    Raises Refused where links of these folders, or of their files, lead out of the source.
    """
    found, level = [], [root]
    for _ in range(_DEPTH):
        found += [folder for folder in level if fits(folder)]
        level = [folder / name for folder in level for name in subfolders(root, folder)]
    paths = [path for folder in found for path in folder.iterdir() if not path.is_dir()]
    refuse_links(root, [path.relative_to(root).as_posix() for path in paths], "files")
    return sorted(found)


def only_folder(root: Path, fits: Callable[[Path], bool], what: str, example: str) -> Path:
    """The one folder that fits. Raises Refused, with an example of its files, where no folder or several fit."""
    found = folders(root, fits)
    if not found:
        raise Refused(f"no {what} in {root}: expected files such as {example}")
    if len(found) > 1:
        names = ", ".join(str(folder) for folder in found[:4])
        raise Refused(f"several copies of {what} in {root}: give --source one of {names}")
    return found[0]


def read_lines(root: Path, path: Path) -> list[str]:
    """Lines of a small text file of a source, without those that are empty. Raises Refused when it cannot be read."""
    try:
        text = read_source(root, path.relative_to(root).as_posix()).decode("utf-8-sig")
    except ValueError as error:
        raise Refused(f"{path}: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def listed_files(root: Path, folder: Path, list_name: str, pattern: str) -> list[str]:
    """Paths, relative to `root`, of a split's files that are there: as its list names them, else by their numbers.

    Lists name files from where their owners had them (`data/modelnet40_ply_hdf5_2048/ply_data_train0.h5`): only the
    name counts, and the file is looked for beside the list. pattern: of the names, where there is no list.
    """
    if (folder / list_name).is_file():
        names = [re.split(r"[/\\]", line)[-1] for line in read_lines(root, folder / list_name)]
        twice = next((name for name, times in Counter(names).items() if times > 1), None)
        if twice is not None:
            raise Refused(f"{folder / list_name} names {twice[:80]} twice")
    else:
        names = sorted((path.name for path in folder.glob(pattern)), key=by_number)
    inside = folder.relative_to(root).as_posix()
    return [f"{inside}/{name}".removeprefix("./") for name in names if os.path.isfile(folder / name)]


def by_number(name: str) -> list[object]:
    """A key that sorts train2 before train10."""
    return [int(part[:18]) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def require_order(root: Path, path: Path, classes: tuple[str, ...]) -> None:
    """Raises Refused when a release's own list of classes, where it has one, is not in the table's order."""
    if not path.is_file():
        return
    names = [line.split()[0] for line in read_lines(root, path)]
    pairs = zip_longest((n.lower() for n in names), (c.lower() for c in classes))
    wrong = next(((row, a, b) for row, (a, b) in enumerate(pairs) if a != b), None)
    if wrong is not None:
        row, name, expected = wrong
        order = "in another order" if {n.lower() for n in names} == {c.lower() for c in classes} else "not those known"
        raise Refused(
            f"{path}: its {len(names)} classes are {order}: number {row} is {(name or 'missing')[:60]}, "
            f"{expected or f'none of {len(classes)}'} is expected"
        )
