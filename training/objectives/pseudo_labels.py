"""Pseudo-labels: labels and confident sets from the teacher's logits of both modalities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.settings.objective import LabelSettings


@dataclass(frozen=True)
class PseudoLabels:
    """Labels int64 (B,) and confident sets float (B,) of the two branches; from_image: bool (B,), which gave the label.

    own: each branch has a label of its own modality; otherwise both have the same label.
    """

    image_label: Tensor
    points_label: Tensor
    image_confident: Tensor
    points_confident: Tensor
    from_image: Tensor
    own: bool = False

    def by_modality(self) -> tuple[Tensor, Tensor]:
        """bool (B,) each: whether a label from the image, and one from the points, is taught."""
        image, points = self.image_confident > 0, self.points_confident > 0
        return (image, points) if self.own else (image & self.from_image, points & ~self.from_image)


@torch.no_grad()
def pseudo_labels(
    image_logits_BC: Tensor, points_logits_BC: Tensor, settings: LabelSettings, draw_B: Tensor | None = None
) -> PseudoLabels:
    """Labels from the teacher's logits on weak views (scaled by the teacher's own logit_scale).

    joint: the modality with the larger confidence gives the label to both branches; an exact tie goes to the image
    (released code adds the two class numbers). random: `draw_B` (B,) uniform below 1/2 picks the image.
    """
    image_confidence, image_label = image_logits_BC.softmax(dim=1).max(dim=1)
    points_confidence, points_label = points_logits_BC.softmax(dim=1).max(dim=1)
    weighted = points_confidence * settings.points_weight
    if settings.mode in ("none", "own"):
        return PseudoLabels(
            image_label,
            points_label,
            (image_confidence > settings.of_branch(settings.image_threshold)).to(image_logits_BC.dtype),
            (weighted > settings.of_branch(settings.points_threshold)).to(image_logits_BC.dtype),
            torch.ones_like(image_label, dtype=torch.bool),
            own=True,
        )
    if settings.mode in ("joint", "agreement"):
        from_image = image_confidence >= weighted
    elif settings.mode == "random":
        if draw_B is None:
            raise ValueError("labels.mode=random needs one uniform draw a sample")
        from_image = draw_B < 0.5
    else:
        from_image = torch.full_like(image_label, settings.mode == "image", dtype=torch.bool)
    label = torch.where(from_image, image_label, points_label)
    confidence = torch.where(from_image, image_confidence, weighted)
    if settings.mode == "agreement":
        confidence = torch.minimum(image_confidence, weighted) * (image_label == points_label)
    confident = (confidence > settings.threshold).to(image_logits_BC.dtype)
    return PseudoLabels(label, label, confident, confident, from_image)
