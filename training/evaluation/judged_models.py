"""Opens what is to be judged: a run, a checkpoint, or weights without a run (a tag, a file, a file for each tower)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from manifests import store
from manifests.config import Settings, Value, merge, parse_recipe
from manifests.errors import Refused
from manifests.layout import asked_view_set, require_manifest, view_set_names
from training.evaluation.classifier import load, written_here
from training.models.clip import is_tag
from training.settings.fit_recipe import (
    DEFAULT_METHOD,
    CrossMostRecipe,
    FitRecipe,
    PretrainRecipe,
    read_recipe,
    recipe_kinds,
)
from training.settings.from_plugins import backbone_of
from training.settings.model import Precision
from training.settings.prompts import Prompts
from training.weights.checkpoint import Checkpoint, build_model, open_checkpoint
from training.weights.grouping import as_asked
from training.weights.open_models import (
    Opened,
    as_trained,
    open_models,
    rest,
    text_prompts,
    untaught,
    warn_of_own_heads,
)
from training.weights.pretrained import HUB, Loaded, read_source
from training.weights.run_folder import MODEL

TOWER_KEYS = ("image", "init", "points")  # of weights without a run, which do not say what towers they are of
UNMASKED: dict[str, Value] = {"mim": 0, "mpm": 0, "lg_align": 0}  # towers without tokens are judged, too


class _Asked(Settings):
    """Prompts of the command line."""

    prompts: Prompts


def asked_prompts(value: Value) -> tuple[str, ...]:
    """The prompts that a key names, as in a recipe. Raises Refused."""
    return parse_recipe(_Asked, {"prompts": value}, "evaluate").prompts


def open_judged(
    source: str,
    shards: str,
    changes: dict[str, Value],
    device: torch.device,
    precision: Precision | None = None,
    recipe: str = "",
    say: Callable[[list[str]], None] = lambda lines: None,
    other_neighbours: bool = False,
    needs: tuple[str, ...] = (),
) -> Opened:
    """Opens a run, a checkpoint or a file of `Classifier.save`, which bring their towers; or weights that do not.

    source: a path, or of weights also `hf-hub:...`, a tag of open_clip for image.model, or MODEL:TAG; empty where
    `init.*` among the changes names all. changes: keys of TOWER_KEYS and of `data`. recipe: one whose towers, weights
    and data are used where no change says otherwise; by default the full-size towers, without weights. say: is given
    lines about the weights. other_neighbours: as of `with_points`. needs: beginnings of the names of tensors that must
    be loaded, where features alone are asked for; then no classifier is made, which else needs an image tower with its
    text tower. Raises Refused naming the key that is missing or does not fit.
    """
    path, base = Path(source), _base(recipe, changes)
    bare = not source or path.is_file() or source.startswith(HUB) or _tag(source, base, changes) is not None
    own = path.is_file() and written_here(path)
    if bare and not own:
        return _open_bare(source, shards, changes, base, bool(recipe), device, precision, say, needs)
    keys = TOWER_KEYS if own else TOWER_KEYS[:-1]  # a checkpoint's points can be given other neighbours
    given = [f"{key}=..." for key in keys if key in changes] + (["--recipe"] if recipe else [])
    if given:
        raise Refused(f"{given[0]} is for weights without a run: {source} brings its own towers")
    if not path.exists():
        model = merge(base, changes)["image"]["model"]
        raise Refused(
            f"{source} is no checkpoint and no run with one (no {MODEL}), no file and no open_clip tag of "
            f"image.model={model}"
        )
    if not own:
        checkpoint = with_points(open_checkpoint(source), changes.get("points", {}), other_neighbours)
        if not needs or "points.projection" in needs:
            warn_of_own_heads([checkpoint])
        return open_models(checkpoint, precision=precision, device=device)
    found = load(path, device=device)
    precision = as_trained(found.checkpoint.recipe, device, precision)
    rest([found.model], precision)
    prompts = text_prompts(found.checkpoint.recipe) if isinstance(found.checkpoint.recipe, PretrainRecipe) else ()
    models, random = {"student": found.model}, untaught(found.checkpoint.recipe)
    return Opened(found.checkpoint, models, found.text, precision, True, prompts, random)


def with_points(checkpoint: Checkpoint, points: dict[str, Value], asked: bool) -> Checkpoint:
    """A checkpoint judged with other neighbours of points than it learned with, where --other-neighbours asks for it.
    Raises Refused as `as_asked` does."""
    return replace(checkpoint, recipe=as_asked(checkpoint.recipe, points, asked, str(checkpoint.folder)))


def _base(recipe: str, changes: dict[str, Value]) -> dict[str, Value]:
    """Plain values of what a recipe says of towers, weights, data and prompts, without the keys of another backbone
    than the changes name."""
    found: FitRecipe = read_recipe(recipe, {}) if recipe else CrossMostRecipe()
    values = found.model_dump(mode="json", include={*TOWER_KEYS, "data", "seed", "precision"})
    if backbone_of(merge(values, changes), "evaluate") != found.points.backbone:
        del values["points"]
    return values | {"prompts": list(text_prompts(found))}


def _tag(source: str, base: dict[str, Value], changes: dict[str, Value]) -> tuple[str, str] | None:
    """(model, tag) where a text is a tag of open_clip, or MODEL:TAG."""
    model, _, tag = source.rpartition(":")
    model = model or merge(base, changes)["image"]["model"]
    return (model, tag) if is_tag(model, tag) else None


def _open_bare(
    source: str,
    shards: str,
    changes: dict[str, Value],
    base: dict[str, Value],
    from_recipe: bool,
    device: torch.device,
    precision: Precision | None,
    say: Callable[[list[str]], None],
    needs: tuple[str, ...],
) -> Opened:
    """Towers as a run with these keys would begin, without the classifier, which the shards' class names make."""
    named = _named(source, base, changes)
    for table in named:
        if both := named[table].keys() & changes.get(table, {}).keys():
            raise Refused(f"{table}.{min(both)}={changes[table][min(both)]}: {source} says it already")
    data = _data(shards, merge(base["data"], changes.get("data", {})), changes.get("data", {}), from_recipe)
    if needs and not {"image.", "points.projection"} <= set(needs):  # then the towers need share no space
        base = merge(base, {"init": {"other_space": "keep"}})
    recipe = _as_recipe(merge(merge(base, changes), named) | {"data": data})
    what = source or "init.*"
    if not (needs or recipe.init.all or recipe.init.image or recipe.image.pretrained):
        raise Refused(
            f"{what} holds no image tower, and no text tower to make the classifier from: init.image=TAG or FILE"
        )
    manifest = require_manifest(store.absolute(shards), f"--shards {shards}")
    loaded: list[Loaded] = []
    from_text = recipe.init.classifier == "text"
    model, text = build_model(recipe, manifest.prompt_names, loaded.append, blank=from_text)
    for each in loaded:
        say(each.lines())
    names = [name for each in loaded for name in each.loaded]
    for need in needs:
        if not any(name.startswith(need) for name in names):
            tower, _, part = need.partition(".")
            raise Refused(f"{what} gives no {part or 'tower'} of {tower}: init.{tower}=FILE")
    random = () if "points.projection" in names else ("points",)
    if random and not needs:
        say(["points are not judged: no weights give their tower and its projection (init.points=FILE)"])
    checkpoint = Checkpoint(Path(what), 0, recipe, manifest.classes, manifest.prompt_names, manifest.dataset)
    precision = as_trained(recipe, device, precision)
    rest([model], precision)
    opened = Opened(checkpoint, {"student": model}, text, precision, True, random=random)
    return replace(opened, prompts=recipe.prompts if from_text else ()).to(device)


