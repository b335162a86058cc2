"""Cameras: x right, y down, z forward (OpenCV). Rigs of cameras around the origin.

Pixels are continuous: pixel (row r, column c) covers [c, c+1) x [r, r+1) and its centre is (c + 0.5, r + 0.5), so
the optical axis of an S-pixel image crosses it at S / 2. Matrices are named for what they do and act on column vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Projection = Literal["perspective", "orthographic"]
_IDENTITY = np.eye(3)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product of two vectors (3,); np.cross takes 20 microseconds for it."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


@dataclass(frozen=True)
class Camera:
    """One camera.

    camera_from_world: float64 (4, 4), a rigid motion. K: float64 (3, 3); perspective: u = K (x/z, y/z, 1),
    orthographic: u = K (x, y, 1), in pixels. near, far: the depth range that the 16-bit encoding spans, world units.
    """

    camera_from_world: np.ndarray
    K: np.ndarray
    width: int
    height: int
    near: float
    far: float
    model: Projection = "perspective"

    def __post_init__(self) -> None:
        pose, K = np.asarray(self.camera_from_world, np.float64), np.asarray(self.K, np.float64)
        if pose.shape != (4, 4) or K.shape != (3, 3):
            raise ValueError(f"camera_from_world must be 4x4 and K 3x3, got {pose.shape} and {K.shape}")
        rotation = pose[:3, :3]
        turned = np.abs(rotation @ rotation.T - _IDENTITY).max() < 1e-5
        if not turned or np.dot(_cross(rotation[0], rotation[1]), rotation[2]) < 0:
            raise ValueError("camera_from_world is not a rigid motion")
        if not 0 <= self.near < self.far:
            raise ValueError(f"near {self.near} and far {self.far} are no range")
        object.__setattr__(self, "camera_from_world", pose)
        object.__setattr__(self, "K", K)

    def __repr__(self) -> str:
        place = ", ".join(f"{value:.2f}" for value in self.position)
        return f"Camera({self.model}, {self.width} x {self.height}, at ({place}))"

    @property
    def position(self) -> np.ndarray:
        """Camera centre in the world, float64 (3,)."""
        return -self.camera_from_world[:3, :3].T @ self.camera_from_world[:3, 3]


def direction(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Unit vector from the origin to the camera: (cos e sin a, sin e, cos e cos a); azimuth 0 looks from +Z."""
    a, e = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    return np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])


def look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """camera_from_world (4, 4) of a camera at `eye` that sees `target` in its centre and `up` upwards.

    Raises ValueError when `up` is parallel to the line of sight: give a pole its rotation as a matrix instead
    (the released CLIP2Point leaves that roll to float32 rounding).
    """
    eye, target, up = (np.asarray(v, np.float64) for v in (eye, target, up))
    forward = target - eye
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6:
        raise ValueError("up is parallel to the line of sight; give this camera's rotation as a matrix")
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return rigid(rotation, -rotation @ eye)


def rigid(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """A 4x4 matrix from a rotation (3, 3) and a translation (3,)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def orbit_rotation(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """World-to-camera rotation (3, 3) of a camera on the sphere that looks at the origin with +Y upwards.

    Elevations beyond 90 degrees reach the other side and stay upright, as the released CLIP2Point uses them.
    Raises ValueError straight above and below, as `look_at`.
    """
    return look_at(direction(azimuth_deg, elevation_deg), np.zeros(3), np.array([0.0, 1.0, 0.0]))[:3, :3]


def perspective_K(image_size: int, fov_deg: float) -> np.ndarray:
    """Intrinsics of a square image: focal length S/2 / tan(fov/2), principal point in the middle."""
    focal = image_size / 2 / np.tan(np.deg2rad(fov_deg) / 2)
    return np.array([[focal, 0, image_size / 2], [0, focal, image_size / 2], [0, 0, 1.0]])


def orthographic_K(image_size: int, half_extent: float) -> np.ndarray:
    """Intrinsics of a square orthographic image whose window is [-half_extent, half_extent]^2 in world units."""
    scale = image_size / 2 / half_extent
    return np.array([[scale, 0, image_size / 2], [0, scale, image_size / 2], [0, 0, 1.0]])


def rig(
    rotations: np.ndarray,
    *,
    distance: float,
    image_size: int,
    near: float,
    far: float,
    model: Projection = "perspective",
    fov_deg: float = 60.0,
    half_extent: float = 1.0,
) -> list[Camera]:
    """Cameras at one distance from the origin, one for each world-to-camera rotation (V, 3, 3)."""
    K = perspective_K(image_size, fov_deg) if model == "perspective" else orthographic_K(image_size, half_extent)
    pose = [rigid(r, np.array([0.0, 0.0, distance])) for r in np.asarray(rotations, np.float64)]
    return [Camera(p, K, image_size, image_size, near, far, model) for p in pose]


def pixel_rays(camera: Camera, rows: range, columns: range, scale: int) -> np.ndarray:
    """float32 (N, 6), row by row: origin and direction through the centres of a window of pixels.

    rows, columns: of the picture with `scale` pixels for each of the camera's, in each axis. The component of a
    direction along the optical axis is 1, so that the length along a ray is the depth.
    """
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
