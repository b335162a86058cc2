"""RGB and depth of a mesh by ray casting on the CPU: no GL, no display. The home of Open3D.

Rays have an optical-axis component of 1, so that the distance along a ray is the depth. Light: PyTorch3D's constants,
standing at the camera (CLIP2Point's released RGB path) or far away in the preset's direction. Colours are not
gamma-corrected, as in PyTorch3D.
"""

from __future__ import annotations

import numpy as np

from manifests.errors import Refused
from manifests.install import missing
from manifests.presets import MeshViews
from renderers.cameras import Camera, pixel_rays
from renderers.geometry import Mesh
from renderers.shading import LAYER_GAP, MAX_LAYERS, Layers, Surface, blank, finish, prepare, shade, to_bytes
from renderers.system_libraries import PACKAGE_OF
from renderers.view import View

try:
    import open3d as o3d
except ImportError:
    raise missing("open3d", "build") from None
except OSError as error:  # its wheel needs system libraries
    raise Refused(f"open3d does not load ({error}): apt-get install {' '.join(PACKAGE_OF.values())}") from error


def draw_mesh(mesh: Mesh, preset: MeshViews, cameras: list[Camera]) -> list[View]:
    """RGB and depth of a mesh from every camera, each pair from one set of rays.

    Faces with the same three corners are drawn once. Depth is of the first surface with alpha of at least one half.
    `supersample=2` casts four rays a pixel: RGB is their mean, depth their nearest.
    Raises ValueError when no face has an area.
    """
    surface = prepare(mesh, preset)
    scene = _scene(surface.vertices, np.arange(len(surface.vertices)).reshape(-1, 3))
    return [_draw(scene, surface, preset, camera) for camera in cameras]


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


def _draw(scene: o3d.t.geometry.RaycastingScene, surface: Surface, preset: MeshViews, camera: Camera) -> View:
    scale = preset.supersample
    height, width = camera.height * scale, camera.width * scale
    rows, columns = _window(surface.vertices, camera, scale)
    rays = pixel_rays(camera, rows, columns, scale)
    depth = np.full((height, width), np.inf, np.float32)
    rgb = blank(preset, height, width) if "rgb" in preset.channels else None
    met = np.zeros((height, width), bool) if surface.transparent else None
    if len(rays):
        window = np.s_[rows.start : rows.stop, columns.start : columns.stop]
        shape = (len(rows), len(columns))
        if met is not None:
            layers = _cast_layers(scene, surface, preset, camera, rays, rgb is not None)
            depth[window], met[window] = layers.depth.reshape(shape), layers.met.reshape(shape)
            if rgb is not None:
                rgb[window] = layers.colors(preset).reshape(*shape, 3)
        else:
            distance, face, b1, b2 = _cast(scene, rays)
            depth[window] = distance.reshape(shape)
            hit = np.flatnonzero(np.isfinite(distance))
            if rgb is not None and len(hit):
                light = shade(surface, preset, camera, rays[hit, 3:], face[hit], b1[hit], b2[hit])[:, :3]
                row, column = np.divmod(hit, len(columns))
                pixel = (row + rows.start) * width + column + columns.start
                rgb.reshape(-1, 3)[pixel] = to_bytes(light)
    return finish(camera, preset, rgb, depth, met)


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


def _cast(
    scene: o3d.t.geometry.RaycastingScene, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Depth (+inf: nothing), face, and the weights of its corners 1 and 2, of every ray (N, 6)."""
    hits = scene.cast_rays(o3d.core.Tensor.from_numpy(rays), nthreads=1)
    weights = hits["primitive_uvs"].numpy()
    return hits["t_hit"].numpy(), hits["primitive_ids"].numpy(), weights[:, 0], weights[:, 1]


def _cast_layers(
    scene: o3d.t.geometry.RaycastingScene,
    surface: Surface,
    preset: MeshViews,
    camera: Camera,
    rays: np.ndarray,
    with_rgb: bool,
) -> Layers:
    """What rays (N, 6) meet that go on behind transparent surfaces, MAX_LAYERS at most."""
    layers = Layers(len(rays), with_rgb)
    travelled = np.zeros(len(rays), np.float32)
    live = np.arange(len(rays))
    rays = rays.copy()
    for _ in range(MAX_LAYERS):
        distance, face, b1, b2 = _cast(scene, np.ascontiguousarray(rays[live]))
        hit = np.isfinite(distance)
        live, distance, face, b1, b2 = live[hit], distance[hit], face[hit], b1[hit], b2[hit]
        if not len(live):
            break
        shaded = shade(surface, preset, camera, rays[live, 3:], face, b1, b2)
        travelled[live] += distance
        onward = layers.add(live, shaded, travelled[live])
        rays[live, :3] += (distance + np.float32(LAYER_GAP))[:, None] * rays[live, 3:]
        travelled[live] += np.float32(LAYER_GAP)
        live = live[onward]
        if not len(live):
            break
    return layers
