"""Real assets and made ones beside an independent reader that does what the specification says, number by number."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gltf_maker import GltfMaker, box

from pipeline.formats.mesh import read_mesh

_LETTERS = {5120: "b", 5121: "B", 5122: "h", 5123: "H", 5125: "I", 5126: "f"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
ABSENT = {  # of the samples: what is refused, with a reason
    "unknown_required_extension.glb", "mask_alpha_60.glb", "draco-beside.glb", "version1.gltf",
}  # fmt: skip


def numbers(values: dict, body: bytes, place: int) -> list[tuple[float, ...]]:
    """One accessor, number by number. No sparse ones."""
    accessor = values["accessors"][place]
    letter, width = _LETTERS[accessor["componentType"]], _WIDTHS[accessor["type"]]
    if "bufferView" not in accessor:
        return [(0.0,) * width] * accessor["count"]
    view = values["bufferViews"][accessor["bufferView"]]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    step = view.get("byteStride") or struct.calcsize(letter) * width
    found = [struct.unpack_from(f"<{width}{letter}", body, start + step * row) for row in range(accessor["count"])]
    if accessor.get("normalized"):
        top = 2 ** (8 * struct.calcsize(letter) - letter.islower()) - 1
        found = [tuple(max(x / top, -1.0) for x in row) for row in found]
    return found


def matrix_of(node: dict) -> list[list[float]]:
    if "matrix" in node:
        return [[node["matrix"][4 * column + row] for column in range(4)] for row in range(4)]
    return from_parts(
        node.get("translation", (0, 0, 0)), node.get("rotation", (0, 0, 0, 1)), node.get("scale", (1, 1, 1))
    )


def from_parts(move: Any, turn: Any, scale: Any) -> list[list[float]]:
    """Each column is an axis turned by the quaternion (v + 2 w (q x v) + 2 q x (q x v)) and scaled."""
    length = sum(x * x for x in turn) ** 0.5
    q, w = np.array(turn[:3]) / length, turn[3] / length
    axes = [v + 2 * w * np.cross(q, v) + 2 * np.cross(q, np.cross(q, v)) for v in np.eye(3)]
    columns = [axis * size for axis, size in zip(axes, scale, strict=True)]
    return [[columns[0][i], columns[1][i], columns[2][i], move[i]] for i in range(3)] + [[0, 0, 0, 1]]


def product(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    return [[sum(a[i][k] * b[k][j] for k in range(4)) for j in range(4)] for i in range(4)]


def corners_of(primitive: dict, values: dict, body: bytes) -> list[tuple[int, int, int]]:
    count = values["accessors"][primitive["attributes"]["POSITION"]]["count"]
    order = (
        [row[0] for row in numbers(values, body, primitive["indices"])]
        if "indices" in primitive
        else list(range(count))
    )
    mode = primitive.get("mode", 4)
    if mode == 4:
        return [tuple(order[i : i + 3]) for i in range(0, len(order) - 2, 3)]
    if mode == 5:
        return [(order[i], order[i + 1 + i % 2], order[i + 2 - i % 2]) for i in range(len(order) - 2)]
    return [(order[0], order[i + 1], order[i + 2]) for i in range(len(order) - 2)] if mode == 6 else []


def literal(values: dict, body: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(F, 3, 3) corners of all faces and (F, 3) display colours of faces without texture, NaN where there is one."""
    nodes, triangles, colors = values.get("nodes", []), [], []
    children = {child for node in nodes for child in node.get("children", ())}
    roots = [n for n in range(len(nodes)) if n not in children]
    if values.get("scenes"):
        roots = values["scenes"][values.get("scene", 0)].get("nodes", [])
    todo = [(root, [[float(i == j) for j in range(4)] for i in range(4)]) for root in roots]
    while todo:
        place, above = todo.pop()
        node = nodes[place]
        here = product(above, matrix_of(node))
        todo += [(child, here) for child in node.get("children", ())]
        places = node.get("extensions", {}).get("EXT_mesh_gpu_instancing", {}).get("attributes", {}).get("TRANSLATION")
        moves = [(0, 0, 0)] if places is None else numbers(values, body, places)
        for move in moves:
            matrix = product(here, from_parts(move, (0, 0, 0, 1), (1, 1, 1)))
            for primitive in values["meshes"][node["mesh"]]["primitives"] if "mesh" in node else ():
                points = numbers(values, body, primitive["attributes"]["POSITION"])
                placed = [[sum(r[k] * (*p, 1)[k] for k in range(4)) for r in matrix[:3]] for p in points]
                for corners in corners_of(primitive, values, body):
                    triangles.append([placed[c] for c in corners])
                    colors.append(plain_color(primitive, values))
    return np.array(triangles).reshape(-1, 3, 3), np.array(colors).reshape(-1, 3)


