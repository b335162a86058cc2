"""The oracle of a report: the same towers taught by the true labels of the target domain. An upper bound, not a method.

It answers whether there is anything to gain: where true labels do not help, no self-training will. It stands outside
`fit`, which never sees a label.

    python -m training.oracle small_cross_most --shards shards/target --run runs/oracle init.all=runs/pretrain

Model, optimiser, schedule and number of steps are those of the recipe; the loss is the cross-entropy of both branches.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track
from torch.nn.functional import cross_entropy

from manifests import store
from manifests.cli import exit_code, parse_arguments
from manifests.config import parse_changes, to_toml
from manifests.errors import Refused, Stopped
from manifests.plain_text import PlainConsole
from manifests.records import json_text
from training import distributed
from training.data.batch import LabelledBatch
from training.data.dataset import open_source
from training.data.loader import Form, Loader, SupervisedSamples
from training.loop.fit import run_information, write_seconds
from training.loop.update import adamw, learning_rate, steps_of
from training.models.cross_modal import CrossModalModel
from training.settings.fit_recipe import FitRecipe, read_recipe
from training.weights.checkpoint import RECIPE, build_model, save_step
from training.weights.run_folder import CLASSES


def train(
    recipe: FitRecipe, shards: str, run: Path, device: torch.device, progress: Callable[[range], range] = lambda r: r
) -> Path:
    """Trains on true labels and saves a run that `evaluate` reads. Gives the checkpoint's folder.

    Raises Refused when shards, recipe or folder do not fit, Stopped on a loss that is not finite or a full disk.
    """
    distributed.refuse_several("training.oracle")
    if run.exists() and any(run.iterdir()):
        raise Refused(f"--run {run} is not empty; the oracle does not go on from where it was stopped")
    source = open_source(shards, recipe.data)
    model, _ = build_model(recipe, source.manifest.prompt_names)
    settings = recipe.optimizer
    form = Form(model.image.image_size, model.image.patch, recipe.mask.image_cell, recipe.mask.image_ratio)
    samples = SupervisedSamples(source, recipe.data, recipe.augment, form, settings.batch_size, recipe.seed)
    loader = Loader(samples)
    total, warmup = steps_of(settings, samples.num_batches)
    torch.manual_seed(recipe.seed)
    model.to(device).train()
    optimizer = adamw(model, settings)
    batches, started = _endless(samples, loader), time.monotonic()
    for step in progress(range(total)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, warmup, settings) * group["lr_scale"]
        loss = _loss(model, next(batches).to(device))
        if not torch.isfinite(loss):
            raise Stopped(f"step {step + 1}: the loss is not finite; lower optimizer.lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    store.write_bytes(str(run / RECIPE), to_toml(recipe.model_dump(mode="json")).encode())
    about = run_information(source) | {"oracle": True}
    store.write_bytes(str(run / CLASSES), json_text(about, indent=1).encode())
    write_seconds(run, time.monotonic() - started, total)
    return save_step(run, total, model, None, {"step": total}, recipe)


def _endless(samples, loader):
    epoch = 0
    while True:
        samples.set_epoch(epoch)
        yield from loader
        epoch += 1


def _loss(model: CrossModalModel, batch: LabelledBatch) -> torch.Tensor:
    """Cross-entropy of both branches, each divided by B."""
    image = model.image_logits(model.image_features(batch.images[:, 0]))
    points = model.points_logits(model.point_features(batch.points))
    return cross_entropy(image, batch.label) + cross_entropy(points, batch.label)


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit codes as those of `python -m training`."""
    parser = argparse.ArgumentParser(prog="python -m training.oracle", description="An upper bound: labels known.")
    parser.add_argument("recipe")
    parser.add_argument("changes", nargs="*", metavar="key=value")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parse_arguments(parser, arguments)
    console = PlainConsole(stderr=True, soft_wrap=True)
    torch.set_flush_denormal(True)

    def work() -> int:
        recipe = read_recipe(options.recipe, parse_changes(options.changes))
        folder = train(
            recipe,
            options.shards,
            store.local_path(options.run, "--run"),
            distributed.device_of(options.device),
            lambda steps: track(steps, "oracle", console=console, disable=not console.is_terminal),
        )
        console.print(f"{folder}: labels known, an upper bound")
        return 0

    return exit_code(work, console, "train", "stopped; run the same again")


if __name__ == "__main__":
    sys.exit(main())
