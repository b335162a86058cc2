"""`python -m training weights FILE`: describes a weights file before it is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from manifests.plain_text import number_of
from training.settings.model import Who
from training.weights.formats import WeightsFile
from training.weights.grouping import Grouping, grouping_of
from training.weights.network_names import names_of
from training.weights.pretrained import read_path, some
from training.weights.tensor_names import DVAE, KINDS, OTHER_TOWERS, POINT_NETWORK

_SIZES = {  # tower -> size -> a tensor and its axis
    "image": {
        "width": ("visual.class_embedding", 0),
        "embed_dim": ("visual.proj", 1),
        "patch": ("visual.conv1.weight", -1),
    },
    "points": {
        "width": ("cls_token", -1),
        "tokenizer_width": ("encoder.second_conv.3.weight", 0),
        "embed_dim": ("projection", 1),
    },
    "text": {"width": ("clip.ln_final.weight", 0), "embed_dim": ("clip.text_projection", 1)},
}
_NEEDED = {  # tower -> beginnings of names without which it cannot be filled
    "image": ("class_embedding", "conv1.", "positional_embedding", "ln_pre.", "ln_post.", "proj"),
    "points": ("encoder.first_conv.", "encoder.second_conv.", "reduce_dim.", "pos_embed.", "cls_token", "cls_pos"),
    "text": ("token_embedding.", "positional_embedding", "ln_final.", "text_projection"),
}
_BELOW = {"image": "visual.", "points": "", "text": "clip."}  # where they lie in the tower
_BLOCKS = {"image": "visual.transformer.resblocks.", "points": "blocks.", "text": "clip.transformer.resblocks."}


def describe(path: str, who: Who = "student") -> dict[str, Any]:
    """What `python -m training weights FILE` prints: kind, space, counts, and what of our towers the file fills."""
    weights = read_path(Path(path), who)
    tensors = weights.tensors
    towers = {}
    missing: list[str] = []
    for part in ("image", "points", "text"):
        inside = weights.below(f"{part}.")
        if inside:
            towers[part] = {"tensors": len(inside), "parameters": _count(inside.values())} | _sizes(part, inside)
            missing += [f"{part}.{name}" for name in _missing(weights, part, inside)]
    grouping = grouping_of(weights)
    about: dict[str, Any] = {
        "path": path,
        "kind": weights.kind,
        "what": KINDS[weights.kind],
        "backbone": weights.backbone if weights.kind == POINT_NETWORK else None,
        "space": weights.space,
        "usable": weights.kind not in OTHER_TOWERS,
        "reason": OTHER_TOWERS.get(weights.kind, ""),
        "tensors": len(tensors) + len(weights.left_over),
        "towers": towers,
        "grouping": grouping and asdict(grouping),
        "classes": int(tensors["classifier"].shape[1]) if "classifier" in tensors else None,
        "logit_scale": round(min(float(tensors["logit_scale"].exp()), 1e9), 3) if "logit_scale" in tensors else None,
        "left_over": list(weights.left_over),
        "missing": missing,
    }
    return about


def in_words(about: dict[str, Any]) -> list[str]:
    """The same for a person, a few lines."""
    lines = [f"{about['path']}: {about['what']}, {about['tensors']} tensors"]
    if not about["usable"]:
        return [*lines, f"  not usable here: {about['reason']}"]
    for part, holds in about["towers"].items():
        sizes = "".join(f", {name} {value}" for name, value in holds.items() if name not in ("tensors", "parameters"))
        sizes += f", points.backbone={about['backbone']}" if about["backbone"] else ""
        keys = {"image": "init.image", "points": "init.points", "text": "with init.image"}[part]
        counted = f"{holds['tensors']} tensors, {holds['parameters']:,} numbers"
        lines.append(f"  {part} tower: {counted};{sizes.removeprefix(',')} ({keys})")
    if about["grouping"]:
        lines.append(f"  points learned from {Grouping(**about['grouping'])}")
    lines.append(f"  embedding space: {about['space']}")
    if about["classes"] is not None:
        lines.append(f"  classifier of {number_of(about['classes'], 'class')} (init.all with init.classifier=file)")
    if about["logit_scale"] is not None:
        lines.append(f"  logit scale {about['logit_scale']:g}")
    if about["left_over"]:
        lines.append(f"  not needed here: {len(about['left_over'])}: {some(tuple(about['left_over']))}")
    if about["missing"]:
        lines.append(f"  missing: {len(about['missing'])}: {some(tuple(about['missing']))}")
    return lines


def _missing(weights: WeightsFile, part: str, inside: dict[str, Tensor]) -> list[str]:
    """What a tower needs and a file does not hold: first tensors, and those that its other blocks have."""
    if weights.kind == POINT_NETWORK:
        known = names_of(weights.backbone)
        needed = {known.ours(name) for name in known.tower if not name.endswith("num_batches_tracked")}
        return sorted(needed - set(inside))
    if weights.kind == DVAE:
        return []
    below, first = _BELOW[part], _BLOCKS[part]
    if any(name.startswith(("visual.trunk.", "visual.layer1.", "clip.text.")) for name in inside):
        return []  # towers of timm, ResNets and their text towers have other names
    lost = [below + name for name in _NEEDED[part] if not any(each.startswith(below + name) for each in inside)]
    blocks: dict[int, set[str]] = {}
    for name in inside:
        number, _, rest = name.removeprefix(first).partition(".")
        if name.startswith(first) and number.isdecimal():
            blocks.setdefault(int(number), set()).add(rest)
    every = set[str]().union(*blocks.values())
    numbers = range(max(blocks, default=-1) + 1)
    return lost + [f"{first}{n}.{rest}" for n in numbers for rest in sorted(every - blocks.get(n, set()))]


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(value.numel() for value in tensors)


def _sizes(part: str, inside: dict[str, Tensor]) -> dict[str, int]:
    """Sizes of a tower as its shapes show them; depth: its blocks."""
    shapes = {size: (inside[name].shape, axis) for size, (name, axis) in _SIZES[part].items() if name in inside}
    sizes = {size: int(shape[axis]) for size, (shape, axis) in shapes.items() if -len(shape) <= axis < len(shape)}
    first = _BLOCKS[part]
    blocks = {name.removeprefix(first).partition(".")[0] for name in inside if name.startswith(first)}
    return sizes | ({"depth": len(blocks)} if blocks else {})
