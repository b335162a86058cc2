"""What a checkpoint answers: student and teacher, image and points. With the objectives of SUPERVISED and the oracle,
the only reader of labels.

`image`: one view an object, chosen by sha256(seed, key); `image_mean`: mean over single views; `image_star`: the views'
unit features averaged; `points`: the stored cloud. Percent of objects; `mean_per_class` averages the classes.

Shape letters: B batch, N objects of a split, V views, C classes.
"""

from __future__ import annotations

import copy
import filecmp
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manifests.errors import Refused
from manifests.recipes import Value, merge, parse_recipe
from manifests.seeds import seed_digest
from training.batches import LabelledBatch
from training.checkpoint import MODEL, TEACHER, Checkpoint, build_model, load_text, load_weights, without_pretrained
from training.join import DataSettings, Source
from training.labelled import labelled
from training.losses import biasedness, divergence_from_uniform
from training.model import CrossModalModel
from training.teacher import LabelSettings, pseudo_labels
from training.towers.clip import TextTower

BATCH = 32
COLUMNS = ("image", "image_mean", "image_star", "points")
MODALITIES = ("image", "points")
LABEL_MODES = ("image", "points", "joint")
Progress = Callable[[int, int], None]


class Unlabelled(Refused):
    """A split none of whose objects has a label: nothing can be evaluated."""


def _silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Answers:
    """What one model answers about the labelled objects of a split.

    label: int64 (N,). logits: float32 (N, C) of the columns `image`, `image_star` and `points`. views_right: float32
    (N,), the share of an object's views that are right. Without `every_view` the second has no `image_star` and the
    third is empty.
    """

    label: Tensor
    logits: dict[str, Tensor]
    views_right: Tensor

    def right(self, column: str) -> Tensor:
        """Float32 (N,): 1 where the answer is the label, 0 elsewhere; a share for `image_mean`."""
        if column == "image_mean":
            return self.views_right
        return (self.logits[column].argmax(dim=1) == self.label).float()

    def guess(self, column: str, number: int) -> tuple[int, float]:
        """The class predicted for one object, and its probability."""
        confidence, predicted = self.logits[column][number].softmax(dim=0).max(dim=0)
        return int(predicted), float(confidence)

    def percent(self) -> dict[str, Any]:
        """Percent right of each column over objects, and over classes."""
        right = {name: self.right(name) for name in COLUMNS}
        objects = torch.bincount(self.label)
        seen = objects > 0
        per_class = {
            name: torch.bincount(self.label, weights=each)[seen] / objects[seen] for name, each in right.items()
        }
        values: dict[str, Any] = {name: _percent(each.mean()) for name, each in right.items()}
        values["mean_per_class"] = {name: _percent(each.mean()) for name, each in per_class.items()}
        return values

    def analysis(self) -> dict[str, dict[str, float]]:
        """The figures of the paper's analysis, natural log: biasedness of the hard predictions over the split (figure
        3; 0 is even), and `entropy`, the mean KL(prediction || uniform).
        """
        found = {}
        for name in MODALITIES:
            logits = self.logits[name]
            count = torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
            found[name] = {
                "biasedness": round(float(biasedness(count.float())), 4),
                "entropy": round(float(divergence_from_uniform(logits)), 4),
            }
        return found


def _percent(share: Tensor) -> float:
    return round(100 * float(share), 2)


@dataclass(frozen=True)
class Examined:
    """A checkpoint's answers about a split; keys: of the N objects, in the order of the shards."""

    dataset: str
    split: str
    classes: tuple[str, ...]
    step: int
    keys: tuple[str, ...]
    student: Answers
    teacher: Answers | None

    def result(self) -> dict[str, Any]:
        """The object that `evaluate --json` prints; `teacher` is null for a method without one."""
        both = {"student": self.student, "teacher": self.teacher}
        return {
            "dataset": self.dataset,
            "split": self.split,
            "n": len(self.keys),
            "classes": list(self.classes),
            "step": self.step,
            **{who: answers and answers.percent() for who, answers in both.items()},
            "analysis": {who: answers and answers.analysis() for who, answers in both.items()},
        }


def evaluate(
    checkpoint: Checkpoint,
    shards: str,
    split: str = "test",
    device: torch.device | None = None,
    classes_from_text: bool = False,
    on_progress: Progress = _silent,
    changes: dict[str, Value] | None = None,
) -> dict[str, Any]:
    """The object that `evaluate --json` prints. Raises Refused as `examine` does."""
    examined = examine([checkpoint], shards, split, device, classes_from_text, on_progress=on_progress, changes=changes)
    return examined[0].result()


