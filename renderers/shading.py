"""Colour of surface points: materials, textures and the Phong light of PyTorch3D, for many pixels at once, in float32.

Both mesh backends find faces and barycentric weights, each in its own way, and colour them here. Light: PyTorch3D's
constants, standing at the camera (CLIP2Point's released RGB path) or far away in the preset's direction. Colours are
not gamma-corrected, as in PyTorch3D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manifests.presets import MeshViews
from renderers.cameras import Camera
from renderers.geometry import Material, Mesh
from renderers.normals import corner_normals, face_normals, unique_faces, vertex_normals, weld
from renderers.sampling import within
from renderers.view import View

MAX_LAYERS = 8  # surfaces behind each other that one pixel shows
LAYER_GAP = 1e-4  # what is nearer than this behind a transparent surface is that surface, world units


def phong(
    normals: np.ndarray,
    to_camera: np.ndarray,
    to_light: np.ndarray,
    texel: np.ndarray,
    *,
    ambient: float,
    diffuse: float,
    specular: float,
    shininess: int,
) -> np.ndarray:
    """Colours (N, 3), not clamped: (ambient + diffuse max(n.l, 0)) texel + specular max(v.r, 0)^shininess [n.l > 0].

    normals, to_camera: unit (N, 3). to_light: unit (3,) or (N, 3). texel: (N, 3). Source: PyTorch3D HardPhong with
    white materials and lights; the light of CLIP2Point's RGB path stands at the camera.
    """
    facing = np.einsum("nk,nk->n", normals, np.broadcast_to(to_light, normals.shape))
    mirrored = np.einsum("nk,nk->n", to_camera, normals)
    mirrored *= 2 * facing
    mirrored -= np.einsum("nk,nk->n", to_camera, np.broadcast_to(to_light, normals.shape))
    mirrored[facing <= 0] = 0
    np.maximum(mirrored, 0, out=mirrored)
    np.maximum(facing, 0, out=facing)
    facing *= diffuse
    facing += ambient
    return texel * facing[:, None] + (specular * _power(mirrored, shininess))[:, None]


def _power(base: np.ndarray, exponent: int) -> np.ndarray:
    """base ** exponent by repeated squaring: ten times faster than np.power for 64."""
    result: np.ndarray | None = None
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if exponent:
            base = base * base
    return np.ones_like(base) if result is None else result


class Texture:
    """One material's picture, made ready for bilinear reading: float32 RGBA in [0, 1], one texel of border.

    wrap: for u and v, of renderers.geometry.WRAPS. Texel centres lie at (i + 0.5) / size.
    """

    def __init__(self, picture: np.ndarray, wrap: tuple[str, str]) -> None:
        self.height, self.width = picture.shape[:2]
        self.wrap = wrap
        for axis, kind in ((1, wrap[0]), (0, wrap[1])):
            border = [(1, 1) if axis == side else (0, 0) for side in range(3)]
            picture = np.pad(picture, border, mode="wrap" if kind == "repeat" else "edge")
        self._rows = (picture.astype(np.float32) / np.float32(255)).reshape(-1, 4)

    def read(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """RGBA float32 (N, 4) at u (N,) right and v (N,) up."""
        u, v = within(u, self.wrap[0]), within(v, self.wrap[1])
        x = u * np.float32(self.width) + np.float32(0.5)
        y = (np.float32(1) - v) * np.float32(self.height) + np.float32(0.5)
        column, row = x.astype(np.int32), y.astype(np.int32)
        x -= column
        y -= row
        stride = self.width + 2
        corner = row * stride + column
        x, y = x[:, None], y[:, None]
        result = self._rows.take(corner, axis=0, mode="clip")
        result += x * (self._rows.take(corner + 1, axis=0, mode="clip") - result)
        corner += stride
        below = self._rows.take(corner, axis=0, mode="clip")
        below += x * (self._rows.take(corner + 1, axis=0, mode="clip") - below)
        below -= result
        below *= y
        result += below
        return result


def is_transparent(material: Material) -> bool:
    """Whether any part of a material may let light through."""
    return material.base_color[3] < 1 or (material.texture is not None and bool((material.texture[..., 3] < 255).any()))


@dataclass(frozen=True)
class Surface:
    """A mesh made ready for drawing: kept faces and what each of them needs for shading, float32.

    corners: (F, 3, 3). outward: (F, 3), faces' own normals by their winding, not of unit length.
    normals: (F, 9), of corner 0 and the two edges' differences; uvs: (F, 6) likewise or None;
    colors: (F, 12) RGBA likewise or None. base: (F, 4) base colours. cutoff: (F,) least alpha that is drawn, NaN where
    alpha mixes, or None where it mixes everywhere. material: (F,). textures: by material, or None.
    """

    corners: np.ndarray
    outward: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray | None
    colors: np.ndarray | None
    base: np.ndarray
    cutoff: np.ndarray | None
    material: np.ndarray
    textures: tuple[Texture | None, ...]
    transparent: bool

    @property
    def vertices(self) -> np.ndarray:
        """Every face's own three corners, float32 (3 F, 3), world units."""
        return self.corners.reshape(-1, 3)


