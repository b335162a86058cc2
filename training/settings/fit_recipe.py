"""The recipe of a run: one class for each method, with the keys that this method reads and no other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import ClassVar, Literal, cast

from pydantic import BaseModel, model_validator

from manifests.config import Value, find_recipe, load_toml, merge, nearest_key, parse_recipe, unknown_name
from manifests.errors import Refused
from training.settings import from_plugins, objective, part_settings
from training.settings.adapter_recipe import AdapterRecipe
from training.settings.clip2point_recipe import Clip2PointRecipe
from training.settings.data import (
    AugmentSettings,
    CrossPointAugmentSettings,
    LabelledAugmentSettings,
)
from training.settings.from_plugins import backbone_of, every_backbone
from training.settings.model import (
    CLIP,
    DEFAULT_BACKBONE,
    ImageSettings,
    TextSettings,
)
from training.settings.pointcmt_recipes import GeneratorRecipe, MultiviewRecipe, PointCmtRecipe
from training.settings.prompts import DEFAULT_PROMPTS, Prompts, names_a_file
from training.settings.recipe_presets import RECIPES, read_preset
from training.settings.run_recipe import ClassifierRecipe, FitRecipe

log = logging.getLogger(__name__)


class TaughtRecipe(ClassifierRecipe):
    """Methods with a teacher, whose pseudo-labels teach strong, masked views."""

    labels: objective.ThresholdSettings = objective.ThresholdSettings()
    cls: objective.ClsSettings = objective.ClsSettings()
    mask: objective.MaskSettings = objective.MaskSettings()
    lg_align: objective.LocalGlobalSettings = objective.LocalGlobalSettings()
    ema: objective.EMASettings = objective.EMASettings()
    augment: AugmentSettings = AugmentSettings()

    @model_validator(mode="after")
    def _tokens_for_masked_losses(self) -> TaughtRecipe:
        weights = getattr(self, "weights", None)
        needed = {f"weights.{name}": getattr(weights, name, 0) for name in ("mpm", "lg_align")}
        if not self.points.has_tokens and any(needed.values()):
            words = " ".join(f"{key}=0" for key, weight in needed.items() if weight)
            raise ValueError(f"points.backbone={self.points.backbone} has no tokens to mask: {words}")
        if not self.points.has_tokens and self.lg_align.points == "own":
            raise ValueError(f"points.backbone={self.points.backbone} has no tokens to project: lg_align.points=tower")
        return self


class CrossMostRecipe(TaughtRecipe):
    """Keys of training/objectives/cross_most.py."""

    method: Literal["cross_most"] = "cross_most"
    labels: objective.LabelSettings = objective.LabelSettings()
    weights: objective.Weights = objective.Weights()
    align: objective.AlignSettings = objective.AlignSettings()

    @property
    def pseudo_labels(self) -> objective.LabelSettings:
        """As `labels` has them."""
        return self.labels


class SelfTrainingRecipe(TaughtRecipe):
    """Keys of training/objectives/self_training.py."""

    method: Literal["self_training"]
    weights: objective.SelfTrainingWeights = objective.SelfTrainingWeights()

    @property
    def pseudo_labels(self) -> objective.LabelSettings:
        """Each branch is taught by its own."""
        return objective.LabelSettings(mode="own", **self.labels.model_dump())


class CrossPointRecipe(ClassifierRecipe):
    """Keys of training/objectives/crosspoint.py."""

    method: Literal["crosspoint"]
    crosspoint: objective.CrossPointSettings = objective.CrossPointSettings()
    augment: CrossPointAugmentSettings = CrossPointAugmentSettings()

    @model_validator(mode="after")
    def _another_object_beside(self) -> CrossPointRecipe:
        if self.optimizer.batch_size == 1:
            raise ValueError("optimizer.batch_size=1: an object is told apart from others, so two are needed at least")
        return self


class SupervisedRecipe(ClassifierRecipe):
    """Keys of training/objectives/supervised.py."""

    method: Literal["supervised"]
    supervised: objective.SupervisedSettings = objective.SupervisedSettings()
    augment: LabelledAugmentSettings = LabelledAugmentSettings()

    @property
    def towers(self) -> tuple[str, ...]:
        """As `supervised.towers` has them."""
        return super().towers if self.supervised.towers == "both" else (self.supervised.towers,)


class PretrainRecipe(FitRecipe):
    """Keys of training/objectives/pretrain.py, whose classifier follows the text tower."""

    method: Literal["pretrain"]
    text: TextSettings = TextSettings()
    pretrain: objective.PretrainSettings = objective.PretrainSettings()
    augment: LabelledAugmentSettings = LabelledAugmentSettings()

    @model_validator(mode="after")
    def _weights_for_frozen_towers(self) -> PretrainRecipe:
        clip, init = self.image.backbone == CLIP, self.init
        given = {
            "image": init.all or init.image or (clip and self.image.pretrained),
            "text": init.all or self.image.pretrained or (clip and init.image),
        }
        for name, learns in (("image", self.pretrain.image), ("text", self.pretrain.text)):
            if learns != "trained" and not given[name]:
                key = "init.image" if clip or name == "image" else "image.pretrained"
                beside = "" if clip else f" beside image.backbone={self.image.backbone}"
                raise ValueError(f"pretrain.{name}={learns} needs weights{beside}: {key}=FILE or a tag")
        return self


class PartsRecipe(FitRecipe):
    """Keys of training/objectives/part_segmentation.py, which has points alone: no picture, no text, no classifier."""

    method: Literal["parts"]
    image: ClassVar[ImageSettings] = ImageSettings()  # type: ignore[misc]  # these are not read: they are no keys
    prompts: ClassVar[Prompts] = DEFAULT_PROMPTS  # type: ignore[misc]
    logit_scale: ClassVar[str] = "frozen"  # type: ignore[misc,assignment]
    eval_every: ClassVar[int] = 0  # type: ignore[misc]
    activation_checkpointing: ClassVar[bool] = False  # type: ignore[misc]
    init: part_settings.PartInitSettings = part_settings.PartInitSettings()
    parts: part_settings.PartSettings = part_settings.PartSettings()
    augment: part_settings.PartAugmentSettings = part_settings.PartAugmentSettings()

    @model_validator(mode="after")
    def _batch_norms_need_several_objects(self) -> PartsRecipe:
        if self.optimizer.batch_size == 1:
            raise ValueError("optimizer.batch_size=1: batch norms need two objects at least")
        return self

    @property
    def towers(self) -> tuple[str, ...]:
        """There is no other."""
        return ("points",)


DEFAULT_METHOD = "cross_most"
RECIPE_OF: dict[str, type[FitRecipe]] = {
    "cross_most": CrossMostRecipe,
    "self_training": SelfTrainingRecipe,
    "pretrain": PretrainRecipe,
    "crosspoint": CrossPointRecipe,
    "supervised": SupervisedRecipe,
    "parts": PartsRecipe,
    "multiview": MultiviewRecipe,
    "cross_modal_generator": GeneratorRecipe,
    "pointcmt": PointCmtRecipe,
    "clip2point": Clip2PointRecipe,
    "adapter": AdapterRecipe,
}


def keys_of(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a recipe, dotted, and its tables, each before what is in it."""
    for name, field in kind.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{prefix}{name}.")


