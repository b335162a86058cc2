"""What a loader gives: Batch has no label; LabelledBatch is for evaluation and supervised methods alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What training sees: no label.

    weak_image, strong_image: (B, 3, S, S), uint8 from a loader; after `to` float32, normalised by `mean` and
    `deviation` (of RGB in [0, 1]). weak_points, strong_points: float32 (B, N, 3). image_mask: bool (B, S/p, S/p), true
    where hidden. points_draw: float32 (B, 2) and modality_draw: float32 (B,), uniform draws for the point mask and for
    labels.mode=random.
    """

    keys: tuple[str, ...]
    weak_image: Tensor
    strong_image: Tensor
    weak_points: Tensor
    strong_points: Tensor
    image_mask: Tensor
    points_draw: Tensor
    modality_draw: Tensor
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, its pictures normalised."""
        return _moved(self, device)


@dataclass(frozen=True)
class LabelledBatch:
    """What evaluation and supervised methods see: V views of each object (B, V, 3, S, S), clouds float32 (B, N, 3),
    label int64 (B,).

    images: float32 and normalised in evaluation and after `to`; uint8 from the loader of `supervised`, where V is 1.
    num_views: where objects have different numbers of views, that of each; its further images are zero. Else empty.
    """

    keys: tuple[str, ...]
    images: Tensor
    points: Tensor
    label: Tensor
    num_views: tuple[int, ...] = ()
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)

    def to(self, device: torch.device) -> LabelledBatch:
        """The batch on a device, its pictures normalised."""
        return _moved(self, device)


Either = TypeVar("Either", Batch, LabelledBatch)


def _moved(batch: Either, device: torch.device) -> Either:
    """Pictures travel as the only uint8 tensors, a quarter of the bytes, and are normalised where they arrive."""
    moved = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    for name, value in moved.items():
        if value.dtype == torch.uint8:
            mean, deviation = (
                torch.tensor(values, device=device)[:, None, None] for values in (batch.mean, batch.deviation)
            )
            moved[name] = (value.float() / 255 - mean) / deviation
    return replace(batch, **moved)
