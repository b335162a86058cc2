"""depth10: maps of 1,024 points, 224 px, 10 views, one core; numpy, and its torch twin.

    python tests/bench/bench_depth.py

Baseline of the ratio: the literal reference on one view of 64 px, in the same run.
"""

from __future__ import annotations

from machine import describe_machine, one_core, repeat

one_core()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from manifests.presets import load_preset  # noqa: E402
from pipeline.shards.object import keep_freed_memory  # noqa: E402
from renderers import reference  # noqa: E402
from renderers.backend_table import draw, preset_cameras  # noqa: E402
from renderers.point_depth_torch import depth_maps  # noqa: E402


def main() -> None:
    """Prints one line a backend."""
    keep_freed_memory()  # as a worker does
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1024, 3)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1).max()
    _, preset = load_preset("depth10")
    _, small = load_preset("depth10", {"image_size": 64})
    cameras, batch = preset_cameras(preset), torch.from_numpy(np.stack([points] * 32))
    print(f"{describe_machine()}; 1,024 points, {preset.image_size} px, dilation {preset.dilation}")
    slow = repeat(lambda: reference.depth_of_points(points, small, preset_cameras(small)[0]), 2)[1]
    for name, call, views in (
        ("numpy", lambda: draw(preset, points=points), 10),
        ("torch, 32 objects", lambda: depth_maps(batch, cameras), 320),
    ):
        low, middle = repeat(call, 30)
        ratio = slow * (224 / 64) ** 2 / (middle / views)
        print(
            f"{name:18} {low / views:.3f} ms a view at best, {middle / views:.3f} median, {ratio:,.0f} x the reference"
        )
    if torch.cuda.is_available():
        on_device = batch.cuda()

        def call() -> None:
            depth_maps(on_device, cameras)
            torch.cuda.synchronize()

        low, middle = repeat(call, 30)
        print(f"{torch.cuda.get_device_name()}: {low / 320:.4f} ms a view at best, {middle / 320:.4f} median")


if __name__ == "__main__":
    main()
