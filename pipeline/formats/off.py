"""Reads OFF files, tolerant of what real ones get wrong.

ModelNet's files run the keyword and the counts together (`OFF3514 3546 0`), and other tools write comments, blank
lines, polygons, colours and normals. All of them are read; nothing is ever written back to a user's file.
"""

from __future__ import annotations

import re
import warnings

import numpy as np

_HEADER = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*(ST)?(C)?(N)?(4)?OFF\b|\A(?:\xef\xbb\xbf)?\s*(ST)?(C)?(N)?(4)?OFF(?=\d)")


def parse_off(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(vertices float64 (V, 3), faces int64 (F, 3), vertex colours uint8 (V, 4) or None) of an OFF file's bytes.

    Polygons become fans of triangles; numbers after a face's indices (its colour) are ignored.
    Raises ValueError saying what is wrong: no OFF header, a cut file, counts that lie, an index out of range.
    """
    if not data.strip():
        raise ValueError("the file is empty")
    header = _HEADER.match(data)
    if not header:
        raise ValueError(f"not an OFF file (it begins with {data[:12]!r})")
    has_color, has_normal = b"C" in header[0], b"N" in header[0]
    if b"4" in header[0]:
        raise ValueError("4-dimensional OFF files are not read")
    body = data[header.end() :]
    if b"BINARY" in body[:20]:
        raise ValueError("binary OFF files are not read")
    if b"#" in body:
        body = re.sub(rb"#[^\n]*", b"", body)
    counts = re.match(rb"\s*(\d+)\s+(\d+)(?:[ \t]+\d+)?[ \t]*(?=[\r\n]|\Z)", body)
    if not counts:
        raise ValueError("no vertex and face counts after OFF")
    num_vertices, num_faces = int(counts[1]), int(counts[2])
    rest = body[counts.end() :]
    if len(rest) < 2 * (3 * num_vertices + num_faces):
        raise ValueError(f"{len(rest)} bytes cannot hold {num_vertices} vertices and {num_faces} faces: cut, or lying")
    if has_color or has_normal:
        return _by_lines(rest, num_vertices, num_faces, has_normal)
    numbers = _numbers(rest)
    if len(numbers) < 3 * num_vertices:
        raise ValueError(f"{num_vertices} vertices announced, {len(numbers) // 3} there: cut, or lying")
    vertices = numbers[: 3 * num_vertices].reshape(-1, 3)
    tail = numbers[3 * num_vertices :]
    if len(tail) == 4 * num_faces and (tail[::4] == 3).all():
        faces = _indices(tail.reshape(-1, 4)[:, 1:], num_vertices)
    else:
        vertices, faces, _ = _by_lines(rest, num_vertices, num_faces, has_normal)
    return vertices, faces, None


def _numbers(text: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, dtype=np.float64, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise ValueError("something that is no number stands among the numbers") from error


def _by_lines(
    text: bytes, num_vertices: int, num_faces: int, has_normal: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Vertices, faces and colours where every vertex and face has a line of its own."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < num_vertices + num_faces:
        raise ValueError(f"{num_vertices} vertices and {num_faces} faces announced, {len(lines)} lines there")
    rows = [_numbers(line) for line in lines[:num_vertices]]
    if any(len(row) < 3 for row in rows):
        raise ValueError("a vertex has fewer than 3 coordinates")
    triangles: list[np.ndarray] = []
    for line in lines[num_vertices : num_vertices + num_faces]:
        row = _numbers(line)
        corners = _corners(row)
        if len(row) < corners + 1:
            raise ValueError(f"a face announces {corners} corners and has {len(row) - 1}")
        polygon = row[1 : corners + 1]
        triangles += [polygon[[0, i, i + 1]] for i in range(1, corners - 1)]
    faces = _indices(np.array(triangles).reshape(-1, 3), num_vertices)
    start = 6 if has_normal else 3
    colors = _colors(rows, start) if rows and min(map(len, rows)) >= start + 3 else None
    return np.array([row[:3] for row in rows]).reshape(-1, 3), faces, colors


def _corners(row: np.ndarray) -> int:
    """How many corners a face's line announces."""
    if not len(row):
        return 0
    if not np.isfinite(row[0]) or row[0] < 0:
        raise ValueError(f"a face announces {row[0]} corners")
    return int(row[0])


def _colors(rows: list[np.ndarray], start: int) -> np.ndarray:
    colors = np.array([np.append(row[start : start + 4], [np.nan])[:4] for row in rows])
    scale = 255.0 if np.nanmax(colors) <= 1.0 else 1.0
    colors = np.where(np.isnan(colors), 255.0, colors * scale)
    return np.clip(np.rint(colors), 0, 255).astype(np.uint8)


def _indices(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    if not np.isfinite(faces).all() or (faces != np.floor(faces)).any():
        raise ValueError("a face index is no whole number")
    faces = faces.astype(np.int64)
    if len(faces) and (faces.min() < 0 or faces.max() >= num_vertices):
        raise ValueError(f"a face names vertex {faces.max() if faces.min() >= 0 else faces.min()} of {num_vertices}")
    return faces
