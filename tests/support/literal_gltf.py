"""A second reader of binary glTF, slow and as literal as the specification: it says what the quick one must give.

Written from glTF 2.0 with loops over struct and plain numbers, without a line of pipeline's reader. It knows what the
sample files use: no draco, meshopt, skins or scenes of many roots with names.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

Matrix = list[list[float]]
_FORMATS = {5120: "b", 5121: "B", 5122: "h", 5123: "H", 5125: "I", 5126: "f"}
_LARGEST = {5120: 127.0, 5121: 255.0, 5122: 32767.0, 5123: 65535.0}
_WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


@dataclass(frozen=True)
class Triangle:
    """corners: three points in world units. color: RGB in [0, 1] at its middle, display values."""

    corners: list[list[float]]
    color: list[float]


@dataclass(frozen=True)
class Literal:
    """What a file holds: its triangles, its points with their colours, and how many nodes of it have a mesh."""

    triangles: list[Triangle]
    points: list[list[float]]
    mesh_nodes: int


class _File:
    def __init__(self, data: bytes) -> None:
        size = struct.unpack_from("<I", data, 12)[0]
        self.json = json.loads(data[20 : 20 + size])
        self.bytes = data[20 + size + 8 :]
        self.pictures: dict[int, Image.Image] = {}
        self.read: dict[int, list[list[float]]] = {}

    def view(self, index: int) -> tuple[int, int, int | None]:
        view = self.json["bufferViews"][index]
        return view.get("byteOffset", 0), view["byteLength"], view.get("byteStride")

    def numbers(self, start: int, stride: int | None, kind: int, width: int, count: int) -> list[list[float]]:
        step = stride or width * struct.calcsize(_FORMATS[kind])
        return [
            list(struct.unpack_from(f"<{width}{_FORMATS[kind]}", self.bytes, start + i * step)) for i in range(count)
        ]

    def accessor(self, index: int) -> list[list[float]]:
        if index not in self.read:
            self.read[index] = self._accessor(index)
        return self.read[index]

    def _accessor(self, index: int) -> list[list[float]]:
        about = self.json["accessors"][index]
        kind, width, count = about["componentType"], _WIDTH[about["type"]], about["count"]
        rows = [[0.0] * width for _ in range(count)]
        if "bufferView" in about:
            start, _, stride = self.view(about["bufferView"])
            rows = self.numbers(start + about.get("byteOffset", 0), stride, kind, width, count)
        if sparse := about.get("sparse"):
            where, values = sparse["indices"], sparse["values"]
            start = self.view(where["bufferView"])[0] + where.get("byteOffset", 0)
            places = self.numbers(start, None, where["componentType"], 1, sparse["count"])
            start = self.view(values["bufferView"])[0] + values.get("byteOffset", 0)
            for (place,), row in zip(places, self.numbers(start, None, kind, width, sparse["count"]), strict=True):
                rows[int(place)] = row
        if about.get("normalized"):
            rows = [[max(value / _LARGEST[kind], -1.0) for value in row] for row in rows]
        return rows

    def picture(self, texture: int) -> Image.Image:
        image = self.json["textures"][texture]["source"]
        if image not in self.pictures:
            start, size, _ = self.view(self.json["images"][image]["bufferView"])
            self.pictures[image] = Image.open(io.BytesIO(self.bytes[start : start + size])).convert("RGB")
        return self.pictures[image]


def read_literally(data: bytes) -> Literal:
    """The triangles and points of GLB bytes in world units, in the order of the nodes and primitives."""
    file = _File(data)
    about = file.json
    nodes = about.get("nodes", [])
    children = {child for node in nodes for child in node.get("children", [])}
    roots = [number for number in range(len(nodes)) if number not in children]
    if about.get("scenes"):
        roots = about["scenes"][about.get("scene", 0)].get("nodes", [])
    triangles: list[Triangle] = []
    points: list[list[float]] = []
    mesh_nodes = 0
    todo = [(number, [[float(i == j) for j in range(4)] for i in range(4)]) for number in reversed(roots)]
    while todo:
        number, above = todo.pop()
        world = _times(above, _own_matrix(nodes[number]))
        todo += [(child, world) for child in reversed(nodes[number].get("children", []))]
        if "mesh" not in nodes[number]:
            continue
        mesh_nodes += 1
        for place in _instances(file, nodes[number]):
            here = _times(world, place)
            for primitive in about["meshes"][nodes[number]["mesh"]]["primitives"]:
                if primitive.get("mode", 4) == 0:
                    points += [_moved(here, row) for row in file.accessor(primitive["attributes"]["POSITION"])]
                else:
                    triangles += _triangles(file, primitive, here)
    return Literal(triangles, points, mesh_nodes)


def _instances(file: _File, node: dict) -> list[Matrix]:
    """EXT_mesh_gpu_instancing, of which it knows the translations."""
    moves = [[0.0, 0.0, 0.0]]
    if "EXT_mesh_gpu_instancing" in node.get("extensions", {}):
        moves = file.accessor(node["extensions"]["EXT_mesh_gpu_instancing"]["attributes"]["TRANSLATION"])
    return [[[1, 0, 0, x], [0, 1, 0, y], [0, 0, 1, z], [0, 0, 0, 1]] for x, y, z in moves]


def _own_matrix(node: dict) -> Matrix:
    if "matrix" in node:
        return [[node["matrix"][4 * column + row] for column in range(4)] for row in range(4)]
    quaternion = node.get("rotation", [0, 0, 0, 1])
    length = sum(value * value for value in quaternion) ** 0.5  # 1 by the specification, and not in every file
    x, y, z, w = (value / length for value in quaternion)
    turn = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    scale, move = node.get("scale", [1, 1, 1]), node.get("translation", [0, 0, 0])
    return [[turn[i][j] * scale[j] for j in range(3)] + [move[i]] for i in range(3)] + [[0, 0, 0, 1]]


def _times(left: Matrix, right: Matrix) -> Matrix:
    return [[sum(left[i][k] * right[k][j] for k in range(4)) for j in range(4)] for i in range(4)]


def _moved(matrix: Matrix, point: list[float]) -> list[float]:
    return [sum(matrix[i][k] * point[k] for k in range(3)) + matrix[i][3] for i in range(3)]


def _determinant(m: Matrix) -> float:
    first, second, third = ([row[column] for row in m[:3]] for column in range(3))
    cross = [first[(i + 1) % 3] * second[(i + 2) % 3] - first[(i + 2) % 3] * second[(i + 1) % 3] for i in range(3)]
    return sum(cross[i] * third[i] for i in range(3))


def _triangles(file: _File, primitive: dict, world: Matrix) -> list[Triangle]:
    attributes = primitive["attributes"]
    places = [_moved(world, row) for row in file.accessor(attributes["POSITION"])]
    order = range(len(places))
    if "indices" in primitive:
        order = [int(row[0]) for row in file.accessor(primitive["indices"])]
    mode = primitive.get("mode", 4)
    if mode == 4:
        corners = [tuple(order[i : i + 3]) for i in range(0, len(order) - 2, 3)]
    elif mode == 5:  # glTF 2.0, 3.7.2.1: p_i = {v_i, v_(i + (1 + i % 2)), v_(i + (2 - i % 2))}
        corners = [(order[i], order[i + 1 + i % 2], order[i + 2 - i % 2]) for i in range(len(order) - 2)]
    else:
        corners = [(order[i + 1], order[i + 2], order[0]) for i in range(len(order) - 2)]
    if _determinant(world) < 0:  # 3.7.4: then clockwise corners are seen from outside
        corners = [three[::-1] for three in corners]
    colors = _corner_colors(file, primitive, len(places))
    return [
        Triangle([places[i] for i in three], _color(file, primitive, [colors[i] for i in three], three))
        for three in corners
    ]


def _corner_colors(file: _File, primitive: dict, count: int) -> list[list[float]]:
    if "COLOR_0" not in primitive["attributes"]:
        return [[1.0, 1.0, 1.0]] * count
    return [row[:3] for row in file.accessor(primitive["attributes"]["COLOR_0"])]


def _color(file: _File, primitive: dict, corners: list[list[float]], three: tuple[int, ...]) -> list[float]:
    """Display colour at a triangle's middle: texture, factor and vertex colours multiplied as light, then encoded."""
    light = [sum(corner[i] for corner in corners) / 3 for i in range(3)]
    if "material" not in primitive:
        return [_encoded(value) for value in light]
    material = file.json["materials"][primitive["material"]]
    about = material.get("pbrMetallicRoughness", {})
    factor, texture = about.get("baseColorFactor", [1, 1, 1, 1]), about.get("baseColorTexture")
    glossy = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
    if glossy is not None:
        factor, texture = glossy.get("diffuseFactor", [1, 1, 1, 1]), glossy.get("diffuseTexture")
    light = [value * factor[i] for i, value in enumerate(light)]
    if texture is not None:
        change = texture.get("extensions", {}).get("KHR_texture_transform", {})
        name = f"TEXCOORD_{change.get('texCoord', texture.get('texCoord', 0))}"
        rows = [file.accessor(primitive["attributes"][name])[i] for i in three]
        scale, offset = change.get("scale", [1, 1]), change.get("offset", [0, 0])
        u, v = (sum(row[i] * scale[i] + offset[i] for row in rows) / 3 for i in range(2))
        there = _texel(file.picture(texture["index"]), u, v)
        light = [value * _linear(there[i]) for i, value in enumerate(light)]
    return [_encoded(value) for value in light]


def _texel(picture: Image.Image, u: float, v: float) -> list[float]:
    """The picture at u right and v down, bilinear and repeating."""
    x, y = (u % 1) * picture.width - 0.5, (v % 1) * picture.height - 0.5
    left, top = int(np.floor(x)), int(np.floor(y))
    mixed = [0.0, 0.0, 0.0]
    for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
            there = picture.getpixel((column % picture.width, row % picture.height))
            mixed = [value + across * down * there[i] / 255 for i, value in enumerate(mixed)]
    return mixed


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def _encoded(value: float) -> float:
    value = min(max(value, 0.0), 1.0)
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
