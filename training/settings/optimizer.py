"""The settings `optimizer.*` of a recipe: how weights are updated, and how the learning rate goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from manifests.config import Settings

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """The optimiser. lr: base, times batch_size / 256. epochs: passes over the split, where steps is 0. steps: in all,
    or 0 for `epochs`. floor: lowest lr, as a share of lr.

    batch_size: of all processes together, so that a recipe means the same on any number of GPUs (released: of each).
    warmup_epochs: linear from 0. weight_decay: of matrices, and of no token or position. layer_decay: factor on the
    image tower's lr for each block below the last. Released: lr 2e-5, floor 1/20, decay 0.05, layer decay 0.65, one
    warm-up epoch. betas: torch's own (released); ULIP's pre-training has (0.9, 0.98). clip_norm: a longer gradient is
    cut to this norm, 0 for never (paper and released code do not clip). accumulate: in how many parts a process takes
    its batch, which needs the less memory the more they are; losses and gradients stay those of the whole batch
    (training/models/in_parts.py).

    What follows is for point networks as their authors trained them (docs/method.md). kind: `adamw`, or `adam` or
    `sgd`, whose weight decay is part of the gradient, or `lamb` (training/loop/lamb.py). momentum: of sgd. lr_scaled:
    else lr counts as it is. decayed: weights that decay, `matrices` or `all`. schedule: `cosine` at each step;
    `cosine_epochs`, one lr an epoch; `decay`, times a factor after some epochs. decay: this factor. decay_every: these
    epochs. ahead: epochs by which the last two are ahead, 1 where released code steps before the epoch, -1 where it
    steps by the number of the epoch that has ended. restart_epochs: `cosine` begins anew after so many, 0 for never.
    norm_momentum: of the point network's batch norms, 0 for their own, fixed. norm_decay: factor on it every
    decay_every epochs. norm_floor: its lowest value. norm_ahead: as ahead, for it.
    """

    lr: Annotated[float, Field(gt=0)] = 2e-5
    floor: Share = 0.05
    batch_size: Annotated[int, Field(ge=1)] = 512
    epochs: Annotated[int, Field(ge=1)] = 200
    steps: Annotated[int, Field(ge=0)] = 0
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    accumulate: Annotated[int, Field(ge=1)] = 1
    kind: Literal["adamw", "adam", "sgd", "lamb"] = "adamw"
    momentum: Beta = 0.9
    lr_scaled: bool = True
    decayed: Literal["matrices", "all"] = "matrices"
    schedule: Literal["cosine", "cosine_epochs", "decay"] = "cosine"
    ahead: Literal[-1, 0, 1] = 0
    restart_epochs: Annotated[int, Field(ge=0)] = 0
    decay: Annotated[float, Field(gt=0, le=1)] = 0.7
    decay_every: Annotated[int, Field(ge=1)] = 20
    norm_momentum: Share = 0.0
    norm_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    norm_floor: Share = 0.01
    norm_ahead: Literal[-1, 0, 1] = 0

    @model_validator(mode="after")
    def _of_its_schedule(self) -> OptimizerSettings:
        """A key that another schedule reads would change nothing, in silence."""
        if self.ahead and self.schedule == "cosine":
            raise ValueError(f"ahead={self.ahead} is for schedule=cosine_epochs or decay")
        if self.restart_epochs and self.schedule != "cosine":
            raise ValueError(f"restart_epochs={self.restart_epochs} is for schedule=cosine")
        return self

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        return self.lr * self.batch_size / 256 if self.lr_scaled else self.lr
