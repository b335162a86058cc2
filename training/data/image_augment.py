"""Augments pictures: weak and strong views, and image masks (clouds: training/data/point_augment.py).

Pictures are uint8 (H, W, 3). Every draw comes from one generator a sample. torchvision crops, timm has the operations.
Source: Cross-MoST as released.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_saturation, resize

from training.settings.data import PictureAugmentSettings

LARGEST_RATIO = float(np.log(4 / 3))
NUM_OPERATIONS = 2
LARGEST_MAGNITUDE = 9.99  # at timm's 10 posterising keeps no bit, which Pillow refuses


@contextmanager
def _lending(rng: np.random.Generator) -> Iterator[None]:
    """Lets timm's operations, which draw from a module `random`, draw from this generator.

    Not by `random.seed`: all threads share that generator, and an object store's client draws its pauses from it.
    """
    auto_augment.random = random.Random(int(rng.integers(2**63)))  # type: ignore[assignment]  # same functions
    try:
        yield
    finally:
        auto_augment.random = random


def weak_picture(picture: np.ndarray, size: int, place: float = 0.5) -> np.ndarray:
    """Resizes the short side to `size`, bicubic, and cuts out a square: its middle, which evaluation sees, too.

    place: of the square along the longer side, 0 to 1.
    """
    height, width = picture.shape[:2]
    scale = size / min(width, height)
    if scale != 1:
        height, width = round(height * scale), round(width * scale)
        resized = resize(Image.fromarray(picture), [height, width], interpolation=InterpolationMode.BICUBIC)
        picture = np.asarray(resized)
    top, left = int((height - size) * place), int((width - size) * place)
    return picture[top : top + size, left : left + size]


class StrongPicture:
    """Random resized crop, flip, colour jitter, RandAugment (2 of 15 operations, p = 0.5, increasing)."""

    def __init__(self, settings: PictureAugmentSettings, size: int, fill: tuple[int, ...]) -> None:
        self._size, self._smallest, self._flip = size, settings.image_crop, settings.image_flip
        self._jitter = settings.image_jitter
        self._operations = []
        if settings.image_magnitude:
            options = {"translate_pct": 0.45, "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
            name = f"rand-m{settings.image_magnitude}-mstd0.5-inc1"
            self._operations = auto_augment.rand_augment_transform(name, options).ops
        for operation in self._operations:
            operation.magnitude_max = LARGEST_MAGNITUDE

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One strong view of a picture."""
        left, top, width, height = crop_box(picture.shape[1], picture.shape[0], self._smallest, rng)
        cropped = np.array(picture[top : top + height, left : left + width])
        pixels = torch.from_numpy(cropped)[None].permute(0, 3, 1, 2)  # batch first, or torch takes it for planes
        pixels = interpolate(pixels, (self._size, self._size), mode="bicubic", antialias=True)
        if rng.random() < self._flip:
            pixels = pixels.flip(3)
        if self._jitter:
            pixels = jittered(pixels, self._jitter, rng)
        picture = np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())
        return self._operated(picture, rng) if self._operations else picture

    def _operated(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        before = after = Image.fromarray(picture)
        with _lending(rng):
            for index in rng.integers(len(self._operations), size=NUM_OPERATIONS):
                after = self._operations[index](after)
        return picture if after is before else np.asarray(after)


def jittered(pixels: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """uint8 pixels (..., 3, H, W) whose brightness, contrast and saturation are changed, in random order.

    Source: torchvision's ColorJitter, without a change of hue.
    """
    changes = adjust_brightness, adjust_contrast, adjust_saturation
    for index in rng.permutation(len(changes)):
        pixels = changes[index](pixels, rng.uniform(1 - strength, 1 + strength))
    return pixels


def crop_box(width: int, height: int, smallest: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random resized crop: U(smallest, 1) of the area, sides 3:4 to 4:3, anywhere.

    Source: torchvision's RandomResizedCrop, which after ten boxes that do not fit takes the middle.
    """
    for _ in range(10):
        area, ratio = width * height * rng.uniform(smallest, 1), np.exp(rng.uniform(-LARGEST_RATIO, LARGEST_RATIO))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    largest = float(np.exp(LARGEST_RATIO))
    w, h = min(width, round(height * largest)), min(height, round(width * largest))
    return (width - w) // 2, (height - h) // 2, w, h


def normalize_cloud(points: np.ndarray) -> np.ndarray:
    """float32 (N, 3), moved and scaled: the centroid at 0, the farthest point at distance 1."""
    axes = np.ascontiguousarray(points.T, np.float32)  # numpy is many times faster along a contiguous axis
    axes -= axes.mean(axis=1, keepdims=True)
    axes /= max(float(np.sqrt((axes * axes).sum(axis=0).max())), 1e-9)
    return np.ascontiguousarray(axes.T)


def image_mask(size: int, patch: int, cell: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Hides ceil(ratio * cells) square cells of `cell` pixels: bool (S/p, S/p), true where hidden. Source: MUST.

    Raises ValueError unless cells are whole patches and the picture whole cells.
    """
    if cell % patch or size % cell:
        raise ValueError(f"mask.image_cell={cell} must be whole patches of {patch} and divide the picture's {size}")
    side = size // cell
    hidden = np.zeros(side * side, bool)
    hidden[rng.permutation(side * side)[: int(np.ceil(ratio * side * side))]] = True
    return hidden.reshape(side, side).repeat(cell // patch, axis=0).repeat(cell // patch, axis=1)
