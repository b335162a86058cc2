"""How clouds were cut into sub-clouds when a point tower learned: no shape of a weight shows it, so it is held here."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from manifests.config import Value, merge, parse_recipe
from manifests.errors import Refused
from training.models.backbones import point_tower
from training.settings.fit_recipe import FitRecipe
from training.settings.model import PointSettings
from training.weights.formats import WeightsFile
from training.weights.run_folder import recipe_of_file
from training.weights.tensor_names import DVAE, OURS, POINT_BERT, RELEASED, ULIP, ULIP2

log = logging.getLogger(__name__)
IN_WEIGHTS = ("backbone", "tokenizer_widths", "tokenizer_width", "width", "depth", "heads")  # of points.*, by name


@dataclass(frozen=True)
class Grouping:
    """So many groups, each of the `size` points nearest to a centre, in clouds of `points` points."""

    groups: int
    size: int
    points: int

    def __str__(self) -> str:
        return f"{self.groups} groups of {self.size} in clouds of {self.points:,} points"

    def radius_over(self, other: Grouping) -> float:
        """How many times as far a group reaches: points lie on surfaces, so it is the root of the group's share.

        Measured on 57 objects of `parametric`, 32 points of 2,048 against 32 of 8,192: 1.9 times (1.7 to 2.2).
        """
        return math.sqrt(self.size / self.points / (other.size / other.points))

    @property
    def keys(self) -> str:
        """The keys of a recipe that has these groups."""
        return f"points.groups={self.groups} points.group_size={self.size}"


FOREIGN = {  # as their authors' configurations have it
    ULIP: Grouping(512, 32, 8192),
    ULIP2: Grouping(512, 32, 8192),
    POINT_BERT: Grouping(64, 32, 1024),
    DVAE: Grouping(64, 32, 1024),
    RELEASED: Grouping(64, 32, 8192),
}


def grouping_of(weights: WeightsFile) -> Grouping | None:
    """With which grouping the points of a file learned; None where that is not known or the file has no points."""
    if not weights.below("points."):
        return None
    if weights.kind != OURS:
        return FOREIGN.get(weights.kind)
    saved = recipe_of_file(Path(weights.path)) or {}
    points, data = (table if isinstance(table, dict) else {} for table in (saved.get("points"), saved.get("data")))
    values = [points.get("groups"), points.get("group_size"), data.get("num_points")]
    known = [value for value in values if isinstance(value, int) and value > 0]
    return Grouping(*known) if len(known) == len(values) else None


def hold_grouping(what: str, weights: WeightsFile, recipe: FitRecipe) -> None:
    """Raises Refused where weights of ours learned from other groups than the recipe's.

    Warns where weights of others did, where clouds have another number of points, and where a file does not say.
    """
    if not isinstance(recipe.points, PointSettings):
        return  # another backbone has no groups
    then, now = grouping_of(weights), Grouping(recipe.points.groups, recipe.points.group_size, recipe.data.num_points)
    if then is None:
        log.warning("%s does not say from which groups of points it learned; this recipe has %s", what, now)
        return
    if then == now:
        return
    regrouped = (then.groups, then.size) != (now.groups, now.size)
    if regrouped and weights.kind == OURS and recipe.init.other_neighbours == "refuse":
        raise Refused(
            f"{what} learned from {then.groups} groups of {then.size} points, this recipe has {now.groups} of "
            f"{now.size}: {then.keys} goes on with its own, init.other_neighbours=keep with these"
        )
    own = f"; its own are {then.keys}" if regrouped else ""
    log.warning("%s learned from %s, this recipe has %s%s%s", what, then, now, _reach(now, then), own)


def as_asked(recipe: FitRecipe, points: dict[str, Value], asked: bool, what: str) -> FitRecipe:
    """The recipe of a checkpoint, with the keys of `points` that a command gives: they say which points a layer sees.

    asked: whether --other-neighbours was said. Raises Refused without it, and for a key that the weights depend on.
    """
    if not points:
        return recipe
    values = recipe.model_dump(mode="json")
    then = values["points"]
    changed = parse_recipe(type(recipe), merge(values, {"points": points}), what)
    for key, now in changed.points.model_dump(mode="json").items():
        if now == then[key]:
            continue
        if not shows_in_no_weight(recipe, key, now):
            raise Refused(f"points.{key}={now}: {what} has points.{key}={then[key]}, on which its weights depend")
        if not asked:
            raise Refused(
                f"points.{key}={now}: {what} learned with points.{key}={then[key]}; --other-neighbours judges it with "
                "others"
            )
        log.warning("points.%s=%s: %s learned with %s", key, now, what, then[key])
    return changed


def shows_in_no_weight(recipe: FitRecipe, key: str, value: Value) -> bool:
    """Whether weights of a recipe fit the same tower with another value of a key of `points`."""
    if key in IN_WEIGHTS:
        return False
    other = recipe.points.model_copy(update={key: value})
    with torch.random.fork_rng(devices=[]):
        shapes = [{n: v.shape for n, v in point_tower(each, 1).state_dict().items()} for each in (recipe.points, other)]
    return shapes[0] == shapes[1]


def warn_of_other_clouds(recipe: FitRecipe, num_points: int) -> None:
    """Warns where a model is asked about clouds of another number of points than it learned from."""
    groups = (recipe.points.groups, recipe.points.group_size) if isinstance(recipe.points, PointSettings) else (0, 0)
    then, now = Grouping(*groups, recipe.data.num_points), Grouping(*groups, num_points)
    if now != then:
        words = "data.num_points=%d: the checkpoint learned from clouds of %s points%s"
        log.warning(words, num_points, f"{then.points:,}", _reach(now, then))


def _reach(now: Grouping, then: Grouping) -> str:
    ratio = now.radius_over(then) if then.size else 1.0  # of another backbone than Point-BERT
    return "" if ratio == 1 else f": a group reaches about {ratio:.2g} times as far"
