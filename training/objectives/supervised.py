"""Training with labels: a point network as its authors trained it, and the oracle of a report.

The oracle teaches both towers by the true labels of the target domain, through the classifier from text. It is an upper
bound, not a method: it answers whether there is anything to gain, for where true labels do not help, no self-training
will. Its recipe is that of the method which it bounds, without the keys that it does not read (training/oracle.py).
With `supervised.head=own` and `supervised.towers=points` it is the classifier of the recipes `*_cls`.
"""

from __future__ import annotations

from torch import Tensor

from training.data.batch import LabelledBatch
from training.models.cross_modal import CrossModalModel
from training.objectives.losses import right, smoothed_cross_entropy
from training.objectives.step import Step, weigh
from training.settings.fit_recipe import SupervisedRecipe


def freeze(student: CrossModalModel, recipe: SupervisedRecipe) -> None:
    """Freezes what no loss reaches; `student.train()` leaves a frozen tower in eval mode."""
    image, points = "image" in recipe.towers, "points" in recipe.towers
    by_text = points and recipe.supervised.head == "text"
    shared = image or (by_text and student.points_classifier is None)
    parts = (
        *((student.image, image), (student.points, points), (student.points.projection, by_text)),
        *((student.classifier, shared), (student.logit_scale, shared)),
        *((student.points_classifier, by_text), (student.points_logit_scale, by_text)),
    )
    for part, taught in parts:
        if part is not None and not taught:
            part.requires_grad_(False)


def step(student: CrossModalModel, teacher: None, batch: LabelledBatch, recipe: SupervisedRecipe) -> Step:
    """Cross-entropy of the taught branches on one batch of single views, each divided by B."""
    settings = recipe.supervised
    logits: dict[str, Tensor] = {}
    if "image" in recipe.towers:
        logits["image"] = student.image_logits(student.image_features(batch.images[:, 0]))
    if "points" in recipe.towers:
        logits["points"] = student.points_logits(student.point_features(batch.points))
    form = settings.smoothing, settings.smoothing_form
    terms = {name: smoothed_cross_entropy(each, batch.label, *form) for name, each in logits.items()}
    if "points" in logits and (term := student.points.regulariser()) is not None:
        terms["regulariser"] = term
    shares = {f"right_{name}": right(each, batch.label) for name, each in logits.items()}
    return weigh(terms, dict.fromkeys(terms, 1.0), shares | {"logit_scale": student.logit_scale.exp().detach()})
