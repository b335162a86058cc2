"""Cross-MoST: joint pseudo-labels, cross-modal alignment and masked modelling of an image tower and a point tower.

Total: L_cls + L_align + L_fair + L_mim + L_mpm + 0.2 L_lg-align (weights by key). Features are unit vectors and
logits = exp(logit_scale) feature . classifier (the paper prints a bare dot product, whose softmax cannot exceed 0.16 at
40 classes; the scale is the released code's). The classifier is shared by both modalities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from training import losses
from training.data import Batch
from training.teacher import LabelSettings, PseudoLabels, pseudo_labels
from training.towers.clip import ImageTower, pixel_mask
from training.towers.points import PointTower

Weight = Annotated[float, Field(ge=0)]


class Weights(BaseModel):
    """Weights of the six losses (released values; the paper gives none)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cls: Weight = 1.0
    align: Weight = 1.0
    fair: Weight = 1.0
    mim: Weight = 1.0
    mpm: Weight = 1.0
    lg_align: Weight = 0.2


class AlignSettings(BaseModel):
    """Eq. 3. temperature: not in the paper; CLIP's initial 0.07. gather: negatives of all processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Annotated[float, Field(gt=0)] = 0.07
    reduction: Literal["mean", "sum"] = "mean"
    gather: bool = True


class MaskSettings(BaseModel):
    """Masking. passes: 1 (paper: the masked strong pass carries everything) or 2 (an unmasked strong pass for L_cls,
    L_align and L_fair, a masked one for the rest). image_cell: pixels of a block; image_ratio: share of blocks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    passes: Literal[1, 2] = 1
    image_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.3
    image_cell: Annotated[int, Field(ge=1)] = 32


class LocalGlobalSettings(BaseModel):
    """L_lg-align of points: `tower` (paper: f^P, as the readout of a one-token sequence) or `own` (released: a matrix
    of its own, against the CLS token)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    points: Literal["tower", "own"] = "tower"


class CrossMostSettings(BaseModel):
    """Everything about the objective; these are tables of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: LabelSettings = LabelSettings()
    weights: Weights = Weights()
    align: AlignSettings = AlignSettings()
    mask: MaskSettings = MaskSettings()
    lg_align: LocalGlobalSettings = LocalGlobalSettings()


@dataclass(frozen=True)
class Step:
    """What one step gives: the weighted total; each unweighted loss by name; and figures to log (no gradient)."""

    total: Tensor
    terms: dict[str, Tensor]
    figures: dict[str, Tensor]


class CrossMoST(nn.Module):
    """Both towers, the shared classifier (E, C) and the logarithm of the logit scale."""

    def __init__(self, image: ImageTower, points: PointTower, classifier: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.image, self.points = image, points
        self.classifier = nn.Parameter(classifier.detach().clone())
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale), dtype=classifier.dtype))

    def logits(self, feature: Tensor) -> Tensor:
        """(B, C) of unit features (B, E)."""
        return self.logit_scale.exp() * feature @ self.classifier

    def image_features(self, pictures: Tensor) -> Tensor:
        """Unit features (B, E) of normalised pictures (B, 3, S, S)."""
        return normalize(self.image(pictures).feature, dim=1)

    def point_features(self, points: Tensor) -> Tensor:
        """Unit features (B, E) of clouds (B, N, 3)."""
        return normalize(self.points(points).feature, dim=1)


