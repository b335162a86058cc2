"""The baseline: each tower teaches itself by its own pseudo-labels, with no term that joins the two.

Cross-MoST without what makes it cross-modal: labels of one's own modality and no L_align; fairness and masked modelling
stay, so that the two methods differ in nothing else. Paper, section 4: two separate self-trainings, which is
`classifier=own` (two classifiers, two scales). `classifier=shared` is the released code's form: one classifier learns
from both branches.
"""

from __future__ import annotations

from training.data.batch import Batch
from training.models.cross_modal import CrossModalModel
from training.objectives import cross_most
from training.objectives.step import Step, weigh
from training.settings.objective import CrossMostSettings


def step(student: CrossModalModel, teacher: CrossModalModel, batch: Batch, settings: CrossMostSettings) -> Step:
    """L_cls, L_fair, L_mim, L_mpm and L_lg-align of one batch, each branch by its own pseudo-labels."""
    own = settings.labels.model_copy(update={"mode": "own"})
    branches = cross_most.teach(student, teacher, batch, settings, own)
    weights = {name: value for name, value in settings.weights.model_dump().items() if name != "align"}
    return weigh(branches.terms, weights, branches.figures, branches.counts)
