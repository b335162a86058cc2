"""Asset -> Shape: reading files, turning them into the world frame, sampling, normalising. The home of trimesh.

Files of users are only ever read. Textures are looked for inside the source folder and nowhere else.
"""

from __future__ import annotations

import gc
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from manifests.errors import Refused
from manifests.records import Asset
from manifests.seeds import generator
from manifests.tables import axes_matrix
from pipeline.headers import check_header
from pipeline.materials import TEXTURE_BROKEN, SideFiles, is_picture, mend_uvs, read_materials
from pipeline.off import parse_off
from pipeline.source import noted, read_source
from renderers.geometry import GREY, Material, Mesh, from_trimesh, transform
from renderers.normals import weld
from renderers.sampling import farthest_points, has_color, normalization, sample_surface
from renderers.shading import is_transparent

try:
    import trimesh
except ImportError as error:
    raise Refused("trimesh is missing: pip install 'cross-most[build]'") from error

MESH_SUFFIXES = (".off", ".obj", ".ply", ".stl", ".glb", ".gltf")
_NAMES = "materials of this file"  # what trimesh is told is the .mtl
_PICTURES = ("image", "baseColorTexture")
_UNUSED_PICTURES = ("normalTexture", "emissiveTexture", "occlusionTexture", "metallicRoughnessTexture")
_LARGE = 100_000  # faces; a million of them as a soup take a worker half a gigabyte more
_BOUND = 1e18  # beyond this, areas overflow in float64 when multiplied up


@dataclass(frozen=True)
class RawShape:
    """What one file held, in its own frame.

    mesh: or None for a file of points. points: float64 (N, 3) in the mesh's frame, or None where the cloud is to be
    sampled from the mesh; where there are both, the points are the cloud and the mesh is what pictures are drawn of.
    colors: uint8 (N, 3) of the points, or None. parts: uint8 (N,) part labels of the points, or None. upright: float64
    (4, 4), a rotation of this object's own that comes before the dataset's axes, or None. warnings: type -> count.
    """

    mesh: Mesh | None = None
    points: np.ndarray | None = None
    colors: np.ndarray | None = None
    parts: np.ndarray | None = None
    upright: np.ndarray | None = None
    warnings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """One object in the world frame (+Y up), normalised.

    points: float32 (N, 3), the first `fps_prefix` of them in farthest-point order. colors: uint8 (N, 3) or None.
    parts: uint8 (N,) or None. mesh: normalised by the same matrix, or None. world_from_source: float64 (4, 4).
    """

    asset: Asset
    points: np.ndarray
    colors: np.ndarray | None
    parts: np.ndarray | None
    mesh: Mesh | None
    world_from_source: np.ndarray
    warnings: dict[str, int]

    def __post_init__(self) -> None:
        if self.points.dtype != np.float32 or self.points.ndim != 2 or self.points.shape[1] != 3:
            raise ValueError(f"points must be float32 (N, 3), got {self.points.dtype} {self.points.shape}")
        if not np.isfinite(self.points).all():
            raise ValueError("a normalised point is not finite")


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
    files, materials = SideFiles(path.resolve().parent, root), {}
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

    Of other pictures than the colours' (normals, roughness, ...) none is used.
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
    """Texture coordinates (V, 2) of a geometry, or None where there are none or not one for each vertex."""
    uv = geometry.visual.uv
    return uv if uv is not None and len(uv) == len(geometry.vertices) else None


def _has_picture(material: Any) -> bool:
    return any(getattr(material, name, None) is not None for name in _PICTURES)


def _is_placeholder(geometry: Any) -> bool:
    """Whether the material is the dark 2x2 picture that trimesh puts where an OBJ has none or its file is missing."""
    material = getattr(geometry.visual, "material", None)
    image = getattr(material, "image", None)
    return image is not None and image.size == (2, 2) and getattr(material, "kwargs", None) == {}


def _cloud_colors(clouds: list[Any]) -> np.ndarray | None:
    colors = [np.asarray(getattr(cloud, "colors", ())) for cloud in clouds]
    if any(c.shape[:1] != (len(cloud.vertices),) or c.ndim != 2 for c, cloud in zip(colors, clouds, strict=True)):
        return None
    return np.concatenate(colors)[:, :3].astype(np.uint8)


def check_finite(raw: RawShape) -> RawShape:
    """The same shape. Raises ValueError when it has no point, or one that is not finite or out of all bounds."""
    points = raw.mesh.vertices if raw.mesh is not None else raw.points
    if points is None or not len(points):
        raise ValueError("the file holds no points")
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite (NaN or infinity)")
    if np.abs(points).max() > _BOUND:
        raise ValueError(f"a coordinate of {np.abs(points).max():.1e} is no length")
    return raw


