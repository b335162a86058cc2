"""Reads mesh files of any kind into a `RawShape`, by trimesh where we have no reader of our own. The home of trimesh.

Files of users are only ever read. Textures are looked for inside the source folder and nowhere else.
"""

from __future__ import annotations

import gc
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import Refused
from pipeline.formats.header_checks import check_header
from pipeline.formats.obj_materials import TEXTURE_BROKEN, mend_uvs, read_materials
from pipeline.formats.off import parse_off
from pipeline.formats.pictures import is_picture
from pipeline.formats.raw_shape import RawShape, check_finite
from pipeline.formats.side_files import SideFiles
from pipeline.formats.source_files import noted, read_source
from renderers.geometry import GREY, Material, Mesh, from_trimesh
from renderers.normals import weld

try:
    import trimesh
except ImportError as error:
    raise Refused("trimesh is missing: pip install 'cross-most[build]'") from error

MESH_SUFFIXES = (".off", ".obj", ".ply", ".stl", ".glb", ".gltf")
_NAMES = "materials of this file"  # what trimesh is told is the .mtl
_PICTURES = ("image", "baseColorTexture")
_UNUSED_PICTURES = ("normalTexture", "emissiveTexture", "occlusionTexture", "metallicRoughnessTexture")
_LARGE = 100_000  # faces; a million of them as a soup take a worker half a gigabyte more


def read_faces(path: Path, root: Path) -> RawShape:
    """`read_mesh` of a dataset of meshes. Raises ValueError also when the file has no faces."""
    raw = read_mesh(path, root)
    if raw.mesh is None:
        raise ValueError("the file has no faces")
    return raw


def read_mesh(path: Path, root: Path) -> RawShape:
    """Reads off, obj, ply, stl, glb or gltf by its suffix; textures must lie below `root`.

    Raises ValueError with one line on what is wrong with the file.
    """
    data = read_source(root, path.relative_to(root).as_posix())
    suffix = path.suffix.lower()
    check_header(data, suffix)
    if suffix == ".off":
        vertices, faces, colors = parse_off(data)
        raw = _from_off(vertices, faces, colors)
    else:
        scene, materials, warnings = _load_scene(path, data, suffix, root)
        with _unreadable(suffix):
            raw = _from_scene(scene, materials, warnings)
    raw = check_finite(raw)
    return raw if raw.mesh is None or len(raw.mesh.faces) < _LARGE else _slimmed(raw, raw.mesh)


def _slimmed(raw: RawShape, mesh: Mesh) -> RawShape:
    """The same shape of a large mesh in less memory: of a soup of triangles (STL has no other kind) vertices at the
    same place become one."""
    gc.collect()  # trimesh's scenes hold themselves in circles
    if mesh.vertex_colors is not None or len(mesh.vertices) < len(mesh.faces):
        return raw
    kept, number = np.unique(weld(mesh.vertices), return_inverse=True)
    return replace(raw, mesh=replace(mesh, vertices=mesh.vertices[kept], faces=number[mesh.faces]))


def _from_off(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray | None) -> RawShape:
    if not len(faces):
        return RawShape(points=vertices, colors=None if colors is None else colors[:, :3])
    materials = (Material(GREY if colors is None else (1.0, 1.0, 1.0, 1.0)),)
    return RawShape(mesh=_finite_mesh(vertices, faces, materials, colors))


def _finite_mesh(vertices: np.ndarray, faces: np.ndarray, materials: tuple, colors: np.ndarray | None) -> Mesh:
    if not np.isfinite(vertices[np.unique(faces)]).all():
        raise ValueError("a vertex is not finite (NaN or infinity)")
    return Mesh(np.nan_to_num(vertices), faces, materials, vertex_colors=colors)


def _load_scene(path: Path, data: bytes, suffix: str, root: Path) -> tuple[Any, dict[str, Material], Counter[str]]:
    """A trimesh scene, the materials of an OBJ by their names in it, and warnings about materials and side files."""
    files = SideFiles.of(path, root)
    materials: dict[str, Material] = {}
    if suffix == ".obj":
        data, materials = read_materials(data.removeprefix(b"\xef\xbb\xbf"), files, path.stem)
        data = b"mtllib " + _NAMES.encode() + b"\n" + data
    resolver = _Resolver(path, files, {_NAMES: "".join(f"newmtl {name}\n" for name in materials).encode()})
    with _unreadable(suffix):
        scene = trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], resolver=resolver, process=False)
        _leave_broken_pictures(scene, files.warnings)
    return scene, materials, files.warnings


