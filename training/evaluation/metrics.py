"""Measures a model's answers about a split: accuracies with labels, the paper's analysis without.

Columns, in percent of objects: `image`, one view an object, chosen by sha256(seed, key); `image_mean`, the mean over
single views; `image_star`, from the averaged unit features of the views; `points`, the stored cloud. `mean_per_class`
is the mean over classes.

Shape letters: N objects of a split, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.objectives.losses import biasedness, divergence_from_uniform
from training.objectives.pseudo_labels import pseudo_labels
from training.settings.objective import LabelSettings

COLUMNS = ("image", "image_mean", "image_star", "points")
PREDICTED = ("image", "image_star", "points")  # columns with one answer an object
MODALITIES = ("image", "points")
LABEL_MODES = ("image", "points", "joint")


def percent(share: Tensor | float) -> float:
    """A share in percent, to two places."""
    return round(100 * float(share), 2)


@dataclass(frozen=True)
class SplitAnswers:
    """The answers of one model about the objects of a split.

    label: int64 (N,), -1 where it was not read. logits: float32 (N, C) of the columns `image`, `image_star` and
    `points`. views_right: float32 (N,), the share of an object's views that are right. Where one view was read, there
    is no `image_star`, and views_right is empty.
    """

    label: Tensor
    logits: dict[str, Tensor]
    views_right: Tensor

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits["points"].shape[1]

    def right(self, column: str) -> Tensor:
        """float32 (N,): 1 where the answer is the label, 0 elsewhere; a share for `image_mean`."""
        if column == "image_mean":
            return self.views_right
        return (self.logits[column].argmax(dim=1) == self.label).float()

    def guess(self, column: str, number: int) -> tuple[int, float]:
        """The class predicted for one object, and its probability."""
        confidence, predicted = self.logits[column][number].softmax(dim=0).max(dim=0)
        return int(predicted), float(confidence)

    def objects(self) -> Tensor:
        """int64 (C,): how many objects each class has."""
        return torch.bincount(self.label, minlength=self.num_classes)

    def class_shares(self, column: str) -> Tensor:
        """float32 (C,): of each class the share of its objects that are right; NaN for a class without objects."""
        right = torch.bincount(self.label, weights=self.right(column), minlength=self.num_classes)
        return (right / self.objects()).float()

    def percent(self) -> dict[str, Any]:
        """Percent right of each column over objects, and over classes that have some."""
        values: dict[str, Any] = {name: percent(self.right(name).mean()) for name in COLUMNS}
        values["mean_per_class"] = {name: percent(self.class_shares(name).nanmean()) for name in COLUMNS}
        return values

    def per_class(self) -> dict[str, list[float | None]]:
        """Percent right of each class by column, None for a class without objects."""
        shares = {name: self.class_shares(name).tolist() for name in COLUMNS}
        return {name: [None if x != x else percent(x) for x in each] for name, each in shares.items()}

    def confusion(self, column: str) -> np.ndarray:
        """int64 (C, C): objects by true class (rows) and predicted class (columns)."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.label, self.logits[column].argmax(dim=1), labels=range(self.num_classes))

    def analysis(self, settings: LabelSettings | None = None) -> dict[str, Any]:
        """The figures of the paper's analysis (figures 3 and 4), which need no label; natural log.

        For `image` and `points`: `biasedness` of the hard predictions over the split (0 is even), `entropy`, the mean
        KL(prediction || uniform), `confident`, percent surer than the branch's threshold, and `histogram`, how often
        each class is predicted. `agreement`: percent of objects for which both predict one class. `joint`, the joint
        pseudo-labels at the threshold: `selected`, percent of objects; `from_image` and `from_points`, percent of
        those; `histogram`.
        """
        settings = settings or LabelSettings()
        image, points = self.logits["image"], self.logits["points"]
        own = pseudo_labels(image, points, settings.model_copy(update={"mode": "own"}))
        joint = pseudo_labels(image, points, settings.model_copy(update={"mode": "joint"}))
        confident = {"image": own.image_confident, "points": own.points_confident}
        found: dict[str, Any] = {}
        for name in MODALITIES:
            logits = self.logits[name]
            count = torch.bincount(logits.argmax(dim=1), minlength=self.num_classes)
            found[name] = {
                "biasedness": round(float(biasedness(count.float())), 4),
                "entropy": round(float(divergence_from_uniform(logits)), 4),
                "confident": percent(confident[name].mean()),
                "histogram": count.tolist(),
            }
        found["agreement"] = percent((image.argmax(dim=1) == points.argmax(dim=1)).float().mean())
        found["joint"] = _selected(joint.image_label, joint.image_confident > 0, joint.from_image, self.num_classes)
        return found

    def balanced_biasedness(self) -> dict[str, float]:
        """Biasedness by modality if every class had as many objects (the paper measures on a balanced test set)."""
        found = {}
        for name in MODALITIES:
            weights = 1 / self.objects()[self.label].double()
            predicted = self.logits[name].argmax(dim=1)
            count = torch.bincount(predicted, weights=weights, minlength=self.num_classes)
            found[name] = round(float(biasedness(count)), 4)
        return found


