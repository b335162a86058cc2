"""Figures of several seeds: the 95% intervals of their mean and of paired differences, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

from scipy.special import stdtrit


def quantile(degrees: int) -> float:
    """97.5% of Student's t with this many degrees of freedom."""
    return float(stdtrit(degrees, 0.975))


def interval(values: Sequence[float]) -> list[float] | None:
    """The ends of the 95% interval of their mean; None for fewer than two."""
    if len(values) < 2:
        return None
    degrees = len(values) - 1
    half = quantile(degrees) * stdev(values) / math.sqrt(len(values))
    return [round(mean(values) - half, 2), round(mean(values) + half, 2)]


def gain(new: dict[int, float], old: dict[int, float]) -> dict[str, object] | None:
    """`{mean, interval, seeds}` of new - old over the seeds that both have; None where there is none."""
    differences = [new[seed] - old[seed] for seed in new if seed in old]
    if not differences:
        return None
    return {"mean": round(mean(differences), 2), "interval": interval(differences), "seeds": len(differences)}
