"""Depth maps in torch, batched over objects and views, for pictures that are drawn inside a training step.

The twin of `renderers.point_depth`: the same equations and conventions, and a test holds both equal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from manifests.picture_mapping import CLIP2POINT_RANGE
from renderers.cameras import Camera
from renderers.point_depth import dilation_offsets, disc_reach

_WEIGHT_EPSILON = 1e-12
_MIN_DEPTH = 1e-6
DISTANCE_SPREAD = 0.1  # CLIP2Point as released: d = 1 + (U[0, 1] - 1/2) / 5


def depth_maps(
    points: Tensor, cameras: list[Camera], *, merge: str = "minimum", dilation: int = 2, disc_radius: float = 0.02
) -> Tensor:
    """Depth float32 (B, V, S, S), +inf where empty, of points float32 (B, N, 3) from V square cameras of one size.

    merge: minimum (CLIP2Point eq. 10), weighted (eq. 8) or disc (as released, orthographic).
    Raises ValueError when the cameras' sizes differ or merge is unknown.
    """
    size = _size_of(cameras)
    pose, K = _tensor([camera.camera_from_world for camera in cameras], points), _tensor([c.K for c in cameras], points)
    moved = torch.einsum("vij,bnj->bvin", pose[:, :3, :3], points) + pose[:, :3, 3:]
    x, y, z = moved.unbind(dim=2)
    if merge == "disc":
        return _discs(x, y, z, (K[:, 0, 0] * 2 / size)[None, :, None], size, disc_radius)
    fx, fy, cx, cy = (K[:, i, j][None, :, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    column = torch.ceil(fx * x / z + (cx - 1))
    row = torch.ceil(fy * y / z + (cy - 1))
    front = z > _MIN_DEPTH
    if merge == "minimum":
        return _minimum(column, row, z, front, size, dilation)
    if merge == "weighted":
        return _weighted(column, row, z.double(), front, size, dilation)
    raise ValueError(f"unknown merge {merge}")


def _size_of(cameras: list[Camera]) -> int:
    size = cameras[0].width
    if any((camera.width, camera.height) != (size, size) for camera in cameras):
        raise ValueError("all cameras must have square pictures of one size")
    return size


def _tensor(arrays: list[np.ndarray], like: Tensor) -> Tensor:
    return torch.as_tensor(np.stack(arrays), dtype=like.dtype).to(like.device)


def _index(column: Tensor, row: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Flat pixel (B, V, N) and whether it lies in the picture."""
    inside = valid & (column >= 0) & (column < size) & (row >= 0) & (row < size)
    flat = torch.where(inside, row * size + column, torch.zeros_like(row)).long()
    return flat, inside


def _minimum(column: Tensor, row: Tensor, z: Tensor, front: Tensor, size: int, dilation: int) -> Tensor:
    b, v, _ = z.shape
    depth = torch.full((b, v, size * size), torch.inf, dtype=z.dtype, device=z.device)
    for down in dilation_offsets(dilation):
        for right in dilation_offsets(dilation):
            flat, inside = _index(column + right, row + down, front, size)
            depth.scatter_reduce_(2, flat, z.masked_fill(~inside, torch.inf), "amin")
    return depth.reshape(b, v, size, size)


def _weighted(column: Tensor, row: Tensor, z: Tensor, front: Tensor, size: int, dilation: int) -> Tensor:
    b, v, _ = z.shape
    sums = torch.zeros((b, v, size * size), dtype=z.dtype, device=z.device)
    weights = torch.zeros_like(sums)
    for down in dilation_offsets(dilation):
        for right in dilation_offsets(dilation):
            flat, inside = _index(column + right, row + down, front, size)
            safe = torch.where(inside, z, torch.ones_like(z))
            sums.scatter_add_(2, flat, safe / (safe + _WEIGHT_EPSILON) * inside)
            weights.scatter_add_(2, flat, inside / safe)
    depth = torch.where(weights > 0, sums / weights.clamp(min=1e-30), torch.inf)
    return depth.float().reshape(b, v, size, size)


