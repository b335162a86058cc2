"""The earth mover's distance of a batch of clouds: our auction against scipy's exact assignment, on one core.

    python tests/bench/bench_transport.py [--batch 32] [--points 1024]

Both get the same distances, of pairs as PointCMT's stage III has them: two clouds that one generator makes of near
features, and of pairs that do not know each other, as at the start of stage II. Only the assignments are timed.
"""

from __future__ import annotations

import argparse
import time

from machine import describe_machine, one_core

one_core()

import torch  # noqa: E402
from scipy.optimize import linear_sum_assignment  # noqa: E402
from torch import Tensor  # noqa: E402

from training.objectives.transport import auction, boxed  # noqa: E402


def pairs(kind: str, batch: int, count: int) -> tuple[Tensor, Tensor]:
    """Clouds (B, N, 3) of both sides, scaled to their boxes. kind: `near` or `strange`."""
    g = torch.Generator().manual_seed(0)
    surface = torch.nn.functional.normalize(torch.randn(batch, count, 3, generator=g), dim=2)
    target = surface * torch.rand(batch, 1, 3, generator=g).clamp(min=0.2)
    if kind == "near":
        moved = target + 0.05 * torch.randn(batch, count, 3, generator=g)
    else:
        moved = 0.1 * torch.randn(batch, count, 3, generator=g)
    return boxed(moved, "centred"), boxed(target, "centred")


def main() -> None:
    """Prints seconds of both, their ratio, and how much more the auction's assignment costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--points", type=int, default=1024)
    options = parser.parse_args()
    for kind in ("near", "strange"):
        moved, target = pairs(kind, options.batch, options.points)
        cost = torch.cdist(moved, target, compute_mode="donot_use_mm_for_euclid_dist")
        begun = time.process_time()
        exact = [each[linear_sum_assignment(each)].sum() for each in cost.numpy()]
        middle = time.process_time()
        column = auction(cost)
        ours = time.process_time() - middle
        paid = cost.gather(2, column[:, :, None])[:, :, 0].sum(dim=1) / torch.tensor(exact) - 1
        print(
            f"{options.batch} x {options.points:,} {kind}: exact {middle - begun:.2f} s, auction {ours:.2f} s of CPU "
            f"({(middle - begun) / ours:.2f} x), costs {100 * paid.mean():.2f} % more, at most {100 * paid.max():.2f} %"
        )
    print(describe_machine())


if __name__ == "__main__":
    main()
