"""Weak and strong views of pictures and clouds, drawn from one generator a sample. Source: Cross-MoST as released.

Pictures: torchvision and timm transforms. Clouds: the released order, with two defects mended: the strong crop really
crops (released: x_min 9 in place of 0.9), and the cloud is filled up again by repeating points, not by an O(N^2)
interpolation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import resize

Share = Annotated[float, Field(ge=0, le=1)]
WEAK_TURN_SIGMA, WEAK_TURN_LIMIT = 0.06, 0.18
JITTER_SIGMA, JITTER_LIMIT = 0.01, 0.05


class AugmentSettings(BaseModel):
    """Strengths; the defaults are the released ones.

    image_crop: smallest area share of the strong crop. image_magnitude: RandAugment's, 0 for none. points_scale:
    strong clouds are scaled by U(1/s, s). points_shift: of the extent of each axis. points_dropout: largest share of
    points dropped. points_crop: smallest share of each axis that the crop keeps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_crop: Annotated[float, Field(gt=0, le=1)] = 0.3
    image_magnitude: Annotated[int, Field(ge=0, le=10)] = 9
    image_flip: Share = 0.5
    points_scale: Annotated[float, Field(ge=1)] = 2.0
    points_shift: Share = 0.5
    points_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.875
    points_crop: Annotated[float, Field(gt=0, le=1)] = 0.9


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    """Lends one generator's numbers to libraries that draw from global ones, and puts those back afterwards."""
    seed = int(rng.integers(2**31))
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def weak_picture(picture: Image.Image, size: int) -> Image.Image:
    """The short side resized to `size`, bicubic, and the middle cut out (also the picture of evaluation)."""
    width, height = picture.size
    scale = size / min(width, height)
    if scale != 1:
        picture = resize(
            picture, [round(height * scale), round(width * scale)], interpolation=InterpolationMode.BICUBIC
        )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


class StrongPicture:
    """Random resized crop, flip, RandAugment (2 of 15 operations, p = 0.5, increasing)."""

    def __init__(self, settings: AugmentSettings, size: int, fill: tuple[int, int, int]) -> None:
        self._flip = settings.image_flip
        self._crop = RandomResizedCrop(
            size, scale=(settings.image_crop, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        self._operations = None
        if settings.image_magnitude:
            options = {"translate_pct": 0.45, "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
            self._operations = rand_augment_transform(f"rand-m{settings.image_magnitude}-mstd0.5-inc1", options)

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """One strong view; all randomness is from `rng`."""
        with _seeded(rng):
            picture = self._crop(picture)
            if rng.random() < self._flip:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return self._operations(picture) if self._operations else picture


def to_tensor(picture: Image.Image, mean: tuple[float, ...], deviation: tuple[float, ...]) -> torch.Tensor:
    """float32 (3, S, S), normalised."""
    array = np.asarray(picture.convert("RGB"), np.float32) / 255.0
    array = (array - np.asarray(mean, np.float32)) / np.asarray(deviation, np.float32)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def normalize_cloud(points: np.ndarray) -> np.ndarray:
    """float32 (N, 3) about its centroid, farthest point at 1."""
    points = points - points.mean(axis=0)
    return (points / max(float(np.linalg.norm(points, axis=1).max()), 1e-9)).astype(np.float32)


def weak_cloud(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normalised; scaled by U(0.9, 1.1); turned a little about all axes (N(0, 0.06), at most 0.18 rad)."""
    points = normalize_cloud(points) * np.float32(rng.uniform(0.9, 1.1))
    angles = np.clip(rng.normal(0, WEAK_TURN_SIGMA, 3), -WEAK_TURN_LIMIT, WEAK_TURN_LIMIT)
    turn = _turn(2, angles[2]) @ _turn(1, angles[1]) @ _turn(0, angles[0])
    return (points @ turn.T).astype(np.float32)


def strong_cloud(points: np.ndarray, settings: AugmentSettings, rng: np.random.Generator) -> np.ndarray:
    """Normalised, scaled, turned about +Y, shifted, jittered, thinned, cropped and filled up again to N points."""
    count = len(points)
    points = normalize_cloud(points)
    points = points * np.float32(rng.uniform(1 / settings.points_scale, settings.points_scale))
    points = points @ _turn(1, rng.uniform(0, 2 * np.pi)).T.astype(np.float32)
    extent = points.max(axis=0) - points.min(axis=0)
    points = points + (rng.uniform(-settings.points_shift, settings.points_shift, 3) * extent).astype(np.float32)
    points = points + _jitter(points.shape, rng)
    kept = points[rng.random(count) >= rng.uniform(0, settings.points_dropout)]
    kept = crop_cloud(kept, settings.points_crop, rng)
    if not len(kept):
        kept = points[:1]
    order = rng.permutation(len(kept))
    fill = rng.integers(len(kept), size=max(count - len(kept), 0))
    return kept[np.concatenate([order, fill])[:count]].astype(np.float32)


def turned_cloud(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normalised, turned about +Y by U(0, 2 pi), jittered by N(0, 0.01), at most 0.05: supervised training's cloud."""
    points = normalize_cloud(points) @ _turn(1, rng.uniform(0, 2 * np.pi)).T.astype(np.float32)
    return points + _jitter(points.shape, rng)


def _jitter(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32) * np.float32(JITTER_SIGMA)
    return np.clip(noise, -JITTER_LIMIT, JITTER_LIMIT, out=noise)


def crop_cloud(points: np.ndarray, smallest: float, rng: np.random.Generator) -> np.ndarray:
    """The points in a box that keeps U(smallest, 1) of each axis, placed at random inside the cloud's own box."""
    if smallest >= 1 or len(points) < 2:
        return points
    low, high = points.min(axis=0), points.max(axis=0)
    side = rng.uniform(smallest, 1.0, 3) * (high - low)
    corner = low + rng.random(3) * (high - low - side)
    return points[((points >= corner) & (points <= corner + side)).all(axis=1)]


def _turn(axis: int, angle: float) -> np.ndarray:
    """A right-handed rotation (3, 3) about one axis."""
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def image_mask(size: int, patch: int, cell: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """bool (S/p, S/p): ceil(ratio cells) of the square cells of `cell` pixels are hidden. Source: MUST.

    Raises ValueError unless cells are whole patches and the picture whole cells.
    """
    if cell % patch or size % cell:
        raise ValueError(f"mask.image_cell={cell} must be whole patches of {patch} and divide the picture's {size}")
    side = size // cell
    hidden = np.zeros(side * side, bool)
    hidden[rng.permutation(side * side)[: int(np.ceil(ratio * side * side))]] = True
    return hidden.reshape(side, side).repeat(cell // patch, axis=0).repeat(cell // patch, axis=1)
