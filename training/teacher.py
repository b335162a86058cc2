"""The teacher: an exponential moving average of the student, and the pseudo-labels that it gives."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class EMASettings(BaseModel):
    """Momentum of the teacher: from `start` to `end`, linear over `steps` updates (released values)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    start: Annotated[float, Field(ge=0, le=1)] = 0.99
    end: Annotated[float, Field(ge=0, le=1)] = 0.9998
    steps: Annotated[int, Field(ge=1)] = 400


class LabelSettings(BaseModel):
    """Pseudo-labels. mode: `joint` (paper: the surer modality), `random`, `image`, `points` or `none` (Table 4), `own`.

    none: no combination, each branch has its own modality's label. (The figures of Table 4's "No Comb." are Table 3's
    with L_align and without joint labels: labels there are. Released code: combined_pseudolabels=False.)
    own: the same by the name that suits two separate self-trainings.
    agreement: only where both modalities name the same class and the less sure one passes T (released, unused: T 0.2).

    threshold: T, strict. image_threshold, points_threshold: of each branch in `none` and `own`, where they are not T
    (released baselines: 0.80 and 0.82 for ModelNet40). points_weight: factor on the points' confidence (paper: 1;
    released code: 0.9 for ModelNet).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mode: Literal["joint", "random", "image", "points", "none", "own", "agreement"] = "joint"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.84
    image_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    points_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    points_weight: Annotated[float, Field(gt=0)] = 1.0

    def of_branch(self, own: float | None) -> float:
        """The threshold of a branch that is taught by its own labels."""
        return self.threshold if own is None else own


@dataclass(frozen=True)
class PseudoLabels:
    """Labels int64 (B,) and confident sets float (B,) of the two branches; from_image: bool (B,), whose label it is.

    own: each branch has a label of its own modality; else both have the same.
    """

    image_label: Tensor
    points_label: Tensor
    image_confident: Tensor
    points_confident: Tensor
    from_image: Tensor
    own: bool = False

    def by_modality(self) -> tuple[Tensor, Tensor]:
        """bool (B,) each: whether a label of the image, and one of the points, is taught."""
        image, points = self.image_confident > 0, self.points_confident > 0
        return (image, points) if self.own else (image & self.from_image, points & ~self.from_image)


def momentum(step: int, settings: EMASettings) -> float:
    """d(step) = start + (end - start) min(1, step / steps); step counts updates from 0."""
    return settings.start + (settings.end - settings.start) * min(1.0, step / settings.steps)


class Teacher:
    """A copy of the student in eval mode that follows it; `model` is the copy."""

    def __init__(self, student: nn.Module, settings: EMASettings) -> None:
        self.model = copy.deepcopy(student).eval().requires_grad_(False)
        self._settings = settings

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> float:
        """teacher <- d teacher + (1 - d) student over parameters and floating buffers; others are copied. Gives d."""
        d = momentum(step, self._settings)
        pairs = list(zip(_tensors(self.model), _tensors(student), strict=True))
        floating = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floating], [theirs for _, theirs in floating], 1 - d)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)
        return d


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


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
