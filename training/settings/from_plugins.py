"""What plugins add to training: loss terms with their weights, methods, backbones of the point tower.

Each stands in a table of its plugin, a row by name (docs/extending.md). The rows are checked here and given to whoever
keeps the shipped ones: `fit_recipe` for keys, `training.objectives` for steps, `training.models.backbones` for towers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, create_model

from manifests import plugins
from manifests.config import Settings, parse_recipe, unknown_name
from manifests.errors import Refused
from training.settings.backbone_rows import BACKBONE_SETTINGS
from training.settings.data import LabelledAugmentSettings
from training.settings.model import DEFAULT_BACKBONE, BackboneSettings, PointSettings
from training.settings.objective import SelfTrainingWeights, Weight, Weights

Row = TypeVar("Row", bound=Settings)
Kind = TypeVar("Kind", bound=BaseModel)
log = logging.getLogger(__name__)
SHIPPED_METHODS = (
    "cross_most",
    "self_training",
    "pretrain",
    "crosspoint",
    "supervised",
    "parts",
    "multiview",
    "cross_modal_generator",
    "pointcmt",
    "clip2point",
    "adapter",
)


class TermRow(Settings):
    """A row of TERMS. weight: the default of its key `weights.NAME`.

    loss: of student, teacher, batch and training.objectives.cross_most.Branches; gives a scalar, a mean over the batch.
    """

    weight: Weight = 1.0
    loss: Callable[..., Any]


class MethodRow(Settings):
    """A row of METHODS. step: of student, teacher, batch and recipe, gives a Step; recipe: the class of its keys.

    supervised: its batches are LabelledBatch; all other methods get no label. freeze: of a new model and the recipe,
    says by requires_grad what is not trained.
    """

    step: Callable[..., Any]
    recipe: type[BaseModel]
    supervised: bool = False
    freeze: Callable[..., None] | None = None


class BackboneRow(Settings):
    """A row of BACKBONES. keys: the class of its keys `points.*`; tower: of these and E, makes a PointBackbone."""

    keys: type[BackboneSettings]
    tower: Callable[..., Any]


def terms() -> dict[str, TermRow]:
    """The loss terms of loaded plugins. Raises Refused for a row that is wrong, as the next two do."""
    return _rows("TERMS", TermRow, Weights.model_fields)


def methods() -> dict[str, MethodRow]:
    """The methods of loaded plugins."""
    rows = _rows("METHODS", MethodRow, SHIPPED_METHODS)
    for name, row in rows.items():
        fields = row.recipe.model_fields
        if not {"method", "points", "optimizer", "augment"} <= set(fields):
            raise Refused(f"METHODS {name}: its recipe is no subclass of FitRecipe")
        if row.supervised != issubclass(_table_of(row.recipe, "augment"), LabelledAugmentSettings):
            words = "LabelledAugmentSettings" if row.supervised else "AugmentSettings"
            raise Refused(f"METHODS {name}: supervised={row.supervised} needs `augment: {words}` in its recipe")
    return rows


def backbones() -> dict[str, BackboneRow]:
    """The backbones of loaded plugins."""
    return _rows("BACKBONES", BackboneRow, BACKBONE_SETTINGS)


def every_backbone() -> dict[str, type[BackboneSettings]]:
    """The keys of all backbones, ours and those of loaded plugins."""
    return BACKBONE_SETTINGS | {name: row.keys for name, row in backbones().items()}


def backbone_of(values: dict[str, Any], where: str) -> str:
    """The backbone that a recipe's plain values name. Raises Refused where there is none of that name."""
    points, known = values.get("points"), list(every_backbone())
    name = points.get("backbone", DEFAULT_BACKBONE) if isinstance(points, dict) else DEFAULT_BACKBONE
    if not isinstance(name, str) or name not in known:
        raise Refused(f"{where}: {unknown_name('backbone', str(name), known, 'one of your own: --plugin FILE.py')}")
    return name


def completed(kind: type[Kind], backbone: str) -> type[Kind]:
    """A class of recipes with the keys of a backbone and, where it has our table of weights, those of terms."""
    return _completed(kind, every_backbone()[backbone], tuple((name, row.weight) for name, row in terms().items()))


@cache
def _completed(kind: type[Kind], points: type[BackboneSettings], weights: tuple[tuple[str, float], ...]) -> type[Kind]:
    tables: dict[str, Any] = {} if points is PointSettings else {"points": (points, points())}
    table = _table_of(kind, "weights")
    if weights and issubclass(table, (Weights, SelfTrainingWeights)):
        keys: dict[str, Any] = {name: (Weight, weight) for name, weight in weights}
        extended = create_model(table.__name__, __base__=table, **keys)
        tables["weights"] = (extended, extended())
    return create_model(kind.__name__, __base__=kind, **tables) if tables else kind


def _table_of(kind: type[BaseModel], name: str) -> type[BaseModel]:
    """The class of a table of a recipe; BaseModel, which has no key, where there is no such table."""
    found = kind.model_fields[name].annotation if name in kind.model_fields else None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else BaseModel


def earlier() -> dict[str, Any]:
    """What runs did that were saved without the weight of a term: they were trained without it."""
    return {"weights": dict.fromkeys(terms(), 0.0)} if terms() else {}


def without_idle_weights(values: dict[str, Any], kind: type[BaseModel], where: str) -> dict[str, Any]:
    """A saved recipe without weights of 0 of terms that its class does not have, as of a plugin or another version."""
    weights, known = values.get("weights"), _table_of(kind, "weights").model_fields
    if not isinstance(weights, dict) or not known:
        return values
    idle = [name for name, weight in weights.items() if name not in known and weight == 0]
    for name in idle:
        log.warning("%s: weights.%s=0 is of a term that is not loaded here: it is left out", where, name[:40])
    return values | {"weights": {name: weight for name, weight in weights.items() if name not in idle}}


def _rows(kind: str, row: type[Row], shipped: Collection[str]) -> dict[str, Row]:
    found = {}
    for name, (plugin, _, values) in plugins.offered(kind, shipped).items():
        where = f"plugin {plugin}: {kind} {name}"
        if not re.fullmatch("[a-z][a-z0-9_]*", str(name)):
            raise Refused(f"{where}: a name is made of a-z, 0-9 and _, as it is part of a key")
        found[name] = parse_recipe(row, values, where)
    return found