def plain_color(primitive: dict, values: dict) -> list[float]:
    material = values["materials"][primitive["material"]] if "material" in primitive else None
    if "COLOR_0" in primitive["attributes"] or (material or {}).get("extensions"):
        return [np.nan] * 3
    if material is None:
        return [0.7] * 3
    pbr = material.get("pbrMetallicRoughness", {})
    if "baseColorTexture" in pbr:
        return [np.nan] * 3
    linear = pbr.get("baseColorFactor", [1, 1, 1, 1])[:3]
    return [12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055 for x in linear]


def compare(path: Path, data: bytes) -> None:
    size = struct.unpack_from("<I", data, 12)[0]
    expected, colors = literal(json.loads(data[20 : 20 + size]), data[28 + size :])
    mesh = read_mesh(path, path.parent).mesh
    corners = mesh.vertices[mesh.faces]
    ours, theirs = (np.sort(each.reshape(-1, 9).mean(axis=1)) for each in (corners, expected))
    assert len(ours) == len(theirs)
    extent = np.abs(expected).max()
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * extent)
    np.testing.assert_allclose(
        [corners.min((0, 1)), corners.max((0, 1))], [expected.min((0, 1)), expected.max((0, 1))], atol=1e-6 * extent
    )
    areas = [np.linalg.norm(np.cross(t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]), axis=1) / 2 for t in (corners, expected)]
    assert areas[0].sum() == pytest.approx(areas[1].sum(), rel=1e-5)
    base = np.array([m.base_color[:3] for m in mesh.materials])[mesh.face_material]
    bare = np.array([m.texture is None for m in mesh.materials])[mesh.face_material]
    if not np.isnan(colors).any() and mesh.vertex_colors is None:
        assert bare.all()
        mean = [(c * a[:, None]).sum(axis=0) / a.sum() for c, a in ((base, areas[0]), (colors, areas[1]))]
        np.testing.assert_allclose(*mean, atol=1e-6)


def test_the_samples_are_what_a_literal_reader_reads(shared) -> None:
    found = [p for p in sorted((shared / "samples").rglob("*.glb")) if p.name not in ABSENT and "points" not in p.name]
    for path in found:
        compare(path, path.read_bytes())
    assert len(found) >= 37


def test_a_made_scene_is_what_a_literal_reader_reads(tmp_path) -> None:
    rng = np.random.default_rng(0)
    made = GltfMaker()
    paint = [made.material([*rng.random(3), 1]) for _ in range(3)]
    strip = made.primitive(rng.random((9, 3)), rng.integers(0, 9, 20), paint[1], mode=5)
    short = made.accessor(rng.integers(-120, 120, (30, 3)), "int8", {"byteStride": 3}, normalized=True)
    meshes = [
        made.mesh(made.primitive(box(), None, paint[0]), made.primitive(short, rng.integers(0, 30, 60), paint[2])),
        made.mesh(made.primitive(rng.random((9, 3)), None, paint[0], mode=6)),
    ]
    assert strip["mode"] == 5
    places = {"TRANSLATION": made.accessor(rng.random((4, 3)))}
    made.values["nodes"] = [
        {"children": [1, 2], "rotation": [0.3, 0.1, -0.5, 0.8], "scale": [1, -2, 0.5], "camera": 0},
        {"mesh": meshes[0], "translation": [1, 2, 3], "children": [3]},
        {"mesh": meshes[1], "matrix": [*rng.random(3), 0, *rng.random(3), 0, *rng.random(3), 0, *rng.random(3), 1]},
        {
            "mesh": meshes[1],
            "extensions": {"EXT_mesh_gpu_instancing": {"attributes": places}},
            "rotation": [0, 0, 2, 1],
        },
    ]
    data = made.glb()
    (tmp_path / "a.glb").write_bytes(data)
    compare(tmp_path / "a.glb", data)
