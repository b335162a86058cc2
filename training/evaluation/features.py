"""Unit features of whole objects by one model: the basis of evaluation, embeddings and predictions.

Shape letters: B batch, N objects of a split, V views, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manifests.errors import Refused, Stopped
from training import distributed
from training.data.whole_split import WholeBatch
from training.models.cross_modal import CrossModalModel

PICTURES = 64  # at once in a tower: the 384 of 32 objects with 12 views would need gigabytes at ViT-B/16


@dataclass(frozen=True)
class Features:
    """views: unit features (B, V, E), zero where an object has no such view; num_views: float (B, 1), of each object.

    points: what the model's `point_features` gives, unit features (B, E), or (B, 0) of a tower that is not asked. All
    on the model's device. V is 0 for a batch without pictures. largest: the features of a model with an `image_head`,
    none of them negative nor of length 1. adapted: (B, E), what an adapter makes of all views, in the place of their
    mean. weights: float (V,), of the views in their mean; None where all count alike.
    """

    views: Tensor
    num_views: Tensor
    points: Tensor
    largest: bool = False
    adapted: Tensor | None = None
    weights: Tensor | None = None

    def mean(self) -> Tensor:
        """(B, E): the mean of the unit features of an object's views, of length 1 at most.

        Its products with texts are the mean cosines of CLIP2Point's eq. 11, and with weights PointCLIP's logits.
        """
        if self.weights is None:
            return self.views.sum(dim=1) / self.num_views
        return torch.einsum("v,bve->be", self.weights, self.views) / self.weights.sum()

    def whole(self) -> Tensor:
        """(B, E) of an object's views: that mean, an adapter's, or by an `image_head` the largest of each number."""
        if self.adapted is not None:
            return self.adapted
        return self.views.amax(dim=1) if self.largest and self.views.shape[1] else self.mean()

    def image(self) -> Tensor:
        """(B, E): what a classifier reads, of length 1 where it is a mean."""
        averaged = self.adapted is None and not self.largest
        return normalize(self.mean(), dim=1) if averaged else self.whole()


def require_finite(keys: Sequence[str], *values: Tensor) -> None:
    """Raises Stopped, naming the object, where a row of some values (B, ...) is not finite.

    Finite weights can still overflow, and NaN would count as an answer.
    """
    for rows in values:
        sound = torch.isfinite(rows.flatten(1)).all(dim=1)
        if not sound.all():
            key = keys[int(sound.int().argmin())]
            raise Stopped(
                f"{key}: what the model makes of it is not finite: its weights overflow; give another checkpoint"
            )


def features_of(
    model: CrossModalModel,
    batch: WholeBatch,
    device: torch.device,
    views_weight: Sequence[float] = (),
    clouds: bool = True,
) -> Features:
    """The features of a batch; pictures pass the tower PICTURES at a time.

    views_weight: of the views in their mean; empty for the same of all. clouds: whether the point tower is asked.
    Raises Refused unless each view has a weight.
    """
    views = by_view(batch, device, model.image_features, model.image_width)
    points = model.point_features(batch.points.to(device)) if clouds else views.new_zeros(len(batch.keys), 0)
    if views_weight and model.adapter is not None:
        raise Refused("views_weight is of a mean over views, which an adapter has not")
    if views_weight and set(batch.num_views) != {len(views_weight)}:
        known = "different numbers of" if len(set(batch.num_views)) > 1 else f"{batch.num_views[0]}"
        raise Refused(f"views_weight has {len(views_weight)} numbers, and objects have {known} views")
    adapted = None if model.adapter is None else model.adapted(views, batch.num_views)
    weights = views.new_tensor(views_weight) if views_weight else None
    return Features(views, view_counts(batch, views), points, model.image_head is not None, adapted, weights)


def by_view(batch: WholeBatch, device: torch.device, encode: Callable[[Tensor], Tensor], width: int = 0) -> Tensor:
    """(B, V, E) of `encode`, which takes normalised pictures, PICTURES at a time; zero where there is no such view.

    width: E where a batch has no view at all.
    """
    there = batch.there()
    numbers = there.flatten().nonzero()[:, 0]
    parts = [encode(batch.normalized(part, device)) for part in numbers.split(PICTURES) if len(part)]
    found = torch.cat(parts) if parts else torch.zeros(0, width, device=device)
    views = found.new_zeros(there.numel(), found.shape[1])
    views[numbers.to(device)] = found
    return views.unflatten(0, there.shape)


def view_counts(batch: WholeBatch, views: Tensor) -> Tensor:
    """(B, 1), of the type of views: the number of each object's views."""
    return torch.tensor(batch.num_views, dtype=views.dtype, device=views.device)[:, None]


def gathered(parts: Sequence[Tensor], *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, *shape): the rows of all batches of all processes, in order. Smaller rows are filled up with zeros.

    parts: of this process, a tensor (B, ...) for each batch.
    """
    rows = [torch.zeros(0, *shape, dtype=dtype)]
    for part in parts:
        padded = torch.zeros(len(part), *shape, dtype=dtype)
        padded[tuple(slice(size) for size in part.shape)] = part
        rows.append(padded)
    return distributed.gather_rows(torch.cat(rows))


def gathered_keys(keys: list[str]) -> tuple[str, ...]:
    """The keys of all processes' objects, in order."""
    return tuple(key for part in distributed.gather_values(keys) for key in part)
