"""Reduces the objects that a run trains on to some of each class: how well a method does with fewer of them."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace

from manifests import store
from manifests.errors import Refused
from manifests.plain_text import number_of
from manifests.rng import seed_digest
from training.data.dataset import Source
from training.data.subsets import classes_of
from training.settings.data import DataSettings
from training.settings.fit_recipe import FitRecipe

log = logging.getLogger(__name__)


def part_of(source: Source, shards: str, recipe: FitRecipe) -> Source:
    """The source with `data.shots` objects of each class, or `data.fraction` of it, at least one, chosen by a hash of
    seed and key.

    Raises Refused where an object has no class, or a class has fewer objects than shots.
    """
    settings, share = recipe.data, asked_part(recipe.data)
    if not share:
        return source
    known = classes_of(store.absolute(shards), settings.split)
    of_class: dict[str, list[str]] = defaultdict(list)
    for key in (key for shard in source.shards for key in shard.keys):
        name = known.get(key)
        if name is None:
            raise Refused(f"{share} is of each class: {shards} has no class for {key}")
        of_class[name].append(key)
    kept: list[str] = []
    for name, keys in of_class.items():
        if len(keys) < settings.shots:
            has = number_of(len(keys), "object")
            raise Refused(f"{share}: class {name} has {has} in {settings.split}: data.shots={len(keys)} or fewer")
        keys.sort(key=lambda key: seed_digest(recipe.seed, key))
        kept += keys[: settings.shots or max(round(settings.fraction * len(keys)), 1)]
    at_least = "" if settings.shots else ", at least one"
    log.warning(
        "%s: %d of %d objects%s of each of %d classes, by seed %d",
        *(share, len(kept), source.total, at_least, len(of_class), recipe.seed),
    )
    chosen = frozenset(kept)
    shards_kept = [shard.only(chosen) for shard in source.shards]
    return replace(source, shards=tuple(shard for shard in shards_kept if shard.keys))


def asked_part(settings: DataSettings) -> str:
    """The key and value that ask for a part of each class; empty where all objects are taken."""
    if settings.shots:
        return f"data.shots={settings.shots}"
    return f"data.fraction={settings.fraction:g}" if settings.fraction < 1 else ""
