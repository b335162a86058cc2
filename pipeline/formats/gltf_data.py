"""Reads the bytes of a glTF file: its JSON, its buffers and their views, and accessors as numpy arrays.

Headers that lie are found before memory is taken for what they announce. Every reason is a ValueError of one line.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from pipeline.formats.gltf_features import check_required
from pipeline.sources.side_files import SideFiles
from pipeline.sources.source_files import noted

try:
    import DracoPy
except ImportError:
    DracoPy = None
try:
    import meshopt
except ImportError:
    meshopt = None

_DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5124: "<i4", 5125: "<u4", 5126: "<f4", 5130: "<f8"}
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
DRACO = "KHR_draco_mesh_compression"
_AMPLIFICATION = 64  # several accessors may share bytes; no valid file shares them this often
_SMALL = 1 << 24
_VERSION_1 = "glTF 1.0 is not read: convert it to glTF 2.0"
_LISTS = (
    *("accessors", "bufferViews", "buffers", "images", "materials", "meshes"),
    *("nodes", "samplers", "scenes", "skins", "textures"),
)


def parse_gltf(data: bytes, suffix: str) -> tuple[dict[str, Any], memoryview | None]:
    """The JSON of a .glb or .gltf, which its first bytes tell apart, and the binary chunk or None.

    Raises ValueError on another version than 2, and when more is announced than the bytes can hold.
    """
    text, binary = data, None
    if data[:4] == b"glTF":
        text, binary = _chunks(data)
    elif suffix == ".glb" and data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
        raise ValueError(f"not a readable glb file (it begins with {data[:8]!r})")
    values = _parsed(text)
    _check_version(values)
    for key in _LISTS:
        rows(values, key)
    check_required(rows(values, "extensionsRequired", str))
    _check_sizes(values, len(data))
    _check_nodes(rows(values, "nodes"))
    return values, binary


def _chunks(data: bytes) -> tuple[bytes, memoryview | None]:
    """The JSON chunk and the binary chunk of a GLB."""
    if len(data) < 20:
        raise ValueError(f"not a readable glb file ({len(data)} bytes)")
    version, length, size = struct.unpack_from("<III", data, 4)
    if version != 2:
        raise ValueError(_VERSION_1 if version == 1 else f"glTF version {version}; only 2 is read")
    if length > len(data) or 20 + size > len(data):
        raise ValueError(f"its header announces {max(length, 20 + size):,} bytes of {len(data):,}: cut, or lying")
    if data[16:20] != b"JSON":
        raise ValueError("its first chunk is no JSON")
    place = 20 + size
    binary = None
    while binary is None and place + 8 <= len(data):
        size, kind = struct.unpack_from("<I4s", data, place)
        if kind == b"BIN\0":
            binary = memoryview(data)[place + 8 : place + 8 + size]
        place += 8 + size
    return data[20 : 20 + struct.unpack_from("<I", data, 12)[0]].rstrip(b"\0 "), binary


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"its JSON cannot be read (line {error.lineno}, column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError("its JSON cannot be read: it is no UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("its JSON cannot be read: it is nested too deep, or a number is too long") from error
    if not isinstance(values, dict):
        raise ValueError("its JSON is no object")
    return values


def _check_version(values: dict[str, Any]) -> None:
    asset = part(values, "asset")
    version = str(asset.get("version", "1" if isinstance(values.get("meshes"), dict) else "2"))
    least = str(asset.get("minVersion", "2.0"))
    if re.fullmatch(r"[01](\.\d+)?", version):
        raise ValueError(_VERSION_1)
    if not re.fullmatch(r"2(\.\d+)?", version) or not re.fullmatch(r"[012](\.0)?", least):
        raise ValueError(f"it needs a reader of glTF {max(version, least)[:20]!r}; 2.0 is read")


def rows(values: dict[str, Any], key: str, kind: type = dict) -> list[Any]:
    """A list of the JSON, empty where there is none. Raises ValueError when it holds anything else than `kind`."""
    found = values.get(key) or []
    if not isinstance(found, list) or not all(isinstance(row, kind) and not isinstance(row, bool) for row in found):
        raise ValueError(f"its JSON has a {key} that is no list of {'objects' if kind is dict else kind.__name__}")
    return found


def part(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    """An object inside an object of the JSON, empty where there is none."""
    for key in keys:
        values = values.get(key) or {}
        if not isinstance(values, dict):
            raise ValueError(f"its JSON has a {key} that is no object")
    return values


def numbers(values: dict[str, Any], key: str, count: int) -> np.ndarray | None:
    """float64 (count,) of a list of the JSON, or None where there is none."""
    found = values.get(key)
    if found is None:
        return None
    good = isinstance(found, list) and len(found) == count
    if not good or not all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e300 for x in found):
        raise ValueError(f"its JSON has a {key} that is no list of {count} numbers")
    return np.array(found, np.float64)


def number(values: dict[str, Any], key: str, default: float) -> float:
    """A number of the JSON."""
    found = numbers({key: [values.get(key, default)]}, key, 1)
    return default if found is None else float(found[0])


def whole(value: Any, where: str) -> int:
    """A count of the JSON. Raises ValueError when it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where} has a count that is no number")
    return value


