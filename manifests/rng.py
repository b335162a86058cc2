"""Random generators seeded by names: a draw depends on what it is for, never on a worker or a clock."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_digest(*parts: object) -> bytes:
    """sha256 of the parts, joined by slashes: the same on every machine."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()


def generator(*parts: object) -> np.random.Generator:
    """A generator seeded by the parts, such as (recipe seed, key) or (seed, epoch, key)."""
    return np.random.default_rng(int.from_bytes(seed_digest(*parts)[:16], "big"))