@contextmanager
def _unreadable(suffix: str) -> Iterator[None]:
    """trimesh raises whatever its parsers trip over, some of it as late as colours are asked for; it is a ValueError of
    one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        if type(error) is ValueError and not isinstance(error.__cause__, Exception) and len(text) == len(str(error)):
            raise
        raise ValueError(f"not a readable {suffix[1:]} file ({type(error).__name__}: {text})") from error


def _leave_broken_pictures(scene: Any, warnings: Counter[str]) -> None:
    """trimesh opens pictures and decodes them late: those that are cut or huge are left out here, and counted.

    Pictures of anything but colour (normals, roughness, ...) are not used.
    """
    judged: dict[int, bool] = {}
    for geometry in scene.geometry.values():
        material = getattr(getattr(geometry, "visual", None), "material", None)
        for name in _UNUSED_PICTURES if material is not None else ():
            if getattr(material, name, None) is not None:
                setattr(material, name, None)
        for name in _PICTURES if material is not None else ():
            image = getattr(material, name, None)
            if image is not None and not judged.setdefault(id(image), is_picture(image)):
                setattr(material, name, None)
                warnings[TEXTURE_BROKEN] += 1


class _Resolver(trimesh.resolvers.FilePathResolver):
    """Gives trimesh a mesh's side files as `SideFiles` finds them; trimesh itself says nothing where one is missing.

    trimesh's own refuses every `../`, which ShapeNet v2 needs (its textures lie in ../images), or opens everything.
    made: files that are no files, by name.
    """

    def __init__(self, path: Path, files: SideFiles, made: dict[str, bytes]) -> None:
        super().__init__(str(path))
        self._path, self._files, self._made = path, files, made

    def get(self, name: str) -> bytes:
        if name not in self._made:
            found = self._files.find(name)
            if found is None:
                raise FileNotFoundError(f"{name} is not in the source folder")
            return noted(found, found.read_bytes())
        return self._made[name]

    def namespaced(self, namespace: str) -> _Resolver:
        folder = self._path.parent / namespace
        return _Resolver(folder / "file", replace(self._files, folder=folder), self._made)


def _from_scene(scene: Any, materials: dict[str, Material], warnings: Counter[str]) -> RawShape:
    geometries = [g for g in scene.dump(concatenate=False) if len(getattr(g, "vertices", ()))]
    meshes = [g for g in geometries if len(getattr(g, "faces", ()))]
    if not meshes:
        clouds = [g for g in geometries if len(getattr(g, "entities", ())) == 0]
        if not clouds:
            raise ValueError("the file holds neither faces nor points")
        points = np.concatenate([np.asarray(g.vertices, np.float64) for g in clouds])
        return RawShape(points=points, colors=_cloud_colors(clouds), warnings=_counted(warnings))
    for geometry in meshes:
        if _is_placeholder(geometry):
            geometry.visual = trimesh.visual.ColorVisuals()
    finite = [g for g in meshes if np.isfinite(np.asarray(g.vertices)[np.unique(g.faces)]).all()]
    if len(finite) < len(meshes):
        raise ValueError("a vertex is not finite (NaN or infinity)")
    ours = [materials.get(str(getattr(getattr(g.visual, "material", None), "name", ""))) for g in meshes]
    for number, (geometry, material) in enumerate(zip(meshes, ours, strict=True)):
        if getattr(geometry.visual, "kind", None) == "texture":
            textured = material.texture is not None if material else _has_picture(geometry.visual.material)
            geometry.visual.uv = uv = mend_uvs(_own_uv(geometry), textured, warnings)
            if material and uv is None:
                ours[number] = replace(material, texture=None)
    mesh = from_trimesh(meshes)
    return RawShape(
        mesh=replace(mesh, materials=tuple(a or b for a, b in zip(ours, mesh.materials, strict=True))),
        warnings=_counted(warnings),
    )


def _counted(warnings: Counter[str]) -> dict[str, int]:
    return {kind: count for kind, count in sorted(warnings.items()) if count}


def _own_uv(geometry: Any) -> np.ndarray | None:
    """Texture coordinates (V, 2) of a geometry, or None where not every vertex has one."""
    uv = geometry.visual.uv
    return uv if uv is not None and len(uv) == len(geometry.vertices) else None


def _has_picture(material: Any) -> bool:
    return any(getattr(material, name, None) is not None for name in _PICTURES)


def _is_placeholder(geometry: Any) -> bool:
    """Whether the material is the dark 2x2 picture that trimesh puts where an OBJ has no material file."""
    material = getattr(geometry.visual, "material", None)
    image = getattr(material, "image", None)
    return image is not None and image.size == (2, 2) and getattr(material, "kwargs", None) == {}


def _cloud_colors(clouds: list[Any]) -> np.ndarray | None:
    colors = [np.asarray(getattr(cloud, "colors", ())) for cloud in clouds]
    if any(c.shape[:1] != (len(cloud.vertices),) or c.ndim != 2 for c, cloud in zip(colors, clouds, strict=True)):
        return None
    return np.concatenate(colors)[:, :3].astype(np.uint8)