def make_shape(
    asset: Asset,
    raw: RawShape,
    *,
    axes: tuple[str, str, str],
    seed: int,
    num_points: int,
    fps_prefix: int,
    normalize: str,
) -> Shape:
    """Takes the given points or samples the surface, puts a farthest-point prefix first and normalises.

    num_points: N, area-weighted samples of a mesh, or a random choice of given points; a source with fewer points keeps
    what it has. normalize: a name of renderers.sampling.NORMALIZATIONS; where points are given they alone decide, and
    the mesh is moved with them. Raises ValueError when the surface or the extent is zero.
    """
    rng, turn = generator(seed, asset.key), axes_matrix(axes)
    if raw.upright is not None:
        turn = turn @ raw.upright
    colors, parts = raw.colors, raw.parts
    if raw.points is None:
        points, sampled = sample_surface(raw.mesh, num_points, rng)
        colors = sampled if has_color(raw.mesh) else None
    else:
        points = raw.points
        if len(points) > num_points:
            chosen = np.sort(rng.permutation(len(points))[:num_points])
            points = points[chosen]
            colors = None if colors is None else colors[chosen]
            parts = None if parts is None else parts[chosen]
    turned = transform(turn, points)
    vertices = transform(turn, raw.mesh.vertices) if raw.points is None else None
    world_from_source = normalization(normalize, turned, vertices) @ turn
    points = transform(world_from_source, points).astype(np.float32)
    order = prefix_order(points, fps_prefix)
    return Shape(
        asset=asset,
        points=np.ascontiguousarray(points[order]),
        colors=None if colors is None else np.ascontiguousarray(colors[order]),
        parts=None if parts is None else np.ascontiguousarray(parts[order]),
        mesh=None if raw.mesh is None else raw.mesh.transformed(world_from_source),
        world_from_source=world_from_source,
        warnings=raw.warnings,
    )


def prefix_order(points: np.ndarray, fps_prefix: int) -> np.ndarray:
    """An order of points (N, 3): farthest-point samples from index 0 first, then the rest as they came."""
    first = farthest_points(points, min(fps_prefix, len(points)))
    rest = np.ones(len(points), bool)
    rest[first] = False
    return np.concatenate([first, np.flatnonzero(rest)])


def encode_mesh(mesh: Mesh) -> bytes:
    """GLB bytes of a mesh: one geometry a material, textures as PNG, float32 vertices, +Y up as it stands."""
    scene = trimesh.Scene()
    for index, material in enumerate(mesh.materials):
        chosen = np.flatnonzero(mesh.face_material == index)
        if len(chosen):
            scene.add_geometry(_geometry(mesh, chosen, material, index), geom_name=f"part{index:04d}")
    return scene.export(file_type="glb")


def _geometry(mesh: Mesh, chosen: np.ndarray, material: Material, index: int) -> trimesh.Trimesh:
    """A trimesh geometry of some faces. A vertex that has several texture coordinates is repeated."""
    corners = mesh.faces[chosen].reshape(-1)
    with_uv = material.texture is not None and mesh.corner_uvs is not None
    if with_uv:
        uv = np.ascontiguousarray(mesh.corner_uvs[chosen].reshape(-1, 2), np.float32)
        places, place = np.unique(uv.view(np.complex64)[:, 0], return_inverse=True)  # complex: a pair is one number
        pairs, inverse = np.unique(corners * len(places) + place, return_inverse=True)
        used, uvs = pairs // len(places), places[pairs % len(places)].view(np.float32).reshape(-1, 2)
    else:
        used, inverse = np.unique(corners, return_inverse=True)
        uvs = None
    image = None if material.texture is None or not with_uv else Image.fromarray(material.texture)
    pbr = trimesh.visual.material.PBRMaterial(
        name=f"material{index:04d}",
        baseColorTexture=image,
        baseColorFactor=np.rint(np.array(material.base_color) * 255).astype(np.uint8),
        alphaMode="BLEND" if is_transparent(material) else None,
        metallicFactor=0.0,
    )
    visual = trimesh.visual.TextureVisuals(uv=uvs, material=pbr)
    if mesh.vertex_colors is not None:
        visual.vertex_attributes["color"] = mesh.vertex_colors[used]
    return trimesh.Trimesh(mesh.vertices[used], inverse.reshape(-1, 3), visual=visual, process=False, validate=False)


def decode_mesh(data: bytes) -> Mesh:
    """The mesh of GLB bytes that `encode_mesh` made. Raises ValueError when they are damaged."""
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"damaged mesh.glb ({type(error).__name__}: {error})") from error
    names = sorted(scene.geometry, key=lambda name: int(re.sub(r"\D", "", name) or 0))
    return from_trimesh([scene.geometry[name] for name in names])
