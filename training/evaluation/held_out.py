"""Accuracy on the labelled test split while a run trains: a curve for people, which training itself never sees."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from training.data.dataset import open_source
from training.evaluation.evaluate import Options, judge
from training.evaluation.metrics import PREDICTED
from training.models.clip import TextTower, pixel_statistics
from training.models.cross_modal import CrossModalModel
from training.settings.fit_recipe import FitRecipe, PretrainRecipe
from training.weights.checkpoint import Checkpoint
from training.weights.open_models import Opened, text_prompts, untaught

SPLIT = "test"


class HeldOut:
    """Judges the models of a run on the test split, as `evaluate` does with the run's own keys of `data`.

    Neither weights nor random numbers change. Opening raises Refused where the shards have no such split.
    """

    def __init__(self, recipe: FitRecipe, shards: str, device: torch.device) -> None:
        self.recipe, self.shards, self.device = recipe, shards, device
        settings = recipe.data.model_copy(update={"split": SPLIT})
        pictures = "image" in recipe.towers
        self.manifest = open_source(shards, settings, tower=pixel_statistics(recipe), pictures=pictures).manifest

    def __call__(self, step: int, models: dict[str, CrossModalModel]) -> dict[str, float]:
        """Percent right by column: `labelled_image`, `labelled_image_star`, `labelled_points` of the student, and
        `labelled_teacher_*`. All processes call it.

        A pre-training is judged by the classifier with which Cross-MoST begins after it. Raises Unlabelled where no
        object of the split has a label.
        """
        about = (self.manifest.classes, self.manifest.prompt_names, self.manifest.dataset)
        checkpoint = Checkpoint(Path(), step, self.recipe, *about)
        own = [(model, model.classifier, model.training) for model in models.values()]
        text = cast(TextTower, models["student"].text)  # of a pre-training; no other run is asked for it
        precision, random = self.recipe.precision, untaught(self.recipe)
        opened = Opened(checkpoint, models, text, precision, True, self._prompts(), random)
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                for model in models.values():
                    model.eval()
                options = Options(workers=self.recipe.data.workers, warn=False)
                (found,) = judge([opened], self.shards, SPLIT, self.device, options)
        finally:
            for model, classifier, training in own:
                model.classifier = classifier
                model.train(training)
        names = {"student": "labelled", "teacher": "labelled_teacher"}
        figures = {names[who]: answers.percent() for who, answers in found.models.items()}
        asked = [column for column in PREDICTED if figures["labelled"][column] is not None]
        return {f"{name}_{column}": values[column] for name, values in figures.items() for column in asked}

    def _prompts(self) -> tuple[str, ...]:
        return text_prompts(self.recipe) if isinstance(self.recipe, PretrainRecipe) else ()
