"""Reads Wavefront OBJ files, tolerant of what real ones get wrong.

All lines of one kind (`v`, `vt`, `f`) are parsed by one call, so that a million faces take a second. Source: Appendix
B1 of the Advanced Visualizer manual (Object Files, version 3.0); colours behind a `v` are a custom of scanners.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipeline.formats.obj_materials import (
    BLACK_COLORS,
    MtlMaterial,
    mend_uvs,
    read_materials,
)
from pipeline.formats.polygons import TOO_FEW_CORNERS, quads_apart, spread, triangulate, turn_quads
from pipeline.sources.raw_shape import STRAYS, RawShape, counted, display_colors, plain_nan, read_numbers, utf8
from pipeline.sources.side_files import SideFiles
from renderers.geometry import GREY, Material, Mesh, join

_OTHER, _V, _VT, _VN, _F, _L, _P = range(7)
_KEYWORDS = {b"v ": _V, b"vt": _VT, b"vn": _VN, b"f ": _F, b"fo": _F, b"l ": _L, b"p ": _P}
_SILENT = frozenset(b"o g s mg lod bevel c_interp d_interp shadow_obj trace_obj end".split())
_CURVES = frozenset(b"curv curv2 surf".split())
_FREE_FORM = frozenset(b"vp cstype deg bmat step parm trim hole scrv sp con ctech stech".split()) | _CURVES
_BLANKS = bytes(10 if each == 10 else 32 if each < 33 else each for each in range(256))
_CONTINUED = re.compile(rb"^(?![ ]*(?:#|o |g |usemtl|mtllib))[^\n]*\\ *\n(?:[^\n]*\\ *\n)*[^\n]*\n", re.MULTILINE)
_WHITE = (1.0, 1.0, 1.0, 1.0)


def read_obj(data: bytes, files: SideFiles, stem: str) -> RawShape:
    """The mesh of an OBJ file's bytes, or its points where it has no face.

    files: where its .mtl and textures are. stem: the file's name without suffix. Raises ValueError saying what is wrong
    and in which line.
    """
    lines, found = _Lines(_plain(data)), files.warnings
    vertices, colors = _vertices(lines, found)
    points = int((lines.kind == _P).sum())
    found["lines passed over"] += int((lines.kind == _L).sum())
    found["curves and surfaces passed over"] += lines.curves
    found["statements passed over"] += lines.unknown
    corners = _Corners(lines, len(vertices))
    found[TOO_FEW_CORNERS] += int((corners.counts < 3).sum())
    if not (corners.counts > 2).any():
        if lines.curves and not points:
            raise ValueError("the file holds curves or surfaces only, which are not read: export it as polygons")
        if not len(vertices):
            raise ValueError("the file holds neither faces nor points")
        return RawShape(points=vertices, colors=None if colors is None else colors[:, :3], warnings=counted(found))
    found["points passed over"] += points
    coordinates = lines.table(_VT, 2)
    coordinates[lines.widths[lines.kind == _VT] < 2, 1] = 0
    names, libraries = lines.names, lines.libraries
    del lines  # its text, and that of all lines, is not needed any more
    used = np.zeros(len(vertices), bool)
    used[np.asarray(corners.columns[0])] = True
    found[STRAYS] += len(vertices) - int(used.sum())
    meshes = []
    for faces, surface in _by_material(corners, vertices, names, libraries, files, stem):
        meshes += _parts(faces, vertices, colors, coordinates, surface, found)
    return RawShape(mesh=meshes[0] if len(meshes) == 1 else join(meshes), warnings=counted(found))


def _plain(data: bytes) -> bytes:
    """UTF-8 with one statement a line, each where it was, blanks as spaces, a space before and a newline behind."""
    text = utf8(data)
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    text = b" " + plain_nan(text.translate(_BLANKS)) + b"\n"
    if b"\\" not in text:
        return text
    return _CONTINUED.sub(lambda one: re.sub(rb"\\ *\n", b" ", one[0]) + b"\n" * (one[0].count(b"\n") - 1), text)


class _Lines:
    """The statements of a text, found by their first words.

    kind: int8 (L,) of each line. widths: (L,) numbers of words behind the first. names: usemtl as (line, name),
    libraries: what stands behind each mtllib.
    """

    def __init__(self, text: bytes) -> None:
        raw = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(raw == 10)
        self._lengths = np.diff(ends, prepend=-1)
        self._text = raw.copy()
        if b"#" in text:
            self._blank_comments(ends)
        filled = self._text > 32
        words = np.flatnonzero(filled[1:] & ~filled[:-1]) + 1
        del filled
        first = np.searchsorted(words, ends - self._lengths + 1)
        self.widths = np.diff(first, append=len(words)) - 1
        self.kind = np.full(len(ends), -1, np.int8)
        there = np.flatnonzero(self.widths >= 0)
        at = words[first[there]]
        del words, first
        letters = [np.maximum(self._text[np.minimum(at + i, len(raw) - 1)], 32) | 32 for i in range(3)]
        self.kind[there] = _OTHER
        for keyword, kind in _KEYWORDS.items():
            same = (letters[0] == keyword[0]) & (letters[1] == keyword[1])
            same &= (letters[1] == 32) | (letters[2] == 32)
            self.kind[there[same]] = kind
            self._text[at[same]] = self._text[at[same] + (keyword[1] != 32)] = 32
        self.names: list[tuple[int, bytes]] = []
        self.libraries: list[bytes] = []
        self.curves = self.unknown = 0
        plain = (letters[1] == 32) & np.isin(letters[0], list(b"gos"))
        others = np.flatnonzero((self.kind[there] == _OTHER) & ~plain)
        for line, start, end in zip(
            there[others].tolist(), at[others].tolist(), ends[there[others]].tolist(), strict=True
        ):
            self._other(line, text[start:end])

    def _blank_comments(self, ends: np.ndarray) -> None:
        marks = np.flatnonzero(self._text == 35)
        line, first = np.unique(np.searchsorted(ends, marks), return_index=True)
        inside = np.zeros(len(self._text), np.int8)
        inside[marks[first]] += 1
        inside[ends[line]] -= 1
        self._text[np.cumsum(inside, dtype=np.int8).view(bool)] = 32

    def _other(self, line: int, statement: bytes) -> None:
        """statement: with what looks like a comment, which may be part of a name."""
        word, _, rest = statement.partition(b" ")
        word = word.lower()
        if word == b"usemtl":
            self.names += [(line, rest.strip())] if rest.strip() else []
        elif word == b"mtllib":
            self.libraries.append(rest.strip())
        elif word in _CURVES:
            self.curves += 1
        else:
            self.unknown += word not in _SILENT and word not in _FREE_FORM

    def of(self, kind: int) -> bytes:
        """The words behind the first of all lines of a kind, one line a line."""
        return self._text[np.repeat(self.kind == kind, self._lengths)].tobytes()

    def table(self, kind: int, width: int) -> np.ndarray:
        """Numbers float64 (N, width) of all lines of a kind; NaN where a line has fewer. Further ones are left out."""
        widths, text = self.widths[self.kind == kind], self.of(kind)
        try:
            numbers = read_numbers(text)
        except ValueError:
            where = np.repeat(np.flatnonzero(self.kind == kind) + 1, widths).tolist()
            numbers = np.array([_number(word, line) for word, line in zip(text.split(), where, strict=True)])
        if len(widths) and (widths == widths[0]).all() and len(numbers) == widths[0] * len(widths):
            numbers = numbers.reshape(len(widths), -1)[:, :width]
            return (
                numbers
                if numbers.shape[1] == width
                else np.pad(numbers, ((0, 0), (0, width - numbers.shape[1])), constant_values=np.nan)
            )
        rows = np.full((len(widths), width), np.nan)
        row = np.repeat(np.arange(len(widths)), widths)
        column = np.arange(len(row)) - np.repeat(np.cumsum(widths) - widths, widths)
        rows[row[column < width], column[column < width]] = numbers[column < width]
        return rows


def _number(word: bytes, line: int) -> float:
    try:
        return float(word.decode("ascii").replace("_", "?"))
    except ValueError:
        raise ValueError(f"line {line}: {word[:20].decode('latin-1')!r} is no number") from None


def _vertices(lines: _Lines, found: Counter[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Vertices float64 (V, 3), and their colours uint8 (V, 4) where lines have them.

    Behind x y z stand nothing, w, r g b, or r g b a.
    """
    widths = lines.widths[lines.kind == _V]
    if (widths < 3).any():
        line = np.flatnonzero(lines.kind == _V)[int(widths.argmin())] + 1
        raise ValueError(f"line {line}: a vertex with fewer than three coordinates")
    width = min(int(widths.max(initial=3)), 7)
    rows = lines.table(_V, width)
    if width < 6:
        found["vertex weights passed over"] += width > 3 and int((rows[:, 3] != 1).sum() - (widths < 4).sum())
        return rows[:, :3], None
    colored = widths > 5
    if width == 7 and (rows[:, 3] == 1).all() and not (rows[:, 6] == 1).all():  # x y z w r g b
        rows = np.delete(rows, 3, axis=1)
    has_alpha = rows.shape[1] == 7 and bool((widths > 6).all())
    colors = np.full((len(rows), 4), 255, np.uint8)
    colors[colored] = display_colors(rows[colored, 3 : 6 + has_alpha], found)
    if not lines.names:
        colors[~colored, :3] = np.rint(GREY[0] * 255)
    found["vertices without a colour"] += int((~colored).sum())
    return np.ascontiguousarray(rows[:, :3]), colors


