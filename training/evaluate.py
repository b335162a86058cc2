"""Accuracies of a checkpoint: student and teacher, image and points. With the objectives of SUPERVISED, the only reader
of labels.

`image`: one view an object, chosen by sha256(seed, key); `image_mean`: mean over single views; `image_star`: the views'
unit features averaged; `points`: the stored cloud. Percent of objects; `mean_per_class` averages the classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manifests.errors import Refused
from manifests.seeds import seed_digest
from training.checkpoint import MODEL, TEACHER, Checkpoint, build_model, load_text, load_weights, without_pretrained
from training.data import LabelledBatch, labelled
from training.model import CrossModalModel

BATCH = 32
COLUMNS = ("image", "image_mean", "image_star", "points")


@dataclass
class _Counts:
    """Right answers of each column, by class, and objects by class."""

    right: dict[str, Tensor]
    objects: Tensor

    def percent(self) -> dict[str, Any]:
        """Percent right of each column over objects, and over classes."""
        seen = self.objects > 0
        per_class = {name: (right[seen] / self.objects[seen]).mean() for name, right in self.right.items()}
        values: dict[str, Any] = {
            name: _percent(right.sum() / self.objects.sum()) for name, right in self.right.items()
        }
        values["mean_per_class"] = {name: _percent(value) for name, value in per_class.items()}
        return values


def _percent(share: Tensor) -> float:
    return round(100 * float(share), 2)


@torch.no_grad()
def evaluate(
    checkpoint: Checkpoint,
    shards: str,
    split: str = "test",
    device: torch.device | None = None,
    classes_from_text: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The object that `evaluate --json` prints.

    Raises Refused when the shards have no such split or view set, or other classes than the checkpoint
    (classes_from_text: a new classifier is made from their names).
    """
    recipe = checkpoint.recipe
    device = device or torch.device("cpu")
    settings = recipe.data.model_copy(update={"split": split})
    model, text = build_model(without_pretrained(recipe), checkpoint.prompt_names)
    source, batches = labelled(shards, settings, model.image.image_size, BATCH)
    classes, prompts = source.manifest.classes, source.manifest.prompt_names
    if classes != checkpoint.classes and not classes_from_text:
        raise Refused(
            f"{shards} has {len(classes)} classes, the checkpoint {len(checkpoint.classes)} others: "
            "--classes-from-text makes a classifier from their names"
        )
    result: dict[str, Any] = {
        "dataset": source.manifest.dataset,
        "split": split,
        "n": 0,
        "classes": list(classes),
        "step": checkpoint.step,
    }
    from_text = None
    if classes_from_text:
        load_text(checkpoint, text)
        from_text = text.classifier(prompts, recipe.prompts)
    for who, file in (("student", MODEL), ("teacher", TEACHER)):
        if who == "teacher" and not (checkpoint.folder / file).is_file():
            result[who] = None  # a method without a teacher
            continue
        trained = copy.deepcopy(model)
        load_weights(trained, checkpoint.folder / file)
        if from_text is not None:
            trained.set_classifier(from_text)
        trained.to(device).eval()
        counts = _count(trained, batches, source.total, len(classes), recipe.seed, device, on_progress)
        if not counts.objects.sum():
            raise Refused(f"{shards}: no object of {split} has a label")
        result["n"] = int(counts.objects.sum())
        result[who] = counts.percent()
    return result


def _count(model, batches, total, num_classes, seed, device, on_progress) -> _Counts:
    counts = _Counts({name: torch.zeros(num_classes) for name in COLUMNS}, torch.zeros(num_classes))
    for batch in batches():
        for name, share in _answers(model, batch, seed, device).items():
            counts.right[name].index_add_(0, batch.label, share)
        counts.objects.index_add_(0, batch.label, torch.ones(len(batch.label)))
        on_progress(int(counts.objects.sum()), total)
    return counts


def _answers(model: CrossModalModel, batch: LabelledBatch, seed: int, device: torch.device) -> dict[str, Tensor]:
    """For each column the share right (B,): 0 or 1, and a mean over views for image_mean."""
    b, v = batch.images.shape[:2]
    label = batch.label[:, None]
    feature = model.image_features(batch.images.flatten(0, 1).to(device))
    by_view = (model.image_logits(feature).argmax(dim=1).cpu().reshape(b, v) == label).float()
    view = torch.tensor([one_view(seed, key, v) for key in batch.keys])
    star = normalize(feature.reshape(b, v, -1).mean(dim=1), dim=1)
    points = model.point_features(batch.points.to(device))
    return {
        "image": by_view.gather(1, view[:, None]).squeeze(1),
        "image_mean": by_view.mean(dim=1),
        "image_star": (model.image_logits(star).argmax(dim=1).cpu() == batch.label).float(),
        "points": (model.points_logits(points).argmax(dim=1).cpu() == batch.label).float(),
    }


def one_view(seed: int, key: str, num_views: int) -> int:
    """The view of the column `image`: the same for every model and machine."""
    return int.from_bytes(seed_digest(seed, key)[:8], "big") % num_views
