"""Lying headers of PLY and GLB files: refused before anything is allocated for them."""

from __future__ import annotations

import copy
import json
import resource
import struct
import tracemalloc

import numpy as np
import pytest
import trimesh

from pipeline.formats.header_checks import check_header
from pipeline.formats.mesh import read_mesh


def glb(values: dict, body: bytes = bytes(64)) -> bytes:
    text = json.dumps(values).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def good() -> dict:
    return {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": 64}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 12}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": 3, "type": "SCALAR"},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }


def changed(change) -> bytes:
    values = copy.deepcopy(good())
    change(values)
    return glb(values)


BODY = struct.pack("<9f3I", 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 2) + bytes(16)
LYING_GLB = {
    "count": (lambda v: v["accessors"][0].update(count=4_000_000_000), "accessor 0 announces 4,000,000,000 values"),
    "negative": (lambda v: v["accessors"][0].update(count=-3), "accessor 0 has a count that is no number"),
    "text": (lambda v: v["accessors"][0].update(count="3"), "no number"),
    "no view": (lambda v: v["accessors"][0].update(bufferView=7), "buffer view that is not there"),
    "long view": (lambda v: v["bufferViews"][0].update(byteLength=10**12), "more than its bytes hold"),
    "empty accessor": (
        lambda v: v["accessors"].append({"componentType": 5126, "count": 10**9, "type": "MAT4"}),
        "its accessors announce 64,000,000,0",
    ),
    "circle": (lambda v: v.update(nodes=[{"children": [1]}, {"children": [0]}]), "a node is above itself"),
    "own child": (lambda v: v.update(nodes=[{"children": [0]}]), "a node is above itself"),
    "two parents": (lambda v: v.update(nodes=[{"children": [1, 1]}, {}]), "node 1 has two parents"),
    "lost child": (lambda v: v.update(nodes=[{"children": [9]}]), "a child that is not there"),
    "nodes": (lambda v: v.update(nodes={"a": 1}), "nodes that is no list"),
    "required": (lambda v: v.update(extensionsRequired=["VENDOR_x"]), "it requires the extension VENDOR_x"),
}
SHARED = good() | {
    "bufferViews": [{"buffer": 0, "byteLength": 1 << 20}],
    "accessors": [{"bufferView": 0, "componentType": 5121, "count": 1 << 20, "type": "SCALAR"}] * 99,
}
MANY = [b"property list uint8 int32 vertex_indices", b"element face 4000000000"]


def ply(*elements: bytes, body: bytes = bytes(40), kind: bytes = b"binary_little_endian") -> bytes:
    xyz = [b"element vertex 3", b"property float x", b"property float y", b"property float z"]
    return b"\n".join([b"ply", b"format " + kind + b" 1.0", *xyz, *elements, b"end_header", b""]) + body


LYING = {
    "faces.ply": (ply(*MANY[::-1]), r"announces at least 4,000,000,036 bytes, 41 are there"),
    "ascii.ply": (
        b"ply\nformat ascii 1.0\nelement vertex 999999999\nproperty float x\nend_header\n1\n2\n",
        "announces at least 1,999,999,998 bytes",
    ),
    "count.ply": (ply(b"element face -1"), "no count in the PLY header"),
    "digits.ply": (ply(b"element face " + b"9" * 5000), "no count in the PLY header"),
    "endless.ply": (b"ply\nformat ascii 1.0\ncomment " + b"x" * (2 << 20), "no end_header"),
    "length.glb": (glb(good())[:-9], "cut, or lying"),
    "chunk.glb": (glb(good())[:12] + b"\xff\xff\xff\x7f" + glb(good())[16:], "cut, or lying"),
    "version.glb": (glb(good())[:4] + b"\x01" + glb(good())[5:], "glTF 1.0 is not read"),
    "short.glb": (b"glTF\x02", "not a readable glb"),
    "json.glb": (glb(good()).replace(b'{"asset"', b'{"asset,'), "JSON cannot be read"),
    "list.glb": (glb([1]), "no object"),
    **{f"{name}.glb": (changed(change), words) for name, (change, words) in LYING_GLB.items()},
    "shared.glb": (glb(SHARED, bytes(1 << 20)), "its accessors announce 103,809,024 bytes, the file has 1,05"),
    "deep.gltf": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "JSON cannot be read"),
    "large.gltf": (
        json.dumps({"accessors": [{"componentType": 5126, "count": 10**9, "type": "MAT4"}]}).encode(),
        "announce 64,000,000,000 bytes",
    ),
}


@pytest.mark.parametrize("name", LYING)
def test_a_lying_header_is_one_line_and_no_memory(tmp_path, name: str) -> None:
    data, words = LYING[name]
    path = tmp_path / name.replace(" ", "_")
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words) as caught:
            read_mesh(path, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 200e6 + 4 * len(data)


def test_good_files_pass(tmp_path) -> None:
    (tmp_path / "a.glb").write_bytes(glb(good(), BODY))
    assert len(read_mesh(tmp_path / "a.glb", tmp_path).mesh.faces) == 1
    short = good()
    short["bufferViews"][1]["byteLength"] = 6
    short["accessors"][1]["componentType"] = 5123
    (tmp_path / "b.glb").write_bytes(glb(short, BODY[:36] + struct.pack("<3H", 0, 1, 2) + bytes(22)))
    assert len(read_mesh(tmp_path / "b.glb", tmp_path).mesh.faces) == 1
    for encoding in ("ascii", "binary_little_endian"):
        data = trimesh.creation.icosphere(2).export(file_type="ply", encoding=encoding.partition("_")[0])
        check_header(data, ".ply")
        (tmp_path / "a.ply").write_bytes(data)
        assert len(read_mesh(tmp_path / "a.ply", tmp_path).mesh.faces) == 320


@pytest.mark.parametrize("suffix", ["ply", "glb", "stl", "off", "obj"])
def test_damaged_bytes_never_do_more_than_fail(tmp_path, suffix: str) -> None:
    data = trimesh.creation.icosphere(1).export(file_type=suffix)
    data = data.encode() if isinstance(data, str) else data
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = []
    for _ in range(150):
        broken = bytearray(data)
        for place in rng.integers(0, min(len(data), 600), 3):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(bytes(broken[: rng.integers(1, len(broken) + 1)] if rng.random() < 0.3 else broken))
        try:
            outcomes.append("mesh" if read_mesh(path, tmp_path).mesh is not None else "points")
        except ValueError as error:
            outcomes.append(str(error))
    assert set(outcomes) - {"mesh", "points"}
    assert not any("\n" in outcome for outcome in outcomes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
