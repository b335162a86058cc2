"""The towers: masks, gradients, names that are refused. What they give with upstream weights: test_golden_towers."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from weight_files import GOLDEN_POINTS

from manifests.errors import Refused
from training.prompts import DEFAULT_PROMPTS
from training.towers.clip import (
    SMALL_CONFIG,
    ImageSettings,
    ImageTower,
    average_prompts,
    build_towers,
    create_clip,
    pixel_mask,
)
from training.towers.points import PointSettings, PointTower, block_mask, group_points

SMALL = ImageSettings(model="cross_most_small", stem="conv")


def test_prompt_average_equals_golden(golden) -> None:
    data = np.load(golden / "method" / "text_classifier" / "io.npz")
    raw = torch.from_numpy(data["raw_text_embeddings_f32"])
    ours = torch.stack([average_prompts(prompts) for prompts in raw], dim=1)
    np.testing.assert_allclose(ours.numpy(), data["classifier_f32"], atol=1e-5)


def test_blocks_of_groups_are_masked() -> None:
    centres = torch.rand(50, 64, 3)
    mask = block_mask(centres, torch.rand(50, 2))
    counts = mask.sum(dim=1)
    assert counts.min() >= 19
    assert counts.max() <= 25
    one = block_mask(centres[:1], torch.tensor([[0.5, 0.0]]))[0].bool()
    distance = (centres[0] - centres[0, 32]).norm(dim=1)
    assert distance[one].max() <= distance[~one].min()


def test_groups_are_centred_neighbours() -> None:
    points = torch.rand(2, 100, 3)
    centres, neighbours = group_points(points, 8, 5)
    assert (neighbours[:, :, 0].abs() < 1e-6).all()  # a centre is its own nearest neighbour
    with pytest.raises(ValueError, match="100 points for 101 groups"):
        group_points(points, 101, 5)
    torch.testing.assert_close(centres[:, 0], points[:, 0])


def test_a_frozen_tokenizer_stays_as_it_is() -> None:
    tower = PointTower(GOLDEN_POINTS.model_copy(update={"freeze_tokenizer": True}), 64).train()
    before = {n: v.clone() for n, v in tower.encoder.state_dict().items()}
    tower(torch.rand(2, 64, 3)).feature.sum().backward()
    assert all(p.grad is None for p in tower.encoder.parameters())
    assert all(torch.equal(v, before[n]) for n, v in tower.encoder.state_dict().items())


def test_masked_pixels_reach_nothing_but_the_target() -> None:
    """What is hidden must not be seen: changing masked pixels changes no output, with either stem."""
    for stem in ("conv", "patch"):
        tower, _, _ = build_towers(SMALL.model_copy(update={"stem": stem}))
        tower.eval()
        mask = torch.zeros(1, 6, 6, dtype=torch.bool)
        mask[0, 2:4, 2:4] = True
        first = torch.rand(1, 3, 48, 48)
        second = torch.where(pixel_mask(mask, 8)[:, None], torch.rand(1, 3, 48, 48), first)
        with torch.no_grad():
            torch.testing.assert_close(tower(first, mask).feature, tower(second, mask).feature)
            assert not torch.allclose(tower(first).feature, tower(second).feature)


def test_gradients_reach_mask_token_and_decoder() -> None:
    tower, _, _ = build_towers(SMALL)
    mask = torch.ones(2, 6, 6, dtype=torch.bool)
    out = tower(torch.rand(2, 3, 48, 48), mask)
    tower.reconstruct(out.patches).sum().backward()
    assert tower.mask_token.grad.abs().sum() > 0
    assert tower.decoder.weight.grad.abs().sum() > 0


def test_the_classifier_is_made_from_text() -> None:
    _, text, scale = build_towers(SMALL)
    classifier = text.classifier(("mug", "night stand"), DEFAULT_PROMPTS)
    assert classifier.shape == (128, 2)
    torch.testing.assert_close(classifier.norm(dim=0), torch.ones(2))
    assert not torch.allclose(classifier[:, 0], classifier[:, 1])
    assert scale == pytest.approx(np.log(1 / 0.07), abs=1e-4)


def test_pictures_of_another_size() -> None:
    tower, _, _ = build_towers(SMALL.model_copy(update={"image_size": 64}))
    assert tower.image_size == 64
    assert tower(torch.rand(1, 3, 64, 64)).patches.shape == (1, 64, 96)


def test_names_that_open_clip_does_not_know_are_refused() -> None:
    for settings, words in (
        (SMALL.model_copy(update={"pretrained": "gone.pt"}), "image.pretrained=gone.pt: no open_clip tag"),
        (ImageSettings(model="ViT-B-17"), "image.model=ViT-B-17"),
        (ImageSettings(model="ViT-B-16", pretrained="openai"), "quickgelu"),
    ):
        with pytest.raises(Refused, match=words):
            create_clip(settings)


@pytest.mark.parametrize("model", ["ViT-S-32", "ViT-M-32-alt"])
def test_features_of_other_open_clip_models_are_open_clips(model: str) -> None:
    clip = create_clip(ImageSettings(model=model)).eval()
    pictures = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        wanted = clip.encode_image(pictures)
        feature = ImageTower(clip.visual).eval()(pictures).feature
    torch.testing.assert_close(feature, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model", "tag"), [("ViT-B-32", "metaclip_400m"), ("ViT-B-16", "dfn2b")])
def test_tags_trained_with_quickgelu_are_refused_under_gelu(model: str, tag: str) -> None:
    with pytest.raises(Refused, match=f"image.model={model}-quickgelu"):
        create_clip(ImageSettings(model=model, pretrained=tag))


@pytest.mark.parametrize("readout", [{"pool_type": "avg"}, {"attentional_pool": True, "attn_pooler_heads": 4}])
def test_a_transformer_with_another_readout_is_refused(tmp_path, readout: dict) -> None:
    config = json.loads(SMALL_CONFIG.read_text())
    config["vision_cfg"] |= readout
    name = f"small-with-{next(iter(readout))}"
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    with pytest.raises(Refused, match="class token"):
        build_towers(ImageSettings(model=name))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width=50 is not a multiple of heads=4"):
        PointSettings(width=50, heads=4)
