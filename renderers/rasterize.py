"""RGB and depth of a mesh by PyTorch3D's rasteriser, on the CPU or a GPU. The home of PyTorch3D.

Same cameras, materials and light as `raycast`: PyTorch3D finds face, weights and depth of every pixel, and
`renderers.shading` colours them. Its naive rasteriser is used (bin_size 0), which cannot drop faces as the binned one
does when a bin overflows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from manifests.errors import Refused, one_line
from manifests.presets import RasterizedViews
from renderers.cameras import Camera, pixel_rays
from renderers.geometry import Mesh
from renderers.shading import LAYER_GAP, MAX_LAYERS, Layers, Surface, blank, finish, prepare, shade, to_bytes
from renderers.view import View

try:
    import torch
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes
except (ImportError, OSError) as error:
    library = (getattr(error, "name", None) or "pytorch3d").partition(".")[0]
    why = "is missing" if isinstance(error, ModuleNotFoundError) else f"does not load ({one_line(error)})"
    raise Refused(
        f"{library} {why}: install PyTorch3D as https://github.com/facebookresearch/pytorch3d/blob/main/INSTALL.md says"
    ) from None

# A pixel whose centre lies on an edge belongs to no face for PyTorch3D, so that a diagonal of pixels shows what is
# behind. Centres as near to an edge as this count as inside: a squared distance, half the shorter side is 1.
EDGE = 1e-12
NEAR = 0.01  # parts of faces nearer to the camera than this are cut away, world units; float32 needs the room


def draw_mesh(mesh: Mesh, preset: RasterizedViews, cameras: list[Camera]) -> list[View]:
    """RGB and depth of a mesh from every camera, `views_at_once` of them in one call of the rasteriser.

    Faces with the same three corners are drawn once. Depth is of the first surface with alpha of at least one half.
    `supersample=2` draws four pixels for each: RGB is their mean, depth their nearest.
    Raises ValueError when no face has an area, Refused when there is no such device.
    """
    device = device_of(preset)
    surface = prepare(mesh, preset)
    views: list[View] = []
    for start in range(0, len(cameras), preset.views_at_once):
        batch = cameras[start : start + preset.views_at_once]
        fragments = _fragments(surface, preset, batch, device)
        views += [_view(surface, preset, camera, *f) for camera, f in zip(batch, fragments, strict=True)]
    return views


def device_of(preset: RasterizedViews) -> torch.device:
    """Where a preset is drawn. Raises Refused where there is no GPU or PyTorch3D was built without one."""
    if preset.device == "cuda":
        if not torch.cuda.is_available():
            raise Refused("device=cuda: PyTorch sees no GPU here; set device=cpu")
        try:
            corner = torch.zeros((1, 3, 3), device="cuda")
            rasterize_meshes(Meshes(corner, torch.arange(3, device="cuda").reshape(1, 1, 3)), 8, 0.0, 1, 0)
        except RuntimeError as error:
            raise Refused(f"device=cuda: this PyTorch3D does not draw there ({one_line(error)})") from error
    return torch.device(preset.device)


def _fragments(
    surface: Surface, preset: RasterizedViews, cameras: list[Camera], device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each camera: face (S, S, K), -1 for no face, weights of its corners (S, S, K, 3) and depth (S, S, K)."""
    first = cameras[0]
    size = (first.height * preset.supersample, first.width * preset.supersample)
    corners = np.stack([_on_screen(surface.vertices, camera) for camera in cameras])
    num_faces = len(surface.corners)
    vertices = torch.from_numpy(corners).to(device)
    faces = torch.arange(3 * num_faces, device=device).reshape(1, num_faces, 3).expand(len(cameras), -1, -1)
    with torch.no_grad():
        face, depth, weights, _ = rasterize_meshes(
            Meshes(vertices, faces),
            image_size=size,
            blur_radius=EDGE,
            faces_per_pixel=MAX_LAYERS if surface.transparent else 1,
            bin_size=0,
            perspective_correct=first.model == "perspective",
            clip_barycentric_coords=True,
            z_clip_value=NEAR if bool((corners[..., 2] < NEAR).any()) else None,
        )
    for number in range(len(cameras)):
        here = face[number].cpu().numpy()
        yield (
            np.where(here >= 0, here - number * num_faces, -1),
            weights[number].cpu().numpy(),
            depth[number].cpu().numpy(),
        )


