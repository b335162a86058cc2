"""Adapters of frozen picture towers: what is learned from a few labels, over the features of all views of an object.

Sources: CLIP2Point (Huang et al. 2023, eq. 12-14, and its release, whose DPA has another aggregator and no gate) and
PointCLIP (Zhang et al. 2022, the inter-view adapter of its release). Names of weights are the releases'.

Shape letters: B objects, V views, E embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from training.settings.adapter_recipe import AdapterSettings

VIEW_WEIGHT = 0.5  # of each view, at the beginning (both releases)
OWN_SHARE = 0.6  # of an adapted feature beside the view's own (PointCLIP's release)


class _ViewNorm(nn.Module):
    """A batch norm of E channels over all views of all objects."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width)

    def forward(self, views: Tensor) -> Tensor:
        """views (B, V, E)."""
        return self.bn(views.flatten(0, 1)).view_as(views)


class GlobalView(nn.Module):
    """Eq. 12: f2(ReLU(f1(all views side by side))), (B, V, E) -> (B, E)."""

    def __init__(self, views: int, width: int, dropout: float) -> None:
        super().__init__()
        self.f1, self.f2, self.drop = nn.Linear(views * width, width), nn.Linear(width, width), nn.Dropout(dropout)

    def forward(self, views: Tensor) -> Tensor:
        """Features of towers, not normalised."""
        return self.f2(self.drop(self.f1(views.flatten(1)).relu()))


class _WeightedViews(nn.Module):
    """What both releases begin with: views times a learned weight each, norm, a layer; `global_f`, (B, V, E) -> (B, E).

    last: further layers.
    """

    def __init__(self, views: int, width: int, dropout: float, *last: nn.Module) -> None:
        super().__init__()
        self.fusion_ratio = nn.Parameter(torch.full((views,), VIEW_WEIGHT))
        first = (_ViewNorm(width), nn.Dropout(dropout), nn.Flatten(), nn.Linear(views * width, width))
        self.global_f = nn.Sequential(*first, nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), *last)

    def forward(self, views: Tensor) -> Tensor:
        """Features of towers, not normalised."""
        return self.global_f(views * self.fusion_ratio[:, None])


class ReleasedGlobalView(_WeightedViews):
    """`SimplifiedAdapter` of CLIP2Point's release."""

    def __init__(self, views: int, width: int, dropout: float) -> None:
        super().__init__(views, width, dropout, nn.Linear(width, width))


class InterView(_WeightedViews):
    """PointCLIP's adapter (CLIP2Point's eq. 2-3): every view gets of the global feature, (B, V, E) -> (B, V * E)."""

    def __init__(self, views: int, width: int, dropout: float) -> None:
        super().__init__(views, width, dropout)
        layers = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, views * width), nn.ReLU()
        self.view_f = nn.Sequential(*layers)

    def forward(self, views: Tensor) -> Tensor:
        """Features of towers, not normalised."""
        return OWN_SHARE * self.view_f(super().forward(views)) + (1 - OWN_SHARE) * views.flatten(1)


AGGREGATORS: dict[str, type[GlobalView | ReleasedGlobalView | InterView]] = {
    "global_view": GlobalView,
    "released": ReleasedGlobalView,
    "inter_view": InterView,
}


class GatedAdapter(nn.Module):
    """An aggregator for each path, and the gate: G = gate * G^C + G^D (eq. 14), whose cosine with text is a logit.

    adapter1: of the depth tower. adapter2: of CLIP's. gate: one number, or one for each channel; 1 at the beginning
    (the paper says neither). Without a gate it is the sum, whose cosine is that of the released average. kept: features
    of frozen towers by key of their object, which training sees again and again.
    """

    def __init__(self, settings: AdapterSettings, width: int) -> None:
        super().__init__()
        kind, self.views, self.width = AGGREGATORS[settings.aggregator], settings.views, width
        made = [kind(settings.views, width, settings.dropout) for path in settings.each_path]
        self.adapter1 = made[0] if "depth" in settings.each_path else None
        self.adapter2 = made[-1] if "clip" in settings.each_path else None
        channels = width * settings.views if settings.aggregator == "inter_view" else width
        shape = {"none": None, "scalar": (), "channel": (channels,)}[settings.used_gate]
        self.gate = None if shape is None else nn.Parameter(torch.ones(shape))
        self.kept: dict[str, Tensor] = {}

    @property
    def paths(self) -> list[Literal["depth", "image"]]:
        """The towers whose features it takes: `depth`, `image`."""
        both: dict[Literal["depth", "image"], nn.Module | None] = {"depth": self.adapter1, "image": self.adapter2}
        return [name for name, path in both.items() if path is not None]

    def forward(self, features: Tensor) -> Tensor:
        """(B, E) whose product with a unit text feature is the cosine of eq. 14.

        features: (B, V, P * E) of the towers of `paths`, side by side, not normalised. An inter-view adapter's cosine
        is of all views side by side with the text feature repeated, as PointCLIP's release has it.
        """
        parts = iter(features.split(self.width, dim=2))
        depth = None if self.adapter1 is None else self.adapter1(next(parts))
        clip = None if self.adapter2 is None else self.adapter2(next(parts))
        if clip is not None and self.gate is not None:
            clip = self.gate * clip
        found = normalize(sum(part for part in (depth, clip) if part is not None), dim=1)
        each = found.unflatten(1, (-1, self.width))
        return each.sum(dim=1) / each.shape[1] ** 0.5
