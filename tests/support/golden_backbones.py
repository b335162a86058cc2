"""The point networks of the golden data: weights by the rule of its FILL.md, in a tower of ours and its head."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.networks.point_backbone import PointBackbone


@dataclass(frozen=True)
class GoldenNetwork:
    """A case: its arrays by name, the upstream state dict's shapes, filled weights, and the L2 norms of gradients."""

    arrays: dict[str, Tensor]
    weights: dict[str, Tensor]
    grad_norms: dict[str, float]


def golden_network(golden: Path, case: str) -> GoldenNetwork:
    """A case of method/backbones."""
    folder = golden / "method" / "backbones"
    meta = json.loads((folder / "meta.json").read_text())["cases"][case]
    shapes = json.loads((folder / f"{case}.keys.json").read_text())
    arrays = {name: torch.from_numpy(value) for name, value in np.load(folder / f"{case}.npz").items()}
    weights = {name: filled(name, shapes[name], j, meta["salt"]) for j, name in enumerate(sorted(shapes))}
    return GoldenNetwork(arrays, weights, meta["grad_norms_f64"])


def filled(name: str, shape: list[int], number: int, salt: int, gain: float = 6.0) -> Tensor:
    """A tensor by the rule, number: its place among the sorted names.

    `weight` and `bias` are last words after a dot: `in_proj_weight` of an attention is "anything else".
    """
    name = f".{name}"
    count = math.prod(shape)
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint64)
        x += np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64) + np.uint64(salt * 0xD1B54A32D192ED03 % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    u = (x >> np.uint64(11)).astype(np.float64) / 2**53
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if name.endswith(("running_mean", ".bias")):
        values = (u - 0.5) * 0.2
    elif name.endswith("running_var") or (name.endswith(".weight") and len(shape) == 1):
        values = 0.5 + u
    elif name.endswith(".weight"):
        values = (2 * u - 1) * math.sqrt(gain / math.prod(shape[1:]))
    else:
        values = (2 * u - 1) * 0.5
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def with_weights(tower: PointBackbone, head: nn.Module, weights: dict[str, Tensor]) -> tuple[PointBackbone, nn.Module]:
    """Tower and head with upstream weights, without dropout; they have exactly those names and shapes together."""
    ours = {name: value for name, value in tower.state_dict().items() if name != "projection"}
    of_head = head.state_dict()
    assert not ours.keys() & of_head.keys()
    assert {name: value.shape for name, value in (ours | of_head).items()} == {n: w.shape for n, w in weights.items()}
    tower.load_state_dict({name: weights[name] for name in ours} | {"projection": tower.projection.detach()})
    head.load_state_dict({name: weights[name] for name in of_head})
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return tower, head
