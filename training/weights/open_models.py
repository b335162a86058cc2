"""Opens a checkpoint for evaluation: student, teacher and text tower, and a classifier of other classes."""

from __future__ import annotations

import copy
import filecmp
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from manifests.errors import Refused
from manifests.plain_text import number_of
from training.data.dataset import Source
from training.data.subsets import NO_CLASSES
from training.models.clip import SMALL_CONFIG, TextTower
from training.models.cross_modal import CrossModalModel
from training.networks.precision import settle
from training.settings.fit_recipe import CrossPointRecipe, FitRecipe, PretrainRecipe
from training.settings.model import Precision
from training.settings.prompts import DEFAULT_PROMPTS
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
from training.weights.run_folder import last_step, read_about

log = logging.getLogger(__name__)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Opened:
    """A checkpoint's models by name, in eval mode, and their text tower.

    A teacher with the same weights as the student, as in step 0, is the same object. text_is_loaded: else the weights
    of the text tower are read when they are first needed. prompts: of a classifier that text makes for whatever classes
    are judged, as of a pre-training and of weights without a run; empty where the classifier is the checkpoint's own.
    precision: of the towers. random: towers without trained weights, which are not asked: `image`, `points`.
    """

    checkpoint: Checkpoint
    models: dict[str, CrossModalModel]
    text: TextTower
    precision: Precision = "fp32"
    text_is_loaded: bool = False
    prompts: tuple[str, ...] = ()
    random: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Opened:
        """The same on a device."""
        for module in (self.text, *self.models.values()):
            module.to(device)
        return self

    def name_classes(self, prompt_names: Sequence[str], prompts: tuple[str, ...] = ()) -> None:
        """Another classifier, made from text: of these class names in these prompts; by default those of a pre-training
        or of the recipe. Raises Refused without the text tower's weights."""
        for model in self.models.values():
            model.refuse_names()
        if not self.text_is_loaded:
            load_text(self.checkpoint, self.text)
        prompts = prompts or text_prompts(self.checkpoint.recipe)
        warn_of_new_words(self.checkpoint, prompt_names)
        classifier = self.text.classifier(tuple(prompt_names), prompts)
        for model in self.models.values():
            model.set_classifier(classifier.to(model.classifier.device))


def untaught(recipe: FitRecipe) -> tuple[str, ...]:
    """The towers that a run leaves out, such as the image tower with supervised.towers=points."""
    return tuple(name for name in ("image", "points") if name not in recipe.towers)


def warn_of_own_heads(checkpoints: Iterable[Checkpoint]) -> None:
    """Warns, once a run, where CrossPoint taught heads of its own, so that no text and no other tower is understood."""
    for run in dict.fromkeys(
        str(each.folder.parent.parent)
        for each in checkpoints
        if isinstance(each.recipe, CrossPointRecipe) and each.recipe.crosspoint.has_heads
    ):
        log.warning(
            "%s: crosspoint.heads=own left the projections to the space of text untaught, so answers by text are "
            "chance: python -m training probe %s --shards OUT says what the towers are worth",
            run,
            run,
        )


def warn_of_new_words(checkpoint: Checkpoint, prompt_names: Sequence[str]) -> None:
    """Warns of words in class names that a small text tower never saw: it learned from its classes alone, CLIP's did
    not."""
    if checkpoint.recipe.image.model != SMALL_CONFIG.stem:
        return
    begun = checkpoint.recipe.init
    known = {*checkpoint.prompt_names, *_taught_before(begun.all), *_taught_before(begun.image)}
    words = {word for name in known for word in _words(name)}
    new = [word for word in dict.fromkeys(word for name in prompt_names for word in _words(name)) if word not in words]
    if new:
        log.warning(
            "the text tower of this run never saw %s, so what it says of such classes is chance; it knows %s",
            ", ".join(new),
            ", ".join(sorted(known)),
        )


def _taught_before(run: str) -> list[str]:
    """The class names of the run that a run began with, where it is still there."""
    try:
        return list(read_about(last_step(Path(run)).parent.parent)["prompt_names"]) if run else []
    except Refused:
        return []


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def text_prompts(recipe: FitRecipe) -> tuple[str, ...]:
    """The prompts of a classifier from text. A pre-training's own are its captions, such as the bare class name, and
    its classifier is that with which Cross-MoST begins after it."""
    return DEFAULT_PROMPTS if isinstance(recipe, PretrainRecipe) else recipe.prompts


def as_trained(recipe: FitRecipe, device: torch.device, asked: Precision | None = None) -> Precision:
    """The precision in which a model answers: what was asked for; else on CUDA that of its training, and fp32 on a CPU,
    where bfloat16 is slow."""
    return asked or (recipe.precision if device.type == "cuda" else "fp32")


def rest(models: Iterable[CrossModalModel], precision: Precision) -> None:
    """Puts models that only answer into eval mode, with towers of this precision, and the process with them."""
    for model in models:
        model.eval().precision = precision
    settle(precision)


def open_models(
    checkpoint: Checkpoint,
    who: str | None = None,
    precision: Precision | None = None,
    device: torch.device = CPU,
) -> Opened:
    """Opens student and teacher (some methods have only a student), or just the one of `who`, on a device.

    precision: None for that of `as_trained`. Raises Refused when a file of either model is damaged or holds a number
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
        models[name].look_at(checkpoint.recipe.judged_data.channel)
    precision = as_trained(checkpoint.recipe, device, precision)
    rest(models.values(), precision)
    prompts = text_prompts(checkpoint.recipe) if isinstance(checkpoint.recipe, PretrainRecipe) else ()
    return Opened(checkpoint, models, text, precision, prompts=prompts, random=untaught(checkpoint.recipe)).to(device)


def fit_classes(
    opened: Opened, source: Source, shards: str, prompts: tuple[str, ...] = (), subset: bool = False
) -> None:
    """Checks that a checkpoint has the classes of the shards, or gives it a classifier of their names in prompts.

    subset: candidates were asked for by name; then the checkpoint may know more classes, and answers only with these.
    Raises Refused where the classes differ.
    """
    checkpoint, classes = opened.checkpoint, source.manifest.classes
    if not classes:
        raise Refused(f"{shards} {NO_CLASSES}")
    if prompts:
        opened.name_classes(source.manifest.prompt_names, prompts)
    elif subset and set(classes) < set(checkpoint.classes):
        columns = [checkpoint.classes.index(name) for name in classes]
        for model in {id(model): model for model in opened.models.values()}.values():
            if model.classifier.shape[1] == len(checkpoint.classes):  # else this model was asked before
                model.keep_classes(columns)
    elif classes != checkpoint.classes:
        raise Refused(
            f"{shards} has {number_of(len(classes), 'class')}, the checkpoint {len(checkpoint.classes)} others: "
            "--classes-from-text makes a classifier from their names"
        )
