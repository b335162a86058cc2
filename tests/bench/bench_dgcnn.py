"""DGCNN against its dense form: forward and backward of a training batch on one core, time and memory.

    python tests/bench/bench_dgcnn.py [--batch 20] [--points 2048] [--repeat 2]

The dense form is written here by its definition, as released code has it: all squared distances of a layer in one
(B, N, N) tensor, and every edge's features (B, 2C, N, k) before the convolution. Both have the same weights and clouds
and run in turn, each in a process of its own, whose peak memory above that before the first pass is counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from machine import describe_machine, one_core

one_core()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import batch_norm, leaky_relu  # noqa: E402

from training.networks.dgcnn import Dgcnn  # noqa: E402
from training.settings.point_networks import DgcnnSettings  # noqa: E402


def dense(tower: Dgcnn, points: Tensor) -> Tensor:
    """The feature (B, 2048) of clouds (B, N, 3) with the weights of `tower`, over all edges at once."""
    weights, x, found = tower.state_dict(keep_vars=True), points.transpose(1, 2), []
    for number in range(1, 5):
        squares = x.square().sum(dim=1)
        distances = squares[:, :, None] - 2 * x.transpose(1, 2) @ x + squares[:, None]
        nearest = (-distances).topk(tower.k, dim=2).indices
        rows = torch.arange(len(x))[:, None, None]
        ends = x.transpose(1, 2)[rows, nearest].permute(0, 3, 1, 2)
        starts = x[..., None].expand_as(ends)
        edges = torch.cat([ends - starts, starts], dim=1)
        edges = torch.nn.functional.conv2d(edges, weights[f"conv{number}.0.weight"])
        x = leaky_relu(_normalised(edges, weights, f"conv{number}.1"), 0.2).max(dim=3).values
        found.append(x)
    x = torch.nn.functional.conv1d(torch.cat(found, dim=1), weights["conv5.0.weight"])
    x = leaky_relu(_normalised(x, weights, "conv5.1"), 0.2)
    return torch.cat([x.max(dim=2).values, x.mean(dim=2)], dim=1)


def _normalised(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)


def measure(form: str, batch: int, count: int, times: int) -> dict[str, object]:
    """Seconds of the fastest of `times` passes with gradients, MB above the start, and the feature's mean square."""
    torch.manual_seed(0)
    tower = Dgcnn(DgcnnSettings(), 512).train()
    points = torch.randn(batch, count, 3)
    before, taken, value = _peak_mb(), [], 0.0
    for _ in range(times):
        tower.zero_grad()
        start = time.perf_counter()
        feature = tower.represent(points) if form == "ours" else dense(tower, points)
        loss = feature.square().mean()
        loss.backward()
        taken.append(time.perf_counter() - start)
        value = loss.item()
        del feature, loss
    return {"seconds": min(taken), "mb": _peak_mb() - before, "value": value}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Runs both forms and prints their figures and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--form", choices=("ours", "dense"), help="one form alone, as JSON")
    options = parser.parse_args()
    if options.form:
        print(json.dumps(measure(options.form, options.batch, options.points, options.repeat)))
        return
    found = {}
    for form in ("ours", "dense"):
        done = subprocess.run([sys.executable, *sys.argv, "--form", form], check=True, capture_output=True, text=True)
        found[form] = json.loads(done.stdout)
        print(
            f"{form:6} {found[form]['seconds']:6.1f} s {found[form]['mb']:8,.0f} MB   value {found[form]['value']:.6f}"
        )
    time_ratio, memory_ratio = (found["ours"][key] / found["dense"][key] for key in ("seconds", "mb"))
    print(f"time {time_ratio:.2f} x, memory {memory_ratio:.2f} x of the dense form  ({describe_machine()})")


if __name__ == "__main__":
    main()
