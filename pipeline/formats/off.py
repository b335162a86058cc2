"""Reads OFF files, tolerant of what real ones get wrong.

ModelNet's files run the keyword and the counts together (`OFF3514 3546 0`), and other tools write comments, blank
lines, polygons, colours and normals, or a face over several lines.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter

import numpy as np

from pipeline.formats.polygons import TOO_FEW_CORNERS, spread, triangulate
from pipeline.sources.raw_shape import (
    RawShape,
    counted,
    display_colors,
    face_colored,
    plain_nan,
    read_numbers,
    utf8,
    without_lost,
)
from renderers.geometry import GREY, Material, Mesh

_HEADER = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*(ST)?(C)?(N)?(4)?OFF\b|\A(?:\xef\xbb\xbf)?\s*(ST)?(C)?(N)?(4)?OFF(?=\d)")


def read_off(data: bytes) -> RawShape:
    """The mesh of an OFF file's bytes, with colours of vertices or faces, or its points where it has no face.

    Numbers are read one after the other; only a colour behind a face ends with its line, as Geomview's manual says.
    Raises ValueError saying what is wrong: no OFF header, a cut file, counts that lie, an index out of range.
    """
    num_vertices, num_faces, kind, rest = _header(utf8(data))
    found: Counter[str] = Counter()
    numbers = read_numbers(rest)
    vertices, colors = numbers[: 3 * num_vertices].reshape(-1, 3) if len(numbers) >= 3 * num_vertices else None, None
    tail = numbers[3 * num_vertices :]
    face_colors = None
    if not kind and vertices is not None and len(tail) == 4 * num_faces and (tail[::4] == 3).all():
        faces = _indices(tail.reshape(-1, 4)[:, 1:], num_vertices)
    else:
        widths = np.array([len(line.split()) for line in rest.splitlines() if line.strip()], np.int64)
        enough = len(widths) >= num_vertices + num_faces
        vertices, colors, start = _vertices(numbers, widths, num_vertices, enough, kind, found)
        corners, counts, behind = _polygons(numbers, np.cumsum(widths), start, num_faces, found)
        corners = _indices(corners, num_vertices)
        found[TOO_FEW_CORNERS] += int((counts < 3).sum())
        triangles, owner = triangulate(vertices, corners, counts)
        faces = corners[triangles]
        face_colors = _face_colors(numbers, *behind, found)
        face_colors = None if face_colors is None else face_colors[owner]
    if not len(faces):
        return RawShape(points=vertices, colors=None if colors is None else colors[:, :3], warnings=counted(found))
    vertices, faces, colors = without_lost(vertices, faces, colors, found)
    if face_colors is not None and colors is None:
        return RawShape(mesh=face_colored(vertices, faces, face_colors), warnings=counted(found))
    found["face colours passed over"] += 0 if face_colors is None else len(face_colors)
    materials = (Material(GREY if colors is None else (1.0, 1.0, 1.0, 1.0)),)
    return RawShape(mesh=Mesh(vertices, faces, materials, vertex_colors=colors), warnings=counted(found))


def _header(data: bytes) -> tuple[int, int, str, bytes]:
    """(numbers of vertices and faces, which of S, C and N stand before OFF, the rest without comments)."""
    if not data.strip():
        raise ValueError("the file is empty")
    header = _HEADER.match(data)
    if not header:
        raise ValueError(f"not an OFF file (it begins with {data[:12]!r})")
    kind = header[0].decode("latin-1").strip().removesuffix("OFF")
    if "4" in kind:
        raise ValueError("4-dimensional OFF files are not read")
    body = data[header.end() :]
    if b"BINARY" in body[:20]:
        raise ValueError("binary OFF files are not read")
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"#" in body:
        body = re.sub(rb"#[^\n]*", b"", plain_nan(body))
    counts = re.match(rb"\s*(\d{1,18})\s+(\d{1,18})(?:[ \t]+\d+)?[ \t]*(?=\n|\Z)", body)
    if not counts:
        raise ValueError("no vertex and face counts after OFF")
    num_vertices, num_faces, rest = int(counts[1]), int(counts[2]), body[counts.end() :]
    if len(rest) < 2 * (3 * num_vertices + num_faces):
        raise ValueError(f"{len(rest)} bytes cannot hold {num_vertices} vertices and {num_faces} faces: cut, or lying")
    return num_vertices, num_faces, kind, rest


def _vertices(
    numbers: np.ndarray, widths: np.ndarray, size: int, enough: bool, kind: str, found: Counter[str]
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """(vertices (V, 3), their colours uint8 (V, 4) or None, how many numbers they are).

    widths: numbers of each line, which tell whether there are three or four numbers of a colour, or any. enough:
    whether there are as many lines as vertices and faces.
    """
    before, behind = 3 + 3 * ("N" in kind), 2 * ("S" in kind)
    least = before + behind + 3 * ("C" in kind)
    width, lines = least + ("C" in kind), widths[:size]
    starts, end = np.arange(size) * width, size * width
    if size and len(lines) == size and lines.min() >= least and (lines.max() == lines.min() or enough):
        width, starts, end = int(lines.min()), np.cumsum(lines) - lines, int(lines.sum())
    if len(numbers) < end:
        raise ValueError(f"{size} vertices announced, {len(numbers) // width} there: cut, or lying")
    rows = numbers[starts[:, None] + np.arange(width)]
    rest = rows[:, before : width - behind][:, :4]
    colors = None
    if rest.shape[1] >= 3 and ("C" in kind or (np.nan_to_num(rest).min() >= 0 and not _are_normals(rest))):
        colors = display_colors(rest, found)
    over = end - size * (before + behind) - (0 if colors is None else rest.size)
    found["numbers passed over"] += over
    return np.ascontiguousarray(rows[:, :3]), colors, end


def _are_normals(values: np.ndarray) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        return values.shape[1] == 3 and bool((np.abs(np.linalg.norm(values, axis=1) - 1) < 1e-3).mean() > 0.9)


def _polygons(
    numbers: np.ndarray, ends: np.ndarray, start: int, size: int, found: Counter[str]
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(corners (C,), their counts (P,), (where the numbers behind each face begin, how many they are)).

    ends: of lines, in numbers. start: where the faces begin.
    """
    lines = ends[np.searchsorted(ends, start, "right") :][:size]
    heads = np.concatenate([[start], lines[:-1]]) if len(lines) else lines
    with np.errstate(invalid="ignore"):
        whole = len(lines) == size and bool((numbers[heads] >= 0).all() and (heads + 1 + numbers[heads] <= lines).all())
    if whole:
        counts = numbers[heads].astype(np.int64)
        behind = lines - heads - 1 - counts
    else:
        heads, counts, behind = _by_numbers(numbers, ends, start, size)
    found["numbers passed over"] += len(numbers) - int((heads + 1 + counts + behind).max(initial=start))
    return numbers[spread(heads + 1, counts)], counts, (heads + 1 + counts, behind)


