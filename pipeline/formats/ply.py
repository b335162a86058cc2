"""Reads PLY files: ascii and binary, any elements and properties in any order, meshes and clouds.

Source: Turk, The PLY Polygon File Format (1994). Names of colours and of texture coordinates are customs of programs;
what has a name that is not known is passed over and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipeline.formats.obj_materials import TEXTURE_UNPLACED, mend_uvs, read_picture
from pipeline.formats.polygons import TOO_FEW_CORNERS, quads_apart, spread, triangulate, turn_quads
from pipeline.formats.raw_shape import (
    RawShape,
    counted,
    display_colors,
    face_colored,
    plain_nan,
    read_numbers,
    without_lost,
)
from pipeline.formats.side_files import SideFiles
from renderers.geometry import GREY, Material, Mesh

_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
_TYPES |= {"double": "f8", "long": "i8", "ulong": "u8", "half": "f2", "uint8": "u1", "float16": "f2"}
_TYPES |= {f"{name}{8 * size}": f"{name[0]}{size}" for name in ("int", "uint", "float") for size in (2, 4, 8)}
_TYPES["int8"] = "i1"
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_END = re.compile(rb"(?:\A|[\r\n])end_header[ \t]*(\r\n|\n|\r|\Z)")
_TEXTURE = re.compile(r"(?:comment|obj_info)\s+TextureFile\s+(.+)", re.IGNORECASE)
_CHANNELS = (("red", "green", "blue", "alpha"), ("r", "g", "b", "a"))
_PREFIXES = ("", "diffuse_", "vertex_", "face_", "color_", "colour_")
_UV = (("texture_u", "texture_v"), ("s", "t"), ("u", "v"), ("texture_s", "texture_t"), ("tx", "ty"), ("tu", "tv"))
_SILENT = frozenset(("nx", "ny", "nz", "normal_x", "normal_y", "normal_z", "texnumber", *sum(_UV, ())))
_INDICES = ("vertex_indices", "vertex_index")
_WHITE = (1.0, 1.0, 1.0, 1.0)


@dataclass
class _Element:
    """One kind of thing in a file. properties: (name, type, type of the length of a list or None).

    columns: name -> (N,). lists: name -> (all values (M,), how many each row has (N,)). Both are read last.
    """

    name: str
    size: int
    properties: list[tuple[str, str, str | None]] = field(default_factory=list)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    lists: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def read_ply(data: bytes, files: SideFiles) -> RawShape:
    """The mesh of a PLY file's bytes, or its points where it has no face. Raises ValueError saying what is wrong."""
    found = files.warnings
    elements, pictures = _read(data, found)
    vertex = elements.pop("vertex", None)
    if vertex is None or not vertex.size:
        raise ValueError("the file holds neither faces nor points")
    if not {"x", "y", "z"} <= set(vertex.columns):
        raise ValueError(f"a vertex has {', '.join(vertex.columns)[:80] or 'no numbers'}; x, y and z are needed")
    vertices = np.stack([np.asarray(vertex.columns[axis], np.float64) for axis in "xyz"], axis=1)
    colors, names = _colors(vertex, found)
    uv = next((pair for pair in _UV if set(pair) <= set(vertex.columns)), None)
    _count_rest(vertex, {"x", "y", "z", *names}, found)
    faces = _Faces(elements.pop("face", None), elements.pop("tristrips", None), vertices, found)
    for name, element in elements.items():
        found["lines passed over" if name == "edge" else "elements passed over"] += element.size
    if not len(faces.triangles):
        return RawShape(points=vertices, colors=None if colors is None else colors[:, :3], warnings=counted(found))
    if pictures:
        per_vertex = None if uv is None else np.stack([vertex.columns[name] for name in uv], axis=1)
        mesh = _textured(vertices, faces, pictures, per_vertex, files)
        if mesh is not None:
            found["vertex colours passed over"] += 0 if colors is None else len(colors)
            return RawShape(mesh=mesh, warnings=counted(found))
    vertices, triangles, colors = without_lost(vertices, faces.triangles, colors, found)
    if colors is None and faces.colors is not None:
        mesh = face_colored(vertices, triangles, faces.colors)
    else:
        found["face colours passed over"] += 0 if faces.colors is None else len(faces.colors)
        mesh = Mesh(vertices, triangles, (Material(GREY if colors is None else _WHITE),), vertex_colors=colors)
    return RawShape(mesh=mesh, warnings=counted(found))


