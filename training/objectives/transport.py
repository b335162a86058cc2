"""Earth mover's distance of point clouds (PointCMT, eq. 4 and 5): what it costs to carry one cloud onto the other.

Each point of a cloud goes to its own point of the other, so that the distances walked are least in all. Shape letters:
B clouds, N points.
"""

from __future__ import annotations

from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.linalg import vector_norm

from manifests.errors import Stopped

Reduction = Literal["mean", "sum"]
BoxScale = Literal["released", "centred", "none"]
EXACT_TO = 256  # points of clouds on a GPU, whose distances scipy would wait for
EXACT_ON_CPU = 1024  # there scipy is as fast as the auction or faster (tests/bench/bench_transport.py)
BOUND = 0.01  # of the exact value: what an auction may cost more
_FINEST = 1e-5  # smallest step of an auction, of the largest distance; ends it where the exact value is zero
_FINER = 5.0  # from one round of an auction to the next


def boxed(cloud_BN3: Tensor, how: BoxScale) -> Tensor:
    """Clouds whose longest side is 1.

    how: `centred` on their boxes; `released` off their centres by up to 0.29, as PointCMT's code has them (its formula
    lacks a pair of brackets); `none` leaves them as they are. A cloud without extent is not scaled.
    """
    if how == "none":
        return cloud_BN3
    low, high = cloud_BN3.amin(dim=1, keepdim=True), cloud_BN3.amax(dim=1, keepdim=True)
    sides = high - low
    size = sides.amax(dim=2, keepdim=True)
    size = torch.where(size > 0, size, 1)
    corner = low - (size - sides) / 2 if how == "centred" else (low - (size - sides)) / 2
    return (cloud_BN3 - corner) / size - 0.5


def earth_movers_distance(
    moved_BN3: Tensor, target_BN3: Tensor, reduction: Reduction = "mean", box_scale: BoxScale = "none"
) -> Tensor:
    """(B,): the distance of each pair, which only `moved` gets a gradient of, through its scaling, too.

    reduction: over points, `mean` (released) or `sum` (as printed), N times as much. Exact up to EXACT_TO points, on
    the CPU to EXACT_ON_CPU, above that at most BOUND more. A point that lies on its target has gradient 0. Raises
    Stopped for clouds of different sizes.
    """
    if moved_BN3.shape != target_BN3.shape:
        sizes = f"{tuple(moved_BN3.shape)} and {tuple(target_BN3.shape)}"
        raise Stopped(f"clouds {sizes}: the earth mover's distance wants as many points on both sides")
    wide = torch.promote_types(moved_BN3.dtype, torch.float32)
    moved, target = (boxed(each.to(wide), box_scale) for each in (moved_BN3, target_BN3.detach()))
    goal = target.gather(1, assignment(moved.detach(), target)[:, :, None].expand_as(target))
    return getattr(vector_norm(moved - goal, dim=2), reduction)(dim=1)


@torch.no_grad()
def assignment(moved_BN3: Tensor, target_BN3: Tensor) -> Tensor:
    """int64 (B, N): which point of the target each point goes to. A distance that is no number counts as 0."""
    cost = torch.cdist(moved_BN3, target_BN3, compute_mode="donot_use_mm_for_euclid_dist")
    cost = torch.where(cost.isfinite(), cost, 0)
    if cost.shape[1] > (EXACT_ON_CPU if cost.device.type == "cpu" else EXACT_TO):
        return auction(cost)
    found = [torch.from_numpy(linear_sum_assignment(each)[1]) for each in cost.cpu().numpy()]
    return torch.stack(found).to(cost.device)


@torch.no_grad()
def auction(cost_BNN: Tensor, bound: float = BOUND) -> Tensor:
    """int64 (B, N): columns that cost at most (1 + bound) of the cheapest, on any device.

    Bertsekas' auction: rows bid for columns by at least a step, which gets finer until prices prove the bound. (Where
    the cheapest is next to zero: at most 1e-5 of the largest entry more, in the mean over rows.)
    """
    B, N, _ = cost_BNN.shape
    largest = cost_BNN.amax(dim=(1, 2), keepdim=True)
    cost = (cost_BNN / torch.where(largest > 0, largest, 1)).float()
    flat = cost.reshape(B * N, N)
    price = cost.new_zeros(B, N)
    column = torch.full((B * N,), -1, device=cost.device)  # of a row; both numbered through the batch
    step = 0.25
    first = torch.arange(B, device=cost.device).repeat_interleave(N) * N  # number of a cloud's first row or column
    while True:
        _bid(flat, price, column, first, step)
        paid = flat.gather(1, (column - first)[:, None]).view(B, N).sum(dim=1)
        proven = (cost + price[:, None]).amin(dim=2).sum(dim=1) - price.sum(dim=1)  # no assignment is cheaper
        if bool((paid <= (1 + bound) * proven).all()) or step <= _FINEST:
            return (column - first).view(B, N)
        step /= _FINER
        worth = (cost + price[:, None]).view(B * N, N)
        now = worth.gather(1, (column - first)[:, None])[:, 0]
        column[now > worth.amin(dim=1) + step] = -1


def _bid(cost: Tensor, price_BN: Tensor, column: Tensor, first: Tensor, step: float) -> None:
    """Bids until each row has a column; changes `price_BN` and `column`, where -1 is a row without one."""
    price, owner = price_BN.view(-1), torch.full_like(column, -1)
    held = (column >= 0).nonzero()[:, 0]
    owner[column[held]] = held
    waiting = (column < 0).nonzero()[:, 0]
    N = price_BN.shape[1]
    while len(waiting):
        start = first[waiting]
        worth, order = (cost[waiting] + price_BN[start // N]).topk(2, largest=False)
        wanted = start + order[:, 0]
        offer = price[wanted] + (worth[:, 1] - worth[:, 0]) + step
        best = torch.full_like(price, -torch.inf).scatter_reduce(0, wanted, offer, "amax")
        highest = offer == best[wanted]
        winner = torch.full_like(owner, -1).scatter_reduce(0, wanted[highest], waiting[highest], "amax")
        sold = (winner >= 0).nonzero()[:, 0]
        loser = owner[sold]
        column[loser[loser >= 0]] = -1
        owner[sold], column[winner[sold]], price[sold] = winner[sold], sold, best[sold]
        waiting = (column < 0).nonzero()[:, 0]