def _by_numbers(
    numbers: np.ndarray, ends: np.ndarray, start: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(where each face begins, its corners, the numbers behind it) where a face and a line are not the same.

    Numbers behind a face are taken for its colour only where the faces do not use up all numbers without one.
    """
    values, last = numbers.tolist(), ends.tolist()
    try:
        rows = _walked(values, last, start, size, colored=False)
    except ValueError:
        rows = []
    if not rows or sum(rows[-1]) + 1 < len(values):
        rows = _walked(values, last, start, size, colored=True)
    heads, counts, behind = np.array(rows, np.int64).reshape(-1, 3).T
    return heads, counts, behind


def _walked(values: list[float], ends: list[int], start: int, size: int, colored: bool) -> list[tuple[int, int, int]]:
    """`_by_numbers`, face by face. colored: whether the rest of a line behind a face is its colour."""
    rows, at = [], start
    for done in range(size):
        if at >= len(values):
            raise ValueError(f"{size} faces announced, {done} there: cut, or lying")
        if not 0 <= values[at] < float("inf"):
            raise ValueError(f"a face announces {values[at]} corners")
        corners = int(values[at])
        end = at + 1 + corners
        if end > len(values):
            raise ValueError(f"a face announces {corners} corners and has {len(values) - at - 1}")
        behind = ends[bisect.bisect_left(ends, end)] - end if colored else 0
        rows.append((at, corners, behind))
        at = end + behind
    return rows


def _face_colors(numbers: np.ndarray, start: np.ndarray, sizes: np.ndarray, found: Counter[str]) -> np.ndarray | None:
    """uint8 (P, 4) of the numbers behind faces, grey where there are none; None where no face has a colour."""
    found["colour indices passed over"] += int((sizes == 1).sum())
    found["numbers passed over"] += int(sizes[(sizes == 2) | (sizes > 4)].sum())
    colored = (sizes == 3) | (sizes == 4)
    if not colored.any():
        return None
    first = start[colored]
    values = np.stack([numbers[first + i] for i in range(3)], axis=1)
    alpha = np.where(sizes[colored] == 4, numbers[np.minimum(first + 3, len(numbers) - 1)], np.inf)
    largest = 1.0 if alpha[np.isfinite(alpha)].max(initial=1.0) <= 1 else 255.0
    colors = np.tile(np.rint(np.array(GREY) * 255).astype(np.uint8), (len(sizes), 1))
    colors[colored] = display_colors(np.column_stack([values, np.where(np.isinf(alpha), largest, alpha)]), found)
    return colors


def _indices(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    if not np.isfinite(faces).all() or (faces != np.floor(faces)).any():
        raise ValueError("a face index is no whole number")
    if len(faces) and (faces.min() < 0 or faces.max() >= num_vertices):
        raise ValueError(
            f"a face names vertex {(faces.max() if faces.min() >= 0 else faces.min()):.0f} of {num_vertices}"
        )
    return faces.astype(np.int64)
