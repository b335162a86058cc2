"""Part segmentation: each point of a cloud gets the part of its object that it is on, the object's class being known.

Cross-entropy over the parts of all classes, with smoothed targets as CrossPoint and DGCNN train, or plain ones as
PointNet++ does.
"""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from training.data.batch import PartLabelledBatch
from training.models.part_model import PartModel
from training.objectives.losses import right
from training.objectives.step import Step, weigh
from training.settings.fit_recipe import PartsRecipe


def step(student: PartModel, teacher: None, batch: PartLabelledBatch, recipe: PartsRecipe) -> Step:
    """The mean over the points of a batch; the log also has the share of points that are labelled right.

    smoothing s: the true part's target is 1 - s, that of each of the K - 1 others s / (K - 1). torch smooths over the
    true one, too, so its share is s K / (K - 1).
    """
    logits = student(batch.points, batch.category)
    kinds = logits.shape[1]
    share = recipe.parts.smoothing * kinds / max(kinds - 1, 1)
    loss = cross_entropy(logits, batch.parts, label_smoothing=min(share, 1.0))
    return weigh({"parts": loss}, {"parts": 1.0}, {"right_points": right(logits, batch.parts)})
