"""Measures a model's answers about a split: accuracies with labels, the paper's analysis without.

Columns, in percent of objects: `image`, one view an object, chosen by sha256(seed, key); `image_mean`, the mean over
single views; `image_star`, from the averaged unit features of the views; `points`, the stored cloud. `mean_per_class`
is the mean over classes. A column without trained weights (the points of a bare CLIP, the pictures of a run that
trained points alone) is None everywhere.

Shape letters: N objects of a split, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.objectives.losses import biasedness, divergence_from_uniform
from training.objectives.pseudo_labels import pseudo_labels
from training.settings.model import Precision
from training.settings.objective import LabelSettings

COLUMNS = ("image", "image_mean", "image_star", "points")
PREDICTED = ("image", "image_star", "points")  # columns with one answer an object
MODALITIES = ("image", "points")
LABEL_MODES = ("image", "points", "joint")
TOPS = (1, 3, 5)  # how many of an object's surest classes may hold its label
NORMAL_95 = 1.959964  # two-sided 95% quantile of the normal distribution


def percent(share: Tensor | float) -> float:
    """A share in percent, to two places."""
    return round(100 * float(share), 2)


def wilson(share: float, count: int, z: float = NORMAL_95) -> tuple[float, float]:
    """The Wilson score interval of a share (0 to 1) seen among `count` objects; 95% by default.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). (E. B. Wilson, 1927.)
    """
    centre = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = (centre - half) / (1 + z**2 / count), (centre + half) / (1 + z**2 / count)
    return max(low, 0.0), min(high, 1.0)


@dataclass(frozen=True)
class SplitAnswers:
    """The answers of one model about the objects of a split.

    label: int64 (N,), -1 where it was not read. logits: float32 (N, C) of the columns `image`, `image_star` and
    `points`, without those whose tower has no weights. views_right: float32 (N,), the share of an object's views
    that are right. Where one view was read, there is no `image_star`, and views_right is empty.
    """

    label: Tensor
    logits: dict[str, Tensor]
    views_right: Tensor

    @property
    def modalities(self) -> list[str]:
        """Those of MODALITIES that answered."""
        return [name for name in MODALITIES if name in self.logits]

    @property
    def num_classes(self) -> int:
        """C."""
        return next(iter(self.logits.values())).shape[1]

    def right(self, column: str, top: int = 1) -> Tensor:
        """float32 (N,): 1 where the label is among the `top` surest answers, 0 elsewhere; a share for `image_mean`.

        Of equal logits the first class is the surer one, as for argmax.
        """
        if column == "image_mean":
            return self.views_right
        logits, number = self.logits[column], torch.arange(self.num_classes)
        own, label = logits.gather(1, self.label[:, None]), self.label[:, None]
        surer = (logits > own) | ((logits == own) & (number < label))
        return (surer.sum(dim=1) < top).float()

    def by_column(self, value: Callable[[str], Any], columns: Sequence[str] = COLUMNS) -> dict[str, Any]:
        """A value of each column; None for one that was not answered."""
        there = {*self.logits, *(["image_mean"] if "image" in self.logits else [])}
        return {name: value(name) if name in there else None for name in columns}

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
        """Percent right of each column over objects, and over classes that have some.

        `top3` and `top5`: the label is among the surest classes; only where there are as many classes, and not of
        `image_mean`. `interval`: {top1, top3, top5} -> column -> the ends of Wilson's 95% interval over objects. (An
        object's share in `image_mean` varies at most as much as one answer, so there the interval is rather too wide.)
        """
        values: dict[str, Any] = self.by_column(lambda name: percent(self.right(name).mean()))
        values["mean_per_class"] = self.by_column(lambda name: percent(self.class_shares(name).nanmean()))
        values["interval"] = {}
        for top in (top for top in TOPS if top == 1 or top <= self.num_classes):
            columns = COLUMNS if top == 1 else PREDICTED
            if top > 1:
                values[f"top{top}"] = self.by_column(partial(self._share, top=top), columns)
            values["interval"][f"top{top}"] = self.by_column(partial(self._interval, top=top), columns)
        return values

    def _share(self, column: str, top: int) -> float:
        return percent(self.right(column, top).mean())

    def _interval(self, column: str, top: int) -> list[float]:
        right = self.right(column, top)
        return [percent(end) for end in wilson(float(right.double().mean()), len(right))]

    def per_class(self) -> dict[str, list[float | None]]:
        """Percent right of each class by column, None for a class without objects."""
        unknown = [math.nan] * self.num_classes
        shares = self.by_column(lambda name: self.class_shares(name).tolist())
        return {name: [None if x != x else percent(x) for x in each or unknown] for name, each in shares.items()}

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
        those; `histogram`. Without one of them, what needs both is None, and all of it of an adapter.
        """
        settings = settings or LabelSettings()
        found: dict[str, Any] = dict.fromkeys((*MODALITIES, "agreement", "joint"))
        if not self.modalities:
            return found
        some = self.logits[self.modalities[0]]
        image, points = self.logits.get("image", some), self.logits.get("points", some)
        own = pseudo_labels(image, points, settings.model_copy(update={"mode": "own"}))
        joint = pseudo_labels(image, points, settings.model_copy(update={"mode": "joint"}))
        confident = {"image": own.image_confident, "points": own.points_confident}
        for name in self.modalities:
            logits = self.logits[name]
            count = torch.bincount(logits.argmax(dim=1), minlength=self.num_classes)
            found[name] = {
                "biasedness": round(float(biasedness(count.float())), 4),
                "entropy": round(float(divergence_from_uniform(logits)), 4),
                "confident": percent(confident[name].mean()),
                "histogram": count.tolist(),
            }
        if len(self.modalities) == 2:
            found["agreement"] = percent((image.argmax(dim=1) == points.argmax(dim=1)).float().mean())
            found["joint"] = _selected(joint.image_label, joint.image_confident > 0, joint.from_image, self.num_classes)
        return found

    def balanced_biasedness(self) -> dict[str, float]:
        """Biasedness by modality if every class had as many objects (the paper measures on a balanced test set)."""
        found = {}
        for name in self.modalities:
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
    checkpoint's pseudo-labels. precision: of the towers. prompts: of a classifier that was made from text; empty for
    the checkpoint's own. votes: passes over each cloud. views_weight: of the views in `image_star`, empty for the same
    of all; searched: the split whose labels chose them.
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
    precision: Precision = "fp32"
    prompts: tuple[str, ...] = ()
    votes: int = 1
    views_weight: tuple[float, ...] = ()
    searched: str = ""

    @property
    def models(self) -> dict[str, SplitAnswers]:
        """Student and, where there is one, teacher, by name."""
        both = {"student": self.student, "teacher": self.teacher}
        return {who: answers for who, answers in both.items() if answers is not None}

    def result(self) -> dict[str, Any]:
        """The object that `evaluate --json` prints.

        `teacher` is null for a method without one, `prompts` for a checkpoint's own classifier; without labels
        `student`, `pseudo_labels` and `per_class` are null.
        """
        return {
            "dataset": self.dataset,
            "split": self.split,
            "n": len(self.keys),
            "classes": list(self.classes),
            "step": self.step,
            "precision": self.precision,
            "prompts": list(self.prompts) or None,
            "votes": self.votes,
            "views_weight": list(self.views_weight) or None,
            "views_weight_searched_on": self.searched or None,
            "student": self.student.percent() if self.labelled else None,
            "teacher": self.teacher.percent() if self.labelled and self.teacher else None,
            "analysis": {"student": None, "teacher": None}
            | {who: self._analysis(answers) for who, answers in self.models.items()},
            "pseudo_labels": self._pseudo_labels() if self.labelled and len(self.student.modalities) == 2 else None,
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
