"""The Python interface of a trained model, which `training.load` makes: features and answers from pictures and clouds.

Shape letters: B inputs, N points, S the tower's picture side, E embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from manifests import store
from manifests.errors import Refused, one_line
from manifests.picture_mapping import NORMALIZE
from manifests.plain_text import number_of
from manifests.records import json_text, parse_json
from manifests.rng import generator
from training.data.batch import normalized
from training.data.decode import pad_cloud
from training.data.image_augment import normalize_cloud, weak_picture
from training.evaluation.features import PICTURES
from training.evaluation.given_pictures import Prepared, as_uint8, is_prepared, objects_in, pictures_in, stacked
from training.models.clip import TextTower
from training.models.cross_modal import CrossModalModel
from training.networks.neighbours import farthest_points
from training.settings.checkpoint_recipe import checkpoint_recipe
from training.settings.model import Who
from training.weights.checkpoint import (
    Checkpoint,
    build_model,
    load_text,
    open_checkpoint,
    read_weights,
    refuse_broken_other,
    without_pretrained,
)
from training.weights.open_models import text_prompts, untaught, warn_of_new_words, warn_of_own_heads
from training.weights.run_folder import MODEL, TEACHER, parse_about, read_about, with_its_plugins

SHOWN = 3  # answers in the line that shows them
ORDERED = 1024  # the first points of a longer cloud, in farthest-point order as in shards; the rest is random
_ABOUT = ("dataset", "classes", "prompt_names", "pixel_mean", "pixel_deviation", "plugins")


@dataclass(frozen=True)
class Answers:
    """Classes of B inputs.

    names: the answers. label: int64 (B,), their numbers among the classes. confidence: float32 (B,), their
    probabilities. probabilities: float32 (B, C). from_image: bool (B,), whether the picture gave the answer.

    >>> import numpy as np, training
    >>> answers = training.load("runs/mine").classify(points=np.eye(3), classes=["mug", "bowl"])
    >>> answers
    Answers(... by points)
    >>> answers.probabilities.shape
    torch.Size([1, 2])
    """

    names: tuple[str, ...]
    label: Tensor
    confidence: Tensor
    probabilities: Tensor
    from_image: Tensor

    def __repr__(self) -> str:
        rows = zip(self.names, self.confidence.tolist(), self.from_image.tolist(), strict=True)
        told = [f"{name} {share:.0%} by {'image' if image else 'points'}" for name, share, image in rows]
        more = f", ... {len(told):,} in all" if len(told) > SHOWN else ""
        return f"Answers({', '.join(told[:SHOWN])}{more})"


class Classifier:
    """Both towers, the text tower and the classifier of a checkpoint, in eval mode on one device.

    classes: the names of its answers, in the order of its columns. It returns float32 tensors on the CPU, without
    gradients. model: the towers (training.models.cross_modal.CrossModalModel). text_is_loaded: else the weights of the
    text tower are read when they are first needed.

    >>> import renderers, training, trimesh
    >>> model = training.load("runs/mine")
    >>> model
    Classifier(cross_most, ... of parametric, 19 classes, pictures of 48 x 48, clouds of 128 points, on cpu)
    >>> views = renderers.draw(trimesh.creation.box((1, 0.7, 0.4)), "rgb12", image_size=64)
    >>> model.encode_image(views).shape
    torch.Size([12, 128])
    >>> model.classify(views=views).from_image
    tensor([True])
    """

    def __init__(
        self,
        model: CrossModalModel,
        text: TextTower,
        text_is_loaded: bool,
        checkpoint: Checkpoint,
        about: dict[str, Any],
    ) -> None:
        self.model, self.classes = model.eval().requires_grad_(False), checkpoint.classes
        self.checkpoint = checkpoint
        self._text, self._text_is_loaded = text.eval(), text_is_loaded
        self._about = about

    def __repr__(self) -> str:
        given, recipe = self.checkpoint, self.checkpoint.recipe
        knows = f"step {given.step:,} of {given.dataset}, {number_of(len(self.classes), 'class')}"
        sizes = f"pictures of {self.image_size} x {self.image_size}, clouds of {recipe.data.num_points:,} points"
        return f"Classifier({recipe.method}, {knows}, {sizes}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """The device on which it computes."""
        return self.model.classifier.device

    @property
    def image_size(self) -> int:
        """S, the side of the pictures that the image tower sees."""
        return self.model.image.image_size

    def preprocess(self, picture: Any) -> Tensor:
        """Prepares one picture for the image tower: float32 (3, S, S).

        picture: a PIL image, a file's path, RGB as uint8 (H, W, 3) or as float (3, H, W) in 0 to 1. As in evaluation:
        resizes the short side to S, bicubic, cuts out the middle and normalises the colours. Raises ValueError.

        >>> import numpy as np, training
        >>> training.load("runs/mine").preprocess(np.zeros((60, 80, 3), np.uint8)).shape
        torch.Size([3, 48, 48])
        """
        clip_mean, clip_deviation = NORMALIZE["clip"]
        mean = tuple(self._about.get("pixel_mean", clip_mean))
        deviation = tuple(self._about.get("pixel_deviation", clip_deviation))
        pixels = np.ascontiguousarray(weak_picture(as_uint8(picture), self.image_size).transpose(2, 0, 1))
        return normalized(torch.from_numpy(pixels), mean, deviation).as_subclass(Prepared)

    def fit_cloud(self, points: Any) -> Tensor:
        """Prepares a cloud (any number of points, 3), +Y up, in any unit, for the point tower: float32 (N, 3).

        N is the recipe's data.num_points. A longer cloud gives 1,024 points in farthest-point order and a random choice
        of the others; a shorter cloud is filled up by repeating points. Then the centroid is at 0, the farthest point
        at distance 1. Colours are not used.

        >>> import numpy as np, training
        >>> training.load("runs/mine").fit_cloud(np.eye(3)).norm(dim=1).max()
        tensor(1.0000)
        """
        array = np.ascontiguousarray(torch.as_tensor(points).detach().cpu().numpy(), dtype=np.float32)
        if array.ndim != 2 or array.shape[1] != 3 or not len(array) or not np.isfinite(array).all():
            raise ValueError(f"a cloud is (points, 3) finite numbers, not {array.shape}")
        count = self.checkpoint.recipe.data.num_points
        rng = generator(0, 0, "cloud")
        if len(array) > count:
            first = farthest_points(torch.from_numpy(array)[None], min(ORDERED, count))[0].numpy()
            rest = np.setdiff1d(np.arange(len(array)), first)
            array = array[np.concatenate([first, rng.permutation(rest)[: count - len(first)]])]
        return torch.from_numpy(normalize_cloud(pad_cloud(array, count, rng)))

    @torch.inference_mode()
    def encode_image(self, pictures: Any) -> Tensor:
        """Unit features (B, E) of B pictures.

        pictures: what `renderers.draw` gives, which is all its views; a picture as `preprocess` takes it; a batch
        (B, H, W, 3) or (B, 3, H, W) of such; what `preprocess` made; or a sequence of any of these. For several views
        of one object, average their features and make them unit again, as `classify(views=...)` does. Of a run of
        method=adapter they are those of its towers side by side, not of length 1.

        >>> import numpy as np, training
        >>> training.load("runs/mine").encode_image(np.zeros((2, 60, 80, 3), np.uint8)).shape
        torch.Size([2, 128])
        """
        return self._image_features(pictures_in(pictures)).cpu()

    @torch.inference_mode()
    def encode_points(self, clouds: Any) -> Tensor:
        """Unit features (B, E) of a cloud (points, 3), a sequence of clouds, or an array (B, points, 3).

        Of a run with supervised.head=own they are the features (B, width) that its head reads. `fit_cloud` prepares
        each cloud.

        >>> import numpy as np, training
        >>> training.load("runs/mine").encode_points([np.eye(3), np.ones((500, 3))]).shape
        torch.Size([2, 128])
        """
        many = not isinstance(clouds, np.ndarray | Tensor) or clouds.ndim == 3
        batch = torch.stack([self.fit_cloud(cloud) for cloud in (clouds if many else [clouds])])
        return self.model.point_features(batch.to(self.device)).cpu()

    @torch.inference_mode()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Unit features (B, E) of texts, taken literally.

        >>> import training
        >>> training.load("runs/mine").encode_text("a photo of a mug.").shape
        torch.Size([1, 128])
        """
        text = self.text
        tokens = text.tokens([texts] if isinstance(texts, str) else list(texts))
        return normalize(text.encode(tokens.to(self.device)), dim=1).cpu()

    @torch.inference_mode()
    def classify(
        self,
        pictures: Any = None,
        points: Any = None,
        classes: Sequence[str] | None = None,
        *,
        views: Any = None,
        image: Any = None,
    ) -> Answers:
        """Classifies B objects by pictures, clouds, or both; then the surer of the two answers counts.

        image, or by its older name pictures: one picture an object, as `encode_image` takes them. views: in their place
        several pictures an object, whose features are averaged (`image_star` of `evaluate`): what `renderers.draw`
        gives, or a batch or sequence of pictures, is one object's; a sequence of those is several objects'. points: as
        `encode_points` takes them. classes: replace the checkpoint's; their classifier is made from text by the
        recipe's prompts. Raises ValueError where these do not go together.

        >>> import numpy as np, training
        >>> model, picture = training.load("runs/mine"), np.zeros((60, 80, 3), np.uint8)
        >>> len(model.classify(image=[picture, picture], points=[np.eye(3), np.eye(3)]).names)
        2
        >>> len(model.classify(views=[picture, picture], points=np.eye(3)).names)
        1
        """
        shown = [given for given in (pictures, image, views) if given is not None]
        if len(shown) > 1 or not (shown or points is not None):
            raise ValueError("classify needs image (or pictures) or views, or points, or one of the first and points")
        if shown and views is None and self.model.adapter is not None:
            raise ValueError(f"an adapter takes {self.model.adapter.views} views of an object: classify(views=...)")
        found: dict[str, Tensor] = {}
        if views is not None:
            found["image"] = self._probabilities("image", self._of_views(objects_in(views)), classes)
        elif shown:
            found["image"] = self._probabilities("image", self._image_features(pictures_in(shown[0])), classes)
        if points is not None:
            found["points"] = self._probabilities("points", self.encode_points(points).to(self.device), classes)
        if len({len(each) for each in found.values()}) > 1:
            what = "object" if views is not None else "picture"
            told = number_of(len(found["image"]), what), number_of(len(found["points"]), "cloud")
            raise ValueError(f"{told[0]} and {told[1]}: as many of both are needed")
        one = next(iter(found.values()))
        by_image, by_points = found.get("image", one), found.get("points", one)
        from_image = (by_image.amax(dim=1) >= by_points.amax(dim=1)) & bool(shown)
        chosen = torch.where(from_image[:, None], by_image, by_points)
        confidence, label = chosen.max(dim=1)
        names = tuple(classes) if classes is not None else self.classes
        return Answers(tuple(names[i] for i in label.tolist()), label, confidence, chosen, from_image)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by name: `image.*`, `points.*`, `text.*`, `classifier`, `logit_scale`.

        >>> import training
        >>> training.load("runs/mine").state_dict()["classifier"].shape
        torch.Size([128, 19])
        """
        text = self.text.state_dict()
        state = self.model.state_dict() | {f"text.{name}": value for name, value in text.items()}
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}

    def save(self, path: str | PathLike[str]) -> None:
        """Writes everything as one safetensors file, which `training.load` and `init.all` read.

        Recipe and class names are in its header. Raises Stopped when the disk is full.

        >>> import training
        >>> training.load("runs/mine").save("mine.safetensors")
        >>> training.load("mine.safetensors").classes == training.load("runs/mine").classes
        True
        """
        about: dict[str, Any] = {"classes": list(self.classes), "prompt_names": list(self.checkpoint.prompt_names)}
        about |= {"dataset": self.checkpoint.dataset, "step": self.checkpoint.step}
        about |= {name: self._about[name] for name in _ABOUT if name in self._about}
        recipe = self.checkpoint.recipe.model_dump_json()
        store.write_bytes(str(path), save(self.state_dict(), {"recipe": recipe, "run": json_text(about)}))

    @property
    def text(self) -> TextTower:
        """The text tower, with its weights."""
        if not self._text_is_loaded:
            load_text(self.checkpoint, self._text)
            self._text_is_loaded = True
        return self._text

    def _image_features(self, pictures: list[Any]) -> Tensor:
        """(B, E) of single pictures, PICTURES at a time in the tower. Raises ValueError for what is no picture."""
        size = self.image_size
        ready = [given if is_prepared(given) else self.preprocess(given) for given in pictures]
        if wrong := [tuple(each.shape) for each in ready if each.shape != (3, size, size)]:
            raise ValueError(f"float pictures outside 0 to 1 are normalised and (3, {size}, {size}), not {wrong[0]}")
        parts = [stacked(ready[start : start + PICTURES]) for start in range(0, len(ready), PICTURES)]
        return torch.cat([self.model.image_features(part.to(self.device)) for part in parts])

    def _of_views(self, objects: list[list[Any]]) -> Tensor:
        """(B, E): the unit features of each object's pictures, averaged and made unit again; by a head the largest.

        By an adapter what it makes of them, of which it takes as many as it learned with: else ValueError.
        """
        features = self._image_features([picture for views in objects for picture in views])
        parts = features.split([len(views) for views in objects])
        if self.model.adapter is not None:
            if wrong := [len(part) for part in parts if len(part) != self.model.adapter.views]:
                raise ValueError(f"this adapter takes {self.model.adapter.views} views of an object, not {wrong[0]}")
            return self.model.adapter(torch.stack(parts))
        if self.model.image_head is not None:
            return torch.stack([part.amax(dim=0) for part in parts])
        return normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=1)

    def _probabilities(self, name: str, feature: Tensor, classes: Sequence[str] | None) -> Tensor:
        """(B, C) of one modality's unit features (B, E)."""
        model = self.model
        if name in untaught(self.checkpoint.recipe):
            raise ValueError(f"this run of method={self.checkpoint.recipe.method} did not train its {name} tower")
        if classes is not None and (name == "points" or model.image_head is not None):
            model.refuse_names()
        if classes is None:
            logits = model.image_logits(feature) if name == "image" else model.points_logits(feature)
            return logits.softmax(dim=1).cpu()
        warn_of_new_words(self.checkpoint, classes)
        classifier = self.text.classifier(tuple(classes), text_prompts(self.checkpoint.recipe))
        return (model.logit_scale.exp() * feature @ classifier).softmax(dim=1).cpu()


