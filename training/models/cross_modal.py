"""The model that every method trains: an image tower, a point tower and a classifier that text initialises.

Features are unit vectors and logits = exp(logit_scale) feature . classifier. (The paper prints a bare dot product,
whose softmax cannot exceed 0.16 at 40 classes; the trained scale is the released code's.)

Shape letters: B batch, C classes, E embedding, P prompts, L tokens of a prompt.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from manifests.errors import Refused
from training.models.clip import TextTower
from training.models.gated_adapter import GatedAdapter
from training.models.image_backbone import ImageBackbone, ImageTokens
from training.models.in_parts import in_parts
from training.networks.contrast_head import contrast_head
from training.networks.point_backbone import PointBackbone, PointTokens
from training.networks.precision import inside_towers
from training.settings.model import Precision

LARGEST_SCALE = math.log(100)
UNDECAYED = (
    *("token", "cls_pos", "positional_embedding", "trunk.pos_embed", "attn_pool.latent", "attn_pool.query"),
    "gamma",  # of FastViT's layer scale, which has axes of one number
)
EMBEDDINGS = (  # of the image tower, before its first block
    *(f"image.visual.{name}" for name in ("class_embedding", "positional_embedding", "conv", "bn", "ln_pre")),
    *(f"image.visual.trunk.{name}" for name in ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")),
    "image.visual.trunk.stem",
    "image.mask_token",
)


class CrossModalModel(nn.Module):
    """Both towers, the classifier (E, C) and the logarithm of the logit scale.

    separate: the point branch has a classifier and a scale of its own; otherwise both branches share them (paper).
    points_head: a classifier over the point tower's own features, in the place of text's. image_head: one over the
    largest of the image tower's own features of all views (MVCNN). generator: makes clouds of such a feature. contrast:
    the heads `points` and `image` over the towers' own features, which CrossPoint compares in pre-training and nobody
    reads afterwards (`add_contrast_heads`). depth: a tower of depth pictures beside that of RGB, CLIP2Point's; balance:
    the number sigma that its training learns (`add_depth_tower`). adapter: answers about all views together.
    text: the text tower of a method that trains it; the classifier is then computed from it (`refresh_classifier`) and
    not trained. captions: int64 (C, P, L), the tokens of every class in every prompt, for such a method.
    """

    captions: Tensor | None
    depth: ImageBackbone | None
    balance: nn.Parameter | None
    points_classifier: nn.Parameter | None
    points_logit_scale: nn.Parameter | None

    def __init__(
        self,
        image: ImageBackbone,
        points: PointBackbone,
        classifier: Tensor,
        logit_scale: float,
        separate: bool = False,
        text: TextTower | None = None,
        captions: Tensor | None = None,
        points_head: nn.Module | None = None,
        image_head: nn.Module | None = None,
        generator: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.image, self.points, self.text = image, points, text
        self.classifier = nn.Parameter(classifier.detach().clone(), requires_grad=text is None)
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale), dtype=classifier.dtype))
        if separate:
            self.points_classifier = nn.Parameter(classifier.detach().clone())
            self.points_logit_scale = nn.Parameter(torch.tensor(float(logit_scale), dtype=classifier.dtype))
        else:
            self.points_classifier, self.points_logit_scale = None, None
        self.points_head, self.head_columns = points_head, list(range(classifier.shape[1]))
        self.image_head, self.generator = image_head, generator
        self.contrast: nn.ModuleDict | None = None
        self.depth, self.balance = None, None
        self.adapter: GatedAdapter | None = None
        self.pictures: Literal["image", "depth"] = "image"  # the tower that `image_tokens` asks
        self.register_buffer("captions", captions, persistent=False)
        self.precision: Precision = "fp32"  # of the towers; a run sets it
        self.parts = 1  # in which the towers take a batch; a run sets it (training/models/in_parts.py)

    def checkpoint_activations(self) -> None:
        """From now on the towers keep the inputs of their blocks alone, and backward computes each block again."""
        self.image.checkpoint_blocks()
        self.points.checkpointing = True
        if self.depth is not None:
            self.depth.checkpoint_blocks()
        if self.text is not None:
            getattr(self.text.clip, "text", self.text.clip).transformer.grad_checkpointing = True

    def compile_towers(self) -> None:
        """Compiles the slow parts of both towers in place, by torch.compile; the names of weights do not change.

        Another shape than that of the run's batches is compiled once more.
        """
        self.image.compile_inside()
        self.points.compile_inside()
        if self.depth is not None:
            self.depth.compile_inside()

    def text_and_captions(self) -> tuple[TextTower, Tensor]:
        """The text tower and the captions of a method that trains it; others have neither."""
        if self.text is None or self.captions is None:
            raise ValueError("this model has no text tower")
        return self.text, self.captions

    def add_contrast_heads(self) -> None:
        """Makes `contrast`, with random weights, as wide as the towers' own features are."""
        image, size = self.image, self.image.image_size
        with torch.no_grad():
            width = image.eval()(torch.zeros(1, 3, size, size)).cls.shape[1]
        image.train()
        heads = {"points": self.points.contrast_head(), "image": contrast_head(width, 512, bias=False)}
        self.contrast = nn.ModuleDict(heads)

    def add_depth_tower(self, tower: ImageBackbone | None = None) -> None:
        """Makes `depth`, a copy of the image tower where no other is given, and `balance` = 1. Source: CLIP2Point."""
        self.depth = copy.deepcopy(self.image) if tower is None else tower
        self.balance = nn.Parameter(self.logit_scale.detach().new_ones(()))

    def look_at(self, channel: str) -> None:
        """Says of which channel all further pictures are: those of depth go to the depth tower, if there is one."""
        self.pictures = "image" if channel == "rgb" or self.depth is None else "depth"

    def view_features(self, tower: Literal["image", "depth"], views: Tensor) -> Tensor:
        """Features (B, V, E) of views (B, V, 3, S, S), not normalised, by one of the two picture towers.

        Raises ValueError where the model has no depth tower.
        """
        found = self.depth if tower == "depth" else self.image
        if found is None:
            raise ValueError("this model has no depth tower")
        with self.inside_towers(views.device):
            return in_parts(self.parts, found, views.flatten(0, 1), None).feature.unflatten(0, views.shape[:2])

    def image_logits(self, feature: Tensor) -> Tensor:
        """(B, C) of what `image_features` gives."""
        if self.image_head is not None:
            return self.image_head(feature)[..., self.head_columns]
        return self.logit_scale.exp() * feature @ self.classifier

    def points_logits(self, feature: Tensor) -> Tensor:
        """(B, C) of what `point_features` gives."""
        if self.points_head is not None:
            return self.points_head(feature)[:, self.head_columns]
        if self.points_classifier is None or self.points_logit_scale is None:
            return self.logit_scale.exp() * feature @ self.classifier
        return self.points_logit_scale.exp() * feature @ self.points_classifier

    @property
    def image_width(self) -> int:
        """Of what `image_features` gives."""
        if self.adapter is not None:
            return self.adapter.width * len(self.adapter.paths)
        return self.image.embed_dim if self.image_head is None else self.image.represented

    @property
    def points_width(self) -> int:
        """Of what `point_features` gives."""
        return self.image.embed_dim if self.points_head is None else len(self.points.projection)

    def image_features(self, pictures: Tensor) -> Tensor:
        """Unit features (B, E) of normalised pictures (B, 3, S, S); with `image_head` the tower's own (B, W).

        With `adapter` those of its towers side by side (B, P * E), not normalised, which `adapted` makes one of.
        """
        if self.adapter is not None:
            return torch.cat([self.view_features(path, pictures[:, None])[:, 0] for path in self.adapter.paths], dim=1)
        found = self.image_tokens(pictures)
        return normalize(found.feature, dim=1) if self.image_head is None else found.cls

    def adapted(self, views: Tensor, num_views: Sequence[int]) -> Tensor:
        """(B, E) of an adapter, of what `image_features` gives of all views of objects (B, V, P * E).

        Raises Refused unless each object has as many views as the adapter learned with.
        """
        if self.adapter is None:
            raise ValueError("this model has no adapter")
        if other := set(num_views) - {self.adapter.views}:
            raise Refused(
                f"the adapter learned with {self.adapter.views} views, and an object has {min(other)} of them"
            )
        return self.adapter(views)

    def object_features(self, images: Tensor) -> Tensor:
        """(B, W): the largest of each number in the tower's own features of all views (B, V, 3, S, S)."""
        return self.image_features(images.flatten(0, 1)).unflatten(0, images.shape[:2]).amax(dim=1)

    def generated(self, features: Tensor) -> Tensor:
        """Clouds (B, N, 3) that the generator makes of features (B, W)."""
        if self.generator is None:
            raise ValueError("this model has no generator")
        return self.generator(features)

    def point_features(self, points: Tensor) -> Tensor:
        """Unit features (B, E) of clouds (B, N, 3); with `points_head` the tower's own (B, width), which it reads."""
        found = self.encode(*self.tokenize(points))
        return normalize(found.feature, dim=1) if self.points_head is None else self.points.readout(found)

    def image_tokens(self, pictures: Tensor, mask: Tensor | None = None) -> ImageTokens:
        """The pass of the tower of these pictures (B, 3, S, S), as `look_at` says; mask as of ImageTower."""
        tower = self.depth if self.pictures == "depth" and self.depth is not None else self.image
        with self.inside_towers(pictures.device):
            return in_parts(self.parts, tower, pictures, mask)

    def tokenize(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The point tower's centres and tokens of clouds (B, N, 3). Little is kept of a frozen tokenizer's pass."""
        with self.inside_towers(points.device):
            return in_parts(self.parts, self.points.tokenize, points, again=False)

    def encode(self, centres: Tensor, tokens: Tensor, mask_draw: Tensor | None = None) -> PointTokens:
        """The point tower's pass over tokens; mask_draw as of PointBackbone."""
        with self.inside_towers(tokens.device):
            kept = self.points.drawn_paths(tokens) if self.parts > 1 else None
            return in_parts(self.parts, self.points.encode, centres, tokens, mask_draw, kept)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (P, E) of prompts (P, L), for a method that trains the text tower."""
        text, _ = self.text_and_captions()
        return normalize(in_parts(self.parts, text.encode, tokens), dim=1)

    def inside_towers(self, device: torch.device) -> torch.autocast:
        """The context in which the towers run; inside it their outputs may be bfloat16, except for features."""
        return inside_towers(self.precision, device)

    def set_classifier(self, classifier: Tensor) -> None:
        """Another classifier (E, C) for both branches, such as one of other class names. Raises Refused for a head."""
        self.refuse_names()
        self.classifier = nn.Parameter(classifier.detach().clone(), requires_grad=self.text is None)
        if self.points_classifier is not None:
            self.points_classifier = nn.Parameter(classifier.detach().clone())

    def refuse_names(self) -> None:
        """Raises Refused where a branch has a head of its own, which no class name changes."""
        if self.image_head is not None:
            raise Refused(
                "a run of PointCMT answers by heads of its own, with the classes of its training, and no text"
            )
        if self.points_head is not None:
            raise Refused("supervised.head=own: the points' head answers with the classes of its training, and no text")

    def train(self, mode: bool = True) -> CrossModalModel:
        """Training mode; a tower without trained weights stays in eval mode, and so do its single batch norms."""
        super().train(mode)
        for tower in (self.image, self.points, self.depth, self.text, self.generator):
            if tower is not None and not any(p.requires_grad for p in tower.parameters()):
                tower.eval()
        for norm in self.image.modules():
            if isinstance(norm, _BatchNorm) and not any(p.requires_grad for p in norm.parameters()):
                norm.eval()
        return self

    def _scales(self) -> list[nn.Parameter]:
        return [scale for scale in (self.logit_scale, self.points_logit_scale) if scale is not None]

    def freeze_scale(self) -> None:
        """Stops training the logit scale."""
        for scale in self._scales():
            scale.requires_grad_(False)

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Holds the logit scale in 1 to 100. Source: CLIP."""
        for scale in self._scales():
            scale.clamp_(0, LARGEST_SCALE)

    @torch.no_grad()
    def keep_classes(self, columns: list[int]) -> None:
        """Keeps only the classifiers' columns of these classes, in this order."""
        self.head_columns = [self.head_columns[column] for column in columns]
        self.classifier = nn.Parameter(self.classifier[:, columns].clone(), requires_grad=self.text is None)
        if self.points_classifier is not None:
            self.points_classifier = nn.Parameter(self.points_classifier[:, columns].clone())

    @torch.no_grad()
    def refresh_classifier(self) -> None:
        """Computes the classifier from the text tower again, where the method trains that tower."""
        if self.text is not None:
            text, captions = self.text_and_captions()
            columns = [text.average(tokens) for tokens in captions]
            self.classifier.copy_(torch.stack(columns, dim=1))


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float, lr: float, all_decay: bool = False
) -> list[dict]:
    """Groups of an optimiser: weight decay on matrices only, not on tokens and positions; `lr_scale` by layer.

    Layer decay scales only the picture towers: embeddings or stem lowest, then block by block, or stage by stage;
    everything else learns at lr.
    (Released code also decays logit_scale, tokens and positions.)
    """
    blocks = list(model.image.blocks) if isinstance(model, CrossModalModel) else []
    depth = getattr(model, "depth", None)
    towers = [blocks, [] if depth is None else depth.blocks]
    layer_of = {id(p): layer for tower in towers for layer, block in enumerate(tower, 1) for p in block.parameters()}
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = all_decay or (parameter.ndim >= 2 and not any(word in name for word in UNDECAYED))
        decay = weight_decay if plain else 0.0
        early = re.sub(r"^depth\.", "image.", name).startswith(EMBEDDINGS)
        layer = layer_of.get(id(parameter), 0 if early else len(blocks) + 1)
        scale = layer_decay ** (len(blocks) + 1 - layer)
        group = groups.setdefault(
            (decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale, "lr": lr * scale}
        )
        group["params"].append(parameter)
    return list(groups.values())
