"""Draws which views of an object a batch holds, before its pictures are read."""

from __future__ import annotations

import numpy as np

from manifests.rng import generator
from manifests.samples import JSON, Sample, view_member
from training.data.decode import num_views
from training.settings.data import DataSettings


class ViewDraw:
    """Draws the views of an object before its pictures are read, so that no other picture is; none without settings.

    Of several the first is as if it were the only one; they differ, where the object has so many.
    """

    def __init__(self, seed: int, epoch: int, settings: DataSettings | None, count: int) -> None:
        self._seed, self._epoch, self._settings, self._count = seed, epoch, settings, count
        self._drawn: dict[str, tuple[tuple[int, ...], np.random.Generator, tuple[str, ...]]] = {}

    def __call__(self, views: Sample, suffix: str) -> bool:
        return suffix == JSON or suffix.startswith(self._draw(views)[2])

    def _draw(self, views: Sample) -> tuple[tuple[int, ...], np.random.Generator, tuple[str, ...]]:
        if views.key not in self._drawn:
            rng = generator(self._seed, self._epoch, views.key)
            if self._settings is None:
                return self._drawn.setdefault(views.key, ((0,), rng, ("",)))
            used = self._settings.views_of(num_views(views))
            taken = [used[int(rng.integers(len(used)))]]
            while len(taken) < self._count:
                left = [view for view in used if view not in taken] or used
                taken.append(left[int(rng.integers(len(left)))])
            members = tuple(view_member(view, self._settings.channel, "") for view in taken)
            self._drawn[views.key] = tuple(taken), rng, members
        return self._drawn[views.key]

    def take(self, views: Sample) -> tuple[tuple[int, ...], np.random.Generator]:
        """The views of an object, and the generator for its further draws."""
        taken, rng, _ = self._draw(views)
        del self._drawn[views.key]
        return taken, rng
