"""Loads the tensors of a weights file into a tower: all of them, or the file is refused by the first that misfits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manifests.errors import Refused
from training.weights.tensor_names import DVAE, OURS

_OPTIONAL = {  # what pre-trained towers of others do not have; it keeps its random start
    "image": ("mask_token", "ln_patch.", "decoder.", "projection"),
    "depth": ("mask_token", "ln_patch.", "decoder."),
    "points": ("mask_token", "lm_head.", "own_projection", "projection"),
    "text": ("clip.logit_scale", "clip.logit_bias"),
}
_AROUND_THE_TOKENIZER = ("reduce_dim.", "pos_embed.", "cls_", "blocks.", "norm.", *_OPTIONAL["points"])


def fill(
    module: nn.Module, given: dict[str, Tensor], what: str, part: str, beginnings: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """Loads a tower's tensors; gives the names that were loaded and those that were not there. Raises Refused."""
    own = module.state_dict()
    for name, value in given.items():
        if name not in own:
            raise Refused(f"{what}: holds {part}.{name}, which this recipe's tower has not")
        if own[name].shape != value.shape and own[name].numel() * value.numel() != 1:
            raise Refused(f"{what}: {part}.{name} is {tuple(value.shape)}, this recipe's {tuple(own[name].shape)}")
        if not torch.isfinite(value).all():
            raise Refused(f"{what}: {part}.{name} is not finite")
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    lacking = [name for name in missing if not name.startswith(beginnings)]
    if lacking:
        more = f"; {len(lacking) - 1} more are missing" if len(lacking) > 1 else ""
        raise Refused(f"{what}: holds no {part}.{lacking[0]}, which this recipe's tower has{more}")
    fitting = {name: value.reshape(own[name].shape) for name, value in given.items()}
    module.load_state_dict(fitting, strict=False)
    return [f"{part}.{name}" for name in given], [f"{part}.{name}" for name in missing]


def optional(kind: str, part: str, dropped: tuple[str, ...]) -> tuple[str, ...]:
    """Beginnings of the names that a tower may lack in a file."""
    if kind == OURS:
        return tuple(name.removeprefix(f"{part}.") for name in dropped)
    return _OPTIONAL[part] if kind != DVAE else _AROUND_THE_TOKENIZER
