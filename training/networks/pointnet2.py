"""PointNet++ (Qi et al. 2017) as Yan's and PointCMT's programs have it, and what networks on point sets share.

A level samples centres, takes the points in balls around them, puts a small network on every point of a ball and keeps
the largest of each channel. Weights have the names and shapes of the released programs.

Shape letters: B clouds, N points, S centres, K neighbours of a centre, C channels, E embedding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from training.networks.neighbours import ball_query, farther, farthest_points, gathered
from training.networks.point_backbone import PointBackbone, new_projection
from training.settings.point_set_networks import (
    MultiScaleSettings,
    PointCmtSettings,
    PointNet2Settings,
    PointSetSettings,
    SingleScaleSettings,
)

Layer = tuple[nn.Module, nn.Module]  # a convolution or a linear layer, and its batch norm


def through(layers: Iterable[Layer], values: Tensor) -> Tensor:
    """Values (B, C) or (B, C, ...) after layers, each with its norm and a ReLU."""
    for layer, norm in layers:
        values = relu(norm(layer(values)), inplace=True)
    return values


def channels_first(rows: Tensor) -> Tensor:
    """(B, ..., C) as (B, C, ...) in that order in memory, in which norms and layers are as fast and sum as upstream."""
    return rows.movedim(-1, 1).contiguous()


def he_initialised(module: nn.Module) -> None:
    """He's normal weights and biases of 0 in a convolution, as the CUDA programs begin; torch's elsewhere."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def over_all(layers: Iterable[Layer], points: Tensor, features: Tensor) -> Tensor:
    """The largest of each channel (B, C') after layers of absolute coordinates (B, S, 3) and features (B, S, C)."""
    return through(layers, channels_first(torch.cat([points, features], dim=2)[:, :, None])).amax(dim=(2, 3))


class PointSetBackbone(PointBackbone):
    """A tower that samples centres, by the family of its settings."""

    def __init__(self, settings: PointSetSettings, width: int, embed_dim: int) -> None:
        super().__init__()
        self.family = settings.family
        self.farther = farther
        self.projection = new_projection(width, embed_dim)

    def farthest(self, points: Tensor, count: int) -> Tensor:
        """Indices (B, count) of centres among (B, N, 3). Raises ValueError for a cloud of fewer points."""
        b, n, _ = points.shape
        if n < count:
            raise ValueError(f"{n} points for {count} centres")
        random = self.family == "yanx" and self.training
        start = torch.randint(n, (b,), device=points.device) if random else None
        return farthest_points(points, count, self.farther, start, skip_origin=self.family == "cuda")

    def compile_inside(self) -> None:
        """Compiles the networks over groups and a step of farthest-point sampling, which has as many steps as centres.

        The searches for neighbours stay as they are.
        """
        self.farther = torch.compile(self.farther)
        for module in self.modules():
            if isinstance(module, OverGroups):
                module.compile()


class OverGroups(nn.Module):
    """The part of a tower whose forward is layers only; a run may compile it."""


class SetAbstraction(OverGroups):
    """A level's networks over its balls. A subclass has the layers by the names of its program, in `scales`.

    features_first: the input of a layer is features, then the offset to a neighbour; else the other way (Yan's MSG
    against all others, so that weights of one are not those of another).
    """

    features_first = False

    def scales(self) -> list[list[Layer]]:
        """The layers of each scale."""
        raise NotImplementedError

    def forward(self, points: Tensor, centres: Tensor, features: Tensor | None, balls: Sequence[Tensor]) -> Tensor:
        """Features (B, S, C) of centres (B, S, 3); of points (B, N, 3) with features (B, N, C), or None.

        balls: of each scale indices (B, S, K).
        """
        found = []
        for layers, ball in zip(self.scales(), balls, strict=True):
            offsets = gathered(points, ball) - centres[:, :, None]
            first, norm = layers[0]
            if features is None:
                entered = first(channels_first(offsets))
            else:
                entered = channels_first(self._entered(first, offsets, features, ball))
            found.append(through(layers[1:], relu(norm(entered), inplace=True)).max(dim=3).values)
        return torch.cat(found, dim=1).transpose(1, 2)

    def _entered(self, layer: nn.Module, offsets: Tensor, features: Tensor, ball: Tensor) -> Tensor:
        """The first layer of cat(offsets, features): features go through it once a point, not once a neighbour."""
        weight: Tensor = layer.weight.flatten(1)  # type: ignore[operator]  # it is a tensor
        sizes = [features.shape[2], 3] if self.features_first else [3, features.shape[2]]
        of_features, of_offsets = weight.split(sizes, dim=1)[:: 1 if self.features_first else -1]
        each = gathered(linear(features, of_features, layer.bias), ball)  # type: ignore[arg-type]
        return torch.addmm(each.flatten(0, 2), offsets.flatten(0, 2), of_offsets.T).view(each.shape)


