"""Figures of several seeds: the 95% intervals of their mean and of paired differences, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

T_975 = (  # Student's t, 97.5%, of 1, 2, ... degrees of freedom
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
NORMAL_975 = 1.96


def interval(values: Sequence[float]) -> list[float] | None:
    """The ends of the 95% interval of their mean; None for fewer than two."""
    if len(values) < 2:
        return None
    degrees = len(values) - 1
    quantile = T_975[degrees - 1] if degrees <= len(T_975) else NORMAL_975
    half = quantile * stdev(values) / math.sqrt(len(values))
    return [round(mean(values) - half, 2), round(mean(values) + half, 2)]


def gain(new: dict[int, float], old: dict[int, float]) -> dict[str, object] | None:
    """`{mean, interval, seeds}` of new - old over the seeds that both have; None where there is none."""
    differences = [new[seed] - old[seed] for seed in new if seed in old]
    if not differences:
        return None
    return {"mean": round(mean(differences), 2), "interval": interval(differences), "seeds": len(differences)}
