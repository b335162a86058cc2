"""Meshes and point clouds as plain arrays, and what every dataset does to them: join, sample, normalise.

World frame: right-handed, +Y up. Nothing here imports a mesh library; `from_trimesh` reads a trimesh scene by its
attributes, so that `pipeline.formats.mesh` stays the only home of trimesh.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from manifests.plain_text import number_of

GREY = (0.7, 0.7, 0.7, 1.0)
WRAPS = ("repeat", "clamp", "mirror")  # glTF 2.0, 5.26.3: REPEAT, CLAMP_TO_EDGE, MIRRORED_REPEAT


@dataclass(frozen=True)
class Material:
    """How a face is coloured: `base_color` times the texture (where there is one) times the vertex colours.

    base_color: RGBA in [0, 1], display values as a picture has them (not the linear ones of glTF).
    texture: uint8 (H, W, 4) RGBA, row 0 at the top of the image (v = 1), or None. wrap: what lies beyond its left and
    right, and beyond its top and bottom edges, of WRAPS. alpha_cutoff: the least alpha that is drawn, and drawn opaque
    (glTF's MASK), or None, where alpha mixes.
    """

    base_color: tuple[float, float, float, float] = GREY
    texture: np.ndarray | None = None
    wrap: tuple[str, str] = ("repeat", "repeat")
    alpha_cutoff: float | None = None

    def __repr__(self) -> str:
        texture = "" if self.texture is None else f", texture {self.texture.shape[1]} x {self.texture.shape[0]}"
        return f"Material({', '.join(f'{value:.3g}' for value in self.base_color)}{texture})"

    def __post_init__(self) -> None:
        if not set(self.wrap) <= set(WRAPS):
            raise ValueError(f"wrap must be two of {', '.join(WRAPS)}, got {self.wrap}")
        if len(self.base_color) != 4:
            raise ValueError(f"base_color must be RGBA, got {self.base_color}")
        if self.texture is not None and (
            self.texture.dtype != np.uint8 or self.texture.ndim != 3 or self.texture.shape[2] != 4
        ):
            raise ValueError(f"texture must be uint8 (H, W, 4), got {self.texture.dtype} {self.texture.shape}")


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh with any number of materials.

    vertices: float64 (V, 3), world units. faces: int64 (F, 3), counter-clockwise seen from outside where the source
    knows its outside. face_material: int64 (F,), an index into `materials`. corner_uvs: float32 (F, 3, 2), u right,
    v up, or None. vertex_colors: uint8 (V, 4) RGBA, or None.

    Raises ValueError when shapes disagree, an index is out of range, or a vertex is not finite.

    >>> import renderers
    >>> renderers.Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    Mesh(3 vertices, 1 face, 1 material)
    """

    vertices: np.ndarray
    faces: np.ndarray
    materials: tuple[Material, ...] = (Material(),)
    face_material: np.ndarray = field(default=None)  # type: ignore[arg-type]  # then __post_init__ fills it
    corner_uvs: np.ndarray | None = None
    vertex_colors: np.ndarray | None = None

    def __post_init__(self) -> None:
        vertices = np.ascontiguousarray(self.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(self.faces, dtype=np.int64)
        if vertices.ndim != 2 or vertices.shape[1] != 3:
            raise ValueError(f"vertices must be (V, 3), got {vertices.shape}")
        if faces.ndim != 2 or faces.shape[1] != 3:
            raise ValueError(f"faces must be (F, 3), got {faces.shape}")
        if not np.isfinite(vertices).all():
            raise ValueError("a vertex is not finite")
        if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise ValueError(f"a face names vertex {faces.max()} of {len(vertices)}")
        material = self.face_material
        material = np.zeros(len(faces), np.int64) if material is None else np.asarray(material, dtype=np.int64)
        if material.shape != (len(faces),):
            raise ValueError(f"face_material must be ({len(faces)},), got {material.shape}")
        if len(material) and (material.min() < 0 or material.max() >= len(self.materials)):
            raise ValueError(f"a face names material {material.max()} of {len(self.materials)}")
        if self.corner_uvs is not None and self.corner_uvs.shape != (len(faces), 3, 2):
            raise ValueError(f"corner_uvs must be ({len(faces)}, 3, 2), got {self.corner_uvs.shape}")
        if self.vertex_colors is not None and self.vertex_colors.shape != (len(vertices), 4):
            raise ValueError(f"vertex_colors must be ({len(vertices)}, 4), got {self.vertex_colors.shape}")
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", faces)
        object.__setattr__(self, "face_material", material)

    def __repr__(self) -> str:
        colors = ", vertex colours" if self.vertex_colors is not None else ""
        textures = sum(material.texture is not None for material in self.materials)
        faces, materials = number_of(len(self.faces), "face"), number_of(len(self.materials), "material")
        textured = f", {number_of(textures, 'texture')}" if textures else ""
        return f"Mesh({len(self.vertices):,} vertices, {faces}, {materials}{textured}{colors})"

    def transformed(self, matrix: np.ndarray) -> Mesh:
        """The same mesh with every vertex moved by a 4x4 similarity (column vectors)."""
        return replace(self, vertices=transform(matrix, self.vertices))


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`matrix` (4x4, column vectors) applied to points (N, 3), in float64."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def rigid_scale(scale: float, translation: np.ndarray) -> np.ndarray:
    """The 4x4 similarity p -> scale * p + translation."""
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = translation
    return matrix


def join(meshes: list[Mesh]) -> Mesh:
    """One mesh from several, materials kept apart. Raises ValueError on an empty list."""
    if not meshes:
        raise ValueError("no mesh to join")
    vertex_start = np.cumsum([0] + [len(m.vertices) for m in meshes])
    material_start = np.cumsum([0] + [len(m.materials) for m in meshes])
    any_uv = any(m.corner_uvs is not None for m in meshes)
    any_color = any(m.vertex_colors is not None for m in meshes)
    return Mesh(
        vertices=np.concatenate([m.vertices for m in meshes]),
        faces=np.concatenate([m.faces + s for m, s in zip(meshes, vertex_start, strict=False)]),
        materials=tuple(material for m in meshes for material in m.materials),
        face_material=np.concatenate([m.face_material + s for m, s in zip(meshes, material_start, strict=False)]),
        corner_uvs=np.concatenate([_uvs(m) for m in meshes]) if any_uv else None,
        vertex_colors=np.concatenate([_colors(m) for m in meshes]) if any_color else None,
    )


def with_ground(mesh: Mesh, extent: float, color: list[float]) -> Mesh:
    """The mesh and a square of half side `extent` and an RGB colour in [0, 1] under its lowest vertex (+Y up)."""
    height = float(mesh.vertices[np.unique(mesh.faces), 1].min())
    corners = np.array([[-1, 0, -1], [-1, 0, 1], [1, 0, 1], [1, 0, -1]]) * extent + [0, height, 0]
    red, green, blue = color
    return join([mesh, Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), (Material((red, green, blue, 1.0)),))])


