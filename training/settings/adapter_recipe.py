"""The recipe of adapters over frozen picture towers, with the keys of training/objectives/adapter.py."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from manifests.config import Settings
from training.settings.clip2point_recipe import DepthTowerRecipe
from training.settings.data import LabelledAugmentSettings


class AdapterSettings(Settings):
    """aggregator: makes one feature of all views: `global_view` (CLIP2Point, eq. 12), as `released`, or `inter_view`
    (PointCLIP). paths: towers whose features it takes: `depth`, `clip`, or `both`, each with an aggregator of its own;
    all see the same pictures. gate: on the CLIP path of both, a `scalar`, one number a `channel`, or `none`.

    views: of an object, as many as data.num_views leaves. dropout: inside the aggregator (paper: none; both releases:
    0.075). temperature: of the cosines (CLIP's and PointCLIP's 0.01; the paper and CLIP2Point's release have none, 1,
    where no loss over 40 classes is below 1.837). smoothing, smoothing_form: as of `supervised`.
    """

    aggregator: Literal["global_view", "released", "inter_view"] = "global_view"
    paths: Literal["both", "depth", "clip"] = "both"
    gate: Literal["scalar", "channel", "none"] = "scalar"
    views: Annotated[int, Field(ge=1)] = 10
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 0.01
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    smoothing_form: Literal["upstream", "torch"] = "upstream"

    @property
    def each_path(self) -> tuple[str, ...]:
        """The paths by name."""
        return ("depth", "clip") if self.paths == "both" else (self.paths,)

    @property
    def used_gate(self) -> str:
        """The gate, which a single path has not."""
        return self.gate if self.paths == "both" else "none"


class AdapterRecipe(DepthTowerRecipe):
    """Learns with labels of few objects, or of all."""

    method: Literal["adapter"]
    adapter: AdapterSettings = AdapterSettings()
    augment: ClassVar[LabelledAugmentSettings] = LabelledAugmentSettings(  # type: ignore[misc]  # no key: as they are
        image_crop=1.0, image_magnitude=0, image_flip=0.0, labelled_points="plain"
    )
    activation_checkpointing: ClassVar[bool] = False  # type: ignore[misc]  # the towers are frozen

    @model_validator(mode="after")
    def _batch_norms_need_several_objects(self) -> AdapterRecipe:
        if self.optimizer.batch_size == 1 and self.adapter.aggregator != "global_view":
            words = f"adapter.aggregator={self.adapter.aggregator} learns batch norms, which need two objects at least"
            raise ValueError(f"optimizer.batch_size=1: {words}")
        return self

    @property
    def every_view(self) -> bool:
        """All."""
        return True

    @property
    def scale(self) -> float:
        """The logarithm of the logits' scale."""
        return -math.log(self.adapter.temperature)
