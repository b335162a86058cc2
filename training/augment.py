"""Weak and strong views of pictures and clouds, drawn from one generator a sample. Source: Cross-MoST as released.

Pictures, uint8 (H, W, 3): torchvision's crop and timm's operations. Clouds: the released order, with two defects
mended: the strong crop really crops (released: x_min 9 in place of 0.9), and the cloud is filled up again by repeating
points, not by an O(N^2) interpolation.
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
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

Share = Annotated[float, Field(ge=0, le=1)]
WEAK_TURN_SIGMA, WEAK_TURN_LIMIT = 0.06, 0.18
JITTER_SIGMA, JITTER_LIMIT = 0.01, 0.05
LARGEST_RATIO = float(np.log(4 / 3))
NUM_OPERATIONS = 2
LARGEST_MAGNITUDE = 9.99  # at timm's 10 posterising keeps no bit, which Pillow refuses


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
def _lending(rng: np.random.Generator) -> Iterator[None]:
    """Lends one generator's numbers to a library that draws from `random`, and puts those back afterwards."""
    state = random.getstate()
    random.seed(int(rng.integers(2**63)))
    try:
        yield
    finally:
        random.setstate(state)


def weak_picture(picture: np.ndarray, size: int) -> np.ndarray:
    """The short side resized to `size`, bicubic, and the middle cut out (also the picture of evaluation)."""
    height, width = picture.shape[:2]
    scale = size / min(width, height)
    if scale != 1:
        height, width = round(height * scale), round(width * scale)
        resized = resize(Image.fromarray(picture), [height, width], interpolation=InterpolationMode.BICUBIC)
        picture = np.asarray(resized)
    top, left = (height - size) // 2, (width - size) // 2
    return picture[top : top + size, left : left + size]


