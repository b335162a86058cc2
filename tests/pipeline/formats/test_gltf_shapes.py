"""glTF's nodes, accessors, primitives, skins and targets through the real command: where faces and points end up."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
import pytest
from gltf_maker import BuiltFile, GltfMaker, box, build_files

from pipeline.formats import gltf_data

UP = [0, 0.5**0.5, 0, 0.5**0.5]  # a quarter turn about +Y: x becomes -z
FLAT = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
Bounds = tuple[list[float], list[float]]


def one(change: Callable[[GltfMaker], dict | None], **node: object) -> bytes:
    """A file of one node with the primitive that `change` makes."""
    made = GltfMaker()
    return made.show(change(made), **node).glb()


def scene(*boxes: dict, **values: object) -> bytes:
    """A file whose nodes are given; node 0's mesh is a box."""
    made = GltfMaker()
    made.mesh(made.primitive(box()))
    made.values |= {"nodes": list(boxes), **values}
    return made.glb()


def quantized(kind: str, normalized: bool) -> bytes:
    top = np.iinfo(kind).max
    scale = 0.5 if normalized else 0.5 / top
    made = GltfMaker()
    points = made.accessor(np.rint(box(2) * top), kind, {"byteStride": 4 if kind == "int8" else 8}, bufferView=None)
    width = np.dtype(kind).itemsize
    rows = np.zeros((36, 4), kind)
    rows[:, :3] = np.rint(box(2) * top)
    made.values["accessors"][points] |= {"bufferView": made.view(rows.tobytes(), byteStride=4 * width)}
    made.values["accessors"][points] |= {"normalized": True} if normalized else {}
    made.values |= {"extensionsUsed": ["KHR_mesh_quantization"], "extensionsRequired": ["KHR_mesh_quantization"]}
    return made.show(made.primitive(points), scale=[scale] * 3).glb()


def interleaved() -> bytes:
    """Positions and colours in one buffer view, with a stride and offsets."""
    made = GltfMaker()
    rows = np.zeros(36, [("junk", "u4"), ("at", "<f4", 3), ("color", "u1", 4), ("more", "<f4")])
    rows["at"], rows["color"] = box(), (255, 0, 0, 255)
    view = made.view(rows.tobytes(), byteStride=24)
    points = made.accessor(box(), bufferView=view, byteOffset=4)
    colors = made.accessor(rows["color"], "uint8", bufferView=view, byteOffset=16, normalized=True)
    return made.show(made.primitive(points, COLOR_0=colors)).glb()


def sparse(base: bool) -> bytes:
    """Sparse positions over a box, or over zeros: vertices 0 to 35 are all given."""
    made = GltfMaker()
    first = {} if base else {"bufferView": None}
    count = 1 if base else 36
    places = made.view(np.arange(count, dtype=np.uint8).tobytes())
    values = made.view(box()[:count].tobytes())
    row = {"count": count, "indices": {"bufferView": places, "componentType": 5121}, "values": {"bufferView": values}}
    wrong = np.concatenate([[[9, 9, 9]], box()[1:]])
    return made.show(made.primitive(made.accessor(wrong, sparse=row, **first))).glb()


def skinned(weights: list[float], sets: int = 1, **node: object) -> bytes:
    """A box that two joints hold, the second moved by 4 along x and mirrored nowhere; its own node is far away."""
    made = GltfMaker()
    held = np.tile(np.array(weights, np.float32), (36, 1))
    joints = np.tile([0, 1, 0, 0], (36, 1))
    inverse = np.tile(np.eye(4), (2, 1, 1))
    inverse[:, 3, :3] = (0, -1, 0)  # column by column: y - 1
    attributes: dict = {"JOINTS_0": made.accessor(joints, "uint8"), "WEIGHTS_0": held}
    if sets == 2:
        empty = made.accessor(np.zeros((36, 4)), "uint8")
        attributes = {"JOINTS_0": empty, "WEIGHTS_0": np.zeros((36, 4))}
        attributes |= {"JOINTS_1": made.accessor(joints, "uint8"), "WEIGHTS_1": held}
    made.show(made.primitive(box(), **attributes), skin=0, **node)
    here = [made.add("nodes", translation=[0, 1, 0]), made.add("nodes", translation=[4, 1, 0])]
    made.values["scenes"][0]["nodes"] += here
    made.add("skins", joints=here, inverseBindMatrices=made.accessor(inverse.reshape(2, 16)))
    return made.glb()


