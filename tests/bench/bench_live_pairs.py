"""CLIP2Point: a step with depth maps drawn in it against the same step with maps that are there already.

    python tests/bench/bench_live_pairs.py [--batch 64] [--steps 5] [--recipe small_clip2point] [--device cpu]
    python tests/bench/bench_live_pairs.py --shards OUT      # the loader's share of the time, too

Both take the same objects with the same towers, in turn: two maps each from the camera of the RGB view, live from 1,024
points, or as stored pictures of that size. The towers begin at random; no time depends on it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from machine import describe_machine, one_core

one_core()

import torch  # noqa: E402

from manifests.config import parse_changes  # noqa: E402
from manifests.picture_mapping import NORMALIZE  # noqa: E402
from manifests.presets import load_preset  # noqa: E402
from training.data.depth_pairs import RawPairBatch, drawn_pairs, live_of  # noqa: E402
from training.loop.fit import prepare  # noqa: E402
from training.loop.update import Updates, updates_of  # noqa: E402
from training.settings.fit_recipe import FitRecipe, read_recipe  # noqa: E402
from training.weights.checkpoint import build_model  # noqa: E402

POINTS = 1024


def batches(count: int, size: int) -> dict[str, RawPairBatch]:
    """The same objects with clouds to draw, and with the maps of those clouds."""
    g = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(count, POINTS, 3, generator=g), dim=2)
    preset = load_preset("depth10_release")[1]
    rotation = torch.tensor(preset.rotations)[torch.arange(count) % preset.num_views]
    image = torch.randint(256, (count, 3, size, size), generator=g, dtype=torch.uint8)
    live, seed = live_of(preset, "depth10_release", POINTS, False, None), torch.arange(count)
    plain = replace(live, pixels=((0.0,) * 3, (1.0,) * 3))
    maps = (drawn_pairs(points, seed, rotation, image, plain) * 255).to(torch.uint8)
    keys, pixels = tuple(map(str, range(count))), (NORMALIZE["clip"],) * 3
    drawn = RawPairBatch(keys, image, maps[:, :0], points, seed, rotation, pixels, live)
    return {"live": drawn, "stored": replace(drawn, maps=maps, points=points[:, :0], live=None)}


def timed(updates: Updates, raw: RawPairBatch, step: int, device: torch.device) -> float:
    """Seconds of a step, from the batch as a loader gives it."""
    start = time.perf_counter()
    updates(raw.to(device), step)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def loader_share(recipe: FitRecipe, shards: str, steps: int, device: torch.device) -> float:
    """The share of the time in which training waits for batches, without reader processes."""
    state, waited = prepare(recipe, shards, "bench", device), 0.0
    coming, begun = iter(state.loader), time.perf_counter()
    for step in range(min(steps, state.samples.num_batches)):
        start = time.perf_counter()
        raw = next(coming)
        waited += time.perf_counter() - start
        timed(state.updates, raw, step, device)
    return waited / (time.perf_counter() - begun)


def main() -> None:
    """Prints both times, their ratio and, with shards, the loader's share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--recipe", default="small_clip2point")
    parser.add_argument("--shards")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("changes", nargs="*", metavar="key=value")
    options = parser.parse_args()
    keys = ("data.workers=0", "init.image=", f"optimizer.batch_size={options.batch}", *options.changes)
    recipe, device = read_recipe(options.recipe, parse_changes(keys)), torch.device(options.device)
    model, _ = build_model(recipe, ("mug", "bowl"), blank=True)
    updates = updates_of(model.to(device).train(), recipe, 1000)
    both = batches(options.batch, model.image.image_size)
    taken: dict[str, list[float]] = {name: [] for name in both}
    for step in range(options.steps + 1):  # the first is not counted
        for name, raw in both.items():
            taken[name].append(timed(updates, raw, step, device))
    best = {name: min(each[1:]) for name, each in taken.items()}
    ratio = best["live"] / best["stored"]
    print(f"step of {options.batch}: live {best['live']:.3f} s, stored {best['stored']:.3f} s, {ratio:.3f} x")
    if options.shards:
        share = loader_share(recipe, options.shards, options.steps, device)
        print(f"the loader's share of a live step without reader processes: {share:.1%}")
    print(describe_machine())


if __name__ == "__main__":
    main()