class StrongPicture:
    """Random resized crop, flip, RandAugment (2 of 15 operations, p = 0.5, increasing)."""

    def __init__(self, settings: AugmentSettings, size: int, fill: tuple[int, int, int]) -> None:
        self._size, self._smallest, self._flip = size, settings.image_crop, settings.image_flip
        self._operations = []
        if settings.image_magnitude:
            options = {"translate_pct": 0.45, "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
            name = f"rand-m{settings.image_magnitude}-mstd0.5-inc1"
            self._operations = rand_augment_transform(name, options).ops
        for operation in self._operations:
            operation.magnitude_max = LARGEST_MAGNITUDE

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One strong view; all randomness is from `rng`."""
        left, top, width, height = crop_box(picture.shape[1], picture.shape[0], self._smallest, rng)
        cropped = np.array(picture[top : top + height, left : left + width])
        pixels = torch.from_numpy(cropped)[None].permute(0, 3, 1, 2)  # batch first, or torch takes it for planes
        pixels = interpolate(pixels, (self._size, self._size), mode="bicubic", antialias=True)
        if rng.random() < self._flip:
            pixels = pixels.flip(3)
        picture = np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())
        return self._operated(picture, rng) if self._operations else picture

    def _operated(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        before = after = Image.fromarray(picture)
        with _lending(rng):
            for index in rng.integers(len(self._operations), size=NUM_OPERATIONS):
                after = self._operations[index](after)
        return picture if after is before else np.asarray(after)


def crop_box(width: int, height: int, smallest: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random resized crop: U(smallest, 1) of the area, sides 3:4 to 4:3, anywhere.

    Source: torchvision's RandomResizedCrop, also in that after ten boxes that do not fit it takes the middle.
    """
    for _ in range(10):
        area, ratio = width * height * rng.uniform(smallest, 1), np.exp(rng.uniform(-LARGEST_RATIO, LARGEST_RATIO))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    largest = np.exp(LARGEST_RATIO)
    w, h = min(width, round(height * largest)), min(height, round(width * largest))
    return (width - w) // 2, (height - h) // 2, w, h


def to_tensor(picture: np.ndarray, mean: tuple[float, ...], deviation: tuple[float, ...]) -> torch.Tensor:
    """float32 (3, S, S), normalised."""
    array = picture.astype(np.float32) / 255.0
    array = (array - np.asarray(mean, np.float32)) / np.asarray(deviation, np.float32)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


# Inside, clouds are (3, N): numpy is many times faster along a contiguous axis.


def _normalized_axes(points: np.ndarray) -> np.ndarray:
    """float32 (3, N) of a cloud (N, 3), about its centroid, farthest point at 1."""
    axes = np.ascontiguousarray(points.T, np.float32)
    axes -= axes.mean(axis=1, keepdims=True)
    axes /= max(float(np.sqrt((axes * axes).sum(axis=0).max())), 1e-9)
    return axes


def normalize_cloud(points: np.ndarray) -> np.ndarray:
    """float32 (N, 3) about its centroid, farthest point at 1."""
    return np.ascontiguousarray(_normalized_axes(points).T)


def weak_cloud(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normalised; scaled by U(0.9, 1.1); turned a little about all axes (N(0, 0.06), at most 0.18 rad)."""
    scale = rng.uniform(0.9, 1.1)
    angles = np.clip(rng.normal(0, WEAK_TURN_SIGMA, 3), -WEAK_TURN_LIMIT, WEAK_TURN_LIMIT)
    turn = _turn(2, angles[2]) @ _turn(1, angles[1]) @ _turn(0, angles[0])
    return np.ascontiguousarray(((scale * turn).astype(np.float32) @ _normalized_axes(points)).T)


def strong_cloud(points: np.ndarray, settings: AugmentSettings, rng: np.random.Generator) -> np.ndarray:
    """Normalised, scaled, turned about +Y, shifted, thinned, jittered, cropped and filled up again to N points.

    Released: jittered before it is thinned, which is the same and takes longer.
    """
    count = len(points)
    scale = rng.uniform(1 / settings.points_scale, settings.points_scale)
    axes = (scale * _turn(1, rng.uniform(0, 2 * np.pi))).astype(np.float32) @ _normalized_axes(points)
    extent = axes.max(axis=1) - axes.min(axis=1)
    axes += (rng.uniform(-settings.points_shift, settings.points_shift, 3) * extent).astype(np.float32)[:, None]
    thinned = axes.compress(rng.random(count, np.float32) >= rng.uniform(0, settings.points_dropout), axis=1)
    thinned += _jitter(thinned.shape, rng)
    kept = thinned.compress(in_box(thinned, settings.points_crop, rng), axis=1)
    kept = np.ascontiguousarray((kept if kept.shape[1] else axes[:, :1]).T)
    order = rng.permutation(len(kept))
    fill = rng.integers(len(kept), size=count - len(kept))
    return kept.take(np.concatenate([order, fill]), axis=0)


def turned_cloud(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normalised, turned about +Y by U(0, 2 pi), jittered by N(0, 0.01), at most 0.05: supervised training's cloud."""
    axes = _turn(1, rng.uniform(0, 2 * np.pi)).astype(np.float32) @ _normalized_axes(points)
    axes += _jitter(axes.shape, rng)
    return np.ascontiguousarray(axes.T)


def _jitter(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    noise *= np.float32(JITTER_SIGMA)
    return np.clip(noise, -JITTER_LIMIT, JITTER_LIMIT, out=noise)


def in_box(axes: np.ndarray, smallest: float, rng: np.random.Generator) -> np.ndarray:
    """bool (N,): the points of a cloud (3, N) in a box that keeps U(smallest, 1) of each axis, placed at random."""
    if smallest >= 1 or axes.shape[1] < 2:
        return np.ones(axes.shape[1], bool)
    low, high = axes.min(axis=1), axes.max(axis=1)
    side = rng.uniform(smallest, 1.0, 3).astype(np.float32) * (high - low)
    corner = low + rng.random(3, np.float32) * (high - low - side)
    return ((axes >= corner[:, None]) & (axes <= (corner + side)[:, None])).all(axis=0)


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
