"""Networks that label the points of a cloud with parts: DGCNN with a spatial transform, PointNet++ with propagation.

Each is a trunk, which is a point tower as any other, and a head that reads the features of all its levels. Together
they have the names and shapes of the released weights: of CrossPoint's DGCNN_partseg, and of the part segmentation
models of Pointnet_Pointnet2_pytorch. Source: reference methods.md, section 1.7.

Batch norms are torch's; a run makes them those of all processes. Shape letters: B clouds, N points, k neighbours,
C channels, S centres.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu

from training.networks.dgcnn import SLOPE, EdgeConv
from training.networks.nearest import nearest_neighbours
from training.networks.neighbours import ball_query, farthest_points, gathered, upsampled
from training.networks.point_backbone import PointBackbone, new_projection
from training.networks.pointnet2 import (
    MultiScaleLevel,
    SetAbstraction,
    SingleScaleLevel,
    channels_first,
    over_all,
    through,
)
from training.settings.model import BackboneSettings
from training.settings.part_backbones import DGCNNPartSettings

WIDTH = 1024  # of the feature of a whole cloud, in all of these
Levels = tuple[Tensor, ...]  # what a trunk gives its head; the last is the feature (B, WIDTH) of each cloud


class PartBackbone(PointBackbone):
    """A point tower that can label points: it has the levels of its features, and makes the head that reads them."""

    def levels(self, points: Tensor) -> Levels:
        """The features of clouds (B, N, 3) that the head reads."""
        raise NotImplementedError

    def part_head(self, classes: int, parts: int, dropout: float) -> nn.Module:
        """A new head: of the levels and the one-hot class (B, classes) it makes logits (B, parts, N)."""
        raise NotImplementedError

    def represent(self, points: Tensor) -> Tensor:
        """The feature (B, WIDTH) of clouds (B, N, 3)."""
        return self.levels(points)[-1]


class _Layer(nn.Sequential):
    """Convolution without bias, batch norm and leaky ReLU, of points (B, C, N) or of edges (B, C, N, k)."""

    def __init__(self, inside: int, outside: int, edges: bool = False) -> None:
        if edges:
            super().__init__(nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside))
        else:
            super().__init__(nn.Conv1d(inside, outside, 1, bias=False), nn.BatchNorm1d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """Of values (B, C, ...)."""
        return leaky_relu(super().forward(x), SLOPE)

    def of_edges(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """(B, C, N, k) of the edge features cat(x_j - x_i, x_i) of x (B, N, C), without making them.

        The convolution W of an edge is W1 x_j + (W2 - W1) x_i: two products for each point, not for each edge.
        """
        first, second = self.get_parameter("0.weight").flatten(1).chunk(2, dim=1)
        edges = gathered(x @ first.T, neighbours) + (x @ (second - first).T)[:, :, None]
        return leaky_relu(self[1](channels_first(edges)), SLOPE)


class _Transform(nn.Module):
    """A matrix (B, 3, 3) for each cloud, at first the identity; the names are those of the released Transform_Net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = _Layer(6, 64, True), _Layer(64, 128, True), _Layer(128, WIDTH)
        self.linear1, self.bn3 = nn.Linear(WIDTH, 512, bias=False), nn.BatchNorm1d(512)
        self.linear2, self.bn4 = nn.Linear(512, 256, bias=False), nn.BatchNorm1d(256)
        self.transform = nn.Linear(256, 9)
        nn.init.zeros_(self.transform.weight)
        nn.init.eye_(self.transform.bias.data.view(3, 3))

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """Of points (B, N, 3) and their neighbours (B, N, k)."""
        x = self.conv2(self.conv1.of_edges(x, neighbours)).amax(dim=3)
        x = self.conv3(x).amax(dim=2)
        for linear, norm in ((self.linear1, self.bn3), (self.linear2, self.bn4)):
            x = leaky_relu(norm(linear(x)), SLOPE)
        return self.transform(x).view(-1, 3, 3)


class DGCNNParts(PartBackbone):
    """CrossPoint's DGCNN_partseg up to its maximum over points."""

    def __init__(self, settings: DGCNNPartSettings, embed_dim: int) -> None:
        super().__init__()
        self.k = settings.k
        self.transform_net = _Transform()
        self.conv1, self.conv2 = _Layer(6, 64, True), _Layer(64, 64, True)
        self.conv3, self.conv4 = _Layer(128, 64, True), _Layer(64, 64, True)
        self.conv5, self.conv6 = EdgeConv(64, 64), _Layer(192, WIDTH)
        self.projection = new_projection(WIDTH, embed_dim)

    def levels(self, points: Tensor) -> Levels:
        """Three features (B, N, 64) of each point, and that of the cloud."""
        x = points @ self.transform_net(points, nearest_neighbours(points, self.k))
        found = []
        for first, second in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            x = second(first.of_edges(x, nearest_neighbours(x, self.k))).amax(dim=3).transpose(1, 2)
            found.append(x)
        found.append(self.conv5(x, nearest_neighbours(x, self.k)))
        return *found, self.conv6(torch.cat(found, dim=2).transpose(1, 2)).amax(dim=2)

    def part_head(self, classes: int, parts: int, dropout: float) -> nn.Module:
        """The rest of DGCNN_partseg."""
        return _DGCNNHead(classes, parts, dropout)