def prepare(mesh: Mesh, preset: MeshViews) -> Surface:
    """A mesh made ready for drawing with a preset's normals and textures. Faces with the same corners are kept once.

    Raises ValueError when no face has an area.
    """
    vertex = weld(mesh.vertices)[mesh.faces]
    kept = unique_faces(vertex)
    vertices = mesh.vertices.astype(np.float32)
    corners = vertices[mesh.faces[kept]]
    outward = face_normals(corners)
    proper = outward.any(axis=1)
    if not proper.all():
        kept, corners, outward = kept[proper], corners[proper], outward[proper]
    if not len(kept):
        raise ValueError("no face has an area")
    if preset.normals == "smooth":
        normals = vertex_normals(corners, mesh.faces[kept], len(mesh.vertices))
    else:
        normals = corner_normals(corners, vertex[kept], preset.crease_deg if preset.normals == "crease" else 0.0)
    colors = None if mesh.vertex_colors is None else mesh.vertex_colors[mesh.faces[kept]].astype(np.float32) / 255
    uvs = mesh.corner_uvs if any(m.texture is not None for m in mesh.materials) else None
    cutoffs = np.array([np.nan if m.alpha_cutoff is None else m.alpha_cutoff for m in mesh.materials], np.float32)
    return Surface(
        corners=corners,
        outward=outward,
        normals=_edges(normals),
        uvs=None if uvs is None else _edges(uvs[kept].astype(np.float32)),
        colors=None if colors is None else _edges(colors),
        base=np.array([m.base_color for m in mesh.materials], np.float32)[mesh.face_material[kept]],
        cutoff=None if np.isnan(cutoffs).all() else cutoffs[mesh.face_material[kept]],
        material=mesh.face_material[kept],
        textures=tuple(
            None if m.texture is None or uvs is None else Texture(m.texture, _wrap(m, preset)) for m in mesh.materials
        ),
        transparent=any(is_transparent(m) for m in mesh.materials)
        or (mesh.vertex_colors is not None and bool((mesh.vertex_colors[:, 3] < 255).any())),
    )


def _wrap(material: Material, preset: MeshViews) -> tuple[str, str]:
    """A material's own wrap; `clamp` of a preset (CLIP2Point's release) goes before it."""
    return material.wrap if preset.texture_wrap == "repeat" else (preset.texture_wrap, preset.texture_wrap)


def _edges(corners: np.ndarray) -> np.ndarray:
    """(F, 3, C) -> (F, 3 C): corner 0, corner 1 - corner 0, corner 2 - corner 0."""
    edges = corners.copy()
    edges[:, 1:] -= corners[:, :1]
    return np.ascontiguousarray(edges.reshape(len(corners), -1))


def _interpolate(table: np.ndarray, face: np.ndarray, b1: np.ndarray, b2: np.ndarray) -> np.ndarray:
    """(N, C) values of an `_edges` table (F, 3 C) at barycentric b1, b2 (N,)."""
    rows = table.take(face, axis=0)
    size = table.shape[1] // 3
    value = rows[:, size : 2 * size]
    value *= b1[:, None]
    value += rows[:, :size]
    last = rows[:, 2 * size :]
    last *= b2[:, None]
    value += last
    return value


def shade(
    surface: Surface,
    preset: MeshViews,
    camera: Camera,
    directions: np.ndarray,
    face: np.ndarray,
    b1: np.ndarray,
    b2: np.ndarray,
) -> np.ndarray:
    """Lit colour and alpha float32 (N, 4) of hits; the colour is not clamped."""
    normals = _interpolate(surface.normals, face, b1, b2)
    normals /= np.maximum(np.sqrt(np.einsum("nk,nk->n", normals, normals)), 1e-12)[:, None]
    to_camera = directions / -np.sqrt(np.einsum("nk,nk->n", directions, directions))[:, None]
    if preset.two_sided:
        # by the face and not by the normal at hand, which on the rim of a curved surface may point away
        behind = np.einsum("nk,nk->n", surface.outward.take(face, axis=0), directions) > 0
        normals *= np.where(behind, np.float32(-1), np.float32(1))[:, None]
    texel = _texels(surface, face, b1, b2)
    if preset.light_direction:
        to_light = np.asarray(preset.light_direction) / np.linalg.norm(preset.light_direction)
    elif camera.model == "orthographic":
        to_light = -camera.camera_from_world[2, :3]
    else:
        to_light = camera.position / max(np.linalg.norm(camera.position), 1e-12)
    lit = phong(
        normals,
        to_camera,
        to_light.astype(np.float32),
        texel[:, :3],
        ambient=preset.ambient,
        diffuse=preset.diffuse,
        specular=preset.specular,
        shininess=preset.shininess,
    )
    return np.concatenate([lit, texel[:, 3:]], axis=1) if surface.transparent else lit


