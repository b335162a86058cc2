"""Cross-MoST: joint pseudo-labels, cross-modal alignment and masked modelling of an image tower and a point tower.

Total: L_cls + L_align + L_fair + L_mim + L_mpm + 0.2 L_lg-align (weights by key). The classifier is shared by both
modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from training.data.batch import Batch
from training.models.clip import pixel_mask
from training.models.cross_modal import CrossModalModel
from training.models.image_backbone import ImageTokens
from training.networks.point_backbone import PointTokens
from training.networks.precision import widened
from training.objectives import losses
from training.objectives.pseudo_labels import PseudoLabels, pseudo_labels
from training.objectives.step import Step, plugin_terms, weigh
from training.settings.fit_recipe import CrossMostRecipe, TaughtRecipe


def step(student: CrossModalModel, teacher: CrossModalModel, batch: Batch, recipe: CrossMostRecipe) -> Step:
    """All six losses of one batch. The teacher sees weak views, unmasked, in eval mode."""
    branches, settings = teach(student, teacher, batch, recipe), recipe.align
    align = losses.alignment(branches.image, branches.points, settings.temperature, settings.reduction, settings.gather)
    terms = branches.terms | {"align": align} | plugin_terms(student, teacher, batch, branches)
    return weigh(terms, recipe.weights.model_dump(), branches.figures, branches.counts)


@dataclass(frozen=True)
class Branches:
    """What pseudo-labels teach both branches: every term but L_align, figures for the log, the student's features.

    image, points: unit features (B, E) that L_cls sees: of masked views with one pass, of unmasked views with two.
    image_logits, points_logits: (B, C) of these. labels: what the teacher says.
    """

    terms: dict[str, Tensor]
    figures: dict[str, Tensor]
    counts: dict[str, Tensor]
    image: Tensor
    points: Tensor
    image_logits: Tensor
    points_logits: Tensor
    labels: PseudoLabels


def teach(student: CrossModalModel, teacher: CrossModalModel, batch: Batch, recipe: TaughtRecipe) -> Branches:
    """The terms of self-training: pseudo-labels of the teacher's weak views teach the student's strong views."""
    with torch.no_grad():
        image_logits = teacher.image_logits(teacher.image_features(batch.weak_image))
        points_logits = teacher.points_logits(teacher.point_features(batch.weak_points))
    labels = pseudo_labels(image_logits, points_logits, recipe.pseudo_labels, batch.modality_draw)
    image = student.image_tokens(batch.strong_image, batch.image_mask)
    groups = student.tokenize(batch.strong_points)
    points = student.encode(*groups, batch.points_draw)
    image_feature, points_feature = normalize(image.feature, dim=1), normalize(points.feature, dim=1)
    masked = _Masked(image, points, image_feature, points_feature)
    terms = _masked_terms(student, batch, masked, recipe.lg_align.points == "own")
    if recipe.mask.passes == 2:
        if not student.image.without_tokens:  # else the first pass has hidden nothing
            image_feature = student.image_features(batch.strong_image)
        points_feature = normalize(student.encode(*groups).feature, dim=1)
    image_out, points_out = student.image_logits(image_feature), student.points_logits(points_feature)
    divisor = recipe.cls.divisor
    terms |= {
        "cls": losses.confident_cross_entropy(image_out, labels.image_label, labels.image_confident, divisor)
        + losses.confident_cross_entropy(points_out, labels.points_label, labels.points_confident, divisor),
        "fair": losses.fairness(image_out) + losses.fairness(points_out),
    }
    figures = _figures(labels, image_logits, points_logits, student)
    counts = _counts(labels, image_logits, points_logits)
    return Branches(terms, figures, counts, image_feature, points_feature, image_out, points_out, labels)


@dataclass(frozen=True)
class _Masked:
    """What the student's towers give of masked views, and their unit features (B, E)."""

    image: ImageTokens
    points: PointTokens
    image_feature: Tensor
    points_feature: Tensor


def _masked_terms(student: CrossModalModel, batch: Batch, masked: _Masked, own: bool) -> dict[str, Tensor]:
    """L_mim, L_mpm and L_lg-align of a masked pass. own: points have a projection of their own in L_lg-align."""
    image, points, tower = masked.image, masked.points, student.points
    with student.inside_towers(batch.strong_image.device):
        picture, tokens = student.image.reconstruct(image.patches), tower.reconstruct(points.tokens)
        of_patches = student.image.project_tokens(image.patches)
        of_tokens = points.tokens @ tower.own_projection if own else tower.project_tokens(points.tokens)
    mask, strong = batch.image_mask.to(masked.image_feature.dtype), batch.strong_image
    if student.image.without_tokens:
        mask, strong = mask[:, :0, :0], strong[:, :, :0, :0]
    local_image, local_points = normalize(widened(of_patches), dim=2), normalize(widened(of_tokens), dim=2)
    global_points = masked.points_feature
    if own:
        global_points = normalize(widened(points.cls) @ tower.own_projection, dim=1)
    return {
        "mim": losses.masked_image(widened(picture), strong, pixel_mask(mask, student.image.patch)),
        "mpm": losses.masked_points(widened(tokens), points.original, points.mask),
        "lg_align": losses.local_global(local_image, masked.image_feature, mask.flatten(1))
        + losses.local_global(local_points, global_points, points.mask),
    }


@torch.no_grad()
def _figures(
    labels: PseudoLabels, image_logits: Tensor, points_logits: Tensor, student: CrossModalModel
) -> dict[str, Tensor]:
    """Shares of confident samples, of labels from the image, agreement of the teacher's two branches, entropy, scale.

    entropy: mean over the batch of KL(teacher's prediction || uniform), natural log; 0 is undecided, log C is sure.
    """
    confident = labels.image_confident
    chosen = losses.counted(confident)
    return {
        "confident_image": confident.mean(),
        "confident_points": labels.points_confident.mean(),
        "from_image": (labels.from_image.to(confident.dtype) * confident).sum() / chosen,
        "agreement": (image_logits.argmax(1) == points_logits.argmax(1)).to(confident.dtype).mean(),
        "entropy_image": losses.divergence_from_uniform(image_logits),
        "entropy_points": losses.divergence_from_uniform(points_logits),
        "logit_scale": student.logit_scale.exp().detach(),
    }


@torch.no_grad()
def _counts(labels: PseudoLabels, image_logits: Tensor, points_logits: Tensor) -> dict[str, Tensor]:
    """Histograms (C,) of the teacher's hard predictions on weak views, and of the pseudo-labels that are taught, by the
    modality that gave them. (torch.bincount would wait for a GPU.)
    """
    classes = torch.arange(image_logits.shape[1], device=image_logits.device)
    from_image, from_points = labels.by_modality()
    return {
        "image": (image_logits.argmax(dim=1, keepdim=True) == classes).sum(dim=0),
        "points": (points_logits.argmax(dim=1, keepdim=True) == classes).sum(dim=0),
        "labels_image": ((labels.image_label[:, None] == classes) & from_image[:, None]).sum(dim=0),
        "labels_points": ((labels.points_label[:, None] == classes) & from_points[:, None]).sum(dim=0),
    }
