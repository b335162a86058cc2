"""Weights files of other projects and of our own: what kind a file is, and its tensors under our names.

Nothing in a file is ever run: torch reads tensors only (weights_only), the few classes that training scripts leave
beside them are bound to a class that does nothing, and of a TorchScript archive only the tensors are read.
Sources of the names: the released code of OpenAI CLIP, ULIP, Point-BERT, Cross-MoST, CLIP2Point, OpenShape, Uni3D, SLIP
and torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from manifests.errors import Refused
from training.models.image_backbone import SPACES
from training.settings.model import DEFAULT_BACKBONE, Who
from training.weights.network_names import names_of, network_of
from training.weights.safe_load import _SIZES_OF_CLIP, read_tensors
from training.weights.tensor_names import (
    CAPTIONS,
    CLIP2POINT,
    DVAE,
    KINDS,
    OPEN_CLIP,
    OPENAI,
    OPENSHAPE,
    OURS,
    POINT_BERT,
    POINT_NETWORK,
    RELEASED,
    SLIP,
    TORCHVISION,
    TRANSFORMERS,
    ULIP,
    ULIP2,
    UNI3D,
    recognise,
)


@dataclass(frozen=True)
class WeightsFile:
    """One file's tensors under our names: `image.*`, `depth.*`, `points.*`, `text.*`, `classifier`, `logit_scale` as
    CrossModalModel has them.

    left_over: tensors without a place in our towers, by their names in the file. projection: (D, E) of the image tower
    that the embedding space belongs to, if the file holds it; space says the same in words. backbone: the value of
    points.backbone for the points of other people's files.
    """

    path: str
    kind: str
    space: str
    tensors: dict[str, Tensor]
    left_over: tuple[str, ...]
    projection: Tensor | None = None
    backbone: str = DEFAULT_BACKBONE

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of one tower, by their names inside it."""
        return below(self.tensors, prefix)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def read_weights_file(path: str | Path, who: Who = "student") -> WeightsFile:
    """Reads, recognises and renames. who: which of the two models of a file that holds a student and a teacher.

    Raises Refused, in one line naming the path, when the file is missing, damaged, names code, is of no known kind, or
    holds a number that is not finite.
    """
    given = read_tensors(path, who)
    kind = recognise(given)
    if not kind:
        first = ", ".join(sorted(given)[:3])
        raise Refused(f"{path}: no weights of a kind that is known here ({len(given)} tensors, such as {first})")
    if kind == TRANSFORMERS:
        raise Refused(
            f"{path} is {KINDS[kind]} (vision_model.*, text_model.*), which is not read: take open_clip's file "
            "of the same weights (open_clip_model.safetensors or open_clip_pytorch_model.bin), OpenAI's .pt, or a tag "
            "of open_clip (init.image=openai)"
        )
    backbone = network_of(given) if kind == POINT_NETWORK else DEFAULT_BACKBONE
    tensors, left_over = _of_network(backbone, given) if kind == POINT_NETWORK else _rename(kind, given)
    for name, dims in (("logit_scale", None), ("classifier", 2)):
        value = tensors.get(name)
        if value is not None and (value.numel() != 1 if dims is None else value.ndim != dims):
            raise Refused(f"{path}: {name} is {tuple(value.shape)}")
    require_finite(tensors, path)
    return WeightsFile(str(path), kind, _space(kind, given), tensors, left_over, _projection(kind, given), backbone)


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None. It waits for the device once."""
    floating = {name: value for name, value in tensors.items() if value.is_floating_point()}
    if not floating:
        return None
    finite = torch.stack([torch.isfinite(value).all() for value in floating.values()]).tolist()
    return next((name for name, sound in zip(floating, finite, strict=True) if not sound), None)


def require_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises Refused, naming the file and the first tensor, where a number is not finite: every answer would be NaN."""
    name = first_not_finite(tensors)
    if name is not None:
        raise Refused(f"{path}: {name} is not finite (NaN or infinity)")


