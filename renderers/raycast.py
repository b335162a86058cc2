"""RGB and depth of a mesh by ray casting on the CPU: no GL, no display. The home of Open3D.

Rays have an optical-axis component of 1, so that the distance along a ray is the depth. Light: PyTorch3D's constants,
standing at the camera (CLIP2Point's released RGB path) or far away in the preset's direction. Colours are not
gamma-corrected, as in PyTorch3D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from manifests.errors import Refused
from manifests.presets import MeshViews
from renderers.cameras import Camera
from renderers.geometry import Mesh
from renderers.normals import corner_normals, face_normals, unique_faces, weld
from renderers.shading import Texture, is_transparent, phong
from renderers.views import View

try:
    import open3d as o3d
except ImportError as error:
    raise Refused("open3d is missing: pip install 'cross-most[build]'") from error
except OSError as error:  # its wheel needs system libraries
    raise Refused(
        f"open3d does not load ({error}): apt-get install libegl1 libgl1 libx11-6 libusb-1.0-0 libidn2-0"
    ) from error

MAX_LAYERS = 8
_BEHIND = 1e-4  # how far behind a transparent surface a ray goes on, world units


@dataclass(frozen=True)
class _Surface:
    """A mesh made ready for rays: kept faces and what each of them needs for shading, float32.

    normals: (F, 9), corner 0 and the two edges' differences; uvs: (F, 6) likewise or None; colors: (F, 12) RGBA
    likewise or None. base: (F, 4) base colours. material: (F,). textures: by material, or None.
    """

    scene: o3d.t.geometry.RaycastingScene
    vertices: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray | None
    colors: np.ndarray | None
    base: np.ndarray
    material: np.ndarray
    textures: tuple[Texture | None, ...]
    transparent: bool


def draw_mesh(mesh: Mesh, preset: MeshViews, cameras: list[Camera]) -> list[View]:
    """RGB and depth of a mesh from every camera, each pair from one set of rays.

    Faces with the same three corners are drawn once. Depth is of the first surface with alpha of at least one half.
    `supersample=2` casts four rays a pixel: RGB is their mean, depth their nearest.
    Raises ValueError when no face has an area.
    """
    surface = _prepare(mesh, preset)
    return [_draw(surface, preset, camera) for camera in cameras]


def first_hits(mesh: Mesh, rays: np.ndarray) -> np.ndarray:
    """Where rays float32 (N, 6), origin and direction, first meet a mesh: float32 (N,), lengths of the direction.

    +inf where a ray meets nothing. Both sides of a face are met; transparency is not looked at.
    """
    hits = _scene(mesh.vertices.astype(np.float32), mesh.faces).cast_rays(o3d.core.Tensor.from_numpy(rays), nthreads=1)
    return hits["t_hit"].numpy()


def _scene(vertices: np.ndarray, faces: np.ndarray) -> o3d.t.geometry.RaycastingScene:
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        o3d.core.Tensor.from_numpy(np.ascontiguousarray(vertices)),
        o3d.core.Tensor.from_numpy(faces.astype(np.uint32)),
    )
    return scene


def _prepare(mesh: Mesh, preset: MeshViews) -> _Surface:
    vertex = weld(mesh.vertices)[mesh.faces]
    kept = unique_faces(vertex)
    vertices = mesh.vertices.astype(np.float32)
    corners = vertices[mesh.faces[kept]]
    proper = face_normals(corners).any(axis=1)
    if not proper.all():
        kept, corners = kept[proper], corners[proper]
    if not len(kept):
        raise ValueError("no face has an area")
    crease = {"crease": preset.crease_deg, "smooth": 90.0, "flat": 0.0}[preset.normals]
    colors = None if mesh.vertex_colors is None else mesh.vertex_colors[mesh.faces[kept]].astype(np.float32) / 255
    textured = mesh.corner_uvs is not None and any(m.texture is not None for m in mesh.materials)
    return _Surface(
        scene=_scene(corners.reshape(-1, 3), np.arange(3 * len(kept)).reshape(-1, 3)),
        vertices=corners.reshape(-1, 3),
        normals=_edges(corner_normals(corners, vertex[kept], crease)),
        uvs=_edges(mesh.corner_uvs[kept].astype(np.float32)) if textured else None,
        colors=None if colors is None else _edges(colors),
        base=np.array([m.base_color for m in mesh.materials], np.float32)[mesh.face_material[kept]],
        material=mesh.face_material[kept],
        textures=tuple(
            None if m.texture is None or not textured else Texture(m.texture, preset.texture_wrap)
            for m in mesh.materials
        ),
        transparent=any(is_transparent(m) for m in mesh.materials)
        or (mesh.vertex_colors is not None and bool((mesh.vertex_colors[:, 3] < 255).any())),
    )


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


def _draw(surface: _Surface, preset: MeshViews, camera: Camera) -> View:
    scale = preset.supersample
    height, width = camera.height * scale, camera.width * scale
    rows, columns = _window(surface.vertices, camera, scale)
    rays = _rays(camera, rows, columns, scale)
    depth = np.full((height, width), np.inf, np.float32)
    with_rgb = "rgb" in preset.channels
    ground = np.rint(np.asarray(preset.background) * 255).astype(np.uint8)
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[:] = np.tile(ground, width).reshape(width, 3)
    if len(rays):
        window = np.s_[rows.start : rows.stop, columns.start : columns.stop]
        shape = (len(rows), len(columns))
        if surface.transparent:
            colors, depths = _cast_layers(surface, preset, camera, rays, with_rgb)
            depth[window] = depths.reshape(shape)
            if with_rgb:
                rgb[window] = colors.reshape(*shape, 3)
        else:
            distance, face, b1, b2 = _cast(surface, rays)
            depth[window] = distance.reshape(shape)
            hit = np.flatnonzero(np.isfinite(distance))
            if with_rgb and len(hit):
                light = _shade(surface, preset, camera, rays[hit, 3:], face[hit], b1[hit], b2[hit])[:, :3]
                row, column = np.divmod(hit, len(columns))
                pixel = (row + rows.start) * width + column + columns.start
                rgb.reshape(-1, 3)[pixel] = _to_bytes(light)
    coverage = np.count_nonzero(depth < np.inf) / depth.size
    if scale > 1:
        depth = depth.reshape(camera.height, scale, camera.width, scale).min(axis=(1, 3))
        mean = rgb.reshape(camera.height, scale, camera.width, scale, 3).mean(axis=(1, 3))
        rgb = np.rint(mean).astype(np.uint8)
    return View(
        camera, rgb=rgb if with_rgb else None, depth=depth if "depth" in preset.channels else None, coverage=coverage
    )


def _window(vertices: np.ndarray, camera: Camera, scale: int) -> tuple[range, range]:
    """Rows and columns that the mesh can touch; all of them where a part lies beside or behind the camera."""
    pose, K = camera.camera_from_world.astype(np.float32), camera.K.astype(np.float32)
    x, y, z = pose[:3, :3] @ vertices.T + pose[:3, 3:]
    if camera.model == "perspective":
        if z.min() < 1e-3:
            return range(camera.height * scale), range(camera.width * scale)
        x, y = x / z, y / z
    u, v = (K[0, 0] * x + K[0, 2]) * scale, (K[1, 1] * y + K[1, 2]) * scale
    columns = range(max(int(u.min()) - 1, 0), min(int(u.max()) + 2, camera.width * scale))
    rows = range(max(int(v.min()) - 1, 0), min(int(v.max()) + 2, camera.height * scale))
    return rows, columns


def _rays(camera: Camera, rows: range, columns: range, scale: int) -> np.ndarray:
    """float32 (N, 6): origin and direction through the centres of a window of pixels."""
    K, pose = camera.K, camera.camera_from_world
    x = (((np.asarray(columns) + 0.5) / scale - K[0, 2]) / K[0, 0]).astype(np.float32)
    y = (((np.asarray(rows) + 0.5) / scale - K[1, 2]) / K[1, 1]).astype(np.float32)
    right, down, forward = pose[:3, :3].astype(np.float32)
    fixed, moving = (camera.position, forward) if camera.model == "perspective" else (forward, camera.position)
    rays = np.empty((len(rows), len(columns), 6), np.float32)
    first, second = (0, 3) if camera.model == "perspective" else (3, 0)
    for axis in range(3):
        rays[..., first + axis] = fixed[axis]
        np.add(y[:, None] * down[axis] + np.float32(moving[axis]), x * right[axis], out=rays[..., second + axis])
    return rays.reshape(-1, 6)


def _cast(surface: _Surface, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Depth (+inf: nothing), face, and the weights of its corners 1 and 2, of every ray (N, 6)."""
    hits = surface.scene.cast_rays(o3d.core.Tensor.from_numpy(rays), nthreads=1)
    weights = hits["primitive_uvs"].numpy()
    return hits["t_hit"].numpy(), hits["primitive_ids"].numpy(), weights[:, 0], weights[:, 1]


