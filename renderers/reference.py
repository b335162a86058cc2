"""The reference that every backend is tested against: slow and literal, float64, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from manifests.presets import MeshViews, PointclipViews, PointViews, RealisticViews
from renderers.cameras import Camera
from renderers.geometry import Mesh

_EPSILON = 1e-12


def depth_of_points(points: np.ndarray, preset: PointViews, camera: Camera) -> np.ndarray:
    """Depth float64 (H, W), +inf where empty, of points (N, 3): CLIP2Point eq. 8-10, or the released discs."""
    moved = points.astype(np.float64) @ camera.camera_from_world[:3, :3].T + camera.camera_from_world[:3, 3]
    picture = np.full((camera.height, camera.width), np.inf)
    for row in range(camera.height):
        for column in range(camera.width):
            if preset.merge == "disc":
                depths = _on_disc(moved, row, column, camera, preset.disc_radius)
            else:
                depths = _on_square(moved, row, column, camera, preset.dilation)
            if len(depths) and preset.merge == "weighted":
                picture[row, column] = (depths / (depths + _EPSILON)).sum() / (1 / depths).sum()
            elif len(depths):
                picture[row, column] = depths.min()
    return picture


def _on_square(moved: np.ndarray, row: int, column: int, camera: Camera, dilation: int) -> np.ndarray:
    """Depths of the set M of eq. 10: p - R/2 <= ceil < p + R/2 in both axes."""
    x, y, z = moved[moved[:, 2] > 0].T
    c = np.ceil(camera.K[0, 0] * x / z + camera.K[0, 2] - 1)
    r = np.ceil(camera.K[1, 1] * y / z + camera.K[1, 2] - 1)
    half = dilation / 2
    inside = (column - half <= c) & (c < column + half) & (row - half <= r) & (r < row + half)
    return z[inside]


def _on_disc(moved: np.ndarray, row: int, column: int, camera: Camera, radius: float) -> np.ndarray:
    x, y, z = moved.T
    scale = camera.K[0, 0] * 2 / camera.width
    px, py = (2 * column + 1) / camera.width - 1, (2 * row + 1) / camera.height - 1
    return z[((x * scale - px) ** 2 + (y * scale - py) ** 2 < radius**2) & (z >= 0)]


def depth_of_dots(points: np.ndarray, preset: PointclipViews, camera: Camera) -> np.ndarray:
    """Depth float64 (H, W), +inf where empty, of points (N, 3) as PointCLIP draws them; camera: of the preset's rig."""
    moved = points.astype(np.float64) @ camera.camera_from_world[:3, :3].T + camera.camera_from_world[:3, 3]
    x, y, z = moved[moved[:, 2] >= 0].T
    u = camera.K[0, 0] * (-x if preset.mirror else x) / (z + _EPSILON) + camera.width / 2
    v = camera.K[1, 1] * y / (z + _EPSILON) + camera.height / 2
    steps = np.arange(preset.footprint) - preset.footprint / 2
    picture = np.full((camera.height, camera.width), np.inf)
    for row in range(camera.height):
        for column in range(camera.width):
            across = (np.ceil(u[:, None] + steps) == column).any(axis=1)
            down = (np.ceil(v[:, None] + steps) == row).any(axis=1)
            depths = z[across & down]
            if len(depths):
                weights = 1 / (depths + _EPSILON)
                picture[row, column] = (depths * weights).sum() / weights.sum()
    return picture