@cache
def _keys_of(kind: type[FitRecipe]) -> frozenset[str]:
    return frozenset(keys_of(kind))


def read_by(backbone: str = DEFAULT_BACKBONE) -> dict[str, frozenset[str]]:
    """method -> the keys that it reads with this backbone, with those of loaded plugins."""
    return {name: _keys_of(kind) for name, kind in recipe_kinds(backbone).items()}


def recipe_kinds(backbone: str = DEFAULT_BACKBONE) -> dict[str, type[FitRecipe]]:
    """method -> the class of its recipes with this backbone, ours and those of loaded plugins, with plugins' terms."""
    kinds = RECIPE_OF | {name: cast(type[FitRecipe], row.recipe) for name, row in from_plugins.methods().items()}
    return {name: from_plugins.completed(kind, backbone) for name, kind in kinds.items()}


def keys_of_method(method: str) -> frozenset[str]:
    """The keys that a method reads with one backbone or another."""
    return frozenset[str]().union(*(read_by(each)[method] for each in every_backbone()))


def _other_keys(method: str, backbone: str) -> frozenset[str]:
    """The keys that only other methods or backbones read."""
    every = frozenset[str]().union(*(keys for each in every_backbone() for keys in read_by(each).values()))
    return every - read_by(backbone)[method]