@dataclass
class _Examinee:
    """A checkpoint's models, and what they answered so far, batch by batch."""

    checkpoint: Checkpoint
    models: dict[str, CrossModalModel]
    logits: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)

    def answer(self, batch: LabelledBatch, every_view: bool, device: torch.device) -> None:
        """Adds the answers of student and teacher about a batch."""
        asked: dict[int, dict[str, Tensor]] = {}
        for who, model in self.models.items():
            if id(model) not in asked:
                asked[id(model)] = _logits(model, batch, self.checkpoint.recipe.seed, every_view, device)
            self.logits.setdefault(who, []).append(asked[id(model)])

    def answers(self, who: str, label: Tensor) -> Answers | None:
        """All answers of one of the two, None where there is no such model."""
        parts = self.logits.get(who)
        if parts is None:
            return None
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Answers(label, whole, whole.pop("views_right"))


@torch.inference_mode()
def examine(
    checkpoints: Sequence[Checkpoint],
    shards: str,
    split: str = "test",
    device: torch.device | None = None,
    classes_from_text: bool = False,
    every_view: bool = True,
    on_progress: Progress = _silent,
    changes: dict[str, Value] | None = None,
) -> list[Examined]:
    """The answers of several checkpoints, in one pass over the shards for those that read the same of them.

    every_view: else only the one view of `image` is looked at. changes: keys of `data` laid over each recipe's, such
    as classes, candidates, objects, num_views. Raises Refused when the shards have no such split or view set, no
    labels, or other classes than a checkpoint (classes_from_text: a new classifier is made from their names).
    """
    device = device or torch.device("cpu")
    opened = [_open(checkpoint) for checkpoint in checkpoints]
    streams: dict[tuple[DataSettings, int, int | None], list[int]] = {}
    for number, (examinee, _) in enumerate(opened):
        settings = _settings(examinee.checkpoint, split, changes or {})
        seed = None if every_view else examinee.checkpoint.recipe.seed
        streams.setdefault((settings, examinee.models["student"].image.image_size, seed), []).append(number)
    found: dict[int, Examined] = {}
    for (settings, image_size, seed), numbers in streams.items():
        view_of = None if every_view else partial(one_view, seed)
        source, batches = labelled(shards, settings, image_size, BATCH, view_of)
        for number in numbers:
            _classify(*opened[number], source, shards, classes_from_text, bool(settings.classes))
            for model in opened[number][0].models.values():
                model.to(device).eval()
        together = [opened[number][0] for number in numbers]
        keys, label = _ask(together, batches(), source.total, every_view, device, on_progress)
        if not keys:
            raise Unlabelled(f"{shards}: no object of {split} has a label")
        manifest = source.manifest
        for number, each in zip(numbers, together, strict=True):
            student, teacher = (each.answers(who, label) for who in ("student", "teacher"))
            found[number] = Examined(
                manifest.dataset, split, manifest.classes, each.checkpoint.step, keys, student, teacher
            )
    return [found[number] for number in range(len(opened))]


def _settings(checkpoint: Checkpoint, split: str, changes: dict[str, Value]) -> DataSettings:
    """What is read to judge a checkpoint. Raises Refused for a key that `data` has not."""
    values = merge(checkpoint.recipe.data.model_dump(mode="json") | {"split": split}, changes)
    return parse_recipe(DataSettings, values, "data")


def _open(checkpoint: Checkpoint) -> tuple[_Examinee, TextTower]:
    """Student and, where there is one, teacher; and their text tower, without its weights.

    A teacher with the student's weights, as in step 0, is the student.
    """
    student, text = build_model(without_pretrained(checkpoint.recipe), checkpoint.prompt_names)
    models = {"student": student}
    files = checkpoint.folder / MODEL, checkpoint.folder / TEACHER
    if files[1].is_file():
        models["teacher"] = student if filecmp.cmp(*files, shallow=False) else copy.deepcopy(student)
    for model, file in zip(models.values(), files, strict=False):
        load_weights(model, file)
    return _Examinee(checkpoint, models), text


def _classify(
    examinee: _Examinee, text: TextTower, source: Source, shards: str, classes_from_text: bool, subset: bool
) -> None:
    """Holds a checkpoint's classes to those of the shards, or gives it a classifier of their names.

    subset: candidates were asked for by name; the checkpoint's answers are then among those of its classes alone.
    """
    checkpoint, classes = examinee.checkpoint, source.manifest.classes
    if classes_from_text:
        load_text(checkpoint, text)
        classifier = text.classifier(source.manifest.prompt_names, checkpoint.recipe.prompts)
        for model in examinee.models.values():
            model.set_classifier(classifier)
    elif subset and set(classes) < set(checkpoint.classes):
        columns = [checkpoint.classes.index(name) for name in classes]
        for model in examinee.models.values():
            model.keep_classes(columns)
    elif classes != checkpoint.classes:
        raise Refused(
            f"{shards} has {len(classes)} classes, the checkpoint {len(checkpoint.classes)} others: "
            "--classes-from-text makes a classifier from their names"
        )


