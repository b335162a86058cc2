"""Reads glTF 2.0 (.glb, .gltf) by its specification: scenes, nodes, skins, morph targets and primitives of all modes.

What is left out is in one table (gltf_features.py); what of it a file uses is a warning, counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.formats.gltf_data import GltfData, numbers, parse_gltf, part, rows, whole
from pipeline.formats.gltf_features import count_left_out
from pipeline.formats.gltf_materials import Materials
from pipeline.formats.gltf_primitives import FAN, POINTS, STRIP, TRIANGLES, GltfPart, Primitive, moved, posed, triangles
from pipeline.formats.obj_materials import TEXTURE_UNPLACED, mend_uvs
from pipeline.sources.raw_shape import NO_PLACE, STRAYS, RawShape, counted, placed
from pipeline.sources.side_files import SideFiles
from renderers.geometry import GREY, Mesh

_LINES = {1: lambda n: n // 2, 2: lambda n: n, 3: lambda n: max(n - 1, 0)}  # LINES, LINE_LOOP, LINE_STRIP
_MOST_REPEATED = 1 << 24  # faces and points of a file whose nodes draw the same meshes again and again


def read_gltf(data: bytes, suffix: str, files: SideFiles | None, display: bool = False) -> RawShape:
    """What the scene of a glTF file shows, at rest: a mesh, or a cloud where there are points alone.

    files: finds buffers and pictures beside the file and holds the warnings, or None for a file of our own. display:
    its factors and vertex colours are display values, as glb.py writes them. Raises ValueError with one line on what
    is wrong with the file.
    """
    warnings: Counter[str] = Counter() if files is None else files.warnings
    with _in_our_words():
        values, binary = parse_gltf(data, suffix)
        found = _Scene(GltfData(values, binary, files), warnings, display)
        return replace(found.read(), warnings=counted(warnings))


@contextmanager
def _in_our_words() -> Iterator[None]:
    """JSON of another form than the specification's trips over anything: it is a ValueError in our words."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError("its JSON is not of the form that glTF 2.0 asks for") from error
    except ValueError as error:
        line = " ".join(str(error).split())  # a name out of the file may hold a line's end
        if line == str(error):
            raise
        raise ValueError(line) from error


