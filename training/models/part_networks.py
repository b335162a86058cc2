"""Networks that label the points of a cloud with parts: DGCNN with a spatial transform, PointNet++ with propagation.

Each is a trunk, which is a point tower as any other, and a head that reads the features of all its levels. Together
they have the names and shapes of the released weights: of CrossPoint's DGCNN_partseg, and of the part segmentation
models of Pointnet_Pointnet2_pytorch. Source: reference methods.md, section 1.7.

Shape letters: B clouds, N points, k neighbours, C channels, S centres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu

from training.models.global_batch_norm import GlobalBatchNorm1d
from training.models.nearest import nearest_neighbours
from training.models.neighbours import ball_query, farthest_points, gathered, upsampled
from training.models.point_backbone import PointBackbone, new_projection
from training.settings.model import BackboneSettings
from training.settings.part_backbones import DGCNNPartSettings

WIDTH = 1024  # of the feature of a whole cloud, in all of these
SLOPE = 0.2  # of DGCNN's leaky ReLU
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


def _normed(norm: nn.Module, values: Tensor) -> Tensor:
    """Batch norm of values (B, C) or (B, C, ...)."""
    return norm(values.reshape(*values.shape[:2], -1)).reshape(values.shape)


class _Layer(nn.Sequential):
    """Convolution without bias, batch norm and leaky ReLU; dims: of the convolution, 1 or 2."""

    def __init__(self, inside: int, outside: int, dims: int = 1) -> None:
        convolution = nn.Conv1d if dims == 1 else nn.Conv2d
        super().__init__(convolution(inside, outside, 1, bias=False), GlobalBatchNorm1d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """Of values (B, C, ...)."""
        return leaky_relu(_normed(self[1], self[0](x)), SLOPE)

    def of_edges(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """(B, C, N, k) of the edge features cat(x_j - x_i, x_i) of x (B, C, N), without making them.

        The convolution W of an edge is W1 x_j + (W2 - W1) x_i: two products for each point, not for each edge.
        """
        first, second = self.get_parameter("0.weight")[:, :, 0, 0].chunk(2, dim=1)
        rows = x.transpose(1, 2)
        edges = gathered(rows @ first.T, neighbours) + (rows @ (second - first).T)[:, :, None]
        return leaky_relu(_normed(self[1], edges.permute(0, 3, 1, 2)), SLOPE)


class _Transform(nn.Module):
    """A matrix (B, 3, 3) for each cloud, at first the identity; the names are those of the released Transform_Net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = _Layer(6, 64, 2), _Layer(64, 128, 2), _Layer(128, WIDTH)
        self.linear1, self.bn3 = nn.Linear(WIDTH, 512, bias=False), GlobalBatchNorm1d(512)
        self.linear2, self.bn4 = nn.Linear(512, 256, bias=False), GlobalBatchNorm1d(256)
        self.transform = nn.Linear(256, 9)
        nn.init.zeros_(self.transform.weight)
        nn.init.eye_(self.transform.bias.data.view(3, 3))

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """Of points (B, 3, N) and their neighbours (B, N, k)."""
        x = self.conv2(self.conv1.of_edges(x, neighbours)).amax(dim=3)
        x = self.conv3(x).amax(dim=2)
        for linear, norm in ((self.linear1, self.bn3), (self.linear2, self.bn4)):
            x = leaky_relu(_normed(norm, linear(x)[..., None])[..., 0], SLOPE)
        return self.transform(x).view(-1, 3, 3)


class DGCNNParts(PartBackbone):
    """CrossPoint's DGCNN_partseg up to its maximum over points."""

    def __init__(self, settings: DGCNNPartSettings, embed_dim: int) -> None:
        super().__init__()
        self.k = settings.k
        self.transform_net = _Transform()
        self.conv1, self.conv2 = _Layer(6, 64, 2), _Layer(64, 64, 2)
        self.conv3, self.conv4 = _Layer(128, 64, 2), _Layer(64, 64, 2)
        self.conv5, self.conv6 = _Layer(128, 64, 2), _Layer(192, WIDTH)
        self.projection = new_projection(WIDTH, embed_dim)

    def levels(self, points: Tensor) -> Levels:
        """Three features (B, 64, N) of each point, and that of the cloud."""
        matrix = self.transform_net(points.transpose(1, 2), nearest_neighbours(points, self.k))
        x = (points @ matrix).transpose(1, 2)
        found = []
        for first, second in ((self.conv1, self.conv2), (self.conv3, self.conv4), (self.conv5, None)):
            edges = first.of_edges(x, nearest_neighbours(x.transpose(1, 2), self.k))
            x = (edges if second is None else second(edges)).amax(dim=3)
            found.append(x)
        return *found, self.conv6(torch.cat(found, dim=1)).amax(dim=2)

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
        x = torch.cat([told.expand(-1, -1, local[0].shape[2]), *local], dim=1)
        return self.conv11(self.conv10(self.dp2(self.conv9(self.dp1(self.conv8(x))))))


