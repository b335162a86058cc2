"""Colour of surface points: textures and the Phong light of PyTorch3D, for many pixels at once, in float32."""

from __future__ import annotations

import numpy as np

from renderers.geometry import Material


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

    wrap: `repeat` (glTF, ShapeNet) or `clamp` (CLIP2Point's release). Texel centres lie at (i + 0.5) / size.
    """

    def __init__(self, picture: np.ndarray, wrap: str) -> None:
        self.height, self.width = picture.shape[:2]
        self.wrap = wrap
        border = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="wrap" if wrap == "repeat" else "edge")
        self._rows = (border.astype(np.float32) / np.float32(255)).reshape(-1, 4)

    def read(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """RGBA float32 (N, 4) at u (N,) right and v (N,) up."""
        if self.wrap == "repeat":
            u, v = u - np.floor(u), v - np.floor(v)
        else:
            u, v = np.clip(u, 0, 1), np.clip(v, 0, 1)
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
    """Whether any part of a material lets light through."""
    return material.base_color[3] < 1 or (material.texture is not None and bool((material.texture[..., 3] < 255).any()))