class SingleScaleLevel(SetAbstraction):
    """Names of Yan's single-scale level and of his last one, over all centres."""

    def __init__(self, incoming: int, widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.mlp_convs, self.mlp_bns = _convolutions(incoming, widths[0])

    def scales(self) -> list[list[Layer]]:
        """One."""
        return [list(zip(self.mlp_convs, self.mlp_bns, strict=True))]


class MultiScaleLevel(SetAbstraction):
    """Names of Yan's multi-scale level."""

    features_first = True

    def __init__(self, incoming: int, widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        made = [_convolutions(incoming, each) for each in widths]
        self.conv_blocks = nn.ModuleList(convolutions for convolutions, _ in made)
        self.bn_blocks = nn.ModuleList(norms for _, norms in made)

    def scales(self) -> list[list[Layer]]:
        """As many as there are blocks."""
        pairs = zip(self.conv_blocks, self.bn_blocks, strict=True)
        return [list(zip(convolutions, norms, strict=True)) for convolutions, norms in pairs]  # type: ignore[call-overload]


def _convolutions(incoming: int, widths: Sequence[int]) -> tuple[nn.ModuleList, nn.ModuleList]:
    pairs = list(zip((incoming, *widths), widths, strict=False))
    return nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairs), nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)


class PointCmtLevel(SetAbstraction):
    """Names of PointCMT's level; its convolutions have no bias."""

    def __init__(self, incoming: int, widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(nn.ModuleDict(self._named(incoming, each)) for each in widths)

    @staticmethod
    def _named(incoming: int, widths: Sequence[int]) -> OrderedDict[str, nn.Module]:
        named: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (a, b) in enumerate(zip((incoming, *widths), widths, strict=False)):
            norm = nn.ModuleDict({"bn": nn.BatchNorm2d(b)})
            named[f"layer{number}"] = nn.ModuleDict({"conv": nn.Conv2d(a, b, 1, bias=False), "normlayer": norm})
        return named

    def scales(self) -> list[list[Layer]]:
        """As many as there are `mlps`."""
        return [
            [(layer["conv"], layer["normlayer"]["bn"]) for layer in mlp.values()]  # type: ignore[operator]  # they are dictionaries
            for mlp in self.mlps
        ]


class PointNet2(PointSetBackbone):
    """PointNet++ of any program: levels, then layers over the absolute coordinates and features of all centres."""

    level: type[SetAbstraction]
    whole: type[SetAbstraction]  # of the layers over all centres

    def __init__(self, settings: PointNet2Settings, embed_dim: int, width: int = 0) -> None:
        super().__init__(settings, width or settings.last[-1], embed_dim)
        self.settings = settings

    def new_levels(self) -> list[SetAbstraction]:
        """The levels by their settings, and last the one over all centres."""
        channels, made = 0, []
        for widths in self.settings.widths:
            made.append(self.level(3 + channels, widths))
            channels = sum(each[-1] for each in widths)
        return [*made, self.whole(3 + channels, [self.settings.last])]

    def levels(self) -> Sequence[SetAbstraction]:
        """Those of `new_levels`, by the names of the program."""
        raise NotImplementedError

    def represent(self, points: Tensor) -> Tensor:
        """The largest of each channel over all centres, (B, width)."""
        s, features = self.settings, None
        *levels, whole = self.levels()
        for level, count, radii, counts in zip(levels, s.centres, s.radii, s.neighbours, strict=True):
            centres = gathered(points, self.farthest(points, count))
            closed = self.family == "yanx"
            balls = [ball_query(points, centres, *each, closed) for each in zip(radii, counts, strict=True)]
            points, features = centres, level(points, centres, features, balls)
        assert features is not None
        return over_all(whole.scales()[0], points, features)


class SingleScalePointNet2(PointNet2):
    """`pointnet2_ssg`."""

    level: type[SetAbstraction] = SingleScaleLevel
    whole = SingleScaleLevel
    drops = (0.4, 0.4)

    def __init__(self, settings: SingleScaleSettings | MultiScaleSettings, embed_dim: int) -> None:
        super().__init__(settings, embed_dim)
        for number, level in enumerate(self.new_levels(), 1):
            self.add_module(f"sa{number}", level)

    def levels(self) -> Sequence[SetAbstraction]:
        """sa1, sa2, ..."""
        return [module for name, module in self.named_children() if isinstance(module, SetAbstraction)]

    def classification_head(self, classes: int) -> nn.Module:
        """Yan's: two layers with dropout; logits (B, classes), of which the released program takes the log-softmax."""
        return PointNet2Head(self.projection.shape[0], classes, self.drops)


class MultiScalePointNet2(SingleScalePointNet2):
    """`pointnet2_msg`."""

    level = MultiScaleLevel
    drops = (0.4, 0.5)


class PointNet2Head(nn.Module):
    """Yan's classification head, by its names."""

    def __init__(self, width: int, classes: int, drops: tuple[float, float]) -> None:
        super().__init__()
        self.fc1, self.bn1, self.drop1 = nn.Linear(width, 512), nn.BatchNorm1d(512), nn.Dropout(drops[0])
        self.fc2, self.bn2, self.drop2 = nn.Linear(512, 256), nn.BatchNorm1d(256), nn.Dropout(drops[1])
        self.fc3 = nn.Linear(256, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, width)."""
        hidden = self.drop1(through([(self.fc1, self.bn1)], features))
        return self.fc3(self.drop2(through([(self.fc2, self.bn2)], hidden)))


class PointCmtPointNet2(PointNet2):
    """`pointnet2_pointcmt`: its feature is a linear layer's, after norm and ReLU, without dropout."""

    level = whole = PointCmtLevel

    def __init__(self, settings: PointCmtSettings, embed_dim: int) -> None:
        super().__init__(settings, embed_dim, settings.feature)
        layer = nn.Linear(settings.last[-1], settings.feature, bias=False)
        normed = nn.ModuleDict({"fc": layer, "bn": nn.ModuleDict({"bn": nn.BatchNorm1d(settings.feature)})})
        self.model = nn.ModuleDict(
            {"SA_modules": nn.ModuleList(self.new_levels()), "fc_layer1": nn.ModuleList([normed])}
        )
        self.apply(he_initialised)

    def levels(self) -> Sequence[SetAbstraction]:
        """SA_modules."""
        return self.model["SA_modules"]  # type: ignore[return-value]  # a list of levels

    def represent(self, points: Tensor) -> Tensor:
        """(B, feature)."""
        normed = self.model["fc_layer1"][0]  # type: ignore[index]  # a list of one
        return through([(normed["fc"], normed["bn"]["bn"])], super().represent(points))

    def classification_head(self, classes: int) -> nn.Module:
        """PointCMT's: one linear layer."""
        return PointCmtHead(self.projection.shape[0], classes)


class PointCmtHead(nn.Module):
    """PointCMT's classifier, by its name."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"fc_layer2": nn.Sequential(nn.Linear(width, classes))})

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, width)."""
        return self.model["fc_layer2"](features)