def _rename(kind: str, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors under our names, and the names, as in the file, of the others."""
    naming = {OURS: _ours, OPENAI: _clip, OPEN_CLIP: _clip, RELEASED: _released, ULIP: _ulip, ULIP2: _ulip}
    naming |= {POINT_BERT: _point_bert, DVAE: _dvae, TORCHVISION: _torchvision, CLIP2POINT: _clip2point}
    tensors, left_over = {}, []
    for name, value in given.items():
        our = naming[kind](name) if kind in naming else ""
        if our == "image.decoder.weight" and value.ndim == 4:  # a 1x1 convolution is a linear map
            value = value.flatten(1)
        if our:
            tensors[our] = value
        else:
            left_over.append(name)
    return tensors, tuple(left_over)


def _of_network(backbone: str, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """As `_rename`, of a point network. Of a tensor with two names the name that ours has is taken."""
    known = names_of(backbone)
    ours = {name: known.ours(name) for name in given}
    again = {name for name in given if known.only(name) != name and known.only(name) in given}
    tensors = {f"points.{our}": given[name] for name, our in ours.items() if our and name not in again}
    return tensors, tuple(name for name, our in ours.items() if not our)


def _ours(name: str) -> str:
    return name


def _clip(name: str) -> str:
    if name.startswith("visual."):
        return f"image.{name}"
    if name in _SIZES_OF_CLIP or name.startswith(CAPTIONS):
        return ""
    return name if name == "logit_scale" else f"text.clip.{name}"


def _released(name: str) -> str:
    """method.md 4.5: the image projection and f^P lie at the top; the decoder is a 1x1 convolution in a Sequential."""
    renamed = {
        "image_projection": "image.visual.proj",
        "visual.mask_token_embedding": "image.mask_token",
        "visual.decoder.0.weight": "image.decoder.weight",
        "visual.decoder.0.bias": "image.decoder.bias",
        "visual.ln_patch.weight": "image.ln_patch.weight",
        "visual.ln_patch.bias": "image.ln_patch.bias",
        "classifier": "classifier",
    }
    if name in renamed:
        return renamed[name]
    return _ulip(name) or ("" if name.startswith("point_encoder.") else _clip(name))


def _ulip(name: str) -> str:
    """Only the point half: image and text tower are SLIP's (ULIP) or open_clip's (ULIP-2), and so is the scale."""
    if name == "pc_projection":
        return "points.projection"
    if name == "point_encoder.proj":
        return "points.own_projection"
    return _point_tower(name.removeprefix("point_encoder.")) if name.startswith("point_encoder.") else ""


def _point_bert(name: str) -> str:
    """Pre-trained (`transformer_q.`; its momentum copy, dVAE and heads are left over), fine-tuned or bare.

    Its lm_head tells which of 8,192 tokens of the dVAE was hidden; ours predicts the token itself.
    """
    inside = name.removeprefix("transformer_q.")
    if name == "pc_projection":
        return "points.projection"
    return "" if inside.startswith("lm_head.") else _point_tower(inside)


def _point_tower(name: str) -> str:
    """A name inside Point-BERT's transformer; its token and class heads are not ours."""
    if name.startswith("blocks.blocks."):
        return f"points.{name.removeprefix('blocks.')}"
    ours = ("encoder.", "reduce_dim.", "pos_embed.", "norm.", "cls_token", "cls_pos", "mask_token", "lm_head.")
    return f"points.{name}" if name.startswith(ours) else ""


def _dvae(name: str) -> str:
    """The mini-PointNet alone (`encoder.`)."""
    inside = name.removeprefix("encoder.")
    return f"points.encoder.{inside}" if inside.startswith(("first_conv.", "second_conv.")) else ""


def _torchvision(name: str) -> str:
    """All but its classes."""
    return "" if name.startswith("fc.") else f"image.visual.{name}"


def _clip2point(name: str) -> str:
    """The depth tower (`point_model.`) and CLIP's (`image_model.`); its `weights` is the sigma of its training."""
    renamed = name.replace("point_model.", "depth.visual.", 1).replace("image_model.", "image.visual.", 1)
    return "" if renamed == name else renamed


def _projection(kind: str, given: dict[str, Tensor]) -> Tensor | None:
    before = {OURS: "image.", OPENAI: "", OPEN_CLIP: "", ULIP2: "open_clip_model."}
    names = [before[kind] + name for name in SPACES] if kind in before else ["image_projection"]
    return next((given[name] for name in names if name in given), None)


def _space(kind: str, given: dict[str, Tensor]) -> str:
    """In words, to which image tower a file's features are aligned."""
    if kind == ULIP:
        return "SLIP's ViT-B/16" if "visual.cls_token" in given else "an image tower that the file does not hold"
    if kind == TORCHVISION:
        return "none"
    if kind in (POINT_BERT, DVAE, POINT_NETWORK):
        return "an image tower that the file does not hold" if "pc_projection" in given else "none"
    names = {
        ULIP2: "open_clip's ViT-bigG-14",
        SLIP: "SLIP's ViT-B/16",
        OPENSHAPE: "open_clip's ViT-bigG-14 or ViT-L-14",
        UNI3D: "open_clip's EVA02-E-14-plus",
    }
    return names.get(kind, "its own image tower")