class _Corners:
    """The corners of all faces, and the faces.

    columns: int64 (C,) of vertices, texture coordinates and normals, from 0, -1 where a corner names none; None where
    no corner does. counts: (P,) corners of each face. line: (P,) where it stands, from 0.

    Raises ValueError when a corner names a vertex that is not there.
    """

    def __init__(self, lines: _Lines, num_vertices: int) -> None:
        self._kind = lines.kind
        self.line = np.flatnonzero(lines.kind == _F)
        self.counts = lines.widths[self.line]
        text = lines.of(_F)
        if b"//" in text:
            text = text.replace(b"//", b"/0/")
        if b"/ " in text or b"/\n" in text:
            text = re.sub(rb"/(?=[ \n])", b"/0", text)
        slashes = self._slashes(text)
        try:
            numbers = read_numbers(text.replace(b"/", b" "), np.int64)
        except ValueError:
            numbers = np.zeros(0, np.int64)
        size = int(self.counts.sum())
        if np.max(slashes, initial=0) > 2 or len(numbers) != size + np.sum(slashes) * (
            size if slashes.ndim == 0 else 1
        ):
            self._refuse(text)
        if slashes.ndim == 0:
            columns = list(numbers.reshape(size, int(slashes) + 1).T)
        else:
            at = np.cumsum(slashes + 1) - slashes - 1
            columns = [np.where(slashes >= i, numbers[np.minimum(at + i, len(numbers) - 1)], 0) for i in range(3)]
        self.columns: list[np.ndarray | None] = [
            self._from_zero(column, kind) if column.any() else None
            for column, kind in zip(columns, (_V, _VT, _VN), strict=False)
        ]
        self.columns += [None] * (3 - len(columns))
        vertex, texture = (np.zeros(0, np.int64) if each is None else each for each in self.columns[:2])
        wrong = np.flatnonzero((vertex < 0) | (vertex >= num_vertices)) if len(vertex) else np.arange(size)
        if len(wrong):
            line = np.repeat(self.line, self.counts)[wrong[0]] + 1
            raise ValueError(f"line {line}: a face names vertex {columns[0][wrong[0]]} of {num_vertices}")
        texture[texture >= int((lines.kind == _VT).sum())] = -1

    def _slashes(self, text: bytes) -> np.ndarray:
        """How many slashes each corner has: one number, or (C,) where they differ."""
        raw = np.frombuffer(text, np.uint8)
        slashes, size = np.flatnonzero(raw == 47), int(self.counts.sum())
        if not len(slashes):
            return np.array(0)
        words = np.flatnonzero((raw[1:] > 32) & (raw[:-1] <= 32)) + 1
        if len(slashes) % size == 0:
            rows = slashes.reshape(size, -1)
            if (rows[:, 0] > words).all() and (rows[:-1, -1] < words[1:]).all():
                return np.array(rows.shape[1])
        return np.bincount(np.searchsorted(words, slashes, "right") - 1, minlength=size)

    def _refuse(self, text: bytes) -> None:
        for word, line in zip(text.split(), np.repeat(self.line + 1, self.counts), strict=True):
            if not re.fullmatch(rb"[-+]?\d{1,18}(?:/[-+]?\d{1,18}){0,2}", word):
                raise ValueError(f"line {line}: {word[:30].decode('latin-1')!r} is no corner of a face")

    def _from_zero(self, values: np.ndarray, kind: int) -> np.ndarray:
        """Indices from 0; a negative one counts back from the line that it stands in, and 0 becomes -1."""
        behind = values < 0
        if not behind.any():
            return values - 1
        before = np.repeat(np.cumsum(self._kind == kind)[self.line], self.counts)
        return np.where(behind, np.where(before + values < 0, -1, before + values), values - 1)