def morphed(mesh: list[float], node: list[float] | None = None) -> bytes:
    """A box of side 1 with two targets: one moves all by 2 along x, one (sparse) its first vertex alone."""
    made = GltfMaker()
    move = made.accessor(np.tile([2, 0, 0], (36, 1)))
    row = {"count": 1, "indices": {"bufferView": made.view(b"\0"), "componentType": 5121}}
    row["values"] = {"bufferView": made.view(np.array([[0, 7, 0]], "<f4").tobytes())}
    few = made.accessor(np.zeros((36, 3)), bufferView=None, sparse=row)
    made.values["scenes"] = [{"nodes": [0]}]
    made.mesh(made.primitive(box(), targets=[{"POSITION": move}, {"POSITION": few}]), weights=mesh)
    made.add("nodes", mesh=0, **({} if node is None else {"weights": node}))
    return made.glb()


def instances(**attributes: list) -> bytes:
    made = GltfMaker()
    given = {name: made.accessor(np.array(rows, np.float32)) for name, rows in attributes.items()}
    made.values |= {"extensionsRequired": ["EXT_mesh_gpu_instancing"]}
    more = {"EXT_mesh_gpu_instancing": {"attributes": given}}
    return made.show(made.primitive(box()), extensions=more, scale=[2, 2, 2]).glb()


def shared_vertices() -> bytes:
    """Two primitives that share one accessor of two boxes and a stray vertex: each uses its own box."""
    made = GltfMaker()
    points = made.accessor(np.concatenate([box(), box(at=(3, 0, 0)), [[50, 50, 50]]]))
    return made.show(made.primitive(points, range(36)), made.primitive(points, range(36, 72))).glb()


def beside(**primitive: object) -> bytes:
    """A box, and another primitive of FLAT beside it."""
    made = GltfMaker()
    return made.show(made.primitive(box()), made.primitive(FLAT + np.float32([5, 0, 0]), **primitive)).glb()


