"""Heads and generators of models, and what PointCMT's later stages take from the runs of earlier ones or its files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from manifests.errors import Refused
from training.models.cross_modal import CrossModalModel
from training.networks.cloud_generator import CloudGenerator, SharedSpaceHead
from training.networks.pointnet2 import PointCmtPointNet2
from training.settings.fit_recipe import FitRecipe, SupervisedRecipe
from training.settings.model import CLIP
from training.settings.pointcmt_recipes import GeneratorRecipe, PointCmtRecipe, ViewsRecipe
from training.weights.formats import require_finite
from training.weights.pretrained import Loaded, Towers
from training.weights.run_folder import MODEL, last_step, read_about, recipe_of_file
from training.weights.safe_load import read_tensors
from training.weights.tensor_names import OURS, POINTCMT

TAKEN = {  # key of init -> the method of the run that it names, and what is taken of it
    "teacher": ("multiview", ("image.", "image_head.")),
    "generator": ("cross_modal_generator", ("generator.",)),
}
RELEASED_NAMES = {  # of models/mvcnn.py and models/cmpg.py -> ours
    "net.0.": "image.visual.conv1.",
    "net.1.": "image.visual.bn1.",
    **{f"net.{3 + stage}.": f"image.visual.layer{stage}." for stage in range(1, 5)},
    "fc.0.": "image_head.",
    "fc_l.": "generator.fc_l.",
}
UNREAD = "image.projection"  # into CLIP's space; released files lack it
RELEASED = re.compile("^(?:" + "|".join(map(re.escape, RELEASED_NAMES)) + ")")
ALIKE = {"teacher": ("image", ("backbone",)), "generator": ("generator", ("form", "hidden"))}  # keys of both


def heads_of(recipe: FitRecipe, towers: Towers, classes: int) -> dict[str, nn.Module]:
    """What a model of this recipe has beside its towers, by the names of CrossModalModel, with random weights."""
    if isinstance(recipe, SupervisedRecipe) and recipe.supervised.head == "own":
        return {"points_head": towers.points.classification_head(classes)}
    if not isinstance(recipe, ViewsRecipe):
        return {}
    width, own = towers.image.represented, len(towers.points.projection)
    found: dict[str, nn.Module] = {"image_head": nn.Linear(width, classes)}
    if isinstance(recipe, GeneratorRecipe | PointCmtRecipe):
        found["generator"] = CloudGenerator(width, recipe.generator.points or recipe.data.num_points, recipe.generator)
    if isinstance(recipe, PointCmtRecipe):
        ready = isinstance(towers.points, PointCmtPointNet2) and own == width
        found["points_head"] = SharedSpaceHead(own, width, classes, ready)
    return found


def require_stages(recipe: FitRecipe) -> None:
    """Raises Refused where a new run has no ResNet, or names no run of an earlier stage that it needs."""
    if isinstance(recipe, ViewsRecipe) and recipe.image.backbone == CLIP:
        raise Refused(f"image.backbone={CLIP}: method={recipe.method} wants resnet18 or resnet50")
    needed: dict[str, bool] = {}
    if isinstance(recipe, GeneratorRecipe):
        needed["teacher"] = True
    if isinstance(recipe, PointCmtRecipe):
        needed["generator"] = recipe.pointcmt.feature > 0
        needed["teacher"] = recipe.pointcmt.of_pictures
    for key in (key for key, wanted in needed.items() if wanted and not getattr(recipe.init, key)):
        raise Refused(f"method={recipe.method} needs init.{key}=RUN, a run of method={TAKEN[key][0]}")


def take_stages(
    model: CrossModalModel, recipe: FitRecipe, prompt_names: tuple[str, ...], on_weights: Callable[[Loaded], None]
) -> None:
    """Fills teacher and generator from the runs, or PointCMT's own files, that a new run of stage II or III names.
    Raises Refused where one is of another method, other classes or another width."""
    for key, (method, parts) in TAKEN.items():
        source = getattr(recipe.init, key, "")
        if not source:
            continue
        what, kind = f"init.{key}={source}", OURS
        if Path(source).is_file():
            tensors, kind = _of_file(source), POINTCMT
        else:
            tensors = _of_run(what, source, method, recipe, ALIKE[key], prompt_names if key == "teacher" else ())
        taken = {name: value for name, value in tensors.items() if name.startswith(parts)}
        own = model.state_dict()
        for name in (each for each in own if each.startswith(parts) and (kind == OURS or each != UNREAD)):
            if name not in taken or taken[name].shape != own[name].shape:
                has = tuple(taken[name].shape) if name in taken else "missing"
                raise Refused(f"{what}: {name} is {has}, this recipe's {tuple(own[name].shape)}")
        model.load_state_dict({name: value for name, value in taken.items() if name in own}, strict=False)
        left_over = tuple(name for name in tensors if name not in taken)
        on_weights(Loaded(f"init.{key}", source, kind, "none", tuple(taken), (), left_over))


def _of_file(source: str) -> dict[str, Tensor]:
    """The tensors of PointCMT's own mvcnn.t7 or cmpg.pth by our names; one that is not known there keeps its own. What
    classes such a teacher answers with, the file does not say."""
    given = {name.removeprefix("module."): value for name, value in read_tensors(source).items()}
    require_finite(given, source)
    return {RELEASED.sub(lambda found: RELEASED_NAMES[found[0]], name): value for name, value in given.items()}


def _of_run(
    what: str, source: str, method: str, recipe: FitRecipe, alike: tuple[str, tuple[str, ...]], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """The student of a run of this method. alike: a table and its keys, which both recipes have alike. names: the
    classes that the run must have; empty for any."""
    file = last_step(Path(source)) / MODEL
    if not file.is_file():
        raise Refused(f"{what} is no checkpoint and no run with one (no {MODEL})")
    begun = recipe_of_file(file) or {}
    if begun.get("method") != method:
        raise Refused(f"{what} is a run of method={begun.get('method')}: it wants one of method={method}")
    table, keys = alike
    for key in keys:
        then, now = begun.get(table, {}).get(key), getattr(getattr(recipe, table), key)
        if then != now:
            raise Refused(f"{what} has {table}.{key}={then}, this recipe {now}")
    known = tuple(read_about(file.parent.parent.parent)["prompt_names"])
    if names and known != names:
        odd = sorted(set(known) ^ set(names)) or ["their order"]
        raise Refused(f"{what} learned {len(known)} classes, the shards have {len(names)}: {odd[0]} differs")
    tensors = read_tensors(file)
    require_finite(tensors, file)
    return tensors
