"""Warns, once each, of trainings that cannot work: random towers that teach themselves, labels that are never sure."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from manifests.plain_text import number_of
from training.settings.fit_recipe import FitRecipe, TaughtRecipe
from training.settings.model import CLIP

log = logging.getLogger(__name__)
FIRST_ROWS = 3  # of the log, after which a share of zero is no accident of one batch
CONFIDENT = "confident_"  # the log's shares of samples whose pseudo-label is taught, by branch


def warn_of_random_towers(recipe: FitRecipe) -> None:
    """A method that teaches itself begins with what its towers know: random ones teach noise."""
    init = recipe.init
    own = recipe.image.pretrained if recipe.image.backbone == CLIP else ""
    has = {"image": init.all or init.image or own, "point": init.all or init.points}
    random = [name for name, source in has.items() if not source]
    if isinstance(recipe, TaughtRecipe) and random:
        log.warning(
            "method=%s teaches itself, and its %s tower begins with random weights: give %s",
            recipe.method,
            " and ".join(random),
            " and ".join({"image": "init.image=TAG or FILE", "point": "init.points=FILE"}[name] for name in random)
            + " (or init.all=RUN)",
        )


@dataclass
class ConfidentShares:
    """Sees the first rows of the log, or of the first epoch where it is shorter. epoch: its steps."""

    recipe: FitRecipe
    epoch: int
    largest: float = 0.0
    told: bool = False

    def see(self, step: int, values: dict[str, float]) -> None:
        """Warns at the last of these rows when no pseudo-label was above the threshold until then."""
        shares = [value for name, value in values.items() if name.startswith(CONFIDENT)]
        if self.told or not shares:
            return
        self.largest = max(self.largest, *shares)
        self.told = step >= min(self.epoch, FIRST_ROWS * self.recipe.log_every)
        if self.told and not self.largest:
            log.warning(
                "no pseudo-label was above labels.threshold=%g in the first %s, so they teach nothing: lower it, or "
                "begin with better towers (init.*) or other prompts",
                self.recipe.pseudo_labels.threshold,
                number_of(step, "step"),
            )
