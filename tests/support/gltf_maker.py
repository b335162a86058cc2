"""Makes small glTF files piece by piece, and builds files of any kind by the real command, in this process."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from builders import stored
from PIL import Image

from manifests.layout import read_manifest
from manifests.records import Record
from manifests.samples import decode_array, decode_picture, read_samples
from pipeline.__main__ import main
from pipeline.formats.glb import decode_mesh
from renderers.geometry import Mesh

_CODES = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
QUICK = (
    *("num_points=512", "fps_prefix=16", "max_failed_fraction=1", "views.depth10.image_size=32"),
    *(
        "views.rgb12.image_size=32",
        "views.rgb12.azimuth_deg=[30, 210]",
        "views.rgb12.name=rgb",
        'views.rgb12.rgb_format="png"',
    ),
    "views.depth10.name=depth",
)


def box(size: float = 1.0, at: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """float32 (36, 3): the twelve triangles of a box, three corners each, counter-clockwise from outside."""
    quads = []
    for axis in range(3):
        for side in (-0.5, 0.5):
            corners = np.full((4, 3), side)
            corners[:, [(axis + 1) % 3, (axis + 2) % 3]] = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
            quads.append(corners if side > 0 else corners[::-1])
    return (np.concatenate([q[[0, 1, 2, 0, 2, 3]] for q in quads]) * size + at).astype(np.float32)


def png(color: Any, mode: str = "", **how: Any) -> bytes:
    """A picture of one colour (1, 3 or 4 numbers) or of an array (H, W, n). mode: of Pillow, such as P."""
    array = np.asarray(color, np.uint8)
    array = np.full((4, 4, len(array)), array) if array.ndim == 1 else array
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    file = io.BytesIO()
    (image.convert(mode, palette=Image.Palette.ADAPTIVE) if mode else image).save(file, **{"format": "PNG", **how})
    return file.getvalue()


@dataclass
class GltfMaker:
    """The JSON and the binary chunk of a file in the making. Each method adds an object and gives its number."""

    values: dict[str, Any] = field(default_factory=lambda: {"asset": {"version": "2.0"}})
    body: bytearray = field(default_factory=bytearray)

    def add(self, key: str, **row: Any) -> int:
        self.values.setdefault(key, []).append(row)
        return len(self.values[key]) - 1

    def view(self, data: bytes, **more: Any) -> int:
        self.body += bytes(-len(self.body) % 4)
        self.body += data
        return self.add("bufferViews", buffer=0, byteOffset=len(self.body) - len(data), byteLength=len(data), **more)

    def accessor(self, array: Any, kind: str = "float32", view: dict[str, Any] | None = None, **more: Any) -> int:
        """Of an array (N, components) or (N,). more: keys of the accessor, which may leave its view away (None)."""
        array = np.asarray(array, kind)
        width = array[0].size if len(array) else 1
        row = {"componentType": _CODES[kind], "count": len(array), "type": _TYPES[width], **more}
        if "bufferView" not in row:
            row["bufferView"] = self.view(array.tobytes(), **(view or {}))
        return self.add("accessors", **{key: value for key, value in row.items() if value is not None})

    def texture(self, picture: bytes, sampler: dict[str, Any] | None = None, **more: Any) -> int:
        row = {"source": self.add("images", bufferView=self.view(picture), mimeType="image/png"), **more}
        if sampler is not None:
            row["sampler"] = self.add("samplers", **sampler)
        return self.add("textures", **{key: value for key, value in row.items() if value is not None})

    def material(self, factor: Any = None, texture: Any = None, **more: Any) -> int:
        """texture: its number, or a textureInfo."""
        info = {"index": texture} if isinstance(texture, int) else texture
        pbr = {"baseColorFactor": factor, "baseColorTexture": info, "metallicFactor": 0}
        return self.add("materials", pbrMetallicRoughness={k: v for k, v in pbr.items() if v is not None}, **more)

    def primitive(self, points: Any, indices: Any = None, material: int | None = None, **more: Any) -> dict[str, Any]:
        """more: attributes (upper case) as arrays or accessors, and keys of the primitive."""
        row: dict[str, Any] = {"attributes": {"POSITION": points if isinstance(points, int) else self.accessor(points)}}
        if indices is not None:
            row["indices"] = indices if isinstance(indices, int) else self.accessor(indices, "uint16")
        row |= {} if material is None else {"material": material}
        for key, value in more.items():
            if key.isupper() or key[-1].isdigit():
                row["attributes"][key] = value if isinstance(value, int) else self.accessor(value)
            else:
                row[key] = value
        return row

    def mesh(self, *primitives: dict[str, Any], **more: Any) -> int:
        return self.add("meshes", primitives=list(primitives), **more)

    def show(self, *primitives: dict[str, Any], **node: Any) -> GltfMaker:
        """A mesh and its node in scene 0; the maker itself."""
        nodes = self.values.setdefault("scenes", [{"nodes": []}])[0]["nodes"]
        nodes.append(self.add("nodes", mesh=self.mesh(*primitives), **node))
        return self

    def glb(self, **buffer: Any) -> bytes:
        body = bytes(self.body) + bytes(-len(self.body) % 4)
        values = {**self.values}
        if body or "buffers" in values:
            values["buffers"] = [{"byteLength": len(self.body), **buffer}, *values.get("buffers", [])]
        text = json.dumps(values).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(body), b"BIN\0") + body if body else b""
        return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks

    def gltf(self, **buffer: Any) -> bytes:
        """JSON alone, with buffer 0 as it is given."""
        return json.dumps({**self.values, "buffers": [{"byteLength": len(self.body), **buffer}]}).encode()


@dataclass(frozen=True)
class BuiltFile:
    """What a build made of one file.

    reason: of its Failure, or empty. view_reasons: of failures of views. pictures: by names such as rgb/v00.depth.png.
    """

    reason: str = ""
    view_reasons: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    points: np.ndarray | None = None
    colors: np.ndarray | None = None
    mesh: Mesh | None = None
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    world_from_source: np.ndarray | None = None

    @property
    def source_points(self) -> np.ndarray:
        """The points in the frame of the file."""
        back = np.linalg.inv(self.world_from_source)
        return self.points @ back[:3, :3].T + back[:3, 3]

    @property
    def source_vertices(self) -> np.ndarray:
        back = np.linalg.inv(self.world_from_source)
        return self.mesh.vertices @ back[:3, :3].T + back[:3, 3]

    @property
    def area(self) -> float:
        corners = self.source_vertices[self.mesh.faces]
        return float(
            np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
        )

    @property
    def color(self) -> list[int]:
        """The mean of the stored colours."""
        return np.rint(self.colors.mean(axis=0)).astype(int).tolist()


def build_files(folder: Path, files: dict[str, bytes], *changes: str) -> dict[str, BuiltFile]:
    """What `build meshes` makes of files, by their names, as it is stored."""
    for name, data in files.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes(data)
    return build_folder(folder / "in", folder / "out", *changes)


def build_folder(source: Path, out: Path, *changes: str) -> dict[str, BuiltFile]:
    """The objects and failures that `build meshes` makes of a folder, by their ids, as they are stored."""
    command = ["build", "meshes", "--source", str(source), "--out", str(out), "--workers", "0", *QUICK, *changes]
    assert main(command) in (0, 1)
    found: dict[str, dict[str, Any]] = {}
    ids: dict[str, str] = {}
    for key, sample in stored(out).items():
        ids[key] = sample.json["id"]
        found[key] = {
            "warnings": {row["type"]: row["count"] for row in sample.json["warnings"]},
            "points": decode_array(sample.members["points.npy"]),
            "colors": decode_array(sample.members["colors.npy"]) if "colors.npy" in sample.members else None,
            "world_from_source": np.array(sample.json["world_from_source"]),
            "pictures": {},
            "view_reasons": {},
        }
    for name in ("rgb", "depth"):
        for key, sample in stored(out, name).items():
            found[key]["pictures"] |= {
                f"{name}/{k}": decode_picture(v) for k, v in sample.members.items() if k[0] == "v"
            }
    for split in read_manifest(str(out)).num_shards:
        for path in sorted(out.glob(f"meshes/{split}-*.tar")):
            with open(path, "rb") as file:
                for _, sample in read_samples(file):
                    found[sample.key]["mesh"] = decode_mesh(sample.members["mesh.glb"])
    for path in sorted(out.rglob("*.json")):
        if path.name == "manifest.json":
            continue
        for failure in Record.from_json(json.loads(path.read_text())).failures:
            if path.parent.name == "shapes":
                ids[failure.key] = failure.id
                found[failure.key] = {"reason": failure.reason}
            elif failure.key in found and "view_reasons" in found[failure.key]:
                found[failure.key]["view_reasons"][path.parent.name] = failure.reason
    return {ids[key]: BuiltFile(**values) for key, values in found.items()}
