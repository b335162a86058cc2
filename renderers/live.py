"""Depth maps in torch, batched over objects and views, on any device: the twin of `renderers.depth`, equal by test.

For maps drawn inside a training step. Equations and conventions are those of `renderers.depth`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manifests.mappings import CLIP2POINT_RANGE
from renderers.cameras import Camera
from renderers.depth import dilation_offsets

_WEIGHT_EPSILON = 1e-12
_MIN_DEPTH = 1e-6


def depth_maps(
    points: Tensor, cameras: list[Camera], *, merge: str = "minimum", dilation: int = 2, disc_radius: float = 0.02
) -> Tensor:
    """Depth float32 (B, V, S, S), +inf where empty, of points float32 (B, N, 3) from V square cameras of one size.

    merge: minimum (CLIP2Point eq. 10), weighted (eq. 8) or disc (as released, orthographic).
    Raises ValueError when the cameras' sizes differ or merge is unknown.
    """
    size = cameras[0].width
    if any((camera.width, camera.height) != (size, size) for camera in cameras):
        raise ValueError("all cameras must have square pictures of one size")
    pose = torch.stack([_tensor(camera.camera_from_world, points) for camera in cameras])
    K = torch.stack([_tensor(camera.K, points) for camera in cameras])
    moved = torch.einsum("vij,bnj->bvin", pose[:, :3, :3], points) + pose[:, :3, 3:]
    x, y, z = moved.unbind(dim=2)
    if merge == "disc":
        return _discs(x, y, z, K, size, disc_radius)
    fx, fy, cx, cy = (K[:, i, j][None, :, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    column = torch.ceil(fx * x / z + (cx - 1))
    row = torch.ceil(fy * y / z + (cy - 1))
    front = z > _MIN_DEPTH
    if merge == "minimum":
        return _minimum(column, row, z, front, size, dilation)
    if merge == "weighted":
        return _weighted(column, row, z.double(), front, size, dilation)
    raise ValueError(f"unknown merge {merge}")


def _tensor(array, like: Tensor) -> Tensor:
    return torch.as_tensor(array, dtype=like.dtype, device=like.device)


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


def _discs(x: Tensor, y: Tensor, z: Tensor, K: Tensor, size: int, radius: float) -> Tensor:
    b, v, _ = z.shape
    half = size / 2
    scale = (K[:, 0, 0] / half)[None, :, None]
    nx, ny = x * scale, y * scale
    reach = int(radius * half) + 2
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


def to_pictures(depth: Tensor) -> Tensor:
    """The released CLIP2Point mapping, as `manifests.mappings.to_picture`: depth (..., S, S) -> [0, 1]."""
    hit = torch.isfinite(depth)
    far = depth.masked_fill(~hit, -torch.inf).amax(dim=(-2, -1), keepdim=True)
    near = depth.amin(dim=(-2, -1), keepdim=True).clamp(max=1.0)
    far = torch.where(torch.isfinite(far), far, torch.ones_like(far))
    return torch.where(hit, (depth.masked_fill(~hit, 1.0) - near) / far * CLIP2POINT_RANGE, torch.ones_like(depth))