HALF = ([-0.5] * 3, [0.5] * 3)
MOVED = ([1.5, -0.5, -0.5], [2.5, 0.5, 0.5])
HIDE = {"KHR_node_visibility": {"visible": False}}
SHOWN: dict[str, tuple[bytes, int, float, Bounds]] = {  # name -> file, faces, area, bounds
    "nested": (
        scene({"children": [1], "translation": [1, 0, 0]}, {"mesh": 0, "translation": [1, 0, 0], "rotation": UP}),
        12, 6, MOVED,
    ),
    "below_camera": (
        scene({"camera": 0, "children": [1], "translation": [2, 0, 0]}, {"mesh": 0}, cameras=[{"type": "perspective"}]),
        12, 6, MOVED,
    ),
    "below_light": (
        scene({"extensions": {"KHR_lights_punctual": {}}, "children": [1], "translation": [2, 0, 0]}, {"mesh": 0}),
        12, 6, MOVED,
    ),
    "matrix": (scene({"mesh": 0, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 2, 0, 0, 1]}), 12, 6, MOVED),
    "sheared": (
        scene({"mesh": 0, "matrix": [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]}),
        12, 4 + 2 * 2**0.5, ([-1, -0.5, -0.5], [1, 0.5, 0.5]),
    ),
    "negative": (scene({"mesh": 0, "scale": [-1, 1, 1], "translation": [2, 0, 0]}), 12, 6, MOVED),
    "unnormalised_rotation": (scene({"mesh": 0, "rotation": [0, 3, 0, 3], "translation": [2, 0, 0]}), 12, 6, MOVED),
    "deep": (scene(*({"children": [n + 1]} for n in range(3000)), {"mesh": 0}), 12, 6, HALF),
    "no_scene": (scene({"mesh": 0}, {"children": [0], "translation": [2, 0, 0]}), 12, 6, MOVED),
    "second_scene": (
        scene({"mesh": 0}, {"mesh": 0, "translation": [2, 0, 0]}, scene=1, scenes=[{"nodes": [0]}, {"nodes": [1]}]),
        12, 6, MOVED,
    ),
    "no_default_scene": (
        scene({"mesh": 0, "translation": [2, 0, 0]}, {"mesh": 0}, scenes=[{"nodes": [0]}, {"nodes": [1]}]),
        12, 6, MOVED,
    ),
    "hidden": (scene({"mesh": 0}, {"children": [2], "extensions": HIDE}, {"mesh": 0, "scale": [9, 9, 9]}), 12, 6, HALF),
    "quantized_int16": (quantized("int16", True), 12, 6, HALF),
    "quantized_int8": (quantized("int8", True), 12, 6, HALF),
    "quantized_as_they_are": (quantized("int16", False), 12, 6, HALF),
    "interleaved": (interleaved(), 12, 6, HALF),
    "sparse": (sparse(base=True), 12, 6, HALF),
    "sparse_over_zeros": (sparse(base=False), 12, 6, HALF),
    "unused_vertex": (beside(indices=[0, 1, 2]), 13, 6.5, ([-0.5] * 3, [6, 1, 0.5])),
    "indices_u8": (one(lambda m: m.primitive(box(), m.accessor(range(36), "uint8"))), 12, 6, HALF),
    "indices_u32": (one(lambda m: m.primitive(box(), m.accessor(range(36), "uint32"))), 12, 6, HALF),
    "strip": (beside(indices=[0, 1, 3, 2], mode=5), 14, 7, ([-0.5] * 3, [6, 1, 0.5])),
    "stitched_strip": (beside(indices=[0, 1, 3, 3, 1, 1, 2, 3], mode=5), 14, 7, ([-0.5] * 3, [6, 1, 0.5])),
    "fan": (beside(mode=6), 14, 7, ([-0.5] * 3, [6, 1, 0.5])),
    "lines": (beside(mode=1), 12, 6, HALF),
    "points_beside": (beside(mode=0), 12, 6, HALF),
    "left_over": (beside(indices=[0, 1, 2, 3], mode=4), 13, 6.5, ([-0.5] * 3, [6, 1, 0.5])),
    "skin_first": (skinned([1, 0, 0, 0], translation=[90, 0, 0]), 12, 6, HALF),
    "skin_second": (skinned([0, 1, 0, 0], scale=[9, 9, 9]), 12, 6, ([3.5, -0.5, -0.5], [4.5, 0.5, 0.5])),
    "skin_both": (skinned([0.5, 0.5, 0, 0]), 12, 6, MOVED),
    "skin_more": (skinned([0.5, 0.5, 0, 0], sets=2), 12, 6, MOVED),
    "skin_not_to_one": (skinned([2, 2, 0, 0]), 12, 6, MOVED),
    "morph_of_mesh": (morphed([1, 0]), 12, 6, MOVED),
    "morph_of_node": (morphed([0, 1], [1, 0]), 12, 6, MOVED),
    "morph_at_rest": (morphed([0, 0]), 12, 6, HALF),
    "instances": (instances(TRANSLATION=[[0, 0, 0], [3, 0, 0], [6, 0, 0]]), 36, 72, ([-1] * 3, [13, 1, 1])),
    "instances_turned": (
        instances(TRANSLATION=[[0, 0, 0], [3, 0, 0]], ROTATION=[[0, 0, 0, 1], UP], SCALE=[[1, 1, 1], [1, 1, 3]]),
        24, 24 + 56, ([-1] * 3, [9, 1, 1]),
    ),
    "instances_mirrored": (
        instances(TRANSLATION=[[0, 0, 0], [3, 0, 0]], SCALE=[[1, 1, 1], [-1, 1, 1]]), 24, 48, ([-1] * 3, [7, 1, 1]),
    ),
    "shared_vertices": (shared_vertices(), 24, 12, ([-0.5] * 3, [3.5, 0.5, 0.5])),
}  # fmt: skip
WARNINGS = {
    "hidden": {"faces of hidden nodes": 12},
    "lines": {"lines passed over": 2},
    "points_beside": {"points passed over": 4},
    "left_over": {"indices of no whole face": 1, "vertices without a face": 1},
    "unused_vertex": {"vertices without a face": 1},
    "shared_vertices": {"vertices without a face": 1},
    "second_scene": {},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BuiltFile]:
    files = {f"{name}.glb": data for name, (data, *_) in SHOWN.items()}
    found = build_files(tmp_path_factory.mktemp("shapes"), files, "num_points=64", "views.rgb12.azimuth_deg=[30]")
    return lambda name: found[f"{name}.glb"]


