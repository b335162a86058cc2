"""What a sample costs in PointCMT's stages on one core, and the memory of stage II, full size: 20 views of 224 pixels.

    python tests/bench/bench_pointcmt.py [--batch 2] [--views 20] [--points 1024]

The teacher's pass over all views (which stages II and III both make at each step), an update of the generator, and one
of a student of PointNet++, without it. CPU seconds, so that other work on the machine counts less; random weights.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

from machine import describe_machine, one_core

one_core()

import torch  # noqa: E402

from training.models.resnet import ResNetTower  # noqa: E402
from training.networks.cloud_generator import CloudGenerator, SharedSpaceHead  # noqa: E402
from training.networks.pointnet2 import PointCmtPointNet2  # noqa: E402
from training.objectives.distillation import divergence  # noqa: E402
from training.objectives.transport import earth_movers_distance  # noqa: E402
from training.settings.objective import GeneratorSettings  # noqa: E402
from training.settings.point_set_networks import PointCmtSettings  # noqa: E402


def cpu_ms(call: Callable[[], object], samples: int) -> float:
    """Milliseconds of CPU a sample, of the faster of two calls."""
    taken = []
    for _ in range(2):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return 1000 * min(taken) / samples


def peak_mb() -> float:
    """The largest resident memory of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints a line a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--points", type=int, default=1024)
    options = parser.parse_args()
    batch, count = options.batch, options.points
    torch.manual_seed(0)
    teacher = ResNetTower("resnet18", 8, 224).eval().requires_grad_(False)
    generator = CloudGenerator(512, count, GeneratorSettings())
    clouds, label = torch.randn(batch, count, 3), torch.arange(batch)
    start = peak_mb()

    @torch.no_grad()
    def feature() -> torch.Tensor:
        views = torch.randn(batch * options.views, 3, 224, 224)
        return teacher(views).cls.unflatten(0, (batch, options.views)).amax(dim=1)

    def generate() -> None:
        distance = earth_movers_distance(generator(picture), clouds, "mean", "centred").mean()
        (30 * distance).backward()

    student, head = PointCmtPointNet2(PointCmtSettings(), 8), SharedSpaceHead(512, 512, 40, ready=True)

    def learn() -> None:
        own = head.feature(student.represent(clouds))
        made, goal = generator(own), generator(picture)
        loss = torch.nn.functional.cross_entropy(head(own), label)
        loss = loss + 30 * earth_movers_distance(made, goal, "mean", "centred").mean()
        (loss + 0.3 * divergence(head.classify(own), head.classify(picture))).backward()

    told = {"the teacher's pass": cpu_ms(feature, batch)}
    picture = feature()
    told["an update of the generator, without it"] = cpu_ms(generate, batch)
    memory = peak_mb() - start
    told["an update of PointNet++, without it"] = cpu_ms(learn, batch)
    for name, value in told.items():
        print(f"{name}: {value:,.0f} ms of CPU a sample")
    print(f"stage II, batch {batch} x {options.views} views: {memory:,.0f} MB above the start ({describe_machine()})")


if __name__ == "__main__":
    main()
