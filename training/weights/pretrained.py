"""Fills the towers of a new run with weights from files, open_clip tags, a hub or runs of ours.

Every source becomes a WeightsFile. A tower takes all tensors of its part, or the source is refused, naming the first
tensor that does not fit.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from manifests.errors import Refused, one_line
from manifests.plain_text import number_of
from training.models.backbones import point_tower
from training.models.clip import (
    TextTower,
    build_towers,
    create_clip,
    is_tag,
    refuse_gelu,
    resize_positions,
)
from training.models.hub import cached, require_answer
from training.models.image_backbone import SPACES, ImageBackbone
from training.networks.point_backbone import PointBackbone
from training.settings.fit_recipe import FitRecipe
from training.settings.model import CLIP, DEFAULT_BACKBONE, ImageSettings, InitSettings, PointSettings, Who
from training.weights.depth_weights import of_pictures
from training.weights.fill_tower import fill, optional
from training.weights.formats import WeightsFile, below, read_weights_file, require_finite
from training.weights.grouping import IN_WEIGHTS, hold_grouping, shows_in_no_weight
from training.weights.run_folder import MODEL, TEACHER, TEXT, last_step, recipe_of_file
from training.weights.safe_load import read_tensors
from training.weights.tensor_names import (
    CAPTIONS,
    CLIP2POINT,
    KINDS,
    OPEN_CLIP,
    OPENAI,
    OTHER_TOWERS,
    OURS,
    POINT_NETWORK,
    RELEASED,
    TORCHVISION,
)

log = logging.getLogger(__name__)
HUB = "hf-hub:"
_HUB_FILES = (  # the last two are of transformers where a repository has no other: they are refused by that name
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.pt",
    "model.safetensors",
    "pytorch_model.bin",
)
_READ_HERE = 3  # the first ones
_SIZES = {  # keys that the weights depend on; not all of them show in a shape
    "image": ("model", "backbone", "stem", "image_size"),
    "points": IN_WEIGHTS,
}
_EARLIER_BACKBONE = {"image": CLIP, "points": DEFAULT_BACKBONE}  # of recipes that do not name one
_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")
_SAME_SPACE = 0.9  # cosine of two image projections: unrelated ones are near 0, a fine-tuned one stays near 1
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Loaded:
    """What one source gave: loaded and missing are our names, left_over those of the file."""

    key: str
    source: str
    kind: str
    space: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]

    def lines(self) -> list[str]:
        """A few lines for a person: counts and first names."""
        head = f"{self.key}={self.source}: {KINDS[self.kind]}, {number_of(len(self.loaded), 'tensor')} loaded"
        rest = (("not in it, left at random", self.missing), ("in it and not needed", self.left_over))
        return [head, *(f"  {words}: {some(names)}" for words, names in rest if names)]

    def summary(self) -> dict[str, Any]:
        """What run.json keeps."""
        return asdict(self) | {"loaded": len(self.loaded)}


def some(names: tuple[str, ...]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass
class Towers:
    """Towers as a run begins; scale is the logarithm of the logit scale.

    depth: of depth pictures, of a method that has it; where no source gives it, as the image tower. classifier: (E, C)
    where a file gave one. space: the image projection that the point tower is aligned to.
    """

    image: ImageBackbone
    points: PointBackbone
    text: TextTower
    scale: float
    depth: ImageBackbone | None = None
    classifier: Tensor | None = None
    loaded: list[Loaded] = field(default_factory=list)
    space: tuple[str, Tensor | None, str] | None = None


def initial_towers(recipe: FitRecipe) -> Towers:
    """Towers with the weights that the recipe names; the other weights are random. Raises Refused."""
    settings, init = recipe.image, recipe.init
    image, text, scale = build_towers(settings.model_copy(update={"pretrained": ""}))
    _refuse_masks(image, recipe)
    depth = copy.deepcopy(image) if recipe.has_depth_tower else None
    towers = Towers(image, point_tower(recipe.points, image.embed_dim), text, scale, depth)
    sources = {
        "image.pretrained": (settings.pretrained, ("image",) if settings.backbone == CLIP else ("text",)),
        "init.all": (init.all, ("image", "points")),
        "init.image": (init.image, ("image",)),
        "init.points": (init.points, ("points",)),
    }
    for key, (source, parts) in sources.items():
        if source:
            weights = of_pictures(f"{key}={source}", read_source(key, source, settings, init.take), parts, recipe)
            if parts != ("points",) and weights.kind in (OPENAI, RELEASED, CLIP2POINT):
                refuse_gelu(settings.model, f"{key}={source} ({KINDS[weights.kind]})")
            _refuse_other_backbone(f"{key}={source} ({KINDS[weights.kind]})", weights, parts, recipe)
            _refuse_other_sizes(f"{key}={source}", weights, parts, recipe)
            if "image" in parts:
                _refuse_other_network(f"{key}={source} ({KINDS[weights.kind]})", weights, settings)
            _take(towers, weights, key, source, parts, init)
            if "points" in parts:
                hold_grouping(f"{key}={source} ({KINDS[weights.kind]})", weights, recipe)
    if depth is not None and not any(name.startswith("depth.") for each in towers.loaded for name in each.loaded):
        depth.load_state_dict(image.state_dict())
    _hold_space(towers, init)
    if towers.loaded and towers.classifier is None:
        _refuse_random_text(towers.loaded)
    return towers


def read_source(key: str, source: str, settings: ImageSettings, who: Who) -> WeightsFile:
    """The tensors of a path, a tag or a hub name. Raises Refused, one line that begins with the key."""
    if is_tag(settings.model, source):
        if key in ("init.all", "init.points"):
            raise Refused(f"{key}={source}: an open_clip tag has no point tower: init.image takes it")
        return _of_clip(source, create_clip(settings.model_copy(update={"pretrained": source}), key))
    path = from_hub(key, source) if source.startswith(HUB) else Path(source)
    if not path.exists() and key in ("image.pretrained", "init.image"):
        raise Refused(f"{key}={source}: no such file, and no open_clip tag of image.model={settings.model}")
    try:
        return read_path(path, who)
    except Refused as error:
        raise Refused(f"{key}={error}") from error


def read_path(path: Path, who: Who) -> WeightsFile:
    """The tensors of a file, or of a run of ours or one of its checkpoints, with its text tower. Raises Refused."""
    file = path
    if path.is_dir():
        file = last_step(path) / (TEACHER if who == "teacher" else MODEL)
        if not file.is_file():
            raise Refused(f"{path} is no checkpoint and no run with one (no {file.name})")
    elif not path.is_file():
        raise Refused(f"{path} is no checkpoint, no run and no file")
    other = file.parent / (MODEL if who == "teacher" else TEACHER)
    if path.is_dir() and other.is_file():
        require_finite(read_tensors(other), other)  # its run went wrong before this step
    weights = read_weights_file(file, who)
    beside = file.parent.parent.parent / TEXT
    if weights.kind == OURS and not weights.below("text.") and beside.is_file():
        text = {f"text.{name}": value for name, value in read_tensors(beside).items()}
        require_finite(text, beside)
        return replace(weights, tensors=weights.tensors | text)
    return weights


def _of_clip(tag: str, clip: nn.Module) -> WeightsFile:
    tensors = {}
    for name, value in clip.state_dict().items():
        if name.startswith(CAPTIONS):
            continue
        inside = name.startswith("visual.") or name == "logit_scale"
        tensors[("image." if name.startswith("visual.") else "") + name if inside else f"text.clip.{name}"] = value
    space = next((tensors[f"image.{name}"] for name in SPACES if f"image.{name}" in tensors), None)
    return WeightsFile(tag, OPEN_CLIP, "its own image tower", tensors, (), space)


def from_hub(key: str, source: str) -> Path:
    """The local copy of a hub's file, fetched where it is not there yet. Raises Refused."""
    owner, _, rest = source.removeprefix(HUB).partition("/")
    repository, _, name = rest.partition("/")
    repository, _, revision = repository.partition("@")
    names = (name,) if name else _HUB_FILES
    if repository:
        found = cached(f"{owner}/{repository}", names[:_READ_HERE], revision or None)
        if found is not None:
            return found
    try:
        require_answer(f"{key}={source}")
    except Refused:
        found = cached(f"{owner}/{repository}", names, revision or None) if repository else None
        if found is None:
            raise
        return found
    for file in names:
        try:
            return Path(hf_hub_download(f"{owner}/{repository}", file, revision=revision or None))
        except EntryNotFoundError:
            continue  # also where the hub cannot be reached and the file is not in the cache
        except Exception as error:  # every layer below has its own errors; all of them mean that there is no file
            raise Refused(f"{key}={source}: {one_line(error, 200)}") from error
    raise Refused(f"{key}={source}: not in the hub's cache, and the hub has or gives no such file")