def realistic_picture(points: np.ndarray, preset: RealisticViews, camera: Camera) -> np.ndarray:
    """Grey float64 (T, T) of points (N, 3) by PointCLIP V2's projection, point by point and square by square."""
    right, down, forward = camera.camera_from_world[:3, :3]
    view = points.astype(np.float64) @ np.stack([down, right, -forward], axis=1)
    low, high = view.min(axis=0), view.max(axis=0)
    size, inner = preset.image_size, preset.depth_cells - 2
    grid = np.zeros((preset.depth_cells, size, size))
    for q in (view - (high + low) / 2) / (high - low).max() * 2:
        row, column = (int(np.clip(np.ceil((preset.object_share * x + 1) / 2 * size), 1, size - 2)) for x in q[:2])
        depth = ((q[2] + 1) / 2 + preset.depth_bias) / (1 + preset.depth_bias) * inner
        cell = int(np.ceil(depth)), row, column
        grid[cell] = max(grid[cell], np.clip(depth, 1, inner))
    dense = _over_squares(grid, preset.pool, preset.pool_padding, np.max)
    distance = (np.arange(preset.blur) - preset.blur // 2) ** 2
    kernel = np.exp(-(distance[:, None] + distance) / (2 * preset.blur_sigma**2))
    kernel /= kernel.sum()
    smooth = _over_squares(dense, preset.blur, preset.blur // 2, lambda square: (square * kernel).sum())
    nearest = smooth.max(axis=0)
    return 1 - nearest / nearest.max()


def _over_squares(slices: np.ndarray, side: int, padding: int, combine: Callable[[np.ndarray], float]) -> np.ndarray:
    """`combine` of every square of a side in every slice (D, S, S), padded with zeros."""
    padded = np.pad(slices, ((0, 0), (padding, padding), (padding, padding)))
    count = padded.shape[1] - side + 1
    return np.array(
        [[[combine(plane[r : r + side, c : c + side]) for c in range(count)] for r in range(count)] for plane in padded]
    )


def depth_of_mesh(mesh: Mesh, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(depth float64 (H, W), face int64 (H, W)): every ray through a pixel's centre against every triangle.

    Empty pixels are +inf and -1. Opaque faces only.
    """
    corners = mesh.vertices[mesh.faces]
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    depth = np.full((camera.height, camera.width), np.inf)
    face = np.full((camera.height, camera.width), -1)
    for row in range(camera.height):
        for column in range(camera.width):
            origin, direction = ray_of_pixel(camera, row, column)
            cross = np.cross(direction, edge2)
            determinant = np.einsum("fk,fk->f", edge1, cross)
            with np.errstate(divide="ignore", invalid="ignore"):
                offset = origin - corners[:, 0]
                u = np.einsum("fk,fk->f", offset, cross) / determinant
                other = np.cross(offset, edge1)
                v = other @ direction / determinant
                t = np.einsum("fk,fk->f", other, edge2) / determinant
                hit = (np.abs(determinant) > 1e-14) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
            if hit.any():
                nearest = np.flatnonzero(hit)[t[hit].argmin()]
                depth[row, column], face[row, column] = t[nearest], nearest
    return depth, face


def ray_of_pixel(camera: Camera, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Origin and direction (3,) of the ray through a pixel's centre; its component along the optical axis is 1."""
    right, down, forward = camera.camera_from_world[:3, :3]
    x = (column + 0.5 - camera.K[0, 2]) / camera.K[0, 0]
    y = (row + 0.5 - camera.K[1, 2]) / camera.K[1, 1]
    if camera.model == "perspective":
        return camera.position, x * right + y * down + forward
    return camera.position + x * right + y * down, forward


def flat_shaded(mesh: Mesh, camera: Camera, preset: MeshViews) -> np.ndarray:
    """RGB float64 (H, W, 3) in [0, 1] of an untextured mesh with flat normals and one light."""
    depth, face = depth_of_mesh(mesh, camera)
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    light = np.asarray(preset.light_direction or camera.position, float)
    light /= np.linalg.norm(light)
    picture = np.tile(np.asarray(preset.background, float), (camera.height, camera.width, 1))
    for row, column in np.argwhere(np.isfinite(depth)):
        which = face[row, column]
        _, direction = ray_of_pixel(camera, row, column)
        to_camera = -direction / np.linalg.norm(direction)
        normal = normals[which]
        if preset.two_sided and normal @ to_camera < 0:
            normal = -normal
        facing = normal @ light
        mirrored = 2 * facing * normal - light
        shine = max(to_camera @ mirrored, 0.0) ** preset.shininess if facing > 0 else 0.0
        color = np.asarray(mesh.materials[mesh.face_material[which]].base_color[:3])
        lit = (preset.ambient + preset.diffuse * max(facing, 0.0)) * color + preset.specular * shine
        picture[row, column] = np.clip(lit, 0, 1)
    return picture