class _DGCNNHead(nn.Module):
    def __init__(self, classes: int, parts: int, dropout: float) -> None:
        super().__init__()
        self.conv7 = _Layer(classes, 64)
        self.conv8, self.dp1 = _Layer(WIDTH + 64 + 3 * 64, 256), nn.Dropout(dropout)
        self.conv9, self.dp2 = _Layer(256, 256), nn.Dropout(dropout)
        self.conv10 = _Layer(256, 128)
        self.conv11 = nn.Conv1d(128, parts, 1, bias=False)

    def forward(self, levels: Levels, category: Tensor) -> Tensor:
        *local, whole = levels
        told = torch.cat([whole[..., None], self.conv7(category[..., None])], dim=1)
        x = torch.cat([told.expand(-1, -1, local[0].shape[1]), *(each.transpose(1, 2) for each in local)], dim=1)
        return self.conv11(self.conv10(self.dp2(self.conv9(self.dp1(self.conv8(x))))))


class _Propagation(nn.Module):
    """Features of the coarser level at the places of the finer one, beside the features there."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.mlp_convs = nn.ModuleList(nn.Conv1d(inside, outside, 1) for inside, outside in pairwise(widths))
        self.mlp_bns = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])

    def forward(self, places: Tensor, features: Tensor, coarse: Tensor, known: Tensor) -> Tensor:
        """Of places (B, N, 3) with features (B, N, C), and coarser places (B, S, 3) with features known (B, S, C)."""
        if known.shape[1] == 1:
            near = known.expand(-1, len(places[0]), -1)
        else:
            near = upsampled(known, coarse, places, squared=True)
        layers = zip(self.mlp_convs, self.mlp_bns, strict=True)
        return through(layers, channels_first(torch.cat([features, near], dim=2))).transpose(1, 2)


Balls = tuple[tuple[float, int], ...]  # radius and number of points, of each scale


class PointNet2Parts(PartBackbone):
    """The set abstractions of Pointnet_Pointnet2_pytorch's networks for parts, in several sizes (MSG) or in one."""

    def __init__(self, settings: BackboneSettings, embed_dim: int) -> None:
        super().__init__()
        self.several = settings.backbone == "pointnet2_msg_parts"
        self.balls: tuple[Balls, Balls]
        if self.several:
            self.balls = ((0.1, 32), (0.2, 64), (0.4, 128)), ((0.4, 64), (0.8, 128))
            self.sa1: SetAbstraction = MultiScaleLevel(6, ((32, 32, 64), (64, 64, 128), (64, 96, 128)))
            self.sa2: SetAbstraction = MultiScaleLevel(3 + 320, ((128, 128, 256), (128, 196, 256)))
        else:
            self.balls = ((0.2, 32),), ((0.4, 64),)
            self.sa1 = SingleScaleLevel(6, ((64, 64, 128),))
            self.sa2 = SingleScaleLevel(3 + 128, ((128, 128, 256),))
        self.sa3 = SingleScaleLevel(3 + (512 if self.several else 256), ((256, 512, WIDTH),))
        self.projection = new_projection(WIDTH, embed_dim)

    def levels(self, points: Tensor) -> Levels:
        """Places and features of points, of 512 and of 128 centres, and the feature of the cloud."""
        places, features, found = points, points, [points]
        for level, count, balls in zip((self.sa1, self.sa2), (512, 128), self.balls, strict=True):
            centres = gathered(places, farthest_points(places, count))
            near = [ball_query(places, centres, radius, most, closed=True) for radius, most in balls]
            places, features = centres, level(places, centres, features, near)
            found += [places, features]
        return *found, over_all(self.sa3.scales()[0], places, features)

    def part_head(self, classes: int, parts: int, dropout: float) -> nn.Module:
        """Feature propagation and the layers of each point."""
        return _PointNet2Head(self.several, classes, parts, dropout)


class _PointNet2Head(nn.Module):
    def __init__(self, several: bool, classes: int, parts: int, dropout: float) -> None:
        super().__init__()
        self.fp3 = _Propagation(WIDTH + (512 if several else 256), 256, 256)
        self.fp2 = _Propagation(256 + (320 if several else 128), 256, 128)
        self.fp1 = _Propagation(128 + classes + 6, *([128] * (2 if several else 3)))
        self.conv1, self.bn1 = nn.Conv1d(128, 128, 1), nn.BatchNorm1d(128)
        self.drop1, self.conv2 = nn.Dropout(dropout), nn.Conv1d(128, parts, 1)

    def forward(self, levels: Levels, category: Tensor) -> Tensor:
        points, places1, features1, places2, features2, whole = levels
        features2 = self.fp3(places2, features2, places2[:, :1], whole[:, None])
        features1 = self.fp2(places1, features1, places2, features2)
        told = category[:, None].expand(-1, points.shape[1], -1)
        x = self.fp1(points, torch.cat([told, points, points], dim=2), places1, features1)
        return self.conv2(self.drop1(relu(self.bn1(self.conv1(x.transpose(1, 2))))))


PART_TOWERS: dict[str, Callable[[Any, int], PartBackbone]] = {
    "dgcnn_parts": DGCNNParts,
    "pointnet2_msg_parts": PointNet2Parts,
    "pointnet2_ssg_parts": PointNet2Parts,
}
