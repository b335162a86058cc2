"""The recipe that travels with a checkpoint, perhaps to another person: it says nothing about a machine."""

from __future__ import annotations

import logging

from manifests.config import Value
from training.settings.data import MVCNN, DataSettings
from training.settings.fit_recipe import FitRecipe, saved_recipe

log = logging.getLogger(__name__)
POLICY_OF_DATA = ("workers", "cache", "cache_gb")  # of the machine, not of the run


def travelling_recipe(recipe: FitRecipe) -> FitRecipe:
    """A recipe as it goes with a checkpoint: without the keys about the machine that trained."""
    defaults = {name: DataSettings.model_fields[name].default for name in POLICY_OF_DATA}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=defaults)})


def checkpoint_data(recipe: FitRecipe) -> DataSettings:
    """The table `data` of a checkpoint: without the keys about a machine, and without a file of objects."""
    data = travelling_recipe(recipe).data
    return data if data.objects == MVCNN else data.model_copy(update={"objects": ""})


def checkpoint_recipe(values: dict[str, Value], where: str) -> FitRecipe:
    """The recipe of a checkpoint, which may come from somebody else: it never says what this machine reads or writes.

    The command line gives the keys about the machine and a list of objects. The recipe names the weights that training
    began with, and they are never read. Raises Refused as `saved_recipe` does.
    """
    recipe = saved_recipe(values, where)
    used = checkpoint_data(recipe)
    if recipe.data.cache:
        log.warning("%s: data.cache=%r is not used: a cache is named on the command line", where, recipe.data.cache)
    if recipe.data.objects != used.objects:
        words = "%s: data.objects=%r is not read: name the file on the command line, or all objects are used"
        log.warning(words, where, recipe.data.objects)
    return recipe.model_copy(update={"data": used})