def _check_sizes(values: dict[str, Any], size: int) -> None:
    """Compares what accessors announce with the bytes that there can be."""
    views = rows(values, "bufferViews")
    uris = [buffer.get("uri") for buffer in rows(values, "buffers")]
    own_bytes = all(uri is None or (isinstance(uri, str) and uri[:5].lower() == "data:") for uri in uris)
    packed = [any(name in part(view, "extensions") for name in _MESHOPT) for view in views]
    draco = DRACO in rows(values, "extensionsUsed", str)
    announced = 0
    for place, accessor in enumerate(rows(values, "accessors")):
        count = whole(accessor.get("count", 0), f"accessor {place}")
        component, kind = accessor.get("componentType"), accessor.get("type")
        if not isinstance(component, int | None) or not isinstance(kind, str | None):
            raise ValueError(f"accessor {place} has a type that glTF does not know")
        each = np.dtype(_DTYPES.get(component or 0, "f4")).itemsize * _COMPONENTS.get(kind or "", 1)
        announced += count * each
        view = accessor.get("bufferView")
        if view is not None:
            if not isinstance(view, int) or not 0 <= view < len(views):
                raise ValueError(f"accessor {place} names a buffer view that is not there")
            held = whole(views[view].get("byteLength", 0), f"buffer view {view}")
            if count * each > held or (own_bytes and held > size and not packed[view]):
                raise ValueError(f"accessor {place} announces {count:,} values, more than its bytes hold: lying")
    times = _AMPLIFICATION * (_AMPLIFICATION if draco or any(packed) else 1)
    if announced > max(times * size, _SMALL) and own_bytes:
        raise ValueError(f"its accessors announce {announced:,} bytes, the file has {size:,}: lying")
    if announced > (1 << 32):
        raise ValueError(f"its accessors announce {announced:,} bytes: lying")


def _check_nodes(nodes: list[dict[str, Any]]) -> None:
    """glTF 2.0, 3.5.2: a node has one parent at most, and is not its own ancestor."""
    parent: dict[int, int] = {}
    for place, node in enumerate(nodes):
        for child in rows(node, "children", int):
            if not 0 <= child < len(nodes):
                raise ValueError(f"node {place} names a child that is not there")
            if child in parent:
                raise ValueError(f"node {child} has two parents")
            parent[child] = place
    todo, reached = [place for place in range(len(nodes)) if place not in parent], 0
    while todo:
        reached += 1
        todo += nodes[todo.pop()].get("children") or []
    if reached < len(nodes):
        raise ValueError("a node is above itself")


