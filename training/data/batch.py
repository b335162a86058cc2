"""Batches: raw ones, which a loader gives, and those that a training step sees. Only supervised methods see labels.

A raw batch holds pictures as uint8, clouds as stored and a seed for each sample: a quarter of the bytes. It becomes a
batch on the device of the training: there pictures are normalised and clouds augmented, all samples at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from training.data.point_augment import LABELLED, moved_clouds, strong_clouds, weak_clouds
from training.settings.data import AugmentSettings, CrossPointAugmentSettings, LabelledAugmentSettings
from training.settings.part_settings import PartAugmentSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Batch:
    """What training sees: no label.

    weak_image, strong_image: float32 (B, 3, S, S), normalised; the strong ones (B, V, 3, S, S) where a method takes
    several views of an object. weak_points, strong_points: float32 (B, N, 3).
    image_mask: bool (B, S/p, S/p), true where hidden. points_draw: float32 (B, 2) and modality_draw: float32 (B,),
    uniform draws for the point mask and for labels.mode=random.
    """

    keys: tuple[str, ...]
    weak_image: Tensor
    strong_image: Tensor
    weak_points: Tensor
    strong_points: Tensor
    image_mask: Tensor
    points_draw: Tensor
    modality_draw: Tensor


@dataclass(frozen=True)
class RawBatch:
    """What a loader gives without labels.

    weak_image, strong_image: uint8 (B, 3, S, S), or (B, V, 3, S, S) as of a Batch. points: float32 (B, N, 3).
    seed: int64 (B,), of the draws for clouds.
    mean, deviation: of RGB in [0, 1]. The rest is a Batch's.
    """

    keys: tuple[str, ...]
    weak_image: Tensor
    strong_image: Tensor
    points: Tensor
    seed: Tensor
    image_mask: Tensor
    points_draw: Tensor
    modality_draw: Tensor
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    augment: AugmentSettings

    def pin_memory(self) -> RawBatch:
        """In memory that a GPU reads by itself; DataLoader(pin_memory=True) calls it."""
        return mapped(self, Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        here = moved(self, device)
        return Batch(
            self.keys,
            normalized(here.weak_image, self.mean, self.deviation),
            normalized(here.strong_image, self.mean, self.deviation),
            self._first(here.points, here.seed),
            strong_clouds(here.points, here.seed, self.augment),
            here.image_mask,
            here.points_draw,
            here.modality_draw,
        )

    def _first(self, points: Tensor, seed: Tensor) -> Tensor:
        """The weak clouds; in CrossPoint strong ones as the others, by draws of their own."""
        if isinstance(self.augment, CrossPointAugmentSettings) and self.augment.first_cloud == "strong":
            return strong_clouds(points, ~seed, self.augment)
        return weak_clouds(points, seed)


@dataclass(frozen=True)
class LabelledBatch:
    """What supervised methods see.

    images: float32 (B, V, 3, S, S), V views of each object, normalised. points: float32 (B, N, 3). label: int64 (B,).
    num_views: of each object where they differ (further images are zero), else empty.
    """

    keys: tuple[str, ...]
    images: Tensor
    points: Tensor
    label: Tensor
    num_views: tuple[int, ...] = ()

    def to(self, device: torch.device) -> LabelledBatch:
        """The batch on a device."""
        return moved(self, device)


@dataclass(frozen=True)
class RawLabelledBatch:
    """What a loader gives to supervised methods: images uint8 (B, 1, 3, S, S); points and seed as of a RawBatch."""

    keys: tuple[str, ...]
    images: Tensor
    points: Tensor
    seed: Tensor
    label: Tensor
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    augment: LabelledAugmentSettings

    def pin_memory(self) -> RawLabelledBatch:
        """In memory that a GPU reads by itself; DataLoader(pin_memory=True) calls it."""
        return mapped(self, Tensor.pin_memory)

    def to(self, device: torch.device) -> LabelledBatch:
        """The batch on a device."""
        here = moved(self, device)
        images = normalized(here.images, self.mean, self.deviation)
        augmented = LABELLED[self.augment.labelled_points]
        return LabelledBatch(self.keys, images, augmented(here.points, here.seed), here.label)


@dataclass(frozen=True)
class PartLabelledBatch:
    """What part segmentation sees.

    points: float32 (B, N, 3). parts: int64 (B, N), the part of each point. category: int64 (B,), the object's class.
    """

    keys: tuple[str, ...]
    points: Tensor
    parts: Tensor
    category: Tensor


@dataclass(frozen=True)
class RawPartLabelledBatch:
    """What a loader gives to part segmentation: clouds as stored, in the order that `augment` asks for; seed as of a
    RawBatch."""

    keys: tuple[str, ...]
    points: Tensor
    parts: Tensor
    category: Tensor
    seed: Tensor
    augment: PartAugmentSettings

    def pin_memory(self) -> RawPartLabelledBatch:
        """In memory that a GPU reads by itself; DataLoader(pin_memory=True) calls it."""
        return mapped(self, Tensor.pin_memory)

    def to(self, device: torch.device) -> PartLabelledBatch:
        """The batch on a device."""
        here = moved(self, device)
        points = moved_clouds(here.points, here.seed, self.augment.cloud_scale, self.augment.cloud_shift)
        return PartLabelledBatch(self.keys, points, here.parts, here.category)


AnyRawBatch = RawBatch | RawLabelledBatch | RawPartLabelledBatch
AnyBatch = TypeVar("AnyBatch", bound="DataclassInstance")


def moved(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """All tensors of a batch on a device. Copies from pinned memory run while the device computes."""
    return mapped(batch, lambda value: value.to(device, non_blocking=device.type != "cpu"))


def mapped(batch: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
    """A batch with all its tensors changed."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(batch, **changed)


def normalized(pictures: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """float32 of uint8 RGB (..., 3, S, S)."""
    middle, width = pixel_constants(mean, deviation, pictures.device)
    return pictures.float().div_(255).sub_(middle).div_(width)  # `float` has made a copy


@lru_cache(maxsize=16)
def pixel_constants(
    mean: tuple[float, ...], deviation: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) each, kept on the device: copying them there at each step would wait for it."""
    middle, width = (torch.tensor(values, device=device)[:, None, None] for values in (mean, deviation))
    return middle, width