@pytest.mark.parametrize("name", SHOWN)
def test_faces_are_where_the_file_says(built, name: str) -> None:
    _, faces, area, (low, high) = SHOWN[name]
    file = built(name)
    assert file.reason == ""
    assert (len(file.mesh.faces), file.warnings) == (faces, WARNINGS.get(name, {}))
    assert file.area == pytest.approx(area, rel=1e-4)
    np.testing.assert_allclose(
        [file.source_vertices.min(axis=0), file.source_vertices.max(axis=0)], [low, high], atol=1e-3
    )
    assert (file.source_points >= np.array(low) - 1e-3).all()
    assert (file.source_points <= np.array(high) + 1e-3).all()


@pytest.mark.parametrize(
    "name", ["negative", "matrix", "nested", "skin_both", "instances_turned", "instances_mirrored"]
)
def test_faces_keep_their_outside(built, name: str) -> None:
    """Volume by the divergence theorem: positive where faces are counter-clockwise seen from outside."""
    corners = built(name).source_vertices[built(name).mesh.faces]
    volume = np.linalg.det(corners - corners.mean(axis=(0, 1))).sum() / 6
    assert volume == pytest.approx({"instances_turned": 32, "instances_mirrored": 16}.get(name, 1), rel=1e-3)


def test_a_file_of_points_is_a_cloud_with_its_colours(tmp_path) -> None:
    made = GltfMaker()
    rows = np.random.default_rng(0).random((100, 3)).astype(np.float32)
    rows[7] = np.nan
    colors = made.accessor(np.tile([65535, 32768, 0, 65535], (100, 1)), "uint16", normalized=True)
    made.show(made.primitive(rows, mode=0, COLOR_0=colors), translation=[5, 0, 0])
    bare = GltfMaker()
    bare.show(bare.primitive(rows[8:], np.arange(50), mode=0))
    found = build_files(tmp_path, {"a.glb": made.glb(), "bare.glb": bare.glb()})
    file = found["a.glb"]
    assert (file.mesh, len(file.points), file.color) == (None, 99, [255, 188, 0])
    assert file.warnings == {"points without a place": 1}
    assert file.source_points.min(axis=0)[0] > 4.99
    assert (found["bare.glb"].colors, len(found["bare.glb"].points)) == (None, 50)


def draco() -> bytes:
    """A box that Draco packed, with COLOR_0 in 8 bits; its accessors have no bytes."""
    library = pytest.importorskip("DracoPy")
    colors = np.tile(np.array([255, 0, 0, 255], np.uint8), (36, 1))
    data = library.encode(
        box(), np.arange(36, dtype=np.uint32).reshape(-1, 3), quantization_bits=14, colors=colors, preserve_order=True
    )
    ids = {each["attribute_type"]: each["unique_id"] for each in library.decode(data).attributes}
    made = GltfMaker()
    packed = {"bufferView": made.view(data), "attributes": {"POSITION": ids[0], "COLOR_0": ids[2]}}
    points = made.accessor(box(), bufferView=None)
    tint = made.accessor(colors, "uint8", bufferView=None, normalized=True)
    indices = made.accessor(range(36), "uint16", bufferView=None)
    extensions = {"KHR_draco_mesh_compression": packed}
    made.values |= {"extensionsUsed": [*extensions], "extensionsRequired": [*extensions]}
    return made.show(made.primitive(points, indices, COLOR_0=tint, extensions=extensions)).glb()