def step(student: CrossMoST, teacher: CrossMoST, batch: Batch, settings: CrossMostSettings) -> Step:
    """All six losses of one batch. The teacher sees weak views, unmasked, in eval mode."""
    with torch.no_grad():
        image_logits = teacher.logits(teacher.image_features(batch.weak_image))
        points_logits = teacher.logits(teacher.point_features(batch.weak_points))
    labels = pseudo_labels(image_logits, points_logits, settings.labels, batch.modality_draw)
    image = student.image(batch.strong_image, batch.image_mask)
    points = student.points(batch.strong_points, batch.points_draw)
    image_feature, points_feature = normalize(image.feature, dim=1), normalize(points.feature, dim=1)
    terms = _masked_terms(student, batch, settings, image, points, image_feature, points_feature)
    if settings.mask.passes == 2:
        image_feature = student.image_features(batch.strong_image)
        points_feature = student.point_features(batch.strong_points)
    image_out, points_out = student.logits(image_feature), student.logits(points_feature)
    terms |= {
        "cls": losses.confident_cross_entropy(image_out, labels.image_label, labels.image_confident)
        + losses.confident_cross_entropy(points_out, labels.points_label, labels.points_confident),
        "fair": losses.fairness(image_out) + losses.fairness(points_out),
        "align": losses.alignment(
            image_feature,
            points_feature,
            settings.align.temperature,
            settings.align.reduction,
            settings.align.gather,
        ),
    }
    weights = settings.weights.model_dump()
    ordered = {name: terms[name] for name in weights}
    total = torch.stack([weights[name] * value for name, value in ordered.items()]).sum()
    return Step(total, ordered, _figures(labels, image_logits, points_logits, student))


def _masked_terms(student, batch, settings, image, points, image_feature, points_feature) -> dict[str, Tensor]:
    """L_mim, L_mpm and L_lg-align of a masked pass."""
    mask = batch.image_mask.to(image.patches.dtype)
    local_image = normalize(student.image.project_tokens(image.patches), dim=2)
    if settings.lg_align.points == "own":
        local_points = normalize(points.tokens @ student.points.own_projection, dim=2)
        global_points = normalize(points.cls @ student.points.own_projection, dim=1)
    else:
        local_points = normalize(student.points.project_tokens(points.tokens), dim=2)
        global_points = points_feature
    return {
        "mim": losses.masked_image(
            student.image.reconstruct(image.patches), batch.strong_image, pixel_mask(mask, student.image.patch)
        ),
        "mpm": losses.masked_points(student.points.reconstruct(points.tokens), points.original, points.mask),
        "lg_align": losses.local_global(local_image, image_feature, mask.flatten(1))
        + losses.local_global(local_points, global_points, points.mask),
    }


@torch.no_grad()
def _figures(
    labels: PseudoLabels, image_logits: Tensor, points_logits: Tensor, student: CrossMoST
) -> dict[str, Tensor]:
    """Shares of confident samples, of labels from the image, agreement of the teacher's two branches, entropy, scale.

    entropy: mean over the batch of KL(teacher's prediction || uniform), natural log; 0 is undecided, log C is sure.
    """
    confident = labels.image_confident
    chosen = confident.sum().clamp(min=1)
    return {
        "confident_image": confident.mean(),
        "confident_points": labels.points_confident.mean(),
        "from_image": (labels.from_image.to(confident.dtype) * confident).sum() / chosen,
        "agreement": (image_logits.argmax(1) == points_logits.argmax(1)).to(confident.dtype).mean(),
        "entropy_image": losses.divergence_from_uniform(image_logits),
        "entropy_points": losses.divergence_from_uniform(points_logits),
        "logit_scale": student.logit_scale.exp().detach(),
    }


def parameter_groups(model: CrossMoST, weight_decay: float, layer_decay: float, lr: float) -> list[dict]:
    """AdamW groups: decay on matrices only, none on 1-D and 0-D parameters, tokens and positions; `lr_scale` by layer.

    Layer decay scales the image tower alone: embeddings lowest, then block by block; all else learns at lr. (Released
    code also decays logit_scale, tokens and positions.)
    """
    blocks = len(model.image.visual.transformer.resblocks)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim >= 2 and not any(word in name for word in ("token", "cls_pos", "positional_embedding"))
        decay = weight_decay if plain else 0.0
        scale = layer_decay ** (blocks + 1 - _layer(name, blocks))
        group = groups.setdefault(
            (decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale, "lr": lr * scale}
        )
        group["params"].append(parameter)
    return list(groups.values())


def _layer(name: str, blocks: int) -> int:
    """0 for the image tower's embeddings, 1.. for its blocks, blocks + 1 for everything else."""
    if name.startswith("image.visual.transformer.resblocks."):
        return int(name.split(".")[4]) + 1
    embeddings = ("image.visual.class_embedding", "image.visual.positional_embedding", "image.visual.conv1")
    if name.startswith((*embeddings, "image.visual.ln_pre", "image.mask_token")):
        return 0
    return blocks + 1
