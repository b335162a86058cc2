"""Which of our point networks a file of its authors is of, by the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch

from training.models.backbones import TOWERS
from training.settings.backbone_rows import BACKBONE_SETTINGS
from training.settings.model import DEFAULT_BACKBONE

LEAST = 0.5  # of the tower's names: a file may be cut, or be of another depth


@dataclass(frozen=True)
class NetworkNames:
    """Names of a network's tensors as its authors have them, without `wrapper`, with which all of them may begin: it
    looks like that of a class around a model, and is taken off every file. twice: as of PointBackbone."""

    tower: frozenset[str]
    head: frozenset[str]
    twice: tuple[tuple[str, str], ...]
    wrapper: str

    def ours(self, name: str) -> str:
        """The name in our tower of a tensor of a file, or an empty text for what is of a head."""
        other = self.only(name)
        modules = {each.partition(".")[0] for each in self.tower}
        return self.wrapper + other if other.partition(".")[0] in modules else ""

    def only(self, name: str) -> str:
        """Of a tensor with two names the one that our tower has."""
        return next((new + name.removeprefix(old) for old, new in self.twice if name.startswith(old)), name)


@cache
def names_of(backbone: str) -> NetworkNames:
    """The names of a backbone of our own, of the default sizes. It is made without memory for its weights."""
    with torch.device("meta"):
        tower = TOWERS[backbone](BACKBONE_SETTINGS[backbone](), 1)
        head = tower.classification_head(2)
    inside, outside = set(tower.state_dict()) - {"projection"}, set(head.state_dict())
    firsts = {name.partition(".")[0] for name in inside | outside}
    wrapper = f"{firsts.pop()}." if len(firsts) == 1 else ""
    of_tower, of_head = (frozenset(name.removeprefix(wrapper) for name in names) for names in (inside, outside))
    return NetworkNames(of_tower, of_head, tuple(tower.twice.items()), wrapper)


def network_of(names: Iterable[str]) -> str:
    """The backbone of which a file with these names is, without prefixes, or an empty text.

    It is the one with the most names in common among all of both, as PointMLP has all names of its small form.
    """
    given, best, most = set(names), "", 0.0
    for backbone in TOWERS:
        if backbone == DEFAULT_BACKBONE:  # its files have kinds of their own
            continue
        known = names_of(backbone)
        own, every = {known.only(name) for name in given}, known.tower | known.head
        likeness = len(own & every) / len(own | every)
        if len(own & known.tower) >= LEAST * len(known.tower) and likeness > most:
            best, most = backbone, likeness
    return best