def _ask(
    examinees: list[_Examinee],
    batches: Iterator[LabelledBatch],
    total: int,
    every_view: bool,
    device: torch.device,
    on_progress: Progress,
) -> tuple[tuple[str, ...], Tensor]:
    """Every examinee answers each batch. Gives the objects' keys and labels (N,)."""
    keys: list[str] = []
    labels: list[Tensor] = []
    for batch in batches:
        for examinee in examinees:
            examinee.answer(batch, every_view, device)
        keys += batch.keys
        labels.append(batch.label)
        on_progress(len(keys), total)
    return tuple(keys), torch.cat(labels) if labels else torch.zeros(0, dtype=torch.int64)


def _logits(
    model: CrossModalModel, batch: LabelledBatch, seed: int, every_view: bool, device: torch.device
) -> dict[str, Tensor]:
    """Of a batch, on the CPU: logits (B, C) by column, and `views_right` (B,), or (0,) without every_view."""
    b, v = batch.images.shape[:2]
    found = {"points": model.points_logits(model.point_features(batch.points.to(device)))}
    if every_view:
        feature = model.image_features(batch.images.flatten(0, 1).to(device))
        by_view = model.image_logits(feature).cpu().reshape(b, v, -1)
        counts = batch.num_views or (v,) * b
        view = torch.tensor([one_view(seed, key, count) for key, count in zip(batch.keys, counts, strict=True)])
        found["image"] = by_view[torch.arange(b), view]
        found["image_star"] = model.image_logits(normalize(_mean_of_views(feature.reshape(b, v, -1), batch), dim=1))
        right = (by_view.argmax(dim=2) == batch.label[:, None]).float()
        found["views_right"] = _mean_of_views(right[..., None], batch)[:, 0]
    else:
        found["image"] = model.image_logits(model.image_features(batch.images[:, 0].to(device)))
        found["views_right"] = torch.zeros(0)
    return {name: value.cpu() for name, value in found.items()}


def _mean_of_views(values_BVE: Tensor, batch: LabelledBatch) -> Tensor:
    """(B, E): the mean over the views that each object has."""
    if not batch.num_views:
        return values_BVE.mean(dim=1)
    counts = torch.tensor(batch.num_views, device=values_BVE.device)
    there = torch.arange(values_BVE.shape[1], device=values_BVE.device) < counts[:, None]
    return (values_BVE * there[..., None]).sum(dim=1) / counts[:, None]


def one_view(seed: int, key: str, num_views: int) -> int:
    """The view of the column `image`: the same for every model and machine."""
    return int.from_bytes(seed_digest(seed, key)[:8], "big") % num_views


def pseudo_label_quality(
    image_logits_NC: Tensor, points_logits_NC: Tensor, label_N: Tensor, settings: LabelSettings
) -> dict[str, dict[str, float | None]]:
    """For the modes `image`, `points` and `joint`: percent of objects selected at the threshold, and percent of those
    whose pseudo-label is the label (`precision`; None where none is selected).
    """
    found = {}
    for mode in LABEL_MODES:
        labels = pseudo_labels(image_logits_NC, points_logits_NC, settings.model_copy(update={"mode": mode}))
        chosen = labels.image_confident > 0
        right = (labels.image_label == label_N) & chosen
        precision = _percent(right.sum() / chosen.sum()) if chosen.any() else None
        found[mode] = {"selected": _percent(chosen.float().mean()), "precision": precision}
    return found


def teacher_labels(
    checkpoints: Sequence[Checkpoint],
    shards: str,
    split: str = "train",
    device: torch.device | None = None,
    on_progress: Progress = _silent,
) -> list[dict[str, Any]]:
    """Pseudo-labels that the teachers of checkpoints give on whole pictures and clouds, one view an object, against
    the labels: `{step, n, image {selected, precision}, points, joint}` each. A label is looked at here only.

    Raises Unlabelled where no object of the split has a label.
    """
    found = []
    examined = examine(checkpoints, shards, split, device, every_view=False, on_progress=on_progress)
    for checkpoint, each in zip(checkpoints, examined, strict=True):
        answers = each.teacher or each.student
        quality = pseudo_label_quality(
            answers.logits["image"], answers.logits["points"], answers.label, checkpoint.recipe.labels
        )
        found.append({"step": each.step, "n": len(each.keys), **quality})
    return found
