"""What a run with labels refuses before it begins, what it tells of its weights, and the list of few objects."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from manifests import store
from manifests.errors import Refused
from manifests.plain_text import number_of
from training.data.dataset import Source
from training.data.part_of_split import asked_part
from training.settings.adapter_recipe import AdapterRecipe
from training.settings.fit_recipe import FitRecipe, SupervisedRecipe

log = logging.getLogger(__name__)
OBJECTS = "objects.txt"  # of a run: the keys of the objects that it trains on, which data.objects reads


def refuse_unfit(recipe: FitRecipe, source: Source, shards: str) -> None:
    """Raises Refused where there is one class alone, or views are not those that an adapter takes."""
    if isinstance(recipe, SupervisedRecipe | AdapterRecipe) and len(source.manifest.classes) < 2:
        one = source.manifest.classes[0]
        raise Refused(f"--shards {shards} has one class ({one}): method={recipe.method} needs two")
    if isinstance(recipe, AdapterRecipe):
        _refuse_other_views(recipe, source)


def _refuse_other_views(recipe: AdapterRecipe, source: Source) -> None:
    settings, own = recipe.data, recipe.adapter
    if settings.channel == "rgb" and "depth" in own.each_path:
        raise Refused(
            f"adapter.paths={own.paths}: the depth tower sees depth pictures, and data.channel=rgb: data.views=NAME "
            "data.channel=depth, or adapter.paths=clip"
        )
    count = source.preset.num_views
    if not count:
        raise Refused(f"data.views={settings.views}: objects have different numbers of views, an adapter needs one")
    used = len(settings.views_of(count))
    if used != own.views:
        raise Refused(
            f"adapter.views={own.views}: of {settings.views} {number_of(used, 'view')} are used (data.num_views)"
        )


def tell_what_is_trained(model: nn.Module, recipe: FitRecipe) -> None:
    """Logs the names and sizes of what an adapter trains, whose towers are frozen."""
    if isinstance(recipe, AdapterRecipe):
        sizes = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
        lines = [f"trains {name}: {number_of(size, 'number')}" for name, size in sizes.items()]
        log.warning("%s", "\n".join([*lines, f"trains {number_of(sum(sizes.values()), 'number')} in all"]))


def write_objects(folder: Path, recipe: FitRecipe, source: Source) -> None:
    """Lists the objects in RUN/objects.txt, where the recipe asks for a part of each class."""
    if asked_part(recipe.data):
        keys = sorted(key for shard in source.shards for key in shard.keys)
        store.write_bytes(str(folder / OBJECTS), "".join(f"{key}\n" for key in keys).encode())
