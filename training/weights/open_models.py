"""Opens a checkpoint for evaluation: student, teacher and text tower, and a classifier of other classes."""

from __future__ import annotations

import copy
import filecmp
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from manifests.errors import Refused
from training.data.dataset import Source
from training.models.clip import TextTower
from training.models.cross_modal import CrossModalModel
from training.models.precision import settle
from training.settings.model import Precision
from training.weights.checkpoint import (
    MODEL,
    TEACHER,
    Checkpoint,
    build_model,
    load_text,
    load_weights,
    refuse_broken_other,
    without_pretrained,
)

WHO = ("student", "teacher")


@dataclass(frozen=True)
class Opened:
    """A checkpoint's models by name, in eval mode, and their text tower, whose weights are not loaded yet.

    A teacher with the same weights as the student, as in step 0, is the same object.
    """

    checkpoint: Checkpoint
    models: dict[str, CrossModalModel]
    text: TextTower

    def to(self, device: torch.device) -> Opened:
        """The same on a device."""
        for model in self.models.values():
            model.to(device)
        return self

    def name_classes(self, prompt_names: Sequence[str]) -> None:
        """Another classifier, made from text: of these class names in the recipe's prompts. Raises Refused without
        the text tower's weights."""
        load_text(self.checkpoint, self.text)
        classifier = self.text.classifier(tuple(prompt_names), self.checkpoint.recipe.prompts)
        for model in self.models.values():
            model.set_classifier(classifier.to(model.classifier.device))


def open_models(checkpoint: Checkpoint, who: str | None = None, precision: Precision = "fp32") -> Opened:
    """Opens student and teacher (some methods have only a student), or just the one of `who`.

    precision: of their towers, for the process. Raises Refused when a file of either model is damaged or holds a number
    that is not finite, or when `who` is the teacher of a method without one.
    """
    student, text = build_model(without_pretrained(checkpoint.recipe), checkpoint.prompt_names, blank=True)
    files = {"student": checkpoint.folder / MODEL, "teacher": checkpoint.folder / TEACHER}
    if not files["teacher"].is_file():
        if who == "teacher":
            raise Refused(f"{checkpoint.folder}: its method has no teacher: --who student")
        del files["teacher"]
    if who is not None:
        refuse_broken_other(checkpoint.folder, who)
        files = {who: files[who]}
    models: dict[str, CrossModalModel] = {}
    for name, file in files.items():
        if name == "teacher" and models and filecmp.cmp(files["student"], file, shallow=False):
            models[name] = models["student"]
            continue
        models[name] = copy.deepcopy(student) if models else student
        load_weights(models[name], file)
        models[name].eval()
        models[name].precision = precision
    settle(precision)
    return Opened(checkpoint, models, text)


def fit_classes(opened: Opened, source: Source, shards: str, from_text: bool = False, subset: bool = False) -> None:
    """Checks that a checkpoint has the classes of the shards, or gives it a classifier of their names.

    subset: candidates were asked for by name; then the checkpoint may know more classes, and answers only with these.
    Raises Refused where the classes differ.
    """
    checkpoint, classes = opened.checkpoint, source.manifest.classes
    if from_text:
        if not classes:
            raise Refused(f"{shards} names no classes, so there is no text to make a classifier from")
        opened.name_classes(source.manifest.prompt_names)
    elif subset and set(classes) < set(checkpoint.classes):
        columns = [checkpoint.classes.index(name) for name in classes]
        for model in {id(model): model for model in opened.models.values()}.values():
            model.keep_classes(columns)
    elif classes != checkpoint.classes:
        raise Refused(
            f"{shards} has {len(classes)} classes, the checkpoint {len(checkpoint.classes)} others: "
            "--classes-from-text makes a classifier from their names"
        )