def _on_screen(vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """float32 (N, 3) of vertices (N, 3): PyTorch3D's screen x left and y up, +-1 at the shorter side, and depth."""
    pose = camera.camera_from_world
    x, y, z = pose[:3, :3] @ vertices.T.astype(np.float64) + pose[:3, 3:]
    if camera.model == "perspective":
        safe = np.where(np.abs(z) < 1e-8, 1e-8, z)
        x, y = x / safe, y / safe
    u, v = camera.K[0, 0] * x + camera.K[0, 2], camera.K[1, 1] * y + camera.K[1, 2]
    shorter = min(camera.width, camera.height)
    return np.stack([(camera.width - 2 * u) / shorter, (camera.height - 2 * v) / shorter, z], 1).astype(np.float32)


def _view(
    surface: Surface,
    preset: RasterizedViews,
    camera: Camera,
    face: np.ndarray,
    weights: np.ndarray,
    depth: np.ndarray,
) -> View:
    height, width, layers = face.shape
    face, weights, depth = face.reshape(-1, layers), weights.reshape(-1, layers, 3), depth.reshape(-1, layers)
    hit = np.flatnonzero(face[:, 0] >= 0)
    with_rgb = "rgb" in preset.channels
    rgb = blank(preset, height, width) if with_rgb else None
    nearest = np.full(height * width, np.inf, np.float32)
    directions = pixel_rays(camera, range(height), range(width), preset.supersample)[hit, 3:]
    face, weights, depth = face[hit], weights[hit], depth[hit]
    met = np.zeros(height * width, bool) if surface.transparent else None
    if met is not None:
        mixed = _mix(surface, preset, camera, directions, face, weights, depth)
        nearest[hit], met[hit] = mixed.depth, True
        if rgb is not None:
            rgb.reshape(-1, 3)[hit] = mixed.colors(preset)
    elif len(hit):
        nearest[hit] = depth[:, 0]
        if rgb is not None:
            b1, b2 = np.ascontiguousarray(weights[:, 0, 1:].T)
            rgb.reshape(-1, 3)[hit] = to_bytes(shade(surface, preset, camera, directions, face[:, 0], b1, b2)[:, :3])
    shape = (height, width)
    return finish(camera, preset, rgb, nearest.reshape(shape), None if met is None else met.reshape(shape))


def _mix(
    surface: Surface,
    preset: RasterizedViews,
    camera: Camera,
    directions: np.ndarray,
    face: np.ndarray,
    weights: np.ndarray,
    depth: np.ndarray,
) -> Layers:
    """Surfaces behind each other, nearest first: face (N, K), weights (N, K, 3), depth (N, K) of N pixels."""
    mixed = Layers(len(face), "rgb" in preset.channels)
    reached = np.full(len(face), -np.inf, np.float32)
    live = np.arange(len(face))
    for layer in range(face.shape[1]):
        live = live[face[live, layer] >= 0]
        now = live[depth[live, layer] >= reached[live]]  # else the edge of the surface before it
        if not len(now):
            continue
        b1, b2 = np.ascontiguousarray(weights[now, layer, 1:].T)
        shaded = shade(surface, preset, camera, directions[now], face[now, layer], b1, b2)
        onward = mixed.add(now, shaded, depth[now, layer])
        reached[now] = depth[now, layer] + np.float32(LAYER_GAP)
        live = np.setdiff1d(live, now[~onward], assume_unique=True)
    return mixed