@dataclass
class GltfData:
    """The values and the bytes of one glTF file. Buffers are opened when an accessor needs them.

    binary: the chunk of a GLB, or None. files: finds buffers and pictures beside the file, or None where there are
    none beside it.
    """

    values: dict[str, Any]
    binary: memoryview | None
    files: SideFiles | None
    _buffers: dict[int, memoryview] = field(default_factory=dict)
    _views: dict[int, memoryview] = field(default_factory=dict)

    def row(self, key: str, place: Any, where: str) -> dict[str, Any]:
        """An object of one of the file's lists. Raises ValueError when it is not there."""
        found = self.values.get(key) or []  # parse_gltf has looked at all lists
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(found):
            raise ValueError(f"{where} names number {str(place)[:20]} of {len(found)} {key}")
        return found[place]

    def side_file(self, uri: Any, missing: str) -> bytes | None:
        """The bytes that a uri means, or None, counted as `missing`, when they are not in the source folder."""
        if not isinstance(uri, str):
            raise ValueError("its JSON has a uri that is no text")
        if uri[:5].lower() == "data:":
            head, _, body = uri.partition(",")
            plain = unquote_to_bytes(body)
            try:
                return base64.b64decode(plain + b"=" * (-len(plain) % 4)) if head.lower().endswith("base64") else plain
            except binascii.Error as error:
                raise ValueError("its JSON has a data: URI that is no base64") from error
        path = None if self.files is None else self.files.find(unquote(uri), missing, instead=uri)
        try:
            return None if path is None else noted(path, path.read_bytes())
        except OSError as error:
            raise ValueError(f"{uri[:100]!r} cannot be read: {error.strerror}") from error

    def _has_bytes(self, place: Any) -> bool:
        """Whether a buffer has bytes of its own, and is no stand-in for what is compressed elsewhere."""
        row = self.row("buffers", place, "a buffer view")
        return "uri" in row or (place == 0 and self.binary is not None)

    def _buffer(self, place: Any) -> memoryview:
        row = self.row("buffers", place, "a buffer view")
        if place not in self._buffers:
            if not self._has_bytes(place):
                raise ValueError(f"buffer {place} has neither a uri nor a chunk of the file")
            found: bytes | memoryview | None = self.binary
            if "uri" in row:
                found = self.side_file(row["uri"], "buffer not found")
            if found is None:
                raise ValueError(f"its buffer {str(row['uri'])[:100]} is not in the source folder")
            announced = whole(row.get("byteLength", len(found)), f"buffer {place}")
            if announced > len(found):
                raise ValueError(f"buffer {place} announces {announced:,} bytes, {len(found):,} are there")
            self._buffers[place] = memoryview(found)
        return self._buffers[place]

    def view(self, place: Any) -> memoryview:
        """The bytes of a buffer view, decompressed where they are there in no other form."""
        row = self.row("bufferViews", place, "an accessor")
        if place not in self._views:
            packed = [name for name in _MESHOPT if name in part(row, "extensions")]
            if packed and not self._has_bytes(row.get("buffer")):
                self._views[place] = self._unpacked(part(row, "extensions", packed[0]), packed[0])
            else:
                self._views[place] = self._slice(row, f"buffer view {place}")
        return self._views[place]

    def _slice(self, row: dict[str, Any], where: str) -> memoryview:
        data = self._buffer(row.get("buffer"))
        start, length = whole(row.get("byteOffset", 0), where), whole(row.get("byteLength", 0), where)
        if start + length > len(data):
            raise ValueError(f"{where} ends at byte {start + length:,}, its buffer has {len(data):,}")
        return data[start : start + length]

    def _unpacked(self, packed: dict[str, Any], name: str) -> memoryview:
        library = _needed(meshopt, "meshopt", name)
        count, stride = whole(packed.get("count"), name), whole(packed.get("byteStride"), name)
        data = bytes(self._slice(packed, name))
        if count * stride > max(_AMPLIFICATION**2 * len(data), _SMALL):
            raise ValueError(f"{name} announces {count * stride:,} bytes, packed into {len(data):,}: lying")
        try:
            found = library.decode_gltf_buffer(data, count, stride, packed.get("mode"), packed.get("filter"))
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"its {name} data cannot be decoded") from error
        return memoryview(found.tobytes())

    def array(self, place: Any, where: str, kinds: tuple[str, ...]) -> np.ndarray:
        """The numbers of an accessor as they are stored, (count, components): a view of the file where it can be one.

        where: who names it. kinds: types that it may have.
        """
        accessor = self.row("accessors", place, where)
        dtype, width, count = self._layout(accessor, where, kinds)
        values = np.zeros((count, width), dtype)
        if accessor.get("bufferView") is not None:
            values = self._strided(accessor, dtype, width, count, where)
        sparse = part(accessor, "sparse")
        if sparse:
            return self._replaced(values, sparse, where)
        return values

    def dtype(self, place: Any) -> np.dtype:
        """The type of an accessor's components as they are stored."""
        return np.dtype(_DTYPES[self.row("accessors", place, "a primitive")["componentType"]])

    def _layout(self, accessor: dict[str, Any], where: str, kinds: tuple[str, ...]) -> tuple[np.dtype, int, int]:
        kind, component = accessor.get("type"), accessor.get("componentType")
        if kind not in kinds or component not in _DTYPES:
            raise ValueError(f"{where} is of type {str(kind)[:20]}, component {str(component)[:20]}, not {kinds[0]}")
        return np.dtype(_DTYPES[component]), _COMPONENTS[kind], whole(accessor.get("count", 0), where)

    def _strided(self, source: dict[str, Any], dtype: np.dtype, width: int, count: int, where: str) -> np.ndarray:
        row = self.row("bufferViews", source.get("bufferView"), where)
        data, start = self.view(source.get("bufferView")), whole(source.get("byteOffset", 0), where)
        each = dtype.itemsize * width
        stride = whole(row.get("byteStride", 0), where) or each
        if count and start + (count - 1) * stride + each > len(data):
            raise ValueError(f"{where} announces {count:,} values, more than its bytes hold: lying")
        return np.ndarray(
            (count, width), dtype, data if count else b"", start if count else 0, (stride, dtype.itemsize)
        )

    def _replaced(self, values: np.ndarray, sparse: dict[str, Any], where: str) -> np.ndarray:
        """The values with those that a sparse accessor gives anew."""
        count, indices = whole(sparse.get("count"), where), part(sparse, "indices")
        if indices.get("componentType") not in (5121, 5123, 5125):
            raise ValueError(f"{where} has sparse indices that are no whole numbers")
        places = self._strided(indices, np.dtype(_DTYPES[indices["componentType"]]), 1, count, where)[:, 0]
        if count and places.max() >= len(values):
            raise ValueError(f"{where} has sparse index {places.max()} of {len(values)} values")
        values = values.copy()
        values[places] = self._strided(part(sparse, "values"), values.dtype, values.shape[1], count, where)
        return values

    def real(self, place: Any, values: np.ndarray) -> np.ndarray:
        """The numbers of an accessor as real ones: integers become shares of one where it is `normalized`."""
        if values.dtype.kind == "f" or not self.row("accessors", place, "").get("normalized"):
            return values
        return np.maximum(values / np.float32(np.iinfo(values.dtype).max), np.float32(-1))

    def unpack_draco(self, packed: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Attributes by name, each (V, components), and faces (F, 3) of what Draco packed into a buffer view."""
        library = _needed(DracoPy, "DracoPy", DRACO)
        data = bytes(self.view(packed.get("bufferView")))
        try:
            mesh = library.decode(data)
        except MemoryError:
            raise
        except Exception as error:  # its own types
            raise ValueError(f"its {DRACO} data cannot be decoded") from error
        by_id = {each["unique_id"]: each["data"] for each in mesh.attributes}
        found = {name: by_id[id] for name, id in part(packed, "attributes").items() if id in by_id}
        return found, np.asarray(getattr(mesh, "faces", np.zeros((0, 3), np.uint32)))


def _needed(library: Any, name: str, extension: str) -> Any:
    if library is None:
        raise ValueError(f"{extension} needs {name}, a library of the role build: `python -m pipeline doctor`")
    return library
