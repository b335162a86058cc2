"""Measures part segmentation: the mean intersection over union (mIoU) of found and true parts, by two arg-max rules.

Of one object: the IoU of each part of its class, 1 for a part that neither has; their mean is the object's. Instance
mIoU is the mean over objects, class mIoU that over the classes' means. A point's part is the arg-max over the parts of
all classes (CrossPoint), or over those of the object's class alone (PointNet++), which is higher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifests.config import Value, merge, parse_recipe
from manifests.dataset_info import DatasetTable
from manifests.errors import Refused
from training import distributed
from training.data.dataset import Source, open_source
from training.data.part_samples import WholePartBatch, part_table, whole_parts
from training.evaluation.features import require_finite
from training.settings.data import DataSettings
from training.settings.fit_recipe import PartsRecipe
from training.weights.part_weights import OpenedParts
from training.weights.run_folder import last_step

RULES = {"all": "all parts", "class": "the class's parts"}  # of the arg-max


@dataclass(frozen=True)
class LabelledPoints:
    """An object and the parts that were found on its own points, without the repeats that fill up its cloud.

    points: float32 (N, 3). found: by arg-max rule, int64 (N,). parts: int64 (N,), the true ones where they were read.
    """

    key: str
    category: int
    points: np.ndarray
    found: dict[str, np.ndarray]
    parts: np.ndarray | None


@torch.inference_mode()
def label_points(
    opened: OpenedParts,
    source: Source,
    settings: DataSettings,
    table: DatasetTable,
    required: bool = True,
    category: int | None = None,
) -> Iterator[LabelledPoints]:
    """Every object of a split with the parts of its points. required, category: as of `whole_parts`.

    Raises Stopped, naming the object, where an answer is not finite.
    """
    device = next(opened.model.parameters()).device
    for batch in whole_parts(source, settings.num_points, table, required, category):
        logits = opened.model(batch.points.to(device), batch.category.to(device)).cpu()
        require_finite(batch.keys, logits)
        yield from _objects(batch, _by_rule(logits, batch.category, table))


def run_table(opened: OpenedParts) -> DatasetTable:
    """The classes and parts of a run. Raises Refused where its dataset has others by now."""
    table = part_table(opened.checkpoint.dataset)
    if table.parts != opened.parts:
        raise Refused(f"dataset {table.name} has other parts than when {opened.checkpoint.folder} was trained")
    return table


def require_same_parts(opened: OpenedParts, source: Source) -> DatasetTable:
    """The classes and parts of a build, where they are those of the run. Raises Refused."""
    table = part_table(source.manifest.dataset)
    if table.parts != opened.parts:
        raise Refused(f"dataset {table.name} has other parts than {opened.checkpoint.dataset}, of the run")
    return table


def _by_rule(logits: Tensor, category: Tensor, table: DatasetTable) -> dict[str, Tensor]:
    """Parts (B, N) of logits (B, parts, N) by each arg-max rule."""
    own = torch.zeros(logits.shape[:2], dtype=torch.bool)
    for row, label in zip(own, category.tolist(), strict=True):
        row[list(table.parts_of(label))] = True
    within = logits.masked_fill(~own[:, :, None], -torch.inf)
    return {"all": logits.argmax(dim=1), "class": within.argmax(dim=1)}


def _objects(batch: WholePartBatch, found: dict[str, Tensor]) -> Iterator[LabelledPoints]:
    for number, (key, count) in enumerate(zip(batch.keys, batch.stored, strict=True)):
        parts = {rule: each[number, :count].numpy() for rule, each in found.items()}
        true = None if batch.parts is None else batch.parts[number, :count].numpy()
        yield LabelledPoints(key, int(batch.category[number]), batch.points[number, :count].numpy(), parts, true)


def object_iou(found: np.ndarray, true: np.ndarray, parts: Iterable[int]) -> float:
    """The mean over the parts of a class of the IoU of found and true part numbers (N,), 1 where neither has a part."""
    shares = []
    for part in parts:
        either = np.count_nonzero((found == part) | (true == part))
        shares.append(np.count_nonzero((found == part) & (true == part)) / either if either else 1.0)
    return float(np.mean(shares))


def means(ious: Iterable[float], categories: Iterable[int]) -> tuple[float, float, dict[int, float]]:
    """Instance mIoU, class mIoU over the classes that occur, and the mean of each of these."""
    by_class: dict[int, list[float]] = {}
    for iou, category in zip(ious, categories, strict=True):
        by_class.setdefault(category, []).append(iou)
    each = {category: float(np.mean(by_class[category])) for category in sorted(by_class)}
    every = [iou for inside in by_class.values() for iou in inside]
    return float(np.mean(every)), float(np.mean(list(each.values()))), each


def evaluate_parts(
    opened: OpenedParts,
    shards: str,
    split: str,
    changes: dict[str, Value],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Both mIoUs of a split in percent, by both arg-max rules, of all objects and of each class.

    changes: keys of `data` that replace the recipe's. Raises Refused where the build or the split has no part labels of
    the run's, and DamagedShard naming an object without them.
    """
    if distributed.world() > 1:
        raise Refused("a run of part segmentation is evaluated by one process: start it without torchrun")
    settings = part_data(opened, split, changes)
    source = open_source(shards, settings, pictures=False)
    table = require_same_parts(opened, source)
    categories: list[int] = []
    ious: dict[str, list[float]] = {rule: [] for rule in RULES}
    for each in label_points(opened, source, settings, table):
        categories.append(each.category)
        for rule, found in each.found.items():
            assert each.parts is not None  # they were asked for
            ious[rule].append(object_iou(found, each.parts, table.parts_of(each.category)))
        on_progress(len(categories), source.total)
    if not categories:
        raise Refused(f"{shards}: {split} has no object that data.* leaves")
    recipe, checkpoint = opened.checkpoint.recipe, opened.checkpoint
    rules = {}
    for rule, values in ious.items():
        instance, by_class, each_class = means(values, categories)
        named = {table.classes[label]: round(100 * value, 4) for label, value in each_class.items()}
        rules[rule] = {"instance": round(100 * instance, 4), "class": round(100 * by_class, 4), "per_class": named}
    return {
        "dataset": table.name,
        "split": split,
        "n": len(categories),
        "objects": {table.classes[label]: categories.count(label) for label in sorted(set(categories))},
        "step": checkpoint.step,
        "last_step": checkpoint.folder == last_step(checkpoint.folder.parent.parent),
        "seed": recipe.seed,
        "backbone": recipe.points.backbone,
        "k": getattr(recipe.points, "k", None),
        "num_points": settings.num_points,
        "precision": opened.precision,
        "miou": rules,
    }


def part_data(opened: OpenedParts, split: str, changes: dict[str, Value]) -> DataSettings:
    """The data settings for judging a run. Raises Refused for an unknown key of `data`."""
    recipe = opened.checkpoint.recipe
    assert isinstance(recipe, PartsRecipe)
    settings = parse_recipe(
        DataSettings, merge(recipe.data.model_dump(mode="json") | {"split": split}, changes), "data"
    )
    fewest = recipe.points.fewest_points
    if settings.num_points < fewest:
        raise Refused(f"data.num_points={settings.num_points} is fewer than the {fewest} that points.* needs")
    return settings
