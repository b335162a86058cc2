"""The baseline: each tower teaches itself by its own pseudo-labels, with no term that joins the two.

It is Cross-MoST without its cross-modal parts: each branch has labels of its own modality, and there is no L_align.
Fairness and masked modelling stay, so that the two methods differ in nothing else. `classifier=own` (two classifiers,
two scales) is the paper's form, section 4: two separate self-trainings. `classifier=shared` is the released code's: one
classifier learns from both branches.
"""

from __future__ import annotations

from training.data.batch import Batch
from training.models.cross_modal import CrossModalModel
from training.objectives import cross_most
from training.objectives.step import Step, plugin_terms, weigh
from training.settings.fit_recipe import SelfTrainingRecipe


def step(student: CrossModalModel, teacher: CrossModalModel, batch: Batch, recipe: SelfTrainingRecipe) -> Step:
    """L_cls, L_fair, L_mim, L_mpm and L_lg-align of one batch, each branch by its own pseudo-labels."""
    branches = cross_most.teach(student, teacher, batch, recipe)
    terms = branches.terms | plugin_terms(student, teacher, batch, branches)
    return weigh(terms, recipe.weights.model_dump(), branches.figures, branches.counts)
