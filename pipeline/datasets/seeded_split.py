"""A seeded division of scanned sequences into train and test, class by class."""

from __future__ import annotations

import math
from collections.abc import Iterable

from manifests.rng import seed_digest


def seeded_split(ids: Iterable[str], train_fraction: float, seed: int) -> dict[str, str]:
    """id -> train or test: the first floor(train_fraction n) of n ids, in the order of sha256(seed, id), are train.

    Called once for each class, with all ids that the dataset has, so that a partial copy is divided as the whole.
    """
    ordered = sorted(ids, key=lambda id: seed_digest(seed, id))
    count = math.floor(train_fraction * len(ordered) + 1e-9)
    return {id: "train" if place < count else "test" for place, id in enumerate(ordered)}
