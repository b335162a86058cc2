"""The settings of the towers: `image.*`, `text.*`, `points.*`, `init.*` and the precision."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from manifests.config import Settings

Who = Literal["student", "teacher"]


Precision = Literal["fp32", "bf16", "fp16"]
CLIP = "clip"  # the image tower is open_clip's


class ImageSettings(Settings):
    """The CLIP model. model: a name of open_clip, or `cross_most_small` (ours, for CPUs). Masks need a tower with a
    token a patch (training.models.clip.unfit). pretrained: its weights, a file
    or a tag of open_clip as in `init.image`. They are loaded before those of `init`, so that they can give a text tower
    to an `init.all` without one. image_size: side of the picture in pixels; 0 is the model's own.

    backbone: the image tower, the model's own (`clip`) or a ResNet of torchvision in its place, with a random
    projection to the space of the model's text tower; `pretrained` is then of the text tower alone.

    normalize: the mean and deviation that pictures get: the `tower`'s (what its weights were trained with, CLIP's where
    open_clip says nothing else; released: CLIP's for every dataset) or the view `preset`'s, which stands for its own
    method (PointCLIP V2 shows its pictures as they are).

    stem: `patch` (one convolution, CLIP's own) or `conv` (three stride-2 convolutions, for small towers from scratch;
    masked pixels are zeroed before it, or neighbours would leak).
    """

    model: str = "ViT-B-16-quickgelu"
    backbone: Literal["clip", "resnet18", "resnet50"] = "clip"
    pretrained: str = ""
    image_size: Annotated[int, Field(ge=0)] = 0
    normalize: Literal["tower", "preset"] = "tower"
    stem: Literal["patch", "conv"] = "patch"

    @model_validator(mode="after")
    def _stem_of_a_transformer(self) -> ImageSettings:
        if self.stem == "conv" and self.backbone != CLIP:
            raise ValueError(f"stem=conv is of a CLIP transformer: backbone={self.backbone} has a stem of its own")
        return self

    @property
    def tower(self) -> str:
        """Key and value that name the image tower, for messages."""
        return f"image.model={self.model}" if self.backbone == CLIP else f"image.backbone={self.backbone}"


class TextSettings(Settings):
    """The text tower, where a method trains it. freeze_tokens: the table of token embeddings is not trained.

    A small pre-training uses a hundred of its 49,408 rows; random rows that are not trained tell words apart as well.
    """

    freeze_tokens: bool = True


Positive = Annotated[int, Field(ge=1)]
DEFAULT_BACKBONE = "point_bert"


class BackboneSettings(Settings):
    """Keys of a point tower; each backbone has its own, in a subclass whose keys all have defaults.

    has_tokens: its tokens can be masked, for L_mpm and L_lg-align.
    """

    has_tokens: ClassVar[bool] = False
    backbone: str = DEFAULT_BACKBONE

    @property
    def fewest_points(self) -> int:
        """The smallest cloud that the tower takes."""
        return 1

    @property
    def learns_batch_norms(self) -> bool:
        """Whether a batch cannot be taken in parts; of a plugin's tower its modules tell (training/loop/update.py)."""
        return False


class PointSettings(BackboneSettings):
    """Sizes of Point-BERT. Defaults: Cross-MoST as released (64 groups of 32, 12 blocks of width 384).

    backbone: the network; those of plugins have keys of their own. groups: sub-clouds, a token each. group_size: points
    of one. tokenizer_widths: channels of the mini-PointNet's three inner convolutions. tokenizer_width: of a token.
    width: of the transformer. depth: its blocks. heads: of its attention. drop_path: share of samples that skip the
    last block, less in those before. freeze_tokenizer: the mini-PointNet is not trained and its batch norms stay in
    eval mode (released code freezes the weights and leaves the batch norms moving).
    """

    has_tokens: ClassVar[bool] = True
    backbone: Literal["point_bert"] = "point_bert"
    groups: Positive = 64
    group_size: Positive = 32
    tokenizer_widths: tuple[Positive, Positive, Positive] = (128, 256, 512)
    tokenizer_width: Positive = 256
    width: Positive = 384
    depth: Positive = 12
    heads: Positive = 6
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    freeze_tokenizer: bool = True

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> PointSettings:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        return self

    @property
    def fewest_points(self) -> int:
        """Each group is of different points, and each centre is another point."""
        return max(self.groups, self.group_size)

    @property
    def learns_batch_norms(self) -> bool:
        """Those of the mini-PointNet."""
        return not self.freeze_tokenizer


class InitSettings(Settings):
    """Weights to begin with. Each is a path (a file, a run of ours, one of its checkpoints) or
    `hf-hub:owner/repository[@revision][/file]`; `image` may also be an open_clip tag. Kinds of files:
    training.weights.formats.KINDS.

    They are loaded in the order of these keys, each over the weights before it, after `image.pretrained` (as `image`;
    older recipes have it). all: both towers, and text tower and logit scale if the file has them. image: image tower,
    text tower, logit scale. points: point tower, which without begins at random. take: the model to take from
    a file that holds both (released code evaluates its student). other_space: points whose projection is aligned to
    another image tower than this run's, such as ULIP's to SLIP's, are refused, kept as they are, or get a random
    projection. other_neighbours: points that learned with other neighbours than this recipe's (points.k, radii,
    sub-clouds: no weight shows them) are refused, or kept as they are. classifier: made from `text`, or taken from the
    `file` of `all`, for the same classes in the same order.
    """

    all: str = ""
    image: str = ""
    points: str = ""
    take: Who = "student"
    other_space: Literal["refuse", "keep", "drop"] = "refuse"
    other_neighbours: Literal["refuse", "keep"] = "refuse"
    classifier: Literal["text", "file"] = "text"
