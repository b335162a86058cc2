"""The tables of a recipe that only some methods read: pseudo-labels, losses, masks, teacher and so on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from manifests.config import Settings


class EMASettings(Settings):
    """Momentum of the teacher (released values). start: at the first update. end: from `steps` on. steps: updates from
    `start` to `end`, linear."""

    start: Annotated[float, Field(ge=0, le=1)] = 0.99
    end: Annotated[float, Field(ge=0, le=1)] = 0.9998
    steps: Annotated[int, Field(ge=1)] = 400


Confidence = Annotated[float, Field(ge=0, le=1)]


class ThresholdSettings(Settings):
    """Which pseudo-labels are confident enough to be taught.

    threshold: T, strict. image_threshold, points_threshold: of a branch that is taught by its own labels, where it is
    not T (released baselines: 0.80 and 0.82 for ModelNet40). points_weight: factor on the points' confidence (paper:
    1; released code: 0.9 for ModelNet).
    """

    threshold: Confidence = 0.84
    image_threshold: Confidence | None = None
    points_threshold: Confidence | None = None
    points_weight: Annotated[float, Field(gt=0)] = 1.0

    def of_branch(self, own: float | None) -> float:
        """The threshold of a branch that is taught by its own labels."""
        return self.threshold if own is None else own


class LabelSettings(ThresholdSettings):
    """Pseudo-labels. mode: `joint` (paper: the surer modality), `random`, `image`, `points` or `none` (Table 4), `own`.

    none: no combination, each branch has its own modality's label. (The figures of Table 4's "No Comb." are Table 3's
    with L_align and without joint labels: labels there are. Released code: combined_pseudolabels=False.)
    own: the same by the name that suits two separate self-trainings.
    agreement: only where both modalities name the same class and the less sure one passes T (released, unused: T 0.2).
    """

    mode: Literal["joint", "random", "image", "points", "none", "own", "agreement"] = "joint"


Weight = Annotated[float, Field(ge=0)]


class Weights(Settings):
    """Weights of the six losses (released values; the paper gives none). cls: of L_cls, pseudo-labels. align: of
    L_align. fair: of L_fair. mim: of L_mim, masked pictures. mpm: of L_mpm, masked points. lg_align: of L_lg-align."""

    cls: Weight = 1.0
    align: Weight = 1.0
    fair: Weight = 1.0
    mim: Weight = 1.0
    mpm: Weight = 1.0
    lg_align: Weight = 0.2


class SelfTrainingWeights(Settings):
    """Weights of self-training's losses: those of Cross-MoST without L_align. cls: of L_cls, pseudo-labels. fair: of
    L_fair. mim: of L_mim, masked pictures. mpm: of L_mpm, masked points. lg_align: of L_lg-align."""

    cls: Weight = 1.0
    fair: Weight = 1.0
    mim: Weight = 1.0
    mpm: Weight = 1.0
    lg_align: Weight = 0.2


class ClsSettings(Settings):
    """Eq. 2. divisor: `batch` (paper) or `selected`, the number of confident samples (released code, MUST)."""

    divisor: Literal["batch", "selected"] = "batch"


class AlignSettings(Settings):
    """Eq. 3. temperature: not in the paper; CLIP's initial 0.07. reduction: over the batch. gather: negatives of all
    processes."""

    temperature: Annotated[float, Field(gt=0)] = 0.07
    reduction: Literal["mean", "sum"] = "mean"
    gather: bool = True


class MaskSettings(Settings):
    """Masking. passes: 1 (paper: the masked strong pass carries everything) or 2 (an unmasked strong pass for L_cls,
    L_align and L_fair, a masked one for the rest). image_cell: pixels of a block. image_ratio: share of blocks.
    """

    passes: Literal[1, 2] = 1
    image_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.3
    image_cell: Annotated[int, Field(ge=1)] = 32


class LocalGlobalSettings(Settings):
    """L_lg-align. points: `tower` (paper: f^P, as the readout of a one-token sequence) or `own` (released: a matrix of
    its own, against the CLS token)."""

    points: Literal["tower", "own"] = "tower"


Learns = Literal["trained", "projection", "frozen"]


class PretrainSettings(Settings):
    """Weights of the three contrastive losses (ULIP: no image_text), and what is learned. image_text, points_text,
    points_image: weight of this pair. image, text: what of this CLIP tower is trained. positives: pairs of one `class`,
    or of one `object` alone."""

    image_text: Weight = 1.0
    points_text: Weight = 1.0
    points_image: Weight = 1.0
    image: Learns = "trained"
    text: Learns = "trained"
    positives: Literal["class", "object"] = "class"


class CrossPointSettings(Settings):
    """The two losses. intra: weight of two augmentations of a cloud (IMID). cross: weight of cloud and picture (CMID).
    temperature: of both. image: whether the image tower is trained with the points. images: views of an object, whose
    features are averaged. heads: what is compared, vectors of the towers' `own` heads, or the towers' `projection`, as
    always with image=frozen, in whose space text then classifies clouds. passes: 1, both clouds are one batch of the
    batch norms, or 2, each is one."""

    intra: Weight = 1.0
    cross: Weight = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.1
    image: Literal["trained", "frozen"] = "trained"
    images: Annotated[int, Field(ge=1, le=5)] = 1
    heads: Literal["own", "projection"] = "own"
    passes: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _a_loss(self) -> CrossPointSettings:
        if not self.intra and not self.cross:
            raise ValueError("intra=0 and cross=0 leave no loss")
        return self

    @property
    def has_heads(self) -> bool:
        """Whether the towers get heads of their own."""
        return self.heads == "own" and self.image == "trained"


class SupervisedSettings(Settings):
    """Training with labels. head: of the point branch, the classifier from `text` or the network's `own`. towers: those
    that are trained, alone read and judged; with `points` no picture is needed. smoothing: share of a label that goes
    to other classes. smoothing_form: `upstream` gives it to the others alone, `torch` to all, the true one too."""

    head: Literal["text", "own"] = "text"
    towers: Literal["both", "points", "image"] = "both"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    smoothing_form: Literal["upstream", "torch"] = "upstream"

    @model_validator(mode="after")
    def _a_head_that_is_used(self) -> SupervisedSettings:
        if self.head == "own" and self.towers == "image":
            raise ValueError("head=own is of the points, which towers=image leaves out")
        return self


class MultiviewSettings(Settings):
    """Stage I of PointCMT, a picture network over all views of an object. smoothing, smoothing_form: as of
    `supervised`."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    smoothing_form: Literal["upstream", "torch"] = "upstream"


