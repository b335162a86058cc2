"""PointNet without spatial transforms: every point through the same layers, then the largest value of each channel.

Source: the form that DGCNN's authors released and CrossPoint means (its T-nets are left out).
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from training.networks.point_backbone import PointBackbone, new_projection
from training.settings.point_networks import PointNetSettings


class PointNet(PointBackbone):
    """Convolutions `conv1`... and batch norms `bn1`... of every point; the feature (B, emb_dims) is their maximum."""

    def __init__(self, settings: PointNetSettings, embed_dim: int) -> None:
        super().__init__()
        sizes = (3, *settings.widths, settings.emb_dims)
        for number, (before, after) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"conv{number}", nn.Conv1d(before, after, 1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm1d(after))
        self.layers = len(sizes) - 1
        self.projection = new_projection(settings.emb_dims, embed_dim)

    def represent(self, points: Tensor) -> Tensor:
        """(B, emb_dims) of clouds (B, N, 3)."""
        x = points.transpose(1, 2)
        for number in range(1, self.layers + 1):
            conv, norm = self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}")
            x = relu(norm(conv(x)))
        return x.max(dim=2).values

    def classification_head(self, classes: int) -> nn.Module:
        """Two linear layers."""
        return nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(self.projection.shape[0], 512, bias=False),
                bn6=nn.BatchNorm1d(512),
                relu=nn.ReLU(),
                dp1=nn.Dropout(),
                linear2=nn.Linear(512, classes),
            )
        )
