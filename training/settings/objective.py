"""The settings of the methods: pseudo-labels, loss weights, masks, teacher, pre-training, CrossPoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class EMASettings(BaseModel):
    """Momentum of the teacher: from `start` to `end`, linear over `steps` updates (released values)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    start: Annotated[float, Field(ge=0, le=1)] = 0.99
    end: Annotated[float, Field(ge=0, le=1)] = 0.9998
    steps: Annotated[int, Field(ge=1)] = 400


class LabelSettings(BaseModel):
    """Pseudo-labels. mode: `joint` (paper: the surer modality), `random`, `image`, `points` or `none` (Table 4), `own`.

    none: no combination, each branch has its own modality's label. (The figures of Table 4's "No Comb." are Table 3's
    with L_align and without joint labels: labels there are. Released code: combined_pseudolabels=False.)
    own: the same by the name that suits two separate self-trainings.
    agreement: only where both modalities name the same class and the less sure one passes T (released, unused: T 0.2).

    threshold: T, strict. image_threshold, points_threshold: of each branch in `none` and `own`, where they are not T
    (released baselines: 0.80 and 0.82 for ModelNet40). points_weight: factor on the points' confidence (paper: 1;
    released code: 0.9 for ModelNet).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mode: Literal["joint", "random", "image", "points", "none", "own", "agreement"] = "joint"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.84
    image_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    points_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    points_weight: Annotated[float, Field(gt=0)] = 1.0

    def of_branch(self, own: float | None) -> float:
        """The threshold of a branch that is taught by its own labels."""
        return self.threshold if own is None else own


Weight = Annotated[float, Field(ge=0)]


class Weights(BaseModel):
    """Weights of the six losses (released values; the paper gives none)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cls: Weight = 1.0
    align: Weight = 1.0
    fair: Weight = 1.0
    mim: Weight = 1.0
    mpm: Weight = 1.0
    lg_align: Weight = 0.2


class ClsSettings(BaseModel):
    """Eq. 2. divisor: `batch` (paper) or `selected`, the number of confident samples (released code, MUST)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    divisor: Literal["batch", "selected"] = "batch"


class AlignSettings(BaseModel):
    """Eq. 3. temperature: not in the paper; CLIP's initial 0.07. gather: negatives of all processes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: Annotated[float, Field(gt=0)] = 0.07
    reduction: Literal["mean", "sum"] = "mean"
    gather: bool = True


class MaskSettings(BaseModel):
    """Masking. passes: 1 (paper: the masked strong pass carries everything) or 2 (an unmasked strong pass for L_cls,
    L_align and L_fair, a masked one for the rest). image_cell: pixels of a block; image_ratio: share of blocks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    passes: Literal[1, 2] = 1
    image_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.3
    image_cell: Annotated[int, Field(ge=1)] = 32


class LocalGlobalSettings(BaseModel):
    """L_lg-align of points: `tower` (paper: f^P, as the readout of a one-token sequence) or `own` (released: a matrix
    of its own, against the CLS token)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    points: Literal["tower", "own"] = "tower"


class CrossMostSettings(BaseModel):
    """Everything about the objective; these are tables of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    labels: LabelSettings = LabelSettings()
    weights: Weights = Weights()
    cls: ClsSettings = ClsSettings()
    align: AlignSettings = AlignSettings()
    mask: MaskSettings = MaskSettings()
    lg_align: LocalGlobalSettings = LocalGlobalSettings()


Learns = Literal["trained", "projection", "frozen"]


class PretrainSettings(BaseModel):
    """Weights of the three contrastive losses (ULIP: no image_text), what the two CLIP towers learn, and positives."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image_text: Weight = 1.0
    points_text: Weight = 1.0
    points_image: Weight = 1.0
    image: Learns = "trained"
    text: Learns = "trained"
    positives: Literal["class", "object"] = "class"


class CrossPointSettings(BaseModel):
    """Weights of the two losses, their temperature, and whether the image tower is trained with the points."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    intra: Weight = 1.0
    cross: Weight = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.1
    image: Literal["trained", "frozen"] = "trained"
