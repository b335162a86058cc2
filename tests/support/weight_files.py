"""Weights files as other projects save them, made here: from golden small models, or full size by their key lists."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from training.settings.fit_recipe import CrossMostRecipe
from training.settings.model import ImageSettings, PointSettings

GOLDEN_POINTS = PointSettings(
    groups=16, group_size=8, tokenizer_width=64, width=96, depth=2, heads=3, drop_path=0.0, freeze_tokenizer=False
)


def register(folder: Path, name: str, embed_dim: int, **changes: Any) -> str:
    """Makes a small CLIP known to open_clip under a name; `vision` and `text` are laid over its sizes.

    custom_text: the text tower is a module of its own, as in models whose pictures are seen by a tower of timm.
    """
    config = {
        "embed_dim": embed_dim,
        "quick_gelu": changes.get("quick_gelu", True),
        "custom_text": changes.get("custom_text", False),
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 96, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 60, "width": 64, "heads": 4, "layers": 2},
    }
    config["vision_cfg"] |= changes.get("vision", {})
    config["text_cfg"] |= changes.get("text", {})
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    return name


def recipe_of(model: str, points: PointSettings = GOLDEN_POINTS, **changes: Any) -> CrossMostRecipe:
    """A recipe of a registered model; `init` and `pretrained` as in a recipe."""
    image = ImageSettings(model=model, pretrained=changes.get("pretrained", ""))
    return CrossMostRecipe.model_validate({"image": image, "points": points, "init": changes.get("init", {})})


def training_state(state: dict[str, Tensor]) -> dict[str, Any]:
    """What training scripts save beside their weights: arguments, scores as numpy numbers, an optimiser."""
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(lr=2e-5, output_dir=Path("/outputs"), names=["a", "b"], acc=np.float64(61.2))
    return {"optimizer": optimizer.state_dict(), "epoch": "best", "args": arguments, "best_acc1": np.float32(0.5)}


def save_released(path: Path, student: dict[str, Tensor], teacher: dict[str, Tensor] | None = None) -> Path:
    """checkpoint-best.pth of the released Cross-MoST."""
    torch.save({"model": student, "model_ema": teacher or student} | training_state(student), path)
    return path


def save_ulip(path: Path, state: dict[str, Tensor]) -> Path:
    """checkpoint_best.pt of ULIP."""
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": wrapped, "scaler": {"scale": 65536.0}} | training_state(state), path)
    return path


def bare_points(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a point tower of ours by Point-BERT's names, without the heads that it does not have."""
    heads = ("projection", "mask_token", "lm_head.", "own_projection")
    kept = {name: value for name, value in tower.items() if not name.startswith(heads)}
    return {name.replace("blocks.", "blocks.blocks.", 1): value for name, value in kept.items()}


def as_point_bert(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """What lies under `base_model` in a file of Point-BERT's pre-training."""
    return {f"module.transformer_q.{name}": value for name, value in bare_points(tower).items()}


def constants(keys: dict[str, list]) -> dict[str, Tensor]:
    """Full-size tensors that weigh nothing: each is one number of its own, spread over its shape."""
    found = {}
    for number, (name, (shape, dtype)) in enumerate(keys.items(), start=1):
        found[name] = torch.tensor(number, dtype=getattr(torch, dtype)).expand(shape)
    return found


def full_keys(golden: Path, name: str) -> dict[str, list]:
    """name -> (shape, dtype) of a full-size file: `crossmost` or `ulip_pointbert`."""
    return json.loads((golden / "method" / "keys" / f"{name}_full_keys.json").read_text())["keys"]


def save_archive(path: Path, state: dict[str, Tensor]) -> Path:
    """A TorchScript archive of half-precision weights with three numbers beside them, as OpenAI published CLIP."""
    root = nn.Module()
    numbers = {"input_resolution": 64, "context_length": 24, "vocab_size": 60}
    for name, value in [*state.items(), *((n, torch.tensor(v)) for n, v in numbers.items())]:
        *parents, leaf = name.split(".")
        at = root
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, nn.Module())
            at = getattr(at, parent)
        value = value.half() if value.is_floating_point() else value
        at.register_parameter(leaf, nn.Parameter(value)) if value.is_floating_point() else at.register_buffer(
            leaf, value
        )
    torch.jit.script(root).save(path)
    return path