def _by_material(
    corners: _Corners,
    vertices: np.ndarray,
    names: list[tuple[int, bytes]],
    libraries: list[bytes],
    files: SideFiles,
    stem: str,
) -> Iterator[tuple[list[np.ndarray | None], MtlMaterial | None]]:
    """(indices (F, 3) as the columns of `_Corners`, material) for each material, the last that is used first.

    Builds of earlier versions, whose bytes stay, have materials, and the halves of quads, in this order.
    """
    different = list(dict.fromkeys(name for _, name in names))
    surfaces = read_materials(libraries, different, files, stem)
    number = {name: place for place, name in enumerate(different)}
    chosen = np.array([-1] + [number[name] for _, name in names])[
        np.searchsorted([line for line, _ in names], corners.line)
    ]
    drawn = np.flatnonzero(corners.counts > 2)
    _, first = np.unique(chosen[drawn], return_index=True)
    order, columns = drawn[np.argsort(chosen[drawn], kind="stable")], corners.columns
    if len(first) > 1 or len(order) < len(chosen):
        places = spread((np.cumsum(corners.counts) - corners.counts)[order], corners.counts[order])
        columns = [None if each is None else each[places] for each in columns]
    end = np.cumsum(corners.counts[order])
    for one in chosen[drawn][np.sort(first)[::-1]].tolist():
        surface = surfaces[one] if one >= 0 else surfaces[0] if surfaces and not names else None
        low, high = np.searchsorted(chosen[order], one), np.searchsorted(chosen[order], one, "right")
        counts = corners.counts[order[low:high]]
        own = slice(int(end[low] - counts[0]), int(end[high - 1]))
        faces = [None if each is None else each[own] for each in columns]
        if (counts == 3).all():
            yield [None if each is None else each.reshape(-1, 3) for each in faces], surface
            continue
        triangles, owner = triangulate(vertices, np.asarray(faces[0]), counts)
        triangles = turn_quads(triangles, owner, counts)
        if (counts == 4).all():
            triangles, owner = quads_apart(triangles, owner, counts)
        yield [None if each is None else each[triangles] for each in faces], surface