def _read(data: bytes, found: Counter[str]) -> tuple[dict[str, _Element], list[str]]:
    """The elements by name, with their values, and the names of texture files."""
    end = _END.search(data)
    if not end:
        raise ValueError("not a readable ply file: no end_header")
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", data[: end.start()].decode("latin-1"))]
    if lines[0].lower() != "ply":
        raise ValueError("not a readable ply file: it does not begin with ply")
    elements, order, pictures = _declared(lines)
    body = data[end.end() :]
    if end[1] == b"\r\n" and b"\r\n" not in data[: end.start()] and order:
        body = data[end.end() - 1 :]  # \r ended the header, and the first byte of a number is 10
    if order:
        at = 0
        for element in elements:
            at = _binary(element, body, at, order)
        found["bytes behind the end"] += len(body[at:].strip(b"\r\n\0 "))
    else:
        numbers, at = read_numbers(plain_nan(body)), 0
        for element in elements:
            at = _ascii(element, numbers, at)
        if at < len(numbers):
            raise ValueError(
                f"its header announces {at:,} numbers, {len(numbers):,} are there: it does not fit the rest"
            )
    return {element.name: element for element in elements}, pictures


def _declared(lines: list[str]) -> tuple[list[_Element], str, list[str]]:
    """(elements without values, byte order, names of texture files) of a header."""
    elements: list[_Element] = []
    pictures, order = [], None
    for line in lines[1:]:
        words = line.split()
        texture = _TEXTURE.fullmatch(line)
        if texture:
            pictures.append(texture[1].strip())
        elif words[:1] == ["format"]:
            order = _ORDERS.get(words[1].lower() if len(words) > 1 else "")
            if order is None:
                raise ValueError(f"a PLY file of {line[:40]!r}; ascii and binary are read")
        elif words[:1] == ["element"]:
            elements.append(_Element(words[1].lower(), int(words[2])))
        elif words[:1] == ["property"]:
            listed = words[1:2] == ["list"]
            kinds = [_TYPES.get(word.lower(), "") for word in (words[2:4] if listed else words[1:2])]
            if not elements or len(words) != (5 if listed else 3) or "" in kinds or (listed and kinds[0][0] == "f"):
                raise ValueError(f"a PLY header with the line {line[:60]!r}, which is not read")
            elements[-1].properties.append((words[-1].lower(), kinds[-1], kinds[0] if listed else None))
    if order is None:
        raise ValueError("a PLY header without a format")
    return elements, order, pictures


def _ascii(element: _Element, numbers: np.ndarray, at: int) -> int:
    """Reads an element's values from `numbers`, from place `at`; returns where it ends."""
    short = ValueError(f"{element.size:,} of {element.name} announced, fewer are there: cut, or lying")
    widths: dict[str, np.ndarray] = {}
    places: dict[str, np.ndarray] = {}
    place = at
    for name, _, length in element.properties:  # as if all rows were like the first
        if place >= len(numbers) and element.size:
            raise short
        many = 1 if length is None or not element.size else _length(numbers[place])
        place += (length is not None) * 1
        widths[name], places[name] = np.full(element.size, many), np.full(element.size, place)
        place += many
    row = place - at
    rows = np.arange(element.size)
    for name in places:
        places[name] = places[name] + rows * row
    end = at + element.size * row
    heads = [places[name] - 1 for name, _, length in element.properties if length is not None]
    same = end <= len(numbers) and all((numbers[head] == numbers[head[:1]]).all() for head in heads)
    if not same:
        if not heads:
            raise short
        end = _ragged_ascii(element, numbers, at, widths, places, short)
    for name, kind, length in element.properties:
        values = numbers[spread(places[name], widths[name])] if length else numbers[places[name]]
        whole = np.nan_to_num(values) if kind[0] in "iu" else values
        values = whole.astype(np.int64).astype(kind) if kind[0] in "iu" else whole.astype(kind)
        _keep(element, name, values, widths[name] if length else None)
    return end


def _ragged_ascii(
    element: _Element,
    numbers: np.ndarray,
    at: int,
    widths: dict[str, np.ndarray],
    places: dict[str, np.ndarray],
    short: ValueError,
) -> int:
    values = numbers[at:].tolist()
    place = 0
    columns = [(widths[name], places[name], length is not None) for name, _, length in element.properties]
    try:
        for row in range(element.size):
            for width, start, listed in columns:
                many = 1
                if listed:
                    many = int(values[place])
                    if many < 0:
                        raise short
                    place += 1
                width[row], start[row] = many, at + place
                place += many
    except (IndexError, ValueError, OverflowError):
        raise short from None
    if at + place > len(numbers):
        raise short
    return at + place


