"""The methods, one file each: a function `step(student, teacher, batch, recipe) -> Step`.

A new method is a file here, a row in METHODS and a recipe in training/settings/fit_recipe.py. Methods of SUPERVISED
train on labelled shards: only they are given labels. Methods whose recipe is a TaughtRecipe have a teacher, the others
get None.
"""

from training.objectives import (
    adapter,
    clip2point,
    cross_most,
    crosspoint,
    part_segmentation,
    pointcmt,
    pretrain,
    self_training,
    supervised,
)
from training.objectives.step import StepFunction
from training.settings.from_plugins import methods

METHODS: dict[str, StepFunction] = {
    "cross_most": cross_most.step,
    "self_training": self_training.step,
    "pretrain": pretrain.step,
    "crosspoint": crosspoint.step,
    "supervised": supervised.step,
    "parts": part_segmentation.step,
    "multiview": pointcmt.multiview_step,
    "cross_modal_generator": pointcmt.generator_step,
    "pointcmt": pointcmt.step,
    "clip2point": clip2point.step,
    "adapter": adapter.step,
}
SUPERVISED = frozenset({"pretrain", "supervised", "parts", "multiview", "cross_modal_generator", "pointcmt", "adapter"})


def step_of(method: str) -> StepFunction:
    """The step of a method, ours or a plugin's."""
    return METHODS[method] if method in METHODS else methods()[method].step


def is_supervised(method: str) -> bool:
    """Whether a method, ours or a plugin's, is given labels: SUPERVISED says so, or the plugin's row."""
    return method in SUPERVISED or (method not in METHODS and methods()[method].supervised)
