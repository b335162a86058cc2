"""PointMLP (Ma et al. 2022) and its small form Elite: residual layers over groups of nearest points.

Names of weights are the released program's. Shape letters: B clouds, N points, S centres, K neighbours of a centre,
C channels, E embedding.
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from training.networks.neighbours import gathered, nearest_to_centres
from training.networks.pointnet2 import OverGroups, PointSetBackbone, channels_first
from training.settings.point_set_networks import PointMlpSettings


class PointLayer(nn.Module):
    """One layer, with its norm and a ReLU."""

    def __init__(self, incoming: int, width: int) -> None:
        super().__init__()
        self.net = _layer(incoming, width)

    def forward(self, values: Tensor) -> Tensor:
        """(B, width, L) of (B, C, L)."""
        return relu(self.net(values), inplace=True)


class Residual(nn.Module):
    """Two layers, whose sum with the input goes through a ReLU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.net1, self.net2 = _layer(width, inner), _layer(inner, width)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, L) of the same shape."""
        return relu(self.net2(relu(self.net1(values), inplace=True)) + values, inplace=True)


def _layer(incoming: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(incoming, width, 1, bias=False), nn.BatchNorm1d(width))


class GeometricAffine(nn.Module):
    """The differences of a group to its centre, divided by their deviation, scaled and shifted a channel.

    The deviation is one number a cloud, over all groups, neighbours and channels: a far point changes every group. That
    is the definition, in the paper and in the released program.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.affine_alpha = nn.Parameter(torch.ones(1, 1, 1, width))
        self.affine_beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, rows: Tensor, centres: Tensor) -> Tensor:
        """(B, S, K, C) of neighbours (B, S, K, C) and centres (B, S, C)."""
        differences = rows - centres[:, :, None]
        deviation = differences.flatten(1).std(dim=1)[:, None, None, None]
        return torch.addcmul(self.affine_beta, differences, self.affine_alpha / (deviation + 1e-5))


class BeforeMaximum(OverGroups):
    """Layers over a group, and the largest of each channel."""

    def __init__(self, incoming: int, width: int, blocks: int, inner: int) -> None:
        super().__init__()
        self.transfer = PointLayer(2 * incoming, width)
        self.operation = nn.Sequential(*(Residual(width, inner) for _ in range(blocks)))

    def forward(self, rows: Tensor, centres: Tensor) -> Tensor:
        """(B, width, S) of cat(rows (B, S, K, C), centres (B, S, C)), whose second part is dense once a centre."""
        convolution, norm = self.transfer.net
        of_rows, of_centres = convolution.weight.flatten(1).chunk(2, dim=1)  # type: ignore[operator]  # it is a tensor
        entered = linear(rows, of_rows) + linear(centres, of_centres)[:, :, None]
        values = self.operation(relu(norm(channels_first(entered).flatten(2)), inplace=True))
        return values.unflatten(2, rows.shape[1:3]).max(dim=3).values


class AfterMaximum(OverGroups):
    """Layers over centres."""

    def __init__(self, width: int, blocks: int, inner: int) -> None:
        super().__init__()
        self.operation = nn.Sequential(*(Residual(width, inner) for _ in range(blocks)))

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, S) of the same shape."""
        return self.operation(values)


class PointMlp(PointSetBackbone):
    """`pointmlp` and `pointmlp_elite`."""

    def __init__(self, settings: PointMlpSettings, embed_dim: int) -> None:
        s = settings
        widths = list(accumulate((s.embedding, *s.expansion), mul))
        super().__init__(settings, widths[-1], embed_dim)
        self.settings = s
        inner = [int(width * s.inner) for width in widths[1:]]
        self.embedding = PointLayer(3, s.embedding)
        self.local_grouper_list = nn.ModuleList(map(GeometricAffine, widths[:-1]))
        self.pre_blocks_list = nn.ModuleList(map(BeforeMaximum, widths[:-1], widths[1:], s.before, inner))
        self.pos_blocks_list = nn.ModuleList(map(AfterMaximum, widths[1:], s.after, inner))

    def represent(self, points: Tensor) -> Tensor:
        """The largest of each channel over the last centres, (B, width)."""
        features = self.embedding(channels_first(points)).transpose(1, 2)
        stages = zip(self.local_grouper_list, self.pre_blocks_list, self.pos_blocks_list, strict=True)
        for (affine, before, after), count in zip(stages, self.settings.centres, strict=True):
            chosen = self.farthest(points, count)
            centres = gathered(points, chosen)
            nearest = nearest_to_centres(points, centres, self.settings.neighbours)
            own = gathered(features, chosen)
            features = after(before(affine(gathered(features, nearest), own), own)).transpose(1, 2)
            points = centres
        return features.max(dim=1).values

    def classification_head(self, classes: int) -> nn.Module:
        """PointMLP's: two layers with dropout; logits (B, classes)."""
        return PointMlpHead(self.projection.shape[0], classes)


class PointMlpHead(nn.Module):
    """PointMLP's classification head, by its names."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((width, 512), (512, 256)):
            layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.5)]
        self.classifier = nn.Sequential(*layers, nn.Linear(256, classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, width)."""
        return self.classifier(features)