def _named(source: str, base: dict[str, Value], changes: dict[str, Value]) -> dict[str, Any]:
    """What the source stands for: keys of `init`, and image.model where it is named beside a tag."""
    if not source:
        return {}
    if (found := _tag(source, base, changes)) is not None:
        model, tag = found
        return {"init": {"image": tag}} | ({"image": {"model": model}} if ":" in source else {})
    settings = _as_recipe(merge(base, changes))
    weights = read_source("init.all", source, settings.image, settings.init.take)
    held = [part for part in ("image", "points") if weights.below(f"{part}.")]
    return {"init": {held[0] if len(held) == 1 else "all": source}}


def _as_recipe(values: dict[str, Value]) -> CrossMostRecipe:
    """A recipe of these towers, of any backbone: no loss is computed, so those of tokens, which it may lack, are 0."""
    kind = recipe_kinds(backbone_of(values, "evaluate"))[DEFAULT_METHOD]
    return cast(CrossMostRecipe, parse_recipe(kind, values | {"weights": UNMASKED}, "evaluate"))


def _data(shards: str, data: dict[str, Value], asked: dict[str, Value], from_recipe: bool) -> dict[str, Value]:
    """Keys of `data`: where nobody names a view set, the build's only one, and of one without rgb its first channel."""
    out, names = store.absolute(shards), view_set_names(store.absolute(shards))
    if "views" not in asked and not from_recipe:
        if len(names) != 1:
            raise Refused(f"data.views=NAME is needed: {shards} has {', '.join(names) or 'no view set'}")
        data = data | {"views": names[0]}
    found = asked_view_set(out, data["views"]) if data["views"] in names else None
    if found is not None and "channel" not in asked and "rgb" not in found.preset.channels and not from_recipe:
        data = data | {"channel": found.preset.channels[0]}
    return data
