"""Kinds of weights files, told by the names of their tensors."""

from __future__ import annotations

from collections.abc import Iterable

from training.weights.network_names import network_of

OURS, OPENAI, OPEN_CLIP, RELEASED = "ours", "openai_clip", "open_clip", "cross_most_released"
ULIP, ULIP2, POINT_BERT, DVAE = "ulip", "ulip2", "point_bert", "dvae"
POINT_NETWORK, POINTCMT = "point_network", "pointcmt"
SLIP, OPENSHAPE, UNI3D, TRANSFORMERS = "slip", "openshape", "uni3d", "transformers"
TORCHVISION, CLIP2POINT = "torchvision", "clip2point"
CAPTIONS = "text_decoder."  # of CoCa, which no tower of ours has
KINDS = {  # kind -> what it is, in words
    OURS: "a checkpoint of this program",
    OPENAI: "CLIP as OpenAI published it",
    OPEN_CLIP: "an open_clip model",
    RELEASED: "Cross-MoST of the released code",
    ULIP: "ULIP's Point-BERT",
    ULIP2: "ULIP-2's Point-BERT",
    POINT_BERT: "Point-BERT",
    DVAE: "Point-BERT's dVAE",
    POINT_NETWORK: "a point network of its authors",
    POINTCMT: "PointCMT's picture network or its generator",
    SLIP: "SLIP",
    OPENSHAPE: "OpenShape's point encoder",
    UNI3D: "Uni3D's point encoder",
    TRANSFORMERS: "CLIP in the format of transformers",
    TORCHVISION: "a ResNet of torchvision",
    CLIP2POINT: "CLIP2Point's towers of its released code",
}
OTHER_TOWERS = {  # kinds whose tensors fit no tower of ours, and why
    POINTCMT: "init.teacher takes mvcnn.t7 and init.generator cmpg.pth, in runs of PointCMT's stages",
    SLIP: "its image tower is timm's ViT with a bias in the patches and no first norm, not a CLIP ViT",
    OPENSHAPE: "it is no Point-BERT: set abstraction over coloured points, no positions, a linear readout of one token",
    UNI3D: "it is no Point-BERT: a plain ViT over coloured points, positions added once, a linear readout of one token",
}


def recognise(names: Iterable[str]) -> str:
    """The kind of a file by the names of its tensors (without prefixes), or an empty text if no kind fits."""
    names = set(names)

    def some(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if some("image.visual."):
        return OURS
    if some("point_model."):
        return CLIP2POINT
    if some("ppat."):
        return OPENSHAPE
    if some("point_encoder.encoder2trans.", "point_encoder.trans2embed."):
        return UNI3D
    if some("point_encoder."):
        if "visual.class_embedding" in names:
            return RELEASED
        return ULIP2 if some("open_clip_model.") else ULIP
    if some("transformer_q.") or {"reduce_dim.weight", "encoder.first_conv.0.weight"} <= names:
        return POINT_BERT
    if some("encoder.first_conv.", "first_conv."):
        return DVAE
    if "visual.cls_token" in names:
        return SLIP
    if some("vision_model.", "text_model."):
        return TRANSFORMERS
    if {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= names:
        return TORCHVISION
    if some("fc_l.", "module.fc_l.") or {"net.4.0.conv1.weight", "fc.0.weight"} <= {
        n.removeprefix("module.") for n in names
    }:
        return POINTCMT
    if some("visual."):
        return OPENAI if "input_resolution" in names else OPEN_CLIP
    return POINT_NETWORK if network_of(names) else ""