def _shade(
    surface: _Surface,
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
        normals *= np.where(np.einsum("nk,nk->n", normals, to_camera) < 0, np.float32(-1), np.float32(1))[:, None]
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


def _texels(surface: _Surface, face: np.ndarray, b1: np.ndarray, b2: np.ndarray) -> np.ndarray:
    """Unlit colour and alpha float32 (N, 4): base colour x texture x vertex colours."""
    texel = surface.base.take(face, axis=0)
    if surface.uvs is not None:
        uv = _interpolate(surface.uvs, face, b1, b2)
        if len(surface.textures) == 1:
            texel *= surface.textures[0].read(uv[:, 0], uv[:, 1])
        else:
            material = surface.material.take(face)
            for index in np.unique(material):
                if surface.textures[index] is not None:
                    chosen = np.flatnonzero(material == index)
                    texel[chosen] *= surface.textures[index].read(uv[chosen, 0], uv[chosen, 1])
    if surface.colors is not None:
        texel *= _interpolate(surface.colors, face, b1, b2)
    return texel


def _cast_layers(
    surface: _Surface, preset: MeshViews, camera: Camera, rays: np.ndarray, with_rgb: bool
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 colours (N, 3) and depths (N,) of rays that go on behind transparent surfaces, MAX_LAYERS at most."""
    color = np.zeros((len(rays), 3), np.float32)
    through = np.ones(len(rays), np.float32)
    depth = np.full(len(rays), np.inf, np.float32)
    travelled = np.zeros(len(rays), np.float32)
    live = np.arange(len(rays))
    rays = rays.copy()
    for _ in range(MAX_LAYERS):
        distance, face, b1, b2 = _cast(surface, np.ascontiguousarray(rays[live]))
        hit = np.isfinite(distance)
        live, distance, face, b1, b2 = live[hit], distance[hit], face[hit], b1[hit], b2[hit]
        if not len(live):
            break
        shaded = _shade(surface, preset, camera, rays[live, 3:], face, b1, b2)
        alpha = np.clip(shaded[:, 3], 0, 1)
        if with_rgb:
            color[live] += (through[live] * alpha)[:, None] * np.clip(shaded[:, :3], 0, 1)
        travelled[live] += distance
        solid = (alpha >= 0.5) & np.isinf(depth[live])
        depth[live[solid]] = travelled[live[solid]]
        through[live] *= 1 - alpha
        rays[live, :3] += (distance + np.float32(_BEHIND))[:, None] * rays[live, 3:]
        travelled[live] += np.float32(_BEHIND)
        live = live[through[live] > 1 / 512]
        if not len(live):
            break
    color += through[:, None] * np.asarray(preset.background, np.float32)
    return _to_bytes(color), depth


def _to_bytes(color: np.ndarray) -> np.ndarray:
    """float [0, 1] -> uint8, clamped and rounded."""
    color = color * np.float32(255)
    color += np.float32(0.5)
    np.clip(color, 0, 255, out=color)
    return color.astype(np.uint8)