def _discs(x: Tensor, y: Tensor, z: Tensor, scale: Tensor, size: int, radius: float) -> Tensor:
    b, v, _ = z.shape
    half = size / 2
    nx, ny = x * scale, y * scale
    reach = disc_reach(radius, size)
    column, row = torch.floor((nx + 1) * half), torch.floor((ny + 1) * half)
    limit = torch.tensor(radius, dtype=x.dtype, device=x.device) ** 2
    depth = torch.full((b, v, size * size), torch.inf, dtype=z.dtype, device=z.device)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            c, r = column + right, row + down
            near = (nx - ((2 * c + 1) / size - 1)) ** 2 + (ny - ((2 * r + 1) / size - 1)) ** 2 < limit
            flat, inside = _index(c, r, near & (z >= 0), size)
            depth.scatter_reduce_(2, flat, z.masked_fill(~inside, torch.inf), "amin")
    return depth.reshape(b, v, size, size)


def random_distance_pair(
    points: Tensor,
    cameras: list[Camera],
    *,
    views: Tensor | None = None,
    disc_radius: float = 0.02,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Two batches of pictures float32 (B, V, S, S) in [0, 1], each sample from two distances d = 1 + U(-0.1, 0.1).

    The depth pair of CLIP2Point's pre-training, as released: drawn on the device of points float32 (B, N, 3); a pair's
    views are the same. views: int64 (B,), the one view of each sample; pictures are then (B, 1, S, S). generator: of
    that device.
    """
    draw = torch.rand((2, len(points)), generator=generator, device=points.device, dtype=points.dtype)
    first, second = 1 + (draw - 0.5) * (2 * DISTANCE_SPREAD)
    return (
        distance_pictures(points, cameras, first, views=views, disc_radius=disc_radius),
        distance_pictures(points, cameras, second, views=views, disc_radius=disc_radius),
    )


def distance_pictures(
    points: Tensor,
    cameras: list[Camera],
    distances: Tensor,
    *,
    views: Tensor | None = None,
    disc_radius: float = 0.02,
) -> Tensor:
    """Pictures float32 (B, V, S, S) in [0, 1] of points (B, N, 3), sample b from distance distances[b] (B,).

    The released orthographic camera: a distance d scales the cloud by 1 / d and adds d to depths; what then lies behind
    the camera or outside the picture is not drawn. The cameras' own distance is not used. views: as above. Raises
    ValueError unless the cameras are orthographic and of one square size.
    """
    size = _size_of(cameras)
    if any(camera.model != "orthographic" for camera in cameras):
        raise ValueError("the released random distance is that of an orthographic camera: use a preset of merge=disc")
    rotation = _tensor([camera.camera_from_world[:3, :3] for camera in cameras], points)
    scale = _tensor([camera.K[0, 0] * 2 / size for camera in cameras], points)
    scaled = points / distances[:, None, None]
    if views is None:
        moved, scale = torch.einsum("vij,bnj->bvin", rotation, scaled), scale[None, :, None]
    else:
        moved, scale = torch.einsum("bij,bnj->bin", rotation[views], scaled)[:, None], scale[views][:, None, None]
    x, y, z = moved.unbind(dim=2)
    return to_pictures(_discs(x, y, z + distances[:, None, None], scale, size, disc_radius))


def turned_pictures(
    points: Tensor, rotation: Tensor, distances: Tensor, size: int, half_extent: float = 1.0, disc_radius: float = 0.02
) -> Tensor:
    """Pictures float32 (B, M, size, size) in [0, 1] of points (B, N, 3), each cloud from a camera of its own.

    rotation: float32 (B, 3, 3), world to camera. distances: (B, M), as of `distance_pictures`, of the M pictures that
    one camera takes. half_extent: of the orthographic window, world units.
    """
    turned = torch.einsum("bij,bnj->bin", rotation, points)
    x, y, z = (turned[:, :, None] / distances[:, None, :, None]).unbind(dim=1)
    scale = torch.full((1, 1, 1), 1 / half_extent, dtype=points.dtype, device=points.device)
    return to_pictures(_discs(x, y, z + distances[..., None], scale, size, disc_radius))


def to_pictures(depth: Tensor) -> Tensor:
    """The released CLIP2Point mapping, as `manifests.picture_mapping.to_picture`: depth (..., S, S) -> [0, 1]."""
    hit = torch.isfinite(depth)
    far = depth.masked_fill(~hit, -torch.inf).amax(dim=(-2, -1), keepdim=True)
    near = depth.amin(dim=(-2, -1), keepdim=True).clamp(max=1.0)
    far = torch.where(torch.isfinite(far), far, torch.ones_like(far))
    return torch.where(hit, (depth.masked_fill(~hit, 1.0) - near) / far * CLIP2POINT_RANGE, torch.ones_like(depth))