def load(path: str | PathLike[str], who: Who = "student", device: str | torch.device = "cpu") -> Classifier:
    """See `training.load`."""
    given = Path(path)
    if given.is_file():
        checkpoint, about, tensors = _read_file(given)
    else:
        checkpoint = open_checkpoint(str(path))
        file = checkpoint.folder / (TEACHER if who == "teacher" else MODEL)
        if not file.is_file():
            raise Refused(f"{checkpoint.folder} has no teacher: its method is {checkpoint.recipe.method}")
        refuse_broken_other(checkpoint.folder, who)
        about, tensors = read_about(checkpoint.folder.parent.parent), read_weights(file)
        warn_of_own_heads([checkpoint])
    model, text = build_model(without_pretrained(checkpoint.recipe), checkpoint.prompt_names, blank=True)
    text_is_loaded = model.text is not None
    own = {n.removeprefix("text."): t for n, t in tensors.items() if n.startswith("text.")}
    if own and model.text is None:
        _fill(text, own, path)
        tensors = {name: value for name, value in tensors.items() if not name.startswith("text.")}
        text_is_loaded = True
    _fill(model, tensors, path)
    model.look_at(checkpoint.recipe.judged_data.channel)
    text.to(device)
    return Classifier(model.to(device), text, text_is_loaded, checkpoint, about)