def _selected(label: Tensor, chosen: Tensor, from_image: Tensor, classes: int) -> dict[str, Any]:
    some = bool(chosen.any())
    return {
        "selected": percent(chosen.float().mean()),
        "from_image": percent(from_image[chosen].float().mean()) if some else None,
        "from_points": percent((~from_image[chosen]).float().mean()) if some else None,
        "histogram": torch.bincount(label[chosen], minlength=classes).tolist(),
    }


def pseudo_label_quality(
    image_logits_NC: Tensor, points_logits_NC: Tensor, label_N: Tensor, settings: LabelSettings
) -> dict[str, dict[str, float | None]]:
    """How many pseudo-labels there are and how many are right, for the modes `image`, `points` and `joint`.

    selected: percent of objects above the threshold. precision: percent of those whose pseudo-label is the label; None
    if the threshold selects nothing.
    """
    found = {}
    for mode in LABEL_MODES:
        labels = pseudo_labels(image_logits_NC, points_logits_NC, settings.model_copy(update={"mode": mode}))
        chosen = labels.image_confident > 0
        right = (labels.image_label == label_N) & chosen
        precision = percent(right.sum() / chosen.sum()) if chosen.any() else None
        found[mode] = {"selected": percent(chosen.float().mean()), "precision": precision}
    return found


@dataclass(frozen=True)
class Examined:
    """A checkpoint's answers about a split.

    keys: of the N objects, in the order of the shards. labelled: whether labels were read. settings: of the
    checkpoint's pseudo-labels.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    step: int
    keys: tuple[str, ...]
    student: SplitAnswers
    teacher: SplitAnswers | None
    labelled: bool = True
    settings: LabelSettings = field(default_factory=LabelSettings)

    @property
    def models(self) -> dict[str, SplitAnswers]:
        """Student and, where there is one, teacher, by name."""
        both = {"student": self.student, "teacher": self.teacher}
        return {who: answers for who, answers in both.items() if answers is not None}

    def result(self) -> dict[str, Any]:
        """The object that `evaluate --json` prints.

        `teacher` is null for a method without one; without labels so are `student`, `pseudo_labels` and `per_class`.
        """
        return {
            "dataset": self.dataset,
            "split": self.split,
            "n": len(self.keys),
            "classes": list(self.classes),
            "step": self.step,
            "student": self.student.percent() if self.labelled else None,
            "teacher": self.teacher.percent() if self.labelled and self.teacher else None,
            "analysis": {"student": None, "teacher": None}
            | {who: self._analysis(answers) for who, answers in self.models.items()},
            "pseudo_labels": self._pseudo_labels() if self.labelled else None,
            "per_class": self._per_class() if self.labelled else None,
        }

    def _analysis(self, answers: SplitAnswers) -> dict[str, Any]:
        found = answers.analysis(self.settings)
        if self.labelled:
            for name, value in answers.balanced_biasedness().items():
                found[name]["biasedness_balanced"] = value
        return found

    def _pseudo_labels(self) -> dict[str, Any]:
        return {
            who: pseudo_label_quality(answers.logits["image"], answers.logits["points"], answers.label, self.settings)
            for who, answers in self.models.items()
        }

    def _per_class(self) -> dict[str, Any]:
        return {"objects": self.student.objects().tolist()} | {
            who: answers.per_class() for who, answers in self.models.items()
        }
