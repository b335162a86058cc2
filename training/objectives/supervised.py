"""The oracle of a report: both towers taught by the true labels of the target domain. An upper bound, not a method.

It answers whether there is anything to gain: where true labels do not help, no self-training will. Its recipe is that
of the method which it bounds, without the keys that it does not read (training/oracle.py).
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from training.data.batch import LabelledBatch
from training.models.cross_modal import CrossModalModel
from training.objectives.step import Step, weigh
from training.settings.fit_recipe import SupervisedRecipe

WEIGHTS = {"image": 1.0, "points": 1.0}


def step(student: CrossModalModel, teacher: None, batch: LabelledBatch, recipe: SupervisedRecipe) -> Step:
    """Cross-entropy of both branches on one batch of single views, each divided by B."""
    logits = {
        "image": student.image_logits(student.image_features(batch.images[:, 0])),
        "points": student.points_logits(student.point_features(batch.points)),
    }
    terms = {name: cross_entropy(each, batch.label) for name, each in logits.items()}
    with torch.no_grad():
        right = {f"right_{name}": (each.argmax(dim=1) == batch.label).float().mean() for name, each in logits.items()}
    return weigh(terms, WEIGHTS, right | {"logit_scale": student.logit_scale.exp().detach()})