def _refuse_other_backbone(what: str, weights: WeightsFile, parts: Iterable[str], recipe: FitRecipe) -> None:
    """Other people's points are of one network; the weights of ours say theirs in the next check."""
    own, now = weights.backbone, recipe.points.backbone
    if "points" not in parts or weights.kind == OURS or not weights.below("points."):
        return
    if own != now:
        raise Refused(f"{what} is of points.backbone={own}, this recipe has points.backbone={now}")
    if weights.kind == POINT_NETWORK and recipe.points.fewest_points > 1:
        keys = recipe.points.model_dump(mode="json", exclude={"backbone"})
        words = " ".join(f"points.{key}={value}" for key, value in keys.items())
        log.warning("%s does not say from which neighbours of a point it learned; this recipe has %s", what, words)


def _refuse_other_sizes(what: str, weights: WeightsFile, parts: Iterable[str], recipe: FitRecipe) -> None:
    """Weights of ours know their sizes: they are compared with the recipe's, also where no shape shows them (heads)."""
    begun = recipe_of_file(Path(weights.path)) if weights.kind == OURS else None
    if begun is None:
        return
    for table in _SIZES.keys() & set(parts):
        now, own = getattr(recipe, table).model_dump(mode="json"), begun.get(table)
        own = {"backbone": _EARLIER_BACKBONE[table]} | (own if isinstance(own, dict) else {})
        every = table == "points" and not isinstance(recipe.points, PointSettings)
        for name in now if every else _SIZES[table]:
            old = own.get(name, now[name])
            if old == now[name]:
                continue
            words = f"{what} has {table}.{name}={old}, this recipe {now[name]}"
            if not every or not shows_in_no_weight(recipe, name, old):
                raise Refused(words)
            if recipe.init.other_neighbours == "refuse":
                raise Refused(f"{words}: init.other_neighbours=keep takes the weights with it")
            log.warning("%s", words)