def _convolutions(widths: Sequence[int], dims: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Convolutions with bias from each width to the next, and their norms, as the released lists hold them."""
    convolution = nn.Conv1d if dims == 1 else nn.Conv2d
    pairs = list(pairwise(widths))
    norms = nn.ModuleList(GlobalBatchNorm1d(outside) for _, outside in pairs)
    return nn.ModuleList(convolution(inside, outside, 1) for inside, outside in pairs), norms


def _through(x: Tensor, convolutions: nn.ModuleList, norms: nn.ModuleList) -> Tensor:
    for convolution, norm in zip(convolutions, norms, strict=True):
        x = relu(_normed(norm, convolution(x)))
    return x


class _Abstraction(nn.Module):
    """Set abstraction with one radius; with radius 0 of the whole cloud at once, in absolute coordinates."""

    def __init__(self, centres: int, radius: float, count: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.centres, self.radius, self.count = centres, radius, count
        self.mlp_convs, self.mlp_bns = _convolutions(widths, 2)

    def forward(self, places: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of places (B, N, 3) and features (B, N, C): those of the centres, (B, S, 3) and (B, S, C)."""
        if not self.radius:
            groups = torch.cat([places, features], dim=2)[:, None]
            centres = torch.zeros_like(places[:, :1])
        else:
            centres = gathered(places, farthest_points(places, self.centres))
            near = ball_query(places, centres, self.radius, self.count, closed=True)
            groups = torch.cat([gathered(places, near) - centres[:, :, None], gathered(features, near)], dim=3)
        return centres, _maxima(groups, self.mlp_convs, self.mlp_bns)


class _SeveralAbstractions(nn.Module):
    """Set abstraction with several radii about the same centres; here features stand before coordinates."""

    def __init__(
        self, centres: int, radii: Sequence[float], counts: Sequence[int], widths: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.centres, self.radii, self.counts = centres, radii, counts
        convolutions, norms = zip(*(_convolutions(each, 2) for each in widths), strict=True)
        self.conv_blocks, self.bn_blocks = nn.ModuleList(convolutions), nn.ModuleList(norms)

    def forward(self, places: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """As of `_Abstraction`."""
        centres = gathered(places, farthest_points(places, self.centres))
        found = []
        for radius, count, *layers in zip(self.radii, self.counts, self.conv_blocks, self.bn_blocks, strict=True):
            near = ball_query(places, centres, radius, count, closed=True)
            groups = torch.cat([gathered(features, near), gathered(places, near) - centres[:, :, None]], dim=3)
            found.append(_maxima(groups, *layers))
        return centres, torch.cat(found, dim=2)


def _maxima(groups: Tensor, convolutions: Any, norms: Any) -> Tensor:
    """(B, S, C) of groups (B, S, K, C): the maximum over a group's members of what the convolutions make of them."""
    return _through(groups.permute(0, 3, 2, 1), convolutions, norms).amax(dim=2).transpose(1, 2)


class _Propagation(nn.Module):
    """Features of the coarser level at the places of the finer one, beside the features there."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.mlp_convs, self.mlp_bns = _convolutions(widths, 1)

    def forward(self, places: Tensor, features: Tensor, coarse: Tensor, known: Tensor) -> Tensor:
        """Of places (B, N, 3) with features (B, N, C), and coarser places (B, S, 3) with features known (B, S, C)."""
        if known.shape[1] == 1:
            near = known.expand(-1, len(places[0]), -1)
        else:
            near = upsampled(known, coarse, places, squared=True)
        x = torch.cat([features, near], dim=2).transpose(1, 2)
        return _through(x, self.mlp_convs, self.mlp_bns).transpose(1, 2)


class PointNet2Parts(PartBackbone):
    """The set abstractions of Pointnet_Pointnet2_pytorch's networks for parts, `msg` (several radii) or `ssg`."""

    def __init__(self, settings: BackboneSettings, embed_dim: int) -> None:
        super().__init__()
        self.several = settings.backbone == "pointnet2_msg_parts"
        if self.several:
            widths = (6, 32, 32, 64), (6, 64, 64, 128), (6, 64, 96, 128)
            self.sa1: nn.Module = _SeveralAbstractions(512, (0.1, 0.2, 0.4), (32, 64, 128), widths)
            self.sa2: nn.Module = _SeveralAbstractions(
                128, (0.4, 0.8), (64, 128), ((323, 128, 128, 256), (323, 128, 196, 256))
            )
            self.sa3 = _Abstraction(1, 0.0, 0, (512 + 3, 256, 512, WIDTH))
        else:
            self.sa1 = _Abstraction(512, 0.2, 32, (6, 64, 64, 128))
            self.sa2 = _Abstraction(128, 0.4, 64, (131, 128, 128, 256))
            self.sa3 = _Abstraction(1, 0.0, 0, (256 + 3, 256, 512, WIDTH))
        self.projection = new_projection(WIDTH, embed_dim)

    def levels(self, points: Tensor) -> Levels:
        """Places and features of points, of 512 and of 128 centres, and the feature of the cloud."""
        first = self.sa1(points, points)
        second = self.sa2(*first)
        return points, *first, *second, self.sa3(*second)[1][:, 0]

    def part_head(self, classes: int, parts: int, dropout: float) -> nn.Module:
        """Feature propagation and the layers of each point."""
        return _PointNet2Head(self.several, classes, parts, dropout)


class _PointNet2Head(nn.Module):
    def __init__(self, several: bool, classes: int, parts: int, dropout: float) -> None:
        super().__init__()
        self.fp3 = _Propagation(WIDTH + (512 if several else 256), 256, 256)
        self.fp2 = _Propagation(256 + (320 if several else 128), 256, 128)
        self.fp1 = _Propagation(128 + classes + 6, *([128] * (2 if several else 3)))
        self.conv1, self.bn1 = nn.Conv1d(128, 128, 1), GlobalBatchNorm1d(128)
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
