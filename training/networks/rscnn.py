"""RS-CNN (Liu et al. 2019), with one scale a level: neighbours are weighed by how they lie to their centre.

Names of weights are the released program's. Shape letters: B clouds, N points, S centres, K slots of a centre (itself
and its neighbours), C channels, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from training.networks.neighbours import ball_query_without_centre, gathered
from training.networks.pointnet2 import OverGroups, PointSetBackbone, channels_first, he_initialised, over_all, through
from training.settings.point_set_networks import RelationShapeSettings

RELATION = 10  # numbers of a relation: a distance and three points


class RelationShapeConvolution(OverGroups):
    """The features of a neighbourhood, weighed by a network of its relations, and the largest of each channel.

    raised: channels to which the first level raises offsets, its only input; later levels take offsets and features.
    """

    def __init__(self, incoming: int, inner: int, width: int, raised: int, first: bool) -> None:
        super().__init__()
        weighed = raised if first else incoming
        self.mapping_func1, self.bn_mapping = nn.Conv2d(RELATION, inner, 1), nn.BatchNorm2d(inner)
        self.mapping_func2, self.bn_rsconv = nn.Conv2d(inner, weighed, 1), nn.BatchNorm2d(weighed)
        self.cr_mapping, self.bn_channel_raising = nn.Conv1d(weighed, width, 1), nn.BatchNorm1d(width)
        self.bn_xyz_raising = nn.BatchNorm2d(raised).requires_grad_(first)  # upstream has it in every level
        self.xyz_raising = nn.Conv2d(incoming, raised, 1) if first else None

    def forward(self, relations: Tensor, rows: Tensor) -> Tensor:
        """(B, S, width) of relations (B, S, K, 10) and inputs (B, S, K, C)."""
        hidden = through([(self.mapping_func1, self.bn_mapping)], channels_first(relations))
        values = channels_first(rows)
        if self.xyz_raising is not None:
            values = through([(self.xyz_raising, self.bn_xyz_raising)], values)
        weighed = relu(self.bn_rsconv(self.mapping_func2(hidden) * values), inplace=True).max(dim=3).values
        return through([(self.cr_mapping, self.bn_channel_raising)], weighed).transpose(1, 2)


class RelationShapeNet(PointSetBackbone):
    """`rscnn`."""

    def __init__(self, settings: RelationShapeSettings, embed_dim: int) -> None:
        super().__init__(settings, settings.last, embed_dim)
        self.settings = s = settings
        self.SA_modules = nn.ModuleList()
        for number, (before, width) in enumerate(zip((0, *s.widths), s.widths, strict=False)):
            inner = width // (4 if number else 2)
            level = RelationShapeConvolution(3 + before, inner, width, s.raised, first=not number)
            self.SA_modules.append(_in_names(level, "RSConvLayer0", "RS_Conv"))
        whole = nn.ModuleDict({"conv_avg": nn.Conv2d(3 + s.widths[-1], s.last, 1), "bn_avg": nn.BatchNorm2d(s.last)})
        self.SA_modules.append(_in_names(whole))
        self.apply(he_initialised)

    def represent(self, points: Tensor) -> Tensor:
        """The largest of each channel over all centres, (B, last)."""
        s, features = self.settings, None
        *levels, whole = [module["mlps"][0] for module in self.SA_modules]  # type: ignore[index]
        for names, count, radius, neighbours in zip(levels, s.centres, s.radii, s.neighbours, strict=True):
            chosen = self.farthest(points, count)
            slots = ball_query_without_centre(points, chosen, radius, neighbours)
            near, centres = gathered(points, slots), gathered(points, chosen)
            offsets = near - centres[:, :, None]
            rows = offsets if features is None else torch.cat([offsets, gathered(features, slots)], dim=3)
            points, features = centres, names["RSConvLayer0"]["RS_Conv"](self._relations(near, offsets), rows)
        assert features is not None
        return over_all([(whole["conv_avg"], whole["bn_avg"])], points, features)

    def _relations(self, near: Tensor, offsets: Tensor) -> Tensor:
        """(B, S, K, 10) of neighbours and their offsets (B, S, K, 3), whose slot 0 is the centre."""
        distances = offsets.norm(dim=3, keepdim=True)
        if self.settings.form == "released":
            return torch.cat([distances, torch.zeros_like(offsets), offsets, offsets], dim=3)
        return torch.cat([distances, near[:, :, :1].expand_as(near), near, offsets], dim=3)

    def classification_head(self, classes: int) -> nn.Module:
        """RS-CNN's: two layers with dropout; logits (B, classes)."""
        return RelationShapeHead(self.projection.shape[0], classes)


class RelationShapeHead(nn.Module):
    """RS-CNN's classification head, by its names."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        layers = [
            nn.ModuleDict({"fc": nn.Linear(a, b, bias=False), "bn": nn.ModuleDict({"bn": nn.BatchNorm1d(b)})})
            for a, b in ((width, 512), (512, 256))
        ]
        last = nn.ModuleDict({"fc": nn.Linear(256, classes)})
        nn.init.zeros_(last["fc"].bias)  # type: ignore[arg-type]  # it has one
        self.FC_layer = nn.ModuleList([layers[0], nn.Dropout(0.5), layers[1], nn.Dropout(0.5), last])

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, width)."""
        *hidden, last = self.FC_layer
        for layer, drop in zip(hidden[::2], hidden[1::2], strict=True):
            features = drop(through([(layer["fc"], layer["bn"]["bn"])], features))  # type: ignore[index]
        return last["fc"](features)  # type: ignore[index]


def _in_names(module: nn.Module, *names: str) -> nn.Module:
    """A module as `mlps.0.NAME...` of another: upstream has containers there."""
    for name in reversed(names):
        module = nn.ModuleDict({name: module})
    return nn.ModuleDict({"mlps": nn.ModuleList([module])})