def _refuse_masks(image: ImageBackbone, recipe: FitRecipe) -> None:
    """Losses of masked pictures need patches. Raises Refused, naming the keys that leave these losses out."""
    weights = getattr(recipe, "weights", None)
    wanted = [f"weights.{name}=0" for name in ("mim", "lg_align") if getattr(weights, name, 0)]
    if image.without_tokens and wanted:
        raise Refused(f"{recipe.image.tower}: {image.without_tokens}: {' '.join(wanted)} trains it without masks")


def _refuse_other_network(what: str, weights: WeightsFile, settings: ImageSettings) -> None:
    """Raises Refused where a file's image tower is CLIP's and the recipe's torchvision's, or the other way round."""
    if weights.kind == TORCHVISION and settings.backbone == CLIP:
        raise Refused(f"{what}: image.backbone=resnet50 (or resnet18) takes it")
    if weights.kind not in (TORCHVISION, OURS) and settings.backbone != CLIP and weights.below("image."):
        raise Refused(f"{what} fits no {settings.tower}: its text tower is taken by image.pretrained")


def _take(
    towers: Towers, weights: WeightsFile, key: str, source: str, parts: tuple[str, ...], init: InitSettings
) -> None:
    """Fills the towers that a key stands for, all or nothing."""
    what = f"{key}={source} ({KINDS[weights.kind]})"
    if weights.kind in OTHER_TOWERS:
        raise Refused(f"{what}: {OTHER_TOWERS[weights.kind]}")
    for part in parts:
        if not weights.below(f"{part}."):
            other = "image" if part == "points" else "points"
            raise Refused(f"{what} holds no {part} tower; init.{other} takes the tower of a file that holds one only")
    tensors, dropped = _prepared(towers, weights, what, parts, init)
    modules: dict[str, nn.Module] = {"image": towers.image, "points": towers.points, "text": towers.text}
    if towers.depth is not None and "image" in parts and weights.below("depth."):
        modules["depth"] = towers.depth
    wanted = [
        *parts,
        *(["depth"] if "depth" in modules else []),
        *(["text"] if "image" in parts and weights.below("text.") else []),
    ]
    of_clip = "image" in parts or "text" in parts
    loaded: list[str] = []
    missing: list[str] = []
    for part in wanted:
        beginnings = optional(weights.kind, part, dropped)
        there, lacking = fill(modules[part], below(tensors, f"{part}."), what, part, beginnings)
        loaded += there
        missing += lacking
    if of_clip and "logit_scale" in tensors:
        towers.scale = float(tensors["logit_scale"])
        loaded.append("logit_scale")
    if init.classifier == "file" and key == "init.all":
        if "classifier" not in tensors:
            raise Refused(f"init.classifier=file: {what} holds no classifier")
        towers.classifier = tensors["classifier"].float()
        loaded.append("classifier")
    unused = [name for name in weights.tensors if name not in loaded and name not in dropped]
    left_over = (*unused, *dropped, *weights.left_over)
    towers.loaded.append(Loaded(key, source, weights.kind, weights.space, tuple(loaded), tuple(missing), left_over))


