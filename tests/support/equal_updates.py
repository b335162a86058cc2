"""Some updates of several recipes, by as many processes as there are: rows of the log and weights, for comparison.

    python equal_updates.py SHARDS OUT JSON     (under torchrun or alone; JSON: name -> [recipe, changes])

Every process takes its rows of the same global batches, which a stream of one process reads from real shards.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from manifests.config import parse_changes
from training import distributed
from training.data.loader import Loader
from training.loop import fit
from training.loop.metric_log import Log
from training.loop.train_state import Run
from training.settings.fit_recipe import FitRecipe, read_recipe


def own_rows(batch: Any, kind: torch.dtype = torch.float32) -> Any:
    """This process's part of a global batch."""
    size = len(batch.keys) // distributed.world()
    part = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    rows = {name: value[part] for name, value in values.items() if name == "keys" or isinstance(value, torch.Tensor)}
    floating = {name: value for name, value in rows.items() if name != "keys" and value.is_floating_point()}
    rows |= {name: value.to(kind) for name, value in floating.items()}
    return replace(batch, **rows)


def global_stream(state: Run, recipe: FitRecipe) -> tuple[Any, Any]:
    """Whole batches, as one process reads them."""
    mine, whole = state.samples, recipe.optimizer.batch_size
    samples = type(mine)(mine.source, recipe.data, recipe.augment, mine.form, whole, recipe.seed)
    return samples, Loader(samples)


def updates(recipe: FitRecipe, shards: str, folder: Path, kind: torch.dtype = torch.float32) -> dict[str, Any]:
    """All steps of a recipe: a row a step, then the weights of student and teacher and the last step's gradients."""
    state, _ = fit._set_up(folder, recipe, shards, torch.device("cpu"))
    models = {"student": state.updates.student}
    if state.updates.teacher is not None:
        models["teacher"] = state.updates.teacher.model
    for model in models.values():
        model.to(kind)
    state.seed()
    samples, loader = global_stream(state, recipe)
    rows = []
    while state.step < state.updates.total_steps:
        samples.set_epoch(state.step // samples.num_batches)
        for batch in loader:
            state.updates(own_rows(batch.to(state.device), kind), state.step)
            state.step += 1
            rows.append(state.updates.log.row())
            if state.step == state.updates.total_steps:
                break
    weights = {who: model.state_dict() for who, model in models.items()}
    trained = {name: p for name, p in state.updates.student.named_parameters() if p.requires_grad}
    missing = [name for name, p in trained.items() if p.grad is None]
    gradients = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    return {"rows": rows, "weights": weights, "without_gradient": missing, "gradients": gradients}


def skipped(recipe: FitRecipe, shards: str, folder: Path) -> dict[str, Any]:
    """One update whose loss is not finite in the last process alone: what it says, and whether weights moved."""
    state, _ = fit._set_up(folder, recipe, shards, torch.device("cpu"))
    _, loader = global_stream(state, recipe)
    before = {name: value.clone() for name, value in state.updates.student.state_dict().items()}
    batch = own_rows(next(iter(loader)).to(state.device))
    if distributed.rank() == distributed.world() - 1:
        batch.strong_image[0, 0] = torch.nan
    state.updates(batch, 1)
    after = state.updates.student.state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    log: Log = state.updates.log
    try:
        log.refuse_fault()
        words = ""
    except fit.distributed.Stopped as error:
        words = str(error)
    return {"moved": distributed.gather_values(moved), "words": distributed.gather_values(words)}


def main(shards: str, out: str, recipes: str) -> None:
    distributed.start()
    torch.set_num_threads(1)
    found = {}
    for name, (recipe, *changes) in json.loads(recipes).items():
        given = read_recipe(recipe, parse_changes(changes)), shards, Path(out).with_suffix(f".{name}")
        if name == "skipped":
            found[name] = skipped(*given)
        else:
            found[name] = updates(*given, torch.float64 if name.endswith("f64") else torch.float32)
    if distributed.leads():
        torch.save(found, out)
    distributed.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