class DistanceSettings(Settings):
    """Of clouds. emd: over points, the `mean` (released) or the `sum` (as printed, N times as much). box_scale: clouds
    are scaled to their boxes as `released` (off their centres), `centred`, or not at all (`none`, as printed)."""

    emd: Literal["mean", "sum"] = "mean"
    box_scale: Literal["released", "centred", "none"] = "centred"


class GeneratorSettings(DistanceSettings):
    """Stage II of PointCMT. form: `mlp` of three layers (paper) or one `linear` layer without bias (released). points:
    of a generated cloud, 0 for data.num_points, which it is in stage II. hidden: width of the two inner layers of `mlp`
    (not in the paper). dropout: before the last layer (released: 0.5). weight: of the distance in the loss (released:
    30)."""

    form: Literal["mlp", "linear"] = "mlp"
    points: Annotated[int, Field(ge=0)] = 0
    hidden: Annotated[int, Field(ge=1)] = 1024
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight: Annotated[float, Field(gt=0)] = 30.0


class TransferSettings(DistanceSettings):
    """Stage III of PointCMT, what a point network learns beside its labels.

    feature: weight of eq. 5, the distance of generated clouds (30 on a mean). classifier: weight of eq. 7. hinton: of
    eq. 6, the teacher's own logits. normalized: of eq. 13, features themselves. normalize: their form, `moments`
    (Normalize-I) or `norm` (Normalize-II). kl: eq. 6 and 7 are the `mean` over a batch (printed) or its `sum`
    (released). detach_target: the classifier learns nothing from what it says of the picture (paper; released: false).
    smoothing, smoothing_form: as of `supervised`.
    """

    feature: Weight = 30.0
    classifier: Weight = 0.3
    hinton: Weight = 0.0
    normalized: Weight = 0.0
    normalize: Literal["moments", "norm"] = "moments"
    kl: Literal["mean", "sum"] = "sum"
    detach_target: bool = True
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.2
    smoothing_form: Literal["upstream", "torch"] = "upstream"

    @property
    def of_pictures(self) -> bool:
        """Whether a term is of the teacher's feature or answers."""
        return any((self.feature, self.classifier, self.hinton, self.normalized))
