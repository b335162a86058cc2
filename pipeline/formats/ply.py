"""Makes the mesh or the cloud of a PLY file from its elements: faces, strips, colours and textures.

Names of colours and of texture coordinates are customs of programs; what has a name that is not known is passed over
and counted.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from pipeline.formats.obj_materials import TEXTURE_UNPLACED, mend_uvs, read_picture
from pipeline.formats.ply_elements import Element, read_elements
from pipeline.formats.polygons import TOO_FEW_CORNERS, quads_apart, triangulate, turn_quads
from pipeline.sources.raw_shape import (
    RawShape,
    counted,
    display_colors,
    face_colored,
    without_lost,
)
from pipeline.sources.side_files import SideFiles
from renderers.geometry import GREY, Material, Mesh

_CHANNELS = (("red", "green", "blue", "alpha"), ("r", "g", "b", "a"))
_PREFIXES = ("", "diffuse_", "vertex_", "face_", "color_", "colour_")
_UV = (("texture_u", "texture_v"), ("s", "t"), ("u", "v"), ("texture_s", "texture_t"), ("tx", "ty"), ("tu", "tv"))
_SILENT = frozenset(("nx", "ny", "nz", "normal_x", "normal_y", "normal_z", "texnumber", *sum(_UV, ())))
_INDICES = ("vertex_indices", "vertex_index")
_WHITE = (1.0, 1.0, 1.0, 1.0)


def read_ply(data: bytes, files: SideFiles) -> RawShape:
    """The mesh of a PLY file's bytes, or its points where it has no face. Raises ValueError saying what is wrong."""
    found = files.warnings
    elements, pictures = read_elements(data, found)
    vertex = elements.pop("vertex", None)
    if vertex is None or not vertex.size:
        raise ValueError("the file holds neither faces nor points")
    if not {"x", "y", "z"} <= set(vertex.columns):
        raise ValueError(f"a vertex has {', '.join(vertex.columns)[:80] or 'no numbers'}; x, y and z are needed")
    with np.errstate(invalid="ignore"):
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


def _colors(element: Element, found: Counter[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(uint8 (N, 4) or None, the names of the columns that they are of)."""
    for prefix in _PREFIXES:
        for channels in _CHANNELS:
            names = tuple(prefix + channel for channel in channels)
            if set(names[:3]) <= set(element.columns) and element.size:
                names = names[: 3 + (names[3] in element.columns)]
                return display_colors(np.stack([element.columns[name] for name in names], axis=1), found), names
    return None, ()


def _count_rest(element: Element, used: set[str], found: Counter[str]) -> None:
    found["properties passed over"] += len({*element.columns, *element.lists} - used - _SILENT)


class _Faces:
    """The triangles of a file: those of its polygons, then those of its strips.

    triangles: int64 (T, 3) of vertices. colors: uint8 (T, 4) or None. uv: (T, 3, 2) of lists of texture coordinates,
    NaN where a face has none, or None. picture: (T,) number of each triangle's texture file.
    """

    def __init__(self, face: Element | None, strips: Element | None, vertices: np.ndarray, found: Counter[str]) -> None:
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

    def _polygons(self, face: Element, vertices: np.ndarray, found: Counter[str]) -> None:
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


def _strips(element: Element, num_vertices: int) -> np.ndarray:
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
