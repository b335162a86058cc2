"""The methods, one file each: a function `step(student, teacher, batch, recipe) -> Step`.

A new method is a file here and a row in METHODS. Methods of SUPERVISED train on a labelled source domain: only they are
given labels, and they have no teacher.
"""

from training.objectives import cross_most, pretrain, self_training

METHODS = {"cross_most": cross_most.step, "self_training": self_training.step, "pretrain": pretrain.step}
SUPERVISED = frozenset({"pretrain"})