def _length(value: float) -> int:
    if not 0 <= value < 1 << 31:
        raise ValueError(f"a PLY list of {value:g} values")
    return int(value)


def _keep(element: _Element, name: str, values: np.ndarray, widths: np.ndarray | None) -> None:
    if widths is None:
        element.columns[name] = values
    else:
        element.lists[name] = (values, widths)


def _binary(element: _Element, body: bytes, at: int, order: str) -> int:
    """Reads an element's values from `body`, from byte `at`; returns where it ends."""
    short = ValueError(f"{element.size:,} of {element.name} announced, fewer are there: cut, or lying")
    if not element.size or not element.properties:
        for name, kind, length in element.properties:
            _keep(element, name, np.zeros(0, kind), np.zeros(0, np.int64) if length else None)
        return at
    fields: list[tuple] = []
    for number, (_, kind, length) in enumerate(element.properties):  # as if all rows were like the first
        many = 1
        if length is not None:
            fields.append((f"n{number}", order + length))
            place = at + np.dtype(fields).itemsize
            if place > len(body):
                raise short
            many = _length(np.frombuffer(body[:place], order + length, 1, place - np.dtype(length).itemsize)[0])
        fields.append((f"v{number}", order + kind, *([(many,)] if length else [])))
    dtype = np.dtype(fields)
    if at + element.size * dtype.itemsize <= len(body):
        rows = np.frombuffer(body, dtype, element.size, at)
        counts = [rows[name] for name in dtype.names or () if name.startswith("n")]
        if all((each == each[0]).all() for each in counts):
            for number, (name, _, length) in enumerate(element.properties):
                values = rows[f"v{number}"]
                widths = np.full(element.size, values.shape[1]) if length else None
                _keep(element, name, _native(values.reshape(-1)), widths)
            return at + element.size * dtype.itemsize
    if not any(length for _, _, length in element.properties):
        raise short
    return _ragged_binary(element, body, at, order, short)


def _native(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("=")))


def _ragged_binary(element: _Element, body: bytes, at: int, order: str, short: ValueError) -> int:
    """The rows one after the other: each list says only at its beginning how long it is."""
    columns = [
        (np.zeros(element.size, np.int64), np.zeros(element.size, np.int64), np.dtype(kind).itemsize, length)
        for _, kind, length in element.properties
    ]
    byte_order: Literal["big", "little"] = "big" if order == ">" else "little"
    size = len(body)
    for row in range(element.size):
        for places, widths, item, length in columns:
            many = 1
            if length is not None:
                after = at + int(length[1])
                many = int.from_bytes(body[at:after], byte_order, signed=length[0] == "i")
                if many < 0:
                    raise short
                at = after
            places[row], widths[row] = at, many
            at += many * item
            if at > size:
                raise short
    raw = np.frombuffer(body, np.uint8)
    for (name, kind, length), (places, widths, item, _) in zip(element.properties, columns, strict=True):
        first = np.repeat(places - (np.cumsum(widths) - widths) * item, widths) + np.arange(int(widths.sum())) * item
        values = np.ascontiguousarray(raw[first[:, None] + np.arange(item)]).view(order + kind)[:, 0]
        _keep(element, name, _native(values), widths if length else None)
    return at