def keys_in(values: dict[str, Value], prefix: str = "") -> Iterator[str]:
    """The dotted keys of plain values: of what is in a table, not of the table."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from keys_in(value, f"{prefix}{name}.")
        else:
            yield prefix + name


EARLIER: dict[str, Value] = {  # what runs did that were saved before these keys were there
    "image": {"normalize": "preset"},
    "augment": {"weak_crop": "middle", "points_fill": "repeat", "first_cloud": "weak"},
    "crosspoint": {"heads": "projection", "passes": 2},
}
READ_BY = {method: frozenset(keys_of(kind)) for method, kind in RECIPE_OF.items()}  # without plugins
EVERY_KEY = frozenset[str]().union(*READ_BY.values())


def read_recipe(name: str, changes: dict[str, Value], preset: str = "") -> FitRecipe:
    """A recipe file with changes applied. preset: its keys are taken for the file's own (settings/recipe_presets.py).

    A change of `method` or `points.backbone` drops those keys of the file that the other one does not read: the file
    was written for its own. Raises Refused naming what does not fit: also a key of another method, in `changes` or in
    a file of its method.
    """
    where = f"recipe {name}"
    values, changes = part_settings.with_task(load_toml(find_recipe(name, RECIPES)), changes, where)
    method, backbone = _method_of(merge(values, changes), where), backbone_of(merge(values, changes), where)
    if preset:
        values = merge(values, read_preset(preset, name, _method_of(values, where)))
    own = values.get("method", DEFAULT_METHOD) == method and backbone_of(values, where) == backbone
    if not own or _has_every_table(values):
        values = _without(values, _other_keys(method, backbone))
    merged = merge(values, changes)
    _refuse_other_keys(merged, method, backbone, where)
    return parse_recipe(recipe_kinds(backbone)[method], merged, where)


def method_of(name: str, changes: dict[str, Value]) -> str:
    """The method of a recipe file with changes applied. Raises Refused where the program has no such method."""
    where = f"recipe {name}"
    return _method_of(merge(*part_settings.with_task(load_toml(find_recipe(name, RECIPES)), changes, where)), where)


def _method_of(values: dict[str, Value], where: str) -> str:
    method = values.get("method", DEFAULT_METHOD)
    known = list(recipe_kinds())
    if not isinstance(method, str) or method not in known:
        raise Refused(f"{where}: {unknown_name('method', str(method), known)}")
    return method


def _has_every_table(values: dict[str, Value]) -> bool:
    """Whether an earlier version saved this recipe: it wrote the tables of all methods, with their defaults."""
    return {"labels", "pretrain", "crosspoint"} <= set(values)


def _without(values: dict[str, Value], keys: frozenset[str], prefix: str = "") -> dict[str, Value]:
    """Values without these dotted keys."""
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in values.items()
        if prefix + name not in keys
    }


def _refuse_other_keys(values: dict[str, Value], method: str, backbone: str, where: str, prefix: str = "") -> None:
    """Raises Refused for the first key that other methods or backbones read and this one does not."""
    reads, others = read_by(backbone), _other_keys(method, backbone)
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict) and value:
            _refuse_other_keys(value, method, backbone, where, f"{key}.")
        elif key in others:
            of = [other for other, keys in reads.items() if key in keys]
            of = of or [f"points.backbone={other}" for other in every_backbone() if key in read_by(other)[method]]
            readers = " and ".join(of)
            table = prefix if prefix[:-1] in reads[method] else ""
            read = [known for known in sorted(reads[method]) if known.rpartition(".")[0] == table[:-1]]
            near = nearest_key(key, reads[method])
            hint = f"; did you mean {near}?" if near and near.rpartition(".")[2] == name else ""
            raise Refused(f"{where}: {key} is a key of {readers}{hint}; method={method} reads {', '.join(read)}")


def changes_of(method: str, changes: dict[str, Value]) -> dict[str, Value]:
    """Of changes that are typed for several recipes, those that this method reads.

    A key that no method reads stays, so that `read_recipe` refuses it.
    """
    return _without(changes, _other_keys(method, DEFAULT_BACKBONE) - keys_of_method(method))


def saved_recipe(values: dict[str, Value], where: str) -> FitRecipe:
    """A recipe that was saved with a run, whose prompts are written out; no other file is read for it.

    Keys of other methods, which earlier versions saved as well, are dropped. Raises Refused naming `where` and what
    does not fit.
    """
    prompts = values.get("prompts")
    if isinstance(prompts, str) and names_a_file(prompts):
        raise Refused(f"{where}: prompts={prompts[:60]!r} names a file, and a saved recipe has its prompts written out")
    method, backbone = _method_of(values, where), backbone_of(values, where)
    values = _without(merge(EARLIER | from_plugins.earlier(), values), _other_keys(method, backbone))
    kind = recipe_kinds(backbone)[method]
    return parse_recipe(kind, from_plugins.without_idle_weights(values, kind, where), where)


def as_begun(recipe: FitRecipe, saved: dict[str, Value], where: str) -> FitRecipe:
    """The recipe with which a run goes on: what the run did before a key was there, it does to its end.

    saved: the run's own recipe, as it stands in its file. Only a key that the command leaves at its default is set.
    """
    changes: dict[str, Value] = {}
    for table, keys in (EARLIER | from_plugins.earlier()).items():
        inside = saved.get(table, {})
        for key, value in cast(dict[str, Value], keys).items():
            settings = getattr(recipe, table, None)
            field = getattr(type(settings), "model_fields", {}).get(key)
            if field is not None and key not in inside and getattr(settings, key) == field.default:
                log.warning("%s was begun before %s.%s was a key: it goes on with %s", where, table, key, value)
                changes = merge(changes, {table: {key: value}})
    return parse_recipe(type(recipe), merge(recipe.model_dump(mode="json"), changes), where) if changes else recipe
