"""Builds and opens models of part segmentation, and fills new ones from files whose layers agree by name and shape.

Such files are a run of ours, CrossPoint's pre-trained or fine-tuned DGCNN_partseg, the part segmentation networks of
Pointnet_Pointnet2_pytorch, and any other network: what it shares is taken, and the report says what that is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from manifests.errors import Refused
from training.models.part_model import PartModel
from training.networks.precision import settle
from training.settings.fit_recipe import PartsRecipe
from training.settings.model import Precision, Who
from training.settings.part_settings import part_backbones
from training.weights.checkpoint import MODEL, TEACHER, Checkpoint, load_weights
from training.weights.formats import require_finite
from training.weights.pretrained import HUB, Loaded, from_hub
from training.weights.run_folder import last_step, read_about
from training.weights.safe_load import read_tensors
from training.weights.tensor_names import OURS, POINT_NETWORK

_OUTSIDE = re.compile(r"^(?:(?:module|_orig_mod|points|head)\.)+")  # around a network: wrappers, parts of our model
_TWICE = re.compile(r"\bbn(\d+)\.")  # DGCNN names its norms twice: bn1 and conv1.1


@dataclass(frozen=True)
class OpenedParts:
    """A checkpoint's model in eval mode on a device. parts: how many each class has."""

    checkpoint: Checkpoint
    model: PartModel
    precision: Precision
    parts: tuple[int, ...]


def new_part_model(
    recipe: PartsRecipe, parts: Sequence[int], on_weights: Callable[[Loaded], None] = lambda loaded: None
) -> PartModel:
    """A new model, seeded by the recipe, with the weights that it names. parts: how many each class has.

    Raises Refused where the backbone labels no points, and where `init.points` cannot be read or has no layer of it.
    """
    known = part_backbones().values()
    if recipe.points.backbone not in known:
        raise Refused(f"points.backbone={recipe.points.backbone} labels no points: {', '.join(known)} do")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = PartModel(recipe.points, len(parts), sum(parts), recipe.parts.dropout)
    if recipe.init.points:
        on_weights(_filled(model, recipe.init.points, recipe.init.take))
    return model


def open_parts(checkpoint: Checkpoint, device: torch.device, precision: Precision) -> OpenedParts:
    """Opens a run of part segmentation. Raises Refused when its files are damaged."""
    folder = checkpoint.folder.parent.parent
    parts, recipe = tuple(read_about(folder).get("parts", ())), checkpoint.recipe
    assert isinstance(recipe, PartsRecipe)
    if not parts:
        raise Refused(f"{folder}: run.json does not say how many parts each class has")
    model = new_part_model(recipe.model_copy(update={"init": type(recipe.init)()}), parts)
    load_weights(model, checkpoint.folder / MODEL)
    model.eval().to(device).precision = precision
    settle(precision)
    return OpenedParts(checkpoint, model, precision, parts)


def _filled(model: PartModel, source: str, who: Who) -> Loaded:
    """Takes every layer that a file has whole, in the same shapes, and says which."""
    path = from_hub("init.points", source) if source.startswith(HUB) else Path(source)
    if path.is_dir():
        path = last_step(path) / (TEACHER if who == "teacher" else MODEL)
    try:
        given = read_tensors(path, who)
        require_finite(given, path)
    except Refused as error:
        raise Refused(f"init.points={error}") from error
    ours = any(name.startswith("points.") for name in given)
    inside = {_OUTSIDE.sub("", name): name for name in given if not ours or name.startswith(("points.", "head."))}
    own, layers = model.state_dict(), dict[str, list[str]]()
    for name in own:
        layers.setdefault(".".join(name.split(".")[:2]), []).append(name)
    stored = {name: inside.get(_OUTSIDE.sub("", name), "") for name in own}
    taken = [
        name
        for layer in layers.values()
        if all(stored[each] and given[stored[each]].shape == own[each].shape for each in layer)
        for name in layer
    ]
    if not taken:
        raise Refused(f"init.points={source}: no layer of it has the name and the shapes of one of {model.name}")
    model.load_state_dict({name: given[stored[name]] for name in taken}, strict=False)
    used = {_OUTSIDE.sub("", name) for name in taken}
    left_over = [name for short, name in inside.items() if not {short, _TWICE.sub(r"conv\1.1.", short)} & used]
    missing = tuple(name for name in own if name not in taken)
    kind = OURS if ours else POINT_NETWORK
    return Loaded("init.points", source, kind, "none", tuple(taken), missing, tuple(left_over))