def _texels(surface: Surface, face: np.ndarray, b1: np.ndarray, b2: np.ndarray) -> np.ndarray:
    """Unlit colour and alpha float32 (N, 4): base colour x texture x vertex colours."""
    texel = surface.base.take(face, axis=0)
    if surface.uvs is not None:
        uv = _interpolate(surface.uvs, face, b1, b2)
        if len(surface.textures) == 1 and (texture := surface.textures[0]) is not None:
            texel *= texture.read(uv[:, 0], uv[:, 1])
        else:
            material = surface.material.take(face)
            for index in np.unique(material):
                if (texture := surface.textures[index]) is not None:
                    chosen = np.flatnonzero(material == index)
                    texel[chosen] *= texture.read(uv[chosen, 0], uv[chosen, 1])
    if surface.colors is not None:
        texel *= _interpolate(surface.colors, face, b1, b2)
    if surface.cutoff is not None:
        cutoff = surface.cutoff.take(face)
        texel[:, 3] = np.where(np.isnan(cutoff), texel[:, 3], texel[:, 3] >= cutoff)
    return texel


def to_bytes(color: np.ndarray) -> np.ndarray:
    """float [0, 1] -> uint8, clamped and rounded."""
    color = color * np.float32(255)
    color += np.float32(0.5)
    np.clip(color, 0, 255, out=color)
    return color.astype(np.uint8)


class Layers:
    """Front-to-back mix of transparent surfaces along N rays.

    depth: float32 (N,), of the first surface with alpha of at least one half, +inf without such a surface. met: bool
    (N,), whether there was any surface.
    """

    def __init__(self, num_rays: int, with_rgb: bool) -> None:
        self._color = np.zeros((num_rays, 3), np.float32) if with_rgb else None
        self._through = np.ones(num_rays, np.float32)
        self.depth = np.full(num_rays, np.inf, np.float32)
        self.met = np.zeros(num_rays, bool)

    def add(self, live: np.ndarray, shaded: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Adds the next surface of rays `live` (L,): shaded (L, 4), depth (L,). Which of them go on, bool (L,)."""
        alpha = np.clip(shaded[:, 3], 0, 1)
        self.met[live] = True
        if self._color is not None:
            self._color[live] += (self._through[live] * alpha)[:, None] * np.clip(shaded[:, :3], 0, 1)
        solid = (alpha >= 0.5) & np.isinf(self.depth[live])
        self.depth[live[solid]] = depth[solid]
        self._through[live] *= 1 - alpha
        return self._through[live] > 1 / 512

    def colors(self, preset: MeshViews) -> np.ndarray:
        """uint8 (N, 3), the background behind everything."""
        color = np.zeros((len(self.depth), 3), np.float32) if self._color is None else self._color
        return to_bytes(color + self._through[:, None] * np.asarray(preset.background, np.float32))


def blank(preset: MeshViews, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3) of the preset's background."""
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[:] = np.tile(np.rint(np.asarray(preset.background) * 255).astype(np.uint8), width).reshape(width, 3)
    return rgb


def finish(
    camera: Camera, preset: MeshViews, rgb: np.ndarray | None, depth: np.ndarray, met: np.ndarray | None = None
) -> View:
    """A view from uint8 (s H, s W, 3) and float32 (s H, s W), s = supersample: mean colour and nearest depth.

    met: bool (s H, s W), where there are faces, of an object with transparent ones. Coverage is of what the stored
    pictures show: solid faces, and with RGB also those that only it shows.
    """
    scale = preset.supersample
    seen: np.ndarray = depth < np.inf
    if met is not None and rgb is not None:
        seen = seen | (met & (rgb != blank(preset, 1, 1)).any(axis=2))
    coverage = np.count_nonzero(seen) / seen.size
    if scale > 1:
        blocks = (camera.height, scale, camera.width, scale)
        depth = depth.reshape(blocks).min(axis=(1, 3))
        met = None if met is None else np.asarray(met.reshape(blocks).any(axis=(1, 3)))
        if rgb is not None:
            rgb = np.rint(rgb.reshape(*blocks, 3).mean(axis=(1, 3))).astype(np.uint8)
    return View(
        camera,
        rgb=rgb,
        depth=depth if "depth" in preset.channels else None,
        coverage=coverage,
        seen_through=None if met is None else met & np.isinf(depth),
    )
