"""The small upstream model of the golden data, in our towers, and the names that its tensors have upstream."""

from __future__ import annotations

from pathlib import Path

import open_clip
from safetensors.torch import load_file
from torch import Tensor

from training.models.clip import ImageTower
from training.models.cross_modal import CrossModalModel
from training.networks.point_bert import PointTower
from training.settings.model import PointSettings

NAMES = {  # ours -> released, the longest first
    "image.visual.proj": "image_projection",
    "image.mask_token": "visual.mask_token_embedding",
    "image.ln_patch": "visual.ln_patch",
    "image.decoder": "visual.decoder.0",
    "image.visual": "visual",
    "points.projection": "pc_projection",
    "points.own_projection": "point_encoder.proj",
    "points.blocks": "point_encoder.blocks.blocks",
    "points": "point_encoder",
}
POINTS = PointSettings(
    groups=16, group_size=8, tokenizer_width=64, width=96, depth=2, heads=3, drop_path=0.0, freeze_tokenizer=False
)


def released_name(ours: str) -> str:
    """The released code's name of a tensor of ours."""
    for prefix, other in NAMES.items():
        if ours == prefix or ours.startswith(f"{prefix}."):
            return other + ours.removeprefix(prefix)
    return ours


def released_model(golden: Path, logit_scale: float) -> CrossModalModel:
    """Stored random weights of the released model, small: pictures of 64 pixels, 5 classes, float64."""
    state = load_file(golden / "method" / "crossmost_small" / "state_dict.safetensors")
    clip = open_clip.CLIP(
        64,
        {"image_size": 64, "layers": 2, "width": 96, "head_width": 32, "patch_size": 16},
        {"context_length": 8, "vocab_size": 10, "width": 32, "heads": 2, "layers": 1},
        quick_gelu=True,
    )
    model = CrossModalModel(ImageTower(clip.visual), PointTower(POINTS, 64), state["classifier"], logit_scale).double()
    weights: dict[str, Tensor] = {name: state[released_name(name)] for name in model.state_dict()}
    decoder = weights["image.decoder.weight"]
    weights["image.decoder.weight"] = decoder.reshape(decoder.shape[:2])  # upstream: a 1x1 convolution
    weights["logit_scale"] = model.logit_scale.detach().clone()
    model.load_state_dict(weights)
    return model
