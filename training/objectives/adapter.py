"""Learning with labels over frozen picture towers: adapters of CLIP2Point and PointCLIP (models/gated_adapter.py).

Few labels (`data.shots`) or all. The classifier is text's, frozen, too; cross-entropy of cosines over a temperature.
The towers see pictures as they are, so their features of an object are computed once and kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.batch import LabelledBatch
from training.models.cross_modal import CrossModalModel
from training.objectives.losses import right, smoothed_cross_entropy
from training.objectives.step import Step, weigh
from training.settings.adapter_recipe import AdapterRecipe

MOST_KEPT = 2**29  # numbers of features, 2 GB, which is 52,000 objects of 10 views and two towers of CLIP


def freeze(student: CrossModalModel, recipe: AdapterRecipe) -> None:
    """Freezes all but the adapter; `student.train()` leaves frozen towers in eval mode."""
    student.requires_grad_(False)
    assert student.adapter is not None
    student.adapter.requires_grad_(True)


def step(student: CrossModalModel, teacher: None, batch: LabelledBatch, recipe: AdapterRecipe) -> Step:
    """Cross-entropy of a batch of objects with all their views."""
    assert student.adapter is not None
    logits = student.image_logits(student.adapter(tower_features(student, batch.keys, batch.images)))
    settings = recipe.adapter
    loss = smoothed_cross_entropy(logits, batch.label, settings.smoothing, settings.smoothing_form)
    figures = {"right_image": right(logits, batch.label)}
    if student.adapter.gate is not None:
        figures["gate"] = student.adapter.gate.detach().mean()
    return weigh({"image": loss}, {"image": 1.0}, figures)


@torch.no_grad()
def tower_features(student: CrossModalModel, keys: tuple[str, ...], images: Tensor) -> Tensor:
    """(B, V, P * E) of pictures (B, V, 3, S, S), kept by key.

    Each object passes the towers alone, so that its numbers do not depend on a batch: a resumed run has the same.
    """
    assert student.adapter is not None
    kept, found = student.adapter.kept, []
    for key, views in zip(keys, images, strict=True):
        feature = kept[key] if key in kept else student.image_features(views)
        if (len(kept) + 1) * feature.numel() <= MOST_KEPT:
            kept[key] = feature
        found.append(feature)
    return torch.stack(found)
