"""CLIP2Point: a depth tower, a copy of CLIP's image tower, taught without labels by pictures of the same objects.

Huang et al. 2023: L_intra between two depth maps of a view at random distances, L_cross between the mean of their
features and the frozen image tower's of the RGB view, both NT-Xent (eq. 5-6), balanced by a learned sigma (eq. 7).
Features are averaged as they are, before NT-Xent normalises them (released code). Negatives are those of all processes
(released code: of each GPU, so that its batch decides).
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.depth_pairs import PairBatch
from training.models.cross_modal import CrossModalModel
from training.objectives import losses
from training.objectives.step import Step
from training.settings.clip2point_recipe import Clip2PointRecipe, Clip2PointSettings

NEWTON_STEPS = 12


def freeze(student: CrossModalModel, recipe: Clip2PointRecipe) -> None:
    """Freezes all but the depth tower and sigma; `student.train()` leaves frozen towers in eval mode."""
    for each in (student.image, student.points):
        each.requires_grad_(False)
    student.classifier.requires_grad_(False)


def step(student: CrossModalModel, teacher: None, batch: PairBatch, recipe: Clip2PointRecipe) -> Step:
    """The losses of one batch. They use no classes, so the classifier stays as it was made from text."""
    depth_BVE = student.view_features("depth", batch.depth)
    with torch.no_grad():
        image = student.view_features("image", batch.image[:, None])[:, 0]
    assert student.balance is not None
    return total_of(depth_BVE, image, student.balance, recipe.clip2point)


def total_of(depth_BVE: Tensor, image_BE: Tensor, sigma: Tensor, settings: Clip2PointSettings) -> Step:
    """Eq. 7: L_intra / sigma^2 + L_cross + log(sigma + 1). Without L_intra it is L_cross alone.

    depth_BVE: features of one or two maps of each object, not normalised. figures: sigma, the weight 1 / sigma^2, and
    the sigma at which the loss would be lowest for this L_intra.
    """
    cross = losses.nt_xent(depth_BVE.mean(dim=1), image_BE, settings.temperature)
    if not settings.intra:
        weighted = {"cross": settings.cross * cross}
        return Step(weighted["cross"], {"cross": cross}, weighted)
    intra = losses.nt_xent(depth_BVE[:, 0], depth_BVE[:, 1], settings.temperature)
    balance = torch.log(sigma + 1)
    weighted = {"intra": settings.intra * intra / sigma**2, "cross": settings.cross * cross, "balance": balance}
    figures = {
        "sigma": sigma.detach(),
        "intra_weight": settings.intra / sigma.detach() ** 2,
        "best_sigma": best_sigma(settings.intra * intra.detach()),
    }
    return Step(
        torch.stack(list(weighted.values())).sum(),
        {"intra": intra, "cross": cross, "balance": balance},
        weighted,
        figures,
    )


def best_sigma(intra: Tensor) -> Tensor:
    """The sigma that makes intra / sigma^2 + log(sigma + 1) lowest: 2 intra (sigma + 1) = sigma^3, by Newton's steps.

    From above the root, where the cubic is convex, they go down to it.
    """
    sigma = 1 + 2 * intra
    for _ in range(NEWTON_STEPS):
        sigma = sigma - (sigma**3 - 2 * intra * (sigma + 1)) / (3 * sigma**2 - 2 * intra)
    return sigma