def _colors(element: _Element, found: Counter[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(uint8 (N, 4) or None, the names of the columns that they are of)."""
    for prefix in _PREFIXES:
        for channels in _CHANNELS:
            names = tuple(prefix + channel for channel in channels)
            if set(names[:3]) <= set(element.columns) and element.size:
                names = names[: 3 + (names[3] in element.columns)]
                return display_colors(np.stack([element.columns[name] for name in names], axis=1), found), names
    return None, ()


def _count_rest(element: _Element, used: set[str], found: Counter[str]) -> None:
    found["properties passed over"] += len({*element.columns, *element.lists} - used - _SILENT)


class _Faces:
    """The triangles of a file: those of its polygons, then those of its strips.

    triangles: int64 (T, 3) of vertices. colors: uint8 (T, 4) or None. uv: (T, 3, 2) of lists of texture coordinates,
    NaN where a face has none, or None. picture: (T,) number of each triangle's texture file.
    """

    def __init__(
        self, face: _Element | None, strips: _Element | None, vertices: np.ndarray, found: Counter[str]
    ) -> None:
        self.colors = self.uv = None
        self.triangles, self.picture = np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
        if face is not None and face.size:
            self._polygons(face, vertices, found)
        if strips is not None and strips.size:
            more = _strips(strips, len(vertices))
            self.triangles = np.concatenate([self.triangles, more])
            self.picture = np.concatenate([self.picture, np.zeros(len(more), np.int64)])
            grey = np.tile(np.rint(np.array(GREY) * 255).astype(np.uint8), (len(more), 1))
            self.colors = None if self.colors is None else np.concatenate([self.colors, grey])
            self.uv = None if self.uv is None else np.concatenate([self.uv, np.full((len(more), 3, 2), np.nan)])

    def _polygons(self, face: _Element, vertices: np.ndarray, found: Counter[str]) -> None:
        name = next((each for each in _INDICES if each in face.lists), None)
        if name is None and len(face.lists) == 1:
            name = next(iter(face.lists))
        if name is None:
            found["elements passed over"] += face.size
            return
        corners, counts = _indices(face.lists[name][0], len(vertices)), face.lists[name][1]
        found[TOO_FEW_CORNERS] += int((counts < 3).sum())
        places, owner = triangulate(vertices, corners, counts)
        if (counts != 3).any():
            places, owner = quads_apart(turn_quads(places, owner, counts), owner, counts)
        self.triangles = corners[places]
        colors, names = _colors(face, found)
        self.colors = None if colors is None else colors[owner]
        if "texcoord" in face.lists:
            values, sizes = face.lists["texcoord"]
            flat, whole = np.full((len(corners), 2), np.nan), sizes == 2 * counts
            flat[np.repeat(whole, counts)] = values[np.repeat(whole, sizes)].reshape(-1, 2)
            self.uv = flat[places]
        self.picture = np.asarray(face.columns.get("texnumber", np.zeros(face.size)), np.int64)[owner]
        _count_rest(face, {name, "texcoord", *names}, found)


def _strips(element: _Element, num_vertices: int) -> np.ndarray:
    """Triangles (T, 3) of strips: every corner makes one with the two before it, every second turned round; -1 ends a
    strip."""
    found = [np.zeros((0, 3), np.int64)]
    for values, sizes in element.lists.values():
        ends = np.zeros(len(values), bool)
        ends[np.cumsum(sizes)[sizes > 0] - 1] = True
        stop = values.astype(np.int64) == -1
        chain = np.cumsum(np.concatenate([[0], (ends | stop)[:-1]]))
        first = np.searchsorted(chain, chain)
        at = np.flatnonzero((chain[2:] == chain[:-2]) & ~stop[2:]) if len(values) > 2 else np.zeros(0, np.int64)
        odd = (at - first[at]) % 2 == 1
        triangles = np.stack([at, np.where(odd, at + 2, at + 1), np.where(odd, at + 1, at + 2)], axis=1)
        found.append(_indices(values[triangles.reshape(-1)], num_vertices).reshape(-1, 3))
    faces = np.concatenate(found)
    return faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]  # a corner twice only leads to the next row


def _indices(values: np.ndarray, num_vertices: int) -> np.ndarray:
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        raise ValueError("a face index is no whole number")
    wrong = (values < 0) | (values >= num_vertices)
    if wrong.any():
        raise ValueError(f"a face names vertex {values[wrong][0]} of {num_vertices}")
    return values.astype(np.int64)


def _textured(
    vertices: np.ndarray, faces: _Faces, pictures: list[str], per_vertex: np.ndarray | None, files: SideFiles
) -> Mesh | None:
    """The mesh with its texture files, white under them and grey elsewhere; None where none can be drawn."""
    found = files.warnings
    textures = [read_picture(name, files.folder, files) for name in pictures]
    uv = per_vertex[faces.triangles].astype(np.float64) if faces.uv is None and per_vertex is not None else faces.uv
    if uv is None or all(texture is None for texture in textures):
        found[TEXTURE_UNPLACED] += sum(texture is not None for texture in textures)
        return None
    there = np.array([texture is not None for texture in textures])
    drawn = (faces.picture >= 0) & (faces.picture < len(textures))
    drawn[drawn] = there[faces.picture[drawn]]
    placed = drawn & ~np.isnan(uv).all(axis=(1, 2))
    found[TEXTURE_UNPLACED] += bool((drawn & ~placed).any())
    mended = mend_uvs(uv[placed].reshape(-1, 2), True, found)
    corner_uvs = np.zeros((len(uv), 3, 2), np.float32)
    corner_uvs[placed] = 0 if mended is None else mended.reshape(-1, 3, 2)
    materials = [Material(_WHITE, texture) for texture in textures] + [Material(GREY)]
    number = np.where(placed, faces.picture, len(textures))
    vertices, triangles, _ = without_lost(vertices, faces.triangles, None, found)
    return Mesh(vertices, triangles, tuple(materials), number, corner_uvs)