def _parts(
    faces: list[np.ndarray | None],
    vertices: np.ndarray,
    colors: np.ndarray | None,
    coordinates: np.ndarray,
    surface: MtlMaterial | None,
    found: Counter[str],
) -> list[Mesh]:
    """The mesh of a material; two, where it has a texture and only some of its faces have texture coordinates.

    faces: indices (F, 3) as the columns of `_Corners`.
    """
    material = surface.material if surface else Material(GREY if colors is None else _WHITE)
    if surface and colors is not None and (surface.colorless or not any(material.base_color[:3])):
        found[BLACK_COLORS] += not surface.colorless
        material = replace(material, base_color=(1.0, 1.0, 1.0, material.base_color[3]))
    textured = material.texture is not None
    parts = [faces]
    if textured and faces[1] is not None and (faces[1] < 0).any():
        placed = (faces[1] >= 0).all(axis=1)
        halves = [[None if each is None else each[chosen] for each in faces] for chosen in (placed, ~placed)]
        parts = [half for half in halves if len(np.asarray(half[0]))]
    meshes = []
    for part in parts:
        there = [each is not None and bool((each >= 0).all()) for each in part]
        kept, moved = _shared([each for each, whole in zip(part, there, strict=True) if each is not None and whole])
        uv = mend_uvs(coordinates[kept[1]] if there[1] else None, textured, found) if surface else None
        if surface and uv is not None:
            if (surface.scale, surface.offset) != ((1, 1), (0, 0)):
                uv = uv * surface.scale + surface.offset
            uv = uv.astype(np.float32)[moved]
        own = replace(material, texture=None) if textured and uv is None else material
        if not np.isfinite(vertices[kept[0]]).all():
            raise ValueError("a vertex is not finite (NaN or infinity)")
        own_colors = None if colors is None else colors[kept[0]]
        meshes.append(Mesh(vertices[kept[0]], moved, (own,), corner_uvs=uv, vertex_colors=own_colors))
    return meshes


def _shared(columns: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """What the corners of faces (F, 3) share: the different rows of their indices, by vertex, and the faces by their
    numbers."""
    if len(columns) == 1:
        used = np.zeros(int(columns[0].max()) + 1, bool)
        used[columns[0]] = True
        return [np.flatnonzero(used)], (np.cumsum(used) - 1)[columns[0]]
    flat = [column.reshape(-1) for column in columns]
    key = flat[0]
    for column in flat[1:]:
        if int(key.max() + 1) * int(column.max() + 1) >= 1 << 62:
            key = np.unique(key, return_inverse=True)[1]
        key = key + column * (key.max() + 1)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    order = flat[0][first].argsort()  # not stable, as in builds of earlier versions, whose bytes stay
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return [column[first[order]] for column in flat], number[inverse].reshape(-1, 3)
