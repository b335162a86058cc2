"""open_clip's image towers by name: which take masks, that a mask hides what it says, and which have no tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torch import nn
from weight_files import register

from manifests.config import parse_changes
from manifests.errors import Refused
from training.data.batch import Batch
from training.loop.fit import _form_of
from training.loop.update import updates_of
from training.models import clip
from training.models.clip import ImageTower, PooledTower, build_towers, pixel_statistics, unfit
from training.settings.fit_recipe import read_recipe
from training.settings.model import ImageSettings
from training.weights.checkpoint import build_model

TAKEN = {  # model -> patch, side of a picture, E
    "ViT-B-32": (32, 224, 512),
    "ViT-L-14": (14, 224, 768),
    "ViT-L-14-336": (14, 336, 768),
    "ViT-H-14": (14, 224, 1024),
    "ViT-bigG-14": (14, 224, 1280),
    "EVA02-B-16": (16, 224, 512),
    "EVA02-L-14-336": (14, 336, 768),
    "EVA01-g-14": (14, 224, 1024),
    "ViT-B-16-SigLIP": (16, 224, 768),
    "ViT-B-32-SigLIP2-256": (32, 256, 768),
    "ViT-SO400M-14-SigLIP-378": (14, 378, 1152),
    "PE-Core-B-16": (16, 224, 1024),
    "vit_medium_patch16_gap_256": (16, 256, 512),
}
FAST = ("ViT-L-14", "EVA02-B-16", "ViT-B-16-SigLIP")
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TAKEN]
LEFT = {
    "RN50": "a convolutional network has no patch tokens",
    "convnext_base": "its ConvNeXt has no tokens that come from one patch each",
    "ViTamin-S": "its VisionTransformer has no tokens that come from one patch each",
    "MobileCLIP-B": "its VisionTransformer has no tokens that come from one patch each",
    "ViT-SO400M-14-SigLIP-384": "pictures of 384 pixels are no whole patches of 14",
    "ViT-L-14-CLIPA": "no plain vision transformer read out at its class token",
    "coca_ViT-B-32": "no plain vision transformer read out at its class token",
}


def visual_of(model: str) -> nn.Module:
    """The image half as open_clip makes it, without numbers."""
    config = open_clip.get_model_config(model)
    with torch.device("meta"):
        return _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), False)


def tower_of(model: str) -> ImageTower:
    """One block of it, with random weights."""
    visual = visual_of(model)
    assert unfit(visual) == ""
    if hasattr(visual, "trunk"):
        visual.trunk.blocks = visual.trunk.blocks[:1]
    else:
        visual.transformer.resblocks = visual.transformer.resblocks[:1]
    with torch.device("meta"):
        tower = ImageTower(visual)
    tower.to_empty(device="cpu")
    torch.manual_seed(0)
    for name, value in [*tower.named_parameters(), *tower.named_buffers()]:
        with torch.no_grad():
            value.normal_(0, 0.02)
        if "norm" in name and name.endswith("weight"):
            value.data.fill_(1)
    return tower


@pytest.mark.parametrize("model", NAMES)
def test_a_mask_hides_its_patches_and_no_other(model: str) -> None:
    tower = tower_of(model).train()
    patch, side, embed = TAKEN[model]
    assert (tower.patch, tower.image_size, tower.embed_dim, tower.grid) == (patch, side, embed, side // patch)
    picture = torch.randn(1, 3, side, side)
    mask = torch.zeros(1, tower.grid, tower.grid, dtype=torch.bool)
    mask[:, 1, :2] = True
    other = picture.clone()
    other[:, :, patch : 2 * patch, : 2 * patch] += 1
    plain, hidden, changed = tower(picture), tower(picture, mask), tower(other, mask)
    assert plain.feature.shape == (1, embed)
    assert plain.patches.shape == (1, tower.grid**2, tower.ln_patch.normalized_shape[0])
    assert torch.equal(hidden.feature, changed.feature)
    assert not torch.equal(hidden.feature, plain.feature)
    assert not torch.equal(tower(other).feature, plain.feature)
    assert tower.project_tokens(hidden.patches).shape == (1, tower.grid**2, embed)
    assert tower.reconstruct(hidden.patches).shape == picture.shape
    hidden.feature.sum().backward()
    assert tower.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("model", NAMES)
def test_a_pass_without_a_mask_is_open_clips_own(model: str) -> None:
    tower = tower_of(model).eval()
    picture = torch.randn(2, 3, tower.image_size, tower.image_size)
    with torch.no_grad():
        torch.testing.assert_close(tower(picture).feature, tower.visual(picture), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", LEFT)
def test_other_towers_say_why_not(model: str) -> None:
    assert LEFT[model] in unfit(visual_of(model))


@pytest.mark.slow
@pytest.mark.parametrize("model", [*LEFT, "swin_base_patch4_window7_224", "MobileCLIP-S1"])
def test_features_of_published_shapes_are_open_clips(model: str) -> None:
    """One block or one of a stage; all have their space, and blocks whose rates decay."""
    visual: Any = visual_of(model)
    tower = PooledTower(visual, unfit(visual))
    for each in tower.blocks:
        if isinstance(getattr(each, "blocks", each), nn.Sequential):
            inside = getattr(each, "blocks", each)
            del inside[1:]
    tower.to_empty(device="cpu")
    torch.manual_seed(0)
    for name, value in [*tower.named_parameters(), *tower.named_buffers()]:
        with torch.no_grad():
            plain = value.is_floating_point() and value.ndim > 1 and "norm" not in name and "bn" not in name
            value.normal_(0, 0.02) if plain else value.fill_(1)
    pictures = torch.randn(1, 3, tower.image_size, tower.image_size)
    with torch.no_grad():
        feature, given = tower.eval()(pictures).feature, visual(pictures)
    torch.testing.assert_close(feature, given[0] if isinstance(given, tuple) else given, rtol=1e-3, atol=1e-3)
    assert feature.shape == (1, tower.embed_dim)
    assert len(tower.blocks) >= 4


def test_masks_are_refused_before_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "require_answer", lambda *given: pytest.fail("weights were asked for"))
    recipe = read_recipe("modelnet40", parse_changes(("image.model=RN50", "init.image=openai")))
    with pytest.raises(Refused, match=r"image\.model=RN50: a conv.*: weights\.mim=0 weights\.lg_align=0"):
        build_model(recipe, ("mug",))


def test_pictures_are_normalised_as_the_model_wants() -> None:
    for model, mean in (("ViT-B-16-SigLIP", 0.5), ("EVA02-B-16", 0.48145466), ("ViT-B-32", 0.48145466)):
        recipe = read_recipe("small_cross_most", parse_changes((f"image.model={model}", "init.image=a_file.pt")))
        assert pixel_statistics(recipe)[0][0] == mean


def test_a_cell_that_does_not_fit_names_one_that_does() -> None:
    tower = tower_of("ViT-L-14")
    with pytest.raises(Refused, match=r"mask\.image_cell=32 must be whole patches of 14 and divide 224, such as 28"):
        _form_of(tower, read_recipe("modelnet40", {}))
    assert _form_of(tower, read_recipe("modelnet40", parse_changes(("mask.image_cell=28",)))).patch == 14


def test_a_text_tower_of_its_own_makes_the_classifier(tmp_path: Path) -> None:
    """open_clip keeps it, and its projection, below `text` beside an image tower of timm."""
    name = register(tmp_path, "own-text", 32, custom_text=True, text={"vocab_size": 49408})
    _, text, _ = build_towers(ImageSettings(model=name))
    classifier = text.classifier(("mug", "bowl"), ("a {}.",))
    assert classifier.shape == (32, 2)
    torch.testing.assert_close(classifier.norm(dim=0), torch.ones(2))


@pytest.mark.slow
def test_a_tower_of_timm_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update of all terms, in parts: every weight has a gradient, and embeddings learn the slowest."""
    make = timm.create_model

    def two_blocks(name: str, **options: Any) -> nn.Module:
        trunk = make(name, **options)
        trunk.blocks = trunk.blocks[:2]
        return trunk

    monkeypatch.setattr(timm, "create_model", two_blocks)
    few = ("points.depth=1", "data.num_points=64", "optimizer.batch_size=2", "labels.threshold=0.0")
    tower = ("image.model=EVA02-B-16", "image.stem=patch", "mask.image_cell=32", "optimizer.layer_decay=0.5")
    memory = ("optimizer.accumulate=2", "activation_checkpointing=true")
    recipe = read_recipe("small_cross_most", parse_changes((*few, *tower, *memory)))
    student = build_model(recipe, ("mug", "bowl"))[0].train()
    run = updates_of(student, recipe, 10)
    mask = torch.zeros(2, 14, 14, dtype=torch.bool)
    mask[:, :2, :4] = True
    pictures, clouds = torch.randn(2, 2, 3, 224, 224), torch.randn(2, 2, 64, 3)
    run(Batch(("a", "b"), *pictures, *clouds, mask, torch.rand(2, 2), torch.rand(2)), 0)
    run.refuse_fault()
    without = [name for name, each in student.named_parameters() if each.requires_grad and each.grad is None]
    assert without == ["points.own_projection"]
    scales = {id(each): group["lr_scale"] for group in run.optimizer.param_groups for each in group["params"]}
    named = dict(student.named_parameters())
    for name, scale in (("patch_embed.proj.weight", 0.125), ("blocks.1.norm1.weight", 0.5), ("head.weight", 1)):
        assert scales[id(named[f"image.visual.trunk.{name}"])] == scale