def packed_views(name: str) -> bytes:
    """A box in buffer views that meshoptimizer packed."""
    library = pytest.importorskip("meshopt")
    made = GltfMaker()
    rows = {}
    for array, mode in ((box(), "ATTRIBUTES"), (np.arange(36, dtype=np.uint32), "TRIANGLES")):
        data = library.encode_gltf_buffer(array, mode)
        stride = array.nbytes // 36
        packed = {"buffer": 0, "byteOffset": len(made.body), "byteLength": len(data), "byteStride": stride, "count": 36}
        made.body += data + bytes(-len(data) % 4)
        rows[mode] = made.add(
            "bufferViews", buffer=1, byteLength=array.nbytes, extensions={name: {**packed, "mode": mode}}
        )
    made.values |= {"extensionsUsed": [name], "extensionsRequired": [name]}
    made.values["buffers"] = [{"byteLength": 1000, "extensions": {name: {"fallback": True}}}]
    points = made.accessor(box(), bufferView=rows["ATTRIBUTES"])
    return made.show(made.primitive(points, made.accessor(range(36), "uint32", bufferView=rows["TRIANGLES"]))).glb()


def test_compressed_primitives_are_read(tmp_path) -> None:
    names = ("EXT_meshopt_compression", "KHR_meshopt_compression")
    found = build_files(tmp_path, {"draco.glb": draco(), **{f"{name}.glb": packed_views(name) for name in names}})
    for name, file in found.items():
        assert (file.reason, file.area, len(file.mesh.faces)) == ("", pytest.approx(6, rel=1e-3), 12), name
    assert found["draco.glb"].color == [255, 0, 0]


def test_what_is_compressed_is_refused_by_name_without_its_library(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"draco.glb": draco(), "meshopt.glb": packed_views("EXT_meshopt_compression")}
    monkeypatch.setattr(gltf_data, "DracoPy", None)
    monkeypatch.setattr(gltf_data, "meshopt", None)
    found = build_files(tmp_path, files)
    remedy = "a library of the role build: `python -m pipeline doctor`"
    assert found["draco.glb"].reason == f"KHR_draco_mesh_compression needs DracoPy, {remedy}"
    assert found["meshopt.glb"].reason == f"EXT_meshopt_compression needs meshopt, {remedy}"


def test_a_fallback_is_read_where_there_is_one(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed and used, not required: the plain accessors are there."""
    monkeypatch.setattr(gltf_data, "DracoPy", None)
    monkeypatch.setattr(gltf_data, "meshopt", None)
    made = GltfMaker()
    points = made.accessor(box())
    packed = {"bufferView": made.view(b"junk"), "attributes": {"POSITION": 0}}
    made.values["bufferViews"][0]["extensions"] = {"EXT_meshopt_compression": {"buffer": 0, "byteLength": 4}}
    primitive = made.primitive(points, range(36), extensions={"KHR_draco_mesh_compression": packed})
    found = build_files(tmp_path, {"a.glb": made.show(primitive).glb()})
    assert found["a.glb"].area == pytest.approx(6)


def test_damaged_compressed_data_are_named(tmp_path) -> None:
    pytest.importorskip("DracoPy")
    made = GltfMaker()
    packed = {"bufferView": made.view(bytes(40)), "attributes": {"POSITION": 0}}
    points = made.accessor(box(), bufferView=None)
    made.show(made.primitive(points, extensions={"KHR_draco_mesh_compression": packed}))
    found = build_files(tmp_path, {"a.glb": made.glb()})
    assert found["a.glb"].reason == "its KHR_draco_mesh_compression data cannot be decoded"


def test_a_file_of_json_alone_is_read(tmp_path) -> None:
    made = GltfMaker()
    made.show(made.primitive(box()))
    body = bytes(made.body)
    inline = "data:application/octet-stream;base64," + base64.b64encode(body).decode()
    escaped = "data:application/octet-stream," + "".join(f"%{byte:02x}" for byte in body)
    files = {
        "inline.gltf": made.gltf(uri=inline),
        "escaped.gltf": made.gltf(uri=escaped),
        "bom.gltf": b"\xef\xbb\xbf" + made.gltf(uri=inline),
        "beside.gltf": made.gltf(uri="a%20folder/my.bin"),
        "a folder/my.bin": body,
        "named_wrongly.gltf": made.glb(),
        "longer.gltf": made.gltf(uri="longer.bin"),
        "longer.bin": body + bytes(9),
    }
    for name, file in build_files(tmp_path, files).items():
        assert (file.reason, file.area) == ("", pytest.approx(6)), name