def _uvs(mesh: Mesh) -> np.ndarray:
    return np.zeros((len(mesh.faces), 3, 2), np.float32) if mesh.corner_uvs is None else mesh.corner_uvs


def _colors(mesh: Mesh) -> np.ndarray:
    return np.full((len(mesh.vertices), 4), 255, np.uint8) if mesh.vertex_colors is None else mesh.vertex_colors


def from_trimesh(geometries: list[Any]) -> Mesh:
    """A `Mesh` from trimesh geometries whose scene transforms have been applied.

    Textures, base colours, vertex colours and face colours are read; a geometry without any is grey 0.7.
    A material with vertex colours beside it multiplies them, as glTF says. Raises ValueError when there is no face.
    """
    meshes = [_from_one(g) for g in geometries if len(getattr(g, "faces", ())) > 0]
    if not meshes:
        raise ValueError("the file has no faces")
    return join(meshes)


def _from_one(geometry: Any) -> Mesh:
    vertices, faces = np.asarray(geometry.vertices), np.asarray(geometry.faces)
    visual = geometry.visual
    kind = getattr(visual, "kind", None)
    if kind == "vertex":
        return Mesh(vertices, faces, (Material((1.0, 1.0, 1.0, 1.0)),), vertex_colors=np.asarray(visual.vertex_colors))
    if kind == "face":
        of_corners = np.repeat(np.asarray(visual.face_colors), 3, axis=0)
        corners = np.arange(3 * len(faces)).reshape(-1, 3)
        return Mesh(vertices[faces].reshape(-1, 3), corners, (Material((1.0,) * 4),), vertex_colors=of_corners)
    if kind != "texture":
        return Mesh(vertices, faces)
    uv = getattr(visual, "uv", None)
    good = uv is not None and len(uv) == len(vertices)
    corner_uvs = np.asarray(uv, np.float32)[faces] if good else None
    if corner_uvs is not None:
        corner_uvs = np.nan_to_num(corner_uvs, nan=0.0, posinf=0.0, neginf=0.0)
    colors = getattr(visual, "vertex_attributes", {}).get("color")
    if colors is not None:
        colors = np.asarray(colors)
        if colors.dtype != np.uint8:
            colors = np.clip(colors * 255.0 + 0.5, 0, 255).astype(np.uint8)
        if colors.shape[1] == 3:
            colors = np.concatenate([colors, np.full((len(colors), 1), 255, np.uint8)], axis=1)
    return Mesh(vertices, faces, (_material(visual.material, good),), corner_uvs=corner_uvs, vertex_colors=colors)


def _material(material: Any, has_uv: bool) -> Material:
    """Base colour and texture of a trimesh PBRMaterial or SimpleMaterial."""
    image = getattr(material, "baseColorTexture", None)
    factor = getattr(material, "baseColorFactor", None)
    if hasattr(material, "diffuse"):
        image, factor = getattr(material, "image", None), material.diffuse
    texture = np.asarray(image.convert("RGBA")) if image is not None and has_uv else None
    if factor is None:
        return Material((1.0, 1.0, 1.0, 1.0) if texture is not None else GREY, texture)
    factor = np.asarray(factor)
    scale = 255.0 if factor.dtype.kind in "ui" else 1.0
    rgba = [min(max(float(x) / scale, 0.0), 1.0) for x in factor[:4]] + [1.0] * (4 - len(factor[:4]))
    return Material((rgba[0], rgba[1], rgba[2], rgba[3]), texture)