class _Scene:
    """Reads the scene of one file."""

    def __init__(self, data: GltfData, warnings: Counter[str], display: bool) -> None:
        self._data, self._warnings, self._display = data, warnings, display
        self._materials = Materials(data, warnings, display)
        self._nodes, self._meshes = rows(data.values, "nodes"), rows(data.values, "meshes")
        self._used: dict[Any, np.ndarray] = {}  # POSITION accessor -> which of its vertices faces use
        self._cut_off = False  # whether alphaMode MASK hides something wholly

    def read(self) -> RawShape:
        world = self._world()
        drawn, hidden = self._drawn()
        self._count_unseen(drawn, hidden)
        parts: dict[tuple, list[GltfPart]] = {}
        placed: list[GltfPart] = []
        for node in drawn:
            row = self._nodes[node]
            count_left_out("node", row, self._warnings)
            mesh = self._data.row("meshes", row["mesh"], f"node {node}")
            weights = _weights(row) or _weights(mesh)
            if (row["mesh"], weights) not in parts:
                count_left_out("mesh", mesh, self._warnings)
                parts[row["mesh"], weights] = [
                    each for each in (self._part(p, weights) for p in rows(mesh, "primitives")) if each is not None
                ]
            for each in parts[row["mesh"], weights]:
                placed += self._placed(each, row, world, node)
        faces = [each for each in placed if len(each.faces)]
        points = [each for each in placed if each.is_points and len(each.positions)]
        unused = sum(int((~used).sum()) for used in self._used.values())
        self._warnings[STRAYS] += unused if faces else 0
        if faces:
            self._warnings["points passed over"] += sum(len(each.positions) for each in points)
            return RawShape(mesh=self._mesh(faces))
        if points:
            return self._cloud(points)
        raise ValueError(self._nothing(bool(drawn), bool(hidden)))

    def _world(self) -> list[np.ndarray]:
        """The 4x4 matrix of every node, world from node."""
        found = [_local(node) for node in self._nodes]
        children = {child for node in self._nodes for child in rows(node, "children", int)}
        todo = [place for place in range(len(self._nodes)) if place not in children]
        while todo:
            place = todo.pop()
            for child in rows(self._nodes[place], "children", int):
                found[child] = found[place] @ found[child]
                todo.append(child)
        return found

    def _drawn(self) -> tuple[list[int], list[int]]:
        """Nodes with a mesh that the scene shows, and those that it hides; last child first, as builds always did."""
        scenes = rows(self._data.values, "scenes")
        children = {child for node in self._nodes for child in rows(node, "children", int)}
        roots = [place for place in range(len(self._nodes)) if place not in children]
        if scenes:
            scene = self._data.row("scenes", self._data.values.get("scene", 0), "the file")
            count_left_out("scene", scene, self._warnings)
            roots = rows(scene, "nodes", int)
        todo, seen = [(root, True) for root in roots], set()
        drawn: list[int] = []
        hidden: list[int] = []
        while todo:
            place, visible = todo.pop()
            row = self._data.row("nodes", place, "the scene")
            if place in seen:
                continue
            seen.add(place)
            visible &= part(row, "extensions", "KHR_node_visibility").get("visible", True) is not False
            if row.get("mesh") is not None:
                (drawn if visible else hidden).append(place)
            todo += [(child, visible) for child in rows(row, "children", int)]
        return sorted(drawn) if self._display else drawn, hidden  # one of our own: material by material

    def _count_unseen(self, drawn: list[int], hidden: list[int]) -> None:
        """Counts faces that no node shows. Raises ValueError where nodes draw far more than the file holds."""
        kinds = [[self._elements(each) for each in rows(mesh, "primitives")] for mesh in self._meshes]
        faces = [sum(n for n, what in mesh if what == "faces") for mesh in kinds]
        drawn_once = [sum(n for n, what in mesh if what != "lines") for mesh in kinds]
        for place in (*drawn, *hidden):
            self._data.row("meshes", self._nodes[place]["mesh"], f"node {place}")
        meshes = {self._nodes[place]["mesh"] for place in (*drawn, *hidden)}
        self._warnings["faces of hidden nodes"] += sum(faces[self._nodes[place]["mesh"]] for place in hidden)
        self._warnings["faces outside the scene"] += sum(n for place, n in enumerate(faces) if place not in meshes)
        total = sum(drawn_once[self._nodes[place]["mesh"]] * self._copies(self._nodes[place]) for place in drawn)
        if total > max(_MOST_REPEATED, sum(drawn_once)):
            raise ValueError(f"its nodes draw {total:,} faces or points, of {sum(drawn_once):,} in the file: too many")

    def _copies(self, node: dict[str, Any]) -> int:
        attributes = part(node, "extensions", "EXT_mesh_gpu_instancing", "attributes")
        counts = [
            whole(self._data.row("accessors", a, "an instance").get("count"), "an accessor")
            for a in attributes.values()
        ]
        return max(counts, default=1)

    def _elements(self, primitive: dict[str, Any]) -> tuple[int, str]:
        """How many faces, lines or points a primitive has by what its accessors announce, and which of them."""
        place = primitive.get("indices", part(primitive, "attributes").get("POSITION"))
        count = (
            0 if place is None else whole(self._data.row("accessors", place, "a primitive").get("count"), "an accessor")
        )
        mode = primitive.get("mode", TRIANGLES)
        if mode in _LINES:
            return _LINES[mode](count), "lines"
        if mode == POINTS:
            return count, "points"
        return count // 3 if mode == TRIANGLES else max(count - 2, 0), "faces"

    def _nothing(self, drawn: bool, hidden: bool) -> str:
        """Why there is neither a face nor a point."""
        if self._cut_off:
            return "alphaMode MASK hides all of it: its alpha is below alphaCutoff"
        if self._warnings["faces of scale 0"]:
            return "all its faces are below nodes of scale 0"
        if self._warnings["lines passed over"]:
            return f"the file holds lines only ({self._warnings['lines passed over']:,} of them)"
        if hidden and not drawn:
            return "all its nodes with a mesh are hidden (KHR_node_visibility)"
        if self._meshes and not drawn:
            return f"its scene shows no node with a mesh; {len(self._meshes)} meshes are outside of it"
        return "the file holds neither faces nor points"

    def _part(self, primitive: dict[str, Any], weights: tuple) -> GltfPart | None:
        """A primitive in its mesh's frame; None, counted, where it is nothing that is drawn."""
        count_left_out("primitive", primitive, self._warnings)
        attributes, mode = part(primitive, "attributes"), primitive.get("mode", TRIANGLES)
        if "POSITION" not in attributes:
            self._warnings["primitives without POSITION"] += 1
            return None
        if mode in _LINES:
            self._warnings["lines passed over"] += self._elements(primitive)[0]
            return None
        if mode not in (POINTS, TRIANGLES, STRIP, FAN):
            raise ValueError(f"a primitive is of mode {str(mode)[:20]}, which glTF does not know")
        source = Primitive(self._data, primitive, weights, self._warnings)
        positions = source.real("POSITION")
        order = source.order(len(positions))
        if mode == POINTS:
            return self._dressed(
                primitive, source, GltfPart(positions, np.zeros((0, 3), np.int64), 0, is_points=True), order
            )
        mode = TRIANGLES if source.packed is not None else mode
        faces = triangles(order, mode)
        self._warnings["indices of no whole face"] += len(order) % 3 if mode == TRIANGLES else 0
        mine = np.zeros(len(positions), bool)
        mine[faces] = True
        shared = attributes["POSITION"] if source.packed is None else id(primitive)
        self._used[shared] = self._used.get(shared, False) | mine
        if mine.all():
            return self._dressed(primitive, source, GltfPart(positions, faces, 0), slice(None))
        return self._dressed(
            primitive, source, GltfPart(positions, (np.cumsum(mine) - 1)[faces], 0), np.flatnonzero(mine)
        )

    def _dressed(
        self, primitive: dict[str, Any], source: Primitive, bare: GltfPart, kept: np.ndarray | slice
    ) -> GltfPart | None:
        """A part of positions and faces with its colours, texture coordinates and joints.

        kept: its vertices among those of the accessors, which the faces count.
        """
        place, count, names = primitive.get("material"), len(bare.positions), part(primitive, "attributes")
        look = self._materials.look(place)
        count_left_out("attribute", dict.fromkeys(re.findall("COLOR_1", " ".join(names))), self._warnings)
        uv_name = f"TEXCOORD_{look.uv_set}"
        textured = look.picture is not None and uv_name in names and not bare.is_points
        self._warnings[TEXTURE_UNPLACED] += look.picture is not None and not textured
        colors = uvs = None
        if "COLOR_0" in names:
            colors = self._materials.vertex_colors(source.real("COLOR_0", count)[kept], look, textured)
        material = self._materials.number(place, textured, colors)
        if material is None:
            self._cut_off = True
            self._warnings["faces hidden by alphaCutoff"] += len(bare.faces)
            return None
        if textured:
            uvs = self._uvs(source.real(uv_name, count)[kept], look.uv_matrix)[bare.faces]
        joints, weights = source.bones(count)
        return replace(
            bare,
            positions=bare.positions[kept],
            material=material,
            uvs=uvs,
            colors=colors,
            joints=None if joints is None else joints[kept],
            weights=None if weights is None else weights[kept],
        )

    def _uvs(self, uv: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
        """float32 (V, 2), u right, v up."""
        if matrix is not None:
            uv = uv.astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
        uv = uv.astype(np.float32)
        uv[:, 1] = 1 - uv[:, 1]
        return np.asarray(mend_uvs(uv, True, self._warnings), np.float32)

    def _placed(self, each: GltfPart, node: dict[str, Any], world: list[np.ndarray], place: int) -> list[GltfPart]:
        """The part in the world's frame: once, or once an instance."""
        if each.joints is not None and node.get("skin") is not None:
            return [posed(each, self._joints(node["skin"], world))]
        matrices = world[place] @ self._instances(node)
        seen = matrices[(matrices[:, :3, :3] != 0).any(axis=(1, 2))]  # a scale of 0 is how some files hide things
        self._warnings["faces of scale 0"] += (len(matrices) - len(seen)) * (
            0 if each.faces is None else len(each.faces)
        )
        return [moved(each, seen)] if len(seen) else []

    def _instances(self, node: dict[str, Any]) -> np.ndarray:
        """(N, 4, 4), node from instance; one identity for a node without instances."""
        names = part(node, "extensions", "EXT_mesh_gpu_instancing", "attributes")
        found = {}
        for name, kind, default in (
            ("TRANSLATION", "VEC3", (0.0, 0, 0)),
            ("ROTATION", "VEC4", (0.0, 0, 0, 1)),
            ("SCALE", "VEC3", (1.0, 1, 1)),
        ):
            values = np.array([default])
            if name in names:
                values = self._data.real(names[name], self._data.array(names[name], f"an instance's {name}", (kind,)))
            found[name] = values.astype(np.float64)
        count = max(map(len, found.values())) if names else 1
        if any(len(values) not in (1, count) for values in found.values()):
            raise ValueError("its instances have attributes of different counts")
        return np.broadcast_to(_trs(found["TRANSLATION"], found["ROTATION"], found["SCALE"]), (count, 4, 4))

    def _joints(self, place: Any, world: list[np.ndarray]) -> np.ndarray:
        """(J, 4, 4) of a skin's joints: their nodes' matrices times the inverse bind matrices."""
        skin = self._data.row("skins", place, "a node")
        joints = rows(skin, "joints", int)
        for joint in joints:
            self._data.row("nodes", joint, "a skin")
        matrices = np.array([world[joint] for joint in joints]).reshape(-1, 4, 4)
        if skin.get("inverseBindMatrices") is None:
            return matrices
        stored = self._data.array(skin["inverseBindMatrices"], "a skin's inverseBindMatrices", ("MAT4",))
        if len(stored) < len(joints):
            raise ValueError(f"a skin has {len(joints)} joints and {len(stored)} inverse bind matrices")
        return matrices @ stored[: len(joints)].astype(np.float64).reshape(-1, 4, 4).transpose(0, 2, 1)

    def _mesh(self, parts: list[GltfPart]) -> Mesh:
        starts = np.cumsum([0, *(len(each.positions) for each in parts)])
        faces = [each.faces if start == 0 else each.faces + start for each, start in zip(parts, starts, strict=False)]
        used = sorted({each.material for each in parts})
        number = {material: place for place, material in enumerate(used)}
        vertices = _joined([np.asarray(each.positions, np.float64) for each in parts])
        if not np.isfinite(vertices).all():
            raise ValueError("a vertex is not finite (NaN or infinity)")
        white = [np.broadcast_to(np.uint8(255), (len(each.positions), 4)) for each in parts]
        blank = [np.broadcast_to(np.float32(0), (len(each.faces), 3, 2)) for each in parts]
        uvs = [other if each.uvs is None else each.uvs for each, other in zip(parts, blank, strict=True)]
        colors = [other if each.colors is None else each.colors for each, other in zip(parts, white, strict=True)]
        return Mesh(
            vertices=vertices,
            faces=_joined(faces),
            materials=tuple(self._materials.made[material] for material in used),
            face_material=np.repeat([number[each.material] for each in parts], [len(each.faces) for each in parts]),
            corner_uvs=None if all(each.uvs is None for each in parts) else _joined(uvs),
            vertex_colors=None if all(each.colors is None for each in parts) else _joined(colors),
        )

    def _cloud(self, parts: list[GltfPart]) -> RawShape:
        points, colors = _joined([np.asarray(each.positions, np.float64) for each in parts]), []
        for each in parts:
            base = np.array(self._materials.made[each.material].base_color[:3])
            rows_of_one = np.full((len(each.positions), 3), 255) if each.colors is None else each.colors[:, :3]
            colors.append(np.rint(rows_of_one * base).astype(np.uint8))
        known = any(p.colors is not None or self._materials.made[p.material].base_color != GREY for p in parts)
        kept = placed(points)
        self._warnings[NO_PLACE] += int((~kept).sum())
        return RawShape(points=points[kept], colors=_joined(colors)[kept] if known else None)


def _weights(values: dict[str, Any]) -> tuple[float, ...]:
    """Weights of morph targets, () where there are none."""
    count = len(values["weights"]) if isinstance(values.get("weights"), list) else 0
    found = numbers(values, "weights", count)
    return () if found is None else tuple(found)


def _local(node: dict[str, Any]) -> np.ndarray:
    """4x4, parent from node: its matrix, or its translation, rotation and scale."""
    matrix = numbers(node, "matrix", 16)
    if matrix is not None:
        return matrix.reshape(4, 4).T
    found = (numbers(node, key, count) for key, count in (("translation", 3), ("rotation", 4), ("scale", 3)))
    defaults = (np.zeros(3), np.array([0.0, 0, 0, 1]), np.ones(3))
    return _trs(*((d if f is None else f)[None] for f, d in zip(found, defaults, strict=True)))[0]


def _trs(translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(N, 4, 4) of translations (N, 3), quaternions x y z w (N, 4) of any length and scales (N, 3), each N or 1."""
    length = np.linalg.norm(rotation, axis=1, keepdims=True)
    x, y, z, w = np.where(length > 0, rotation / np.where(length > 0, length, 1), [0, 0, 0, 1]).T
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    found = np.zeros((max(len(translation), len(turn), len(scale)), 4, 4))
    found[:, :3, :3] = turn * scale[:, None]
    found[:, :3, 3] = translation
    found[:, 3, 3] = 1
    return found


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
