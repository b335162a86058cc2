"""The methods, one file each: a function `step(student, teacher, batch, recipe) -> Step`.

A new method is a file here and a row in METHODS. Methods of SUPERVISED train on a labelled source domain: only they are
given labels. Methods of TAUGHT have a teacher, the others None.
"""

from training.objectives import cross_most, crosspoint, pretrain, self_training

METHODS = {
    "cross_most": cross_most.step,
    "self_training": self_training.step,
    "pretrain": pretrain.step,
    "crosspoint": crosspoint.step,
}
SUPERVISED = frozenset({"pretrain"})
TAUGHT = frozenset({"cross_most", "self_training"})
