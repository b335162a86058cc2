"""Finds headers that lie: compares what a PLY or GLB file announces with its bytes before a parser allocates for it."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

_PLY_BYTES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "int32", "uint32", "float", "float32"), 4),
    **dict.fromkeys(("double", "float64", "int64", "uint64", "long", "ulong"), 8),
}
_PLY_END = re.compile(rb"(?:\A|[\r\n])end_header")
_COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_COMPRESSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")
_HEADER_LIMIT = 1 << 20
_AMPLIFICATION = 64  # several accessors may share bytes; no valid file shares them this often
_SMALL = 1 << 24


def check_header(data: bytes, suffix: str) -> None:
    """Raises ValueError, in one line, when a .ply, .glb or .gltf announces more than its bytes can hold."""
    if suffix == ".ply":
        _check_ply(data)
    elif suffix == ".glb":
        _check_gltf(_glb_json(data), len(data), own_bytes=True)
    elif suffix == ".gltf":
        _check_gltf(_parsed(data), len(data), own_bytes=False)


def _check_ply(data: bytes) -> None:
    found = _PLY_END.search(data, 0, _HEADER_LIMIT)
    if not found:
        raise ValueError("not a readable ply file: no end_header")
    end = found.end() - len("end_header")
    left = len(data) - end - len("end_header")
    text = data[:end].split(b"format", 1)[-1].lstrip().startswith(b"ascii")
    needed, count, each = 0, 0, 0
    for line in data[:end].decode("latin-1").splitlines():
        words = line.split()
        if words[:1] == ["element"]:
            needed, each = needed + count * each, 0
            if len(words) != 3 or not (words[2].isascii() and words[2].isdigit()) or len(words[2]) > 18:
                raise ValueError(f"no count in the PLY header's line {line[:60]!r}")
            count = int(words[2])
        elif words[:1] == ["property"] and len(words) > 2:
            kind = words[2] if words[1] == "list" else words[1]
            each += 2 if text else _PLY_BYTES.get(kind, 1)
    needed += count * each
    if needed > left + 1:  # a last line may end without a newline
        raise ValueError(f"its header announces at least {needed:,} bytes, {max(left, 0):,} are there: cut, or lying")


def _glb_json(data: bytes) -> dict[str, Any]:
    """The JSON chunk of a binary glTF file."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise ValueError(f"not a readable glb file (it begins with {data[:8]!r})")
    version, length, size = struct.unpack_from("<III", data, 4)
    if version != 2:
        raise ValueError(f"glTF version {version}; only 2 is read")
    if length > len(data) or 20 + size > len(data):
        raise ValueError(f"its header announces {max(length, 20 + size):,} bytes of {len(data):,}: cut, or lying")
    return _parsed(data[20 : 20 + size])


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its JSON cannot be read ({type(error).__name__})") from error
    if not isinstance(values, dict):
        raise ValueError("its JSON is no object")
    return values


def _check_gltf(values: dict[str, Any], size: int, own_bytes: bool) -> None:
    """own_bytes: all buffers lie in the file itself."""
    for name in _rows(values, "extensionsRequired", str):
        if name in _COMPRESSED:
            raise ValueError(f"it needs {name}, which is not read: decompress it (gltf-transform copy)")
    views = _rows(values, "bufferViews", dict)
    announced = 0
    for number, accessor in enumerate(_rows(values, "accessors", dict)):
        count = _whole(accessor.get("count", 0), f"accessor {number}")
        component, kind = accessor.get("componentType"), accessor.get("type")
        if not isinstance(component, int | None) or not isinstance(kind, str | None):
            raise ValueError(f"accessor {number} has a type that is none")
        each = _COMPONENT_BYTES.get(component or 0, 4) * _COMPONENTS.get(kind or "", 1)
        announced += count * each
        view = accessor.get("bufferView")
        if view is not None:
            if not isinstance(view, int) or not 0 <= view < len(views):
                raise ValueError(f"accessor {number} names a buffer view that is not there")
            held = _whole(views[view].get("byteLength", 0), f"buffer view {view}")
            if count * each > held or (own_bytes and held > size):
                raise ValueError(f"accessor {number} announces {count:,} values, more than its bytes hold: lying")
    if announced > max(_AMPLIFICATION * size, _SMALL) and own_bytes:
        raise ValueError(f"its accessors announce {announced:,} bytes, the file has {size:,}: lying")
    if announced > (1 << 32):
        raise ValueError(f"its accessors announce {announced:,} bytes: lying")
    _check_nodes(_rows(values, "nodes", dict))


def _rows(values: dict[str, Any], key: str, kind: type) -> list[Any]:
    rows = values.get(key) or []
    if not isinstance(rows, list) or not all(isinstance(row, kind) for row in rows):
        raise ValueError(f"its JSON has a {key} that is no list of {kind.__name__}")
    return rows


def _whole(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where} has a count that is no number")
    return value


def _check_nodes(nodes: list[dict[str, Any]]) -> None:
    """glTF 2.0, 3.5.2: a node has one parent at most, and is not its own ancestor."""
    parent: dict[int, int] = {}
    for number, node in enumerate(nodes):
        for child in _rows(node, "children", int):
            if not 0 <= child < len(nodes):
                raise ValueError(f"node {number} names a child that is not there")
            if child in parent:
                raise ValueError(f"node {child} has two parents")
            parent[child] = number
    todo, reached = [number for number in range(len(nodes)) if number not in parent], 0
    while todo:
        reached += 1
        todo += nodes[todo.pop()].get("children") or []
    if reached < len(nodes):
        raise ValueError("a node is above itself")
