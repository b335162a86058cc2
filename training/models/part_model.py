"""The model of part segmentation: a point tower, and a head that labels each point, the class of the object known."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from training.models.cross_modal import CrossModalModel
from training.networks.part_networks import PART_TOWERS
from training.networks.precision import inside_towers, widened
from training.settings.model import BackboneSettings, Precision


class PartModel(nn.Module):
    """Trunk (`points`) and head. classes, parts: how many there are.

    What a run asks of every model, and a model without pictures and text has nothing to do for, stands at its end.
    """

    text = None

    def __init__(self, settings: BackboneSettings, classes: int, parts: int, dropout: float) -> None:
        super().__init__()
        self.points = PART_TOWERS[settings.backbone](settings, 1)
        self.points.register_parameter("projection", None)  # points are labelled, not projected to CLIP's space
        self.head = self.points.part_head(classes, parts, dropout)
        self.classes, self.name = classes, settings.backbone
        self.precision: Precision = "fp32"  # a run sets it
        self.parts = 1  # in which a batch is taken: batch norms need it whole

    def forward(self, points: Tensor, category: Tensor) -> Tensor:
        """Logits (B, parts, N) of clouds (B, N, 3) of objects of classes (B,)."""
        told = one_hot(category, self.classes).to(points.dtype)
        with inside_towers(self.precision, points.device):
            return widened(self.head(self.points.levels(points), told))

    def compile_towers(self) -> None:
        """Compiles the head and the trunk in place; the names of weights do not change."""
        self.points.levels = torch.compile(self.points.levels)  # type: ignore[method-assign]  # it hides the method
        self.head.compile()

    def checkpoint_activations(self) -> None:
        """Not a key of part segmentation."""

    def refresh_classifier(self) -> None:
        """There is no classifier."""

    def clamp_scale(self) -> None:
        """There is no scale."""


TrainedModel = CrossModalModel | PartModel
