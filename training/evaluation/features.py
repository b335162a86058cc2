"""Unit features of whole objects, as one model sees them: what evaluation, embeddings and predictions are made of.

Shape letters: B batch, V views, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manifests.errors import Stopped
from training.data.whole_split import WholeBatch
from training.models.cross_modal import CrossModalModel

PICTURES = 64  # at once in a tower: the 384 of 32 objects with 12 views would need gigabytes at ViT-B/16


@dataclass(frozen=True)
class Features:
    """views: unit features (B, V, E), zero where an object has no such view; num_views: float (B, 1), of each object.

    points: unit features (B, E). All on the model's device.
    """

    views: Tensor
    num_views: Tensor
    points: Tensor

    def mean(self) -> Tensor:
        """(B, E): the mean of the unit features of an object's views; at most of length 1."""
        return self.views.sum(dim=1) / self.num_views

    def image(self) -> Tensor:
        """(B, E): the same, of length 1."""
        return normalize(self.mean(), dim=1)


def require_finite(keys: Sequence[str], *values: Tensor) -> None:
    """Raises Stopped, naming the object, where a row of some values (B, ...) is not finite: weights that are finite can
    still overflow, and NaN would be counted as an answer."""
    for rows in values:
        sound = torch.isfinite(rows.flatten(1)).all(dim=1)
        if not sound.all():
            key = keys[int(sound.int().argmin())]
            raise Stopped(
                f"{key}: what the model makes of it is not finite: its weights overflow; give another checkpoint"
            )


def features_of(model: CrossModalModel, batch: WholeBatch, device: torch.device) -> Features:
    """The features of a batch; pictures pass the tower PICTURES at a time."""
    there = batch.there()
    numbers = there.flatten().nonzero()[:, 0]
    parts = [model.image_features(batch.normalized(part, device)) for part in numbers.split(PICTURES)]
    found = torch.cat(parts)
    views = found.new_zeros(there.numel(), found.shape[1])
    views[numbers.to(device)] = found
    counts = torch.tensor(batch.num_views, dtype=found.dtype, device=device)[:, None]
    points = model.point_features(batch.points.to(device))
    return Features(views.unflatten(0, there.shape), counts, points)
