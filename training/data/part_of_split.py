"""Reduces the objects that a run trains on to a share of each class: how well a method does with fewer of them."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace

from manifests import store
from manifests.errors import Refused
from manifests.rng import seed_digest
from training.data.dataset import Source
from training.data.subsets import classes_of
from training.settings.fit_recipe import FitRecipe

log = logging.getLogger(__name__)


def part_of(source: Source, shards: str, recipe: FitRecipe) -> Source:
    """The source with `data.fraction` of each class, at least one object, chosen by a hash of seed and key.

    Raises Refused where an object has no class.
    """
    if recipe.data.fraction == 1:
        return source
    known = classes_of(store.absolute(shards), recipe.data.split)
    of_class: dict[str, list[str]] = defaultdict(list)
    for key in (key for shard in source.shards for key in shard.keys):
        name = known.get(key)
        if name is None:
            raise Refused(f"data.fraction={recipe.data.fraction:g} is of each class: {shards} has no class for {key}")
        of_class[name].append(key)
    kept: list[str] = []
    for keys in of_class.values():
        keys.sort(key=lambda key: seed_digest(recipe.seed, key))
        kept += keys[: max(round(recipe.data.fraction * len(keys)), 1)]
    log.warning(
        "data.fraction=%g: %d of %d objects, at least one of each of %d classes, by seed %d",
        *(recipe.data.fraction, len(kept), source.total, len(of_class), recipe.seed),
    )
    chosen = frozenset(kept)
    shards_kept = [shard.only(chosen) for shard in source.shards]
    return replace(source, shards=tuple(shard for shard in shards_kept if shard.keys))
