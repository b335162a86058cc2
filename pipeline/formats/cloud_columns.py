"""Decides what the columns of a table of points are: places and colours, by their names or else by their values."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pipeline.sources.raw_shape import RawShape, placed, with_places

MAX_COLUMNS = 64
_SLACK = 1e-4  # what float32 leaves of the ends of a range
GUESSED = "colours told by their values alone"
_PLACE = re.compile(
    r"(?:(?:coord(?:inate)?s?|pos(?:ition)?s?|points?|xyz|pts?|p)[ _.:-]?)?([xyz]|[012](?<=[_.:-].))"
    r"(?:[ _.-]?(?:coord(?:inate)?s?|pos(?:ition)?))?(?:[ _]?[(\[][^)\]]*[)\]]|_(?:m|mm|cm|km))?"
)
_COLOR = re.compile(r"(?:(?:diffuse|colou?rs?|col|rgba?)[ _.:-]?)?(r(?:ed)?|g(?:reen)?|b(?:lue)?|[012](?<=[_.:-].))f?")
_AXES = {"x": 0, "y": 1, "z": 2, "0": 0, "1": 1, "2": 2}
_CHANNELS = {"r": 0, "g": 1, "b": 2, "0": 0, "1": 1, "2": 2}


def is_place(name: str) -> bool:
    """Whether a column's name is one of x, y and z."""
    return _PLACE.fullmatch(name.strip().lower()) is not None


def named_cloud(columns: Sequence[np.ndarray], names: Sequence[str]) -> RawShape:
    """A cloud of columns (N,) that have names; those that are neither place nor colour are passed over and counted.

    Raises ValueError, with the names, when they do not tell x, y and z.
    """
    place = _found(names, _PLACE, _AXES)
    if None in place:
        seen = ", ".join(name.strip() or "(no name)" for name in names)[:100]
        raise ValueError(f"its columns are named {seen}; x, y and z are needed")
    points = np.stack([as_float64(columns[i]) for i in place if i is not None], axis=1)
    found = _found(names, _COLOR, _CHANNELS)
    values = [as_float64(columns[i]) for i in found if i is not None]
    colors = None if len(values) < 3 else scaled_colors(np.stack(values, axis=1), placed(points))
    over = len(columns) - 3 - (0 if colors is None else 3)
    return with_places(RawShape(points=points, colors=colors, warnings={"columns passed over": over} if over else {}))


def as_float64(values: np.ndarray) -> np.ndarray:
    """The same numbers in float64."""
    with np.errstate(invalid="ignore"):  # some NaN are said to be signals
        return values.astype(np.float64)


def _found(names: Sequence[str], pattern: re.Pattern[str], roles: dict[str, int]) -> list[int | None]:
    """Which columns are the three of a kind. A name without prefix or suffix goes before others, else the first."""
    found: list[int | None] = [None] * 3
    plain = [False] * 3
    for number, name in enumerate(name.strip().lower() for name in names):
        match = pattern.fullmatch(name)
        if match:
            role, is_plain = roles[match[1][0]], name in ("x", "y", "z", "r", "g", "b", "red", "green", "blue")
            if found[role] is None or (is_plain and not plain[role]):
                found[role], plain[role] = number, is_plain
    return found


def scaled_colors(values: np.ndarray, there: np.ndarray) -> np.ndarray | None:
    """uint8 (N, 3) of columns that are named as colours, of 0..1, 0..255 or 0..65535, else None.

    there: bool (N,), the rows whose range counts; the others are left out later.
    """
    seen = values[there]
    if not len(seen) or not np.isfinite(seen).all() or seen.min() < -_SLACK or seen.max() > 65535:
        return None
    scale = 255.0 if seen.max() <= 1 + _SLACK else 1.0 if seen.max() < 255.5 else 255 / 65535
    return np.rint(np.clip(np.where(there[:, None], values, 0) * scale, 0, 255)).astype(np.uint8)


def unnamed_cloud(rows: np.ndarray, intensity_first: bool = False) -> RawShape:
    """A cloud of rows float64 (N, 3 or more) that begin with x, y and z.

    Colours stand behind the place, behind a normal (x y z nx ny nz r g b) or behind an intensity (x y z i r g b): where
    the values are those of colours. intensity_first: of seven columns the fourth is one, as in a .pts file.
    """
    width = rows.shape[1]
    if width > MAX_COLUMNS or (len(rows) < 10 and width > 12):
        raise ValueError(f"{len(rows):,} rows of {width:,} columns: points are rows of x, y and z (transpose it?)")
    if width < 3:
        raise ValueError(f"{width} columns; x, y and z are needed")
    points, rest = rows[:, :3], rows[:, 3:]
    there = placed(points)
    start, guessed = _color_start(rest[there], intensity_first) if there.any() else (None, False)
    colors = None if start is None else scaled_colors(rest[:, start : start + 3], there)
    over = rest.shape[1] - (0 if colors is None else 3)
    warnings = {"columns passed over": over} if over else {}
    if colors is not None and guessed:
        warnings[GUESSED] = 1
    return with_places(RawShape(points=points, colors=colors, warnings=warnings))


def _color_start(rest: np.ndarray, intensity_first: bool) -> tuple[int | None, bool]:
    """Where three columns of colours begin among those behind the place, if anywhere; whether it might be otherwise."""
    width = rest.shape[1]
    if intensity_first and width == 4:
        starts = [1]
    else:
        starts = [start for start in (0, 1, 3) if start + 3 <= width]
        if width >= 4 and _are_normals(rest[:, :3]):
            starts.remove(1)
    evidence = {start: _evidence(rest[:, start : start + 3]) for start in starts}
    best = max(evidence.values(), default=0)
    chosen = [start for start in starts if evidence[start] == best] if best else []
    if not chosen:
        return None, False
    if chosen[:2] != [0, 1]:
        return chosen[0], best == 1
    # x y z i r g b or x y z r g b and an alpha or label, of which the latter has another number of values than the
    # two in the middle have
    counts = [np.log(len(np.unique(rest[:, column]))) for column in range(4)]
    first, last = (abs(counts[end] - (counts[1] + counts[2]) / 2) for end in (0, 3))
    return int(last - first < np.log(2)), best == 1 or abs(last - first) < np.log(2)


def _evidence(values: np.ndarray) -> int:
    """2 where three columns have the values of colours, 1 where they may be colours, 0 where they are none."""
    if not np.isfinite(values).all() or values.min() < -_SLACK or values.max() >= 255.5:
        return 0
    if values.max() > 1 + _SLACK:
        return 2 if (values == np.rint(values)).all() else 1
    return 0 if _are_normals(values) else 2


def _are_normals(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool((np.abs(np.linalg.norm(values, axis=1) - 1) < 1e-3).mean() > 0.9)