def _prepared(
    towers: Towers, weights: WeightsFile, what: str, parts: tuple[str, ...], init: InitSettings
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors to load, positions resized to the pictures' size; and the names of those that are dropped."""
    tensors = dict(weights.tensors)
    dropped: tuple[str, ...] = ()
    for name, value in towers.image.state_dict().items():
        if (
            name in _POSITIONS
            and f"image.{name}" in tensors
            and weights.kind in (OPENAI, OPEN_CLIP, RELEASED, CLIP2POINT)
        ):
            tensors[f"image.{name}"] = resize_positions(tensors[f"image.{name}"], len(value))
    if "points" in parts and "points.projection" in tensors:
        towers.space = (what, weights.projection, weights.space)
        own = towers.image.space if "image" not in parts else weights.projection
        if init.other_space == "drop" and not _same_space(weights.projection, own):
            del tensors["points.projection"]
            dropped, towers.space = ("points.projection",), None
    return tensors, dropped


def _same_space(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two image projections (D, E) are of one image tower, before or after some training."""
    if first is None or second is None or first.shape != second.shape:
        return False
    if first is second:
        return True
    return float(cosine_similarity(first.float().flatten(), second.float().flatten(), dim=0)) > _SAME_SPACE


def _hold_space(towers: Towers, init: InitSettings) -> None:
    if towers.space is None or init.other_space == "keep":
        return
    what, projection, words = towers.space
    if not _same_space(projection, towers.image.space):
        raise Refused(
            f"{what}: its points are aligned to {words}, not to this run's image tower: init.other_space=drop takes "
            "the encoder without its projection, =keep takes both as they are"
        )


def _refuse_random_text(loaded: list[Loaded]) -> None:
    """A trained image tower needs a trained text tower, or the classifier would be noise."""
    trained = [each for each in loaded if each.kind != TORCHVISION]  # its projection is random, whatever the text
    images = [each for each in trained if any(name.startswith("image.") for name in each.loaded)]
    if images and not any(name.startswith("text.") for each in loaded for name in each.loaded):
        last = images[-1]
        raise Refused(
            f"{last.key}={last.source} ({KINDS[last.kind]}) holds no text tower to make the classifier from: name "
            "CLIP's weights by image.pretrained=openai or a file, or set init.classifier=file"
        )