def _fill(module: torch.nn.Module, tensors: dict[str, Tensor], path: str | PathLike[str]) -> None:
    """Sets every tensor of a module. Raises Refused naming what is missing, left over or of another shape."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise Refused(f"{path}: {one_line(error)}") from error


def _header(path: Path) -> dict[str, str] | None:
    """The texts in the header of a safetensors file; None for any other file."""
    try:
        with safe_open(path, "pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError):
        return None


def written_here(path: Path) -> bool:
    """Whether a file is one of `Classifier.save`, which brings its recipe."""
    return {"recipe", "run"} <= set(_header(path) or {})


def _read_file(path: Path) -> tuple[Checkpoint, dict[str, Any], dict[str, Tensor]]:
    """Reads a file of `Classifier.save`. Raises Refused for any other file."""
    header = _header(path)
    if header is None:
        raise Refused(f"{path} is no run, no checkpoint and no file that Classifier.save wrote")
    if not written_here(path):
        raise Refused(
            f"{path} has no recipe in it: give the run or the checkpoint, or a file that Classifier.save wrote"
        )
    try:
        about, values = parse_json(header["run"]), parse_json(header["recipe"])
    except ValueError as error:
        raise Refused(f"{path}: {error}") from error
    about = parse_about(about, str(path))
    with with_its_plugins(about, str(path)):
        recipe = checkpoint_recipe(values, str(path))
    step = about.get("step")
    if not isinstance(step, int):
        raise Refused(f"{path} is damaged: step: {str(step)[:40]!r} is no number")
    checkpoint = Checkpoint(path, step, recipe, tuple(about["classes"]), tuple(about["prompt_names"]), about["dataset"])
    return checkpoint, about, read_weights(path)
