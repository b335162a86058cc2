"""The towers: masks, gradients, names that are refused. What they give with upstream weights: test_golden_towers."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from weight_files import GOLDEN_POINTS

from manifests.errors import Refused
from training.models.clip import SMALL_CONFIG, ImageTower, average_prompts, build_towers, create_clip, pixel_mask
from training.networks.neighbours import farther, farthest_points
from training.networks.point_bert import MiniPointNet, PointTower, block_mask, group_points
from training.settings.model import ImageSettings, PointSettings
from training.settings.prompts import DEFAULT_PROMPTS

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


def points_tower(**changes: object) -> PointTower:
    torch.manual_seed(0)
    return PointTower(GOLDEN_POINTS.model_copy(update=changes), 64).eval()


def test_where_a_group_lies_is_told_by_positions_alone() -> None:
    """A cloud that is moved has the same tokens, since groups are centred; its features tell that it was moved."""
    tower, cloud = points_tower(), torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (centres, tokens), (moved_centres, moved_tokens) = tower.tokenize(cloud), tower.tokenize(cloud + 2)
        torch.testing.assert_close(moved_centres, centres + 2)
        torch.testing.assert_close(moved_tokens, tokens, atol=1e-4, rtol=1e-4)
        assert (tower.encode(centres, tokens).feature - tower.encode(moved_centres, tokens).feature).abs().max() > 0.01
        for block in tower.blocks:  # every block is told
            assert block.norm1.eps == block.norm2.eps == 1e-5  # Point-BERT's
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
        tower.blocks[0].mlp.fc2.weight.zero_()
        assert (tower.encode(centres, tokens).feature - tower.encode(moved_centres, tokens).feature).abs().max() > 0.01


def test_the_readout_is_the_class_token_then_the_largest_of_the_tokens() -> None:
    """And a single token is read out as a sequence of one: both halves of f^P."""
    tower = points_tower()
    with torch.no_grad():
        found = tower(torch.rand(2, 64, 3))
        width = found.cls.shape[1]
        first, second = tower.projection[:width], tower.projection[width:]
        torch.testing.assert_close(found.feature, found.cls @ first + found.tokens.amax(dim=1) @ second)
        torch.testing.assert_close(tower.project_tokens(found.tokens), found.tokens @ (first + second))


def test_masked_groups_are_the_mask_token_and_the_others_are_not() -> None:
    """What went in stays the target; what is hidden does not reach the output, the rest does."""
    tower, draw = points_tower(), torch.tensor([[0.2, 0.9], [0.7, 0.1]])
    with torch.no_grad():
        centres, tokens = tower.tokenize(torch.rand(2, 64, 3))
        begun = tower.encode(centres, tokens, draw)
        assert torch.equal(begun.original, tokens)
        assert begun.mask.sum(dim=1).tolist() == [int(0.39 * 16), int(0.31 * 16)]
        hidden = torch.where(begun.mask[..., None] > 0, torch.randn_like(tokens), tokens)
        torch.testing.assert_close(tower.encode(centres, hidden, draw).feature, begun.feature)
        seen = torch.where(begun.mask[..., None] > 0, tokens, torch.randn_like(tokens))
        assert (tower.encode(centres, seen, draw).feature - begun.feature).abs().max() > 1e-3
        assert not tower.encode(centres, tokens).mask.any()


def test_a_group_is_read_by_what_is_largest_in_it() -> None:
    """The tokenizer by hand: layers that pass numbers on, the group's largest beside each point's own."""
    net = MiniPointNet(1, (1, 1, 1)).eval()
    with torch.no_grad():
        for layer in (net.first_conv[0], net.first_conv[3], net.second_conv[0], net.second_conv[3]):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0] = 1
        net.second_conv[0].weight[0, 1] = 10
        net(torch.zeros(1, 1, 1, 3))
        group = torch.tensor([[1.0, 0, 0], [3.0, 0, 0], [2.0, 0, 0]])[None, None]
        assert net(group).item() == pytest.approx(3 + 10 * 3, rel=1e-3)


def test_the_share_of_masked_groups_is_the_draws() -> None:
    centres = torch.rand(3, 100, 3)
    counts = block_mask(centres, torch.tensor([[0.1, 0.05], [0.999, 0.55], [0.5, 0.95]])).sum(dim=1)
    assert counts.tolist() == [30, 35, 39]


def test_farthest_points_are_those_of_a_search_through_all() -> None:
    """Cloud by cloud, and all at once by steps, as on a GPU."""
    clouds = torch.rand(2, 60, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for found in (farthest_points(clouds, 20), farthest_points(clouds, 20, lambda *given: farther(*given))):
        for cloud, chosen in zip(clouds, found.tolist(), strict=True):
            assert chosen[0] == 0
            for number in range(1, 20):
                to_chosen = torch.cdist(cloud, cloud[chosen[:number]]).amin(dim=1)
                assert to_chosen.argmax().item() == chosen[number]


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


def test_a_patch_is_rebuilt_where_it_lies() -> None:
    """Pixels of the patch in row 1, column 4 come from its own token, the fifth of its row, and from no other."""
    tower, _, _ = build_towers(SMALL)
    with torch.no_grad():
        patches = torch.zeros(1, 36, 96)
        begun = tower.reconstruct(patches)
        patches[0, 1 * 6 + 4] = torch.randn(96)
        changed = (tower.reconstruct(patches) != begun).any(dim=1)[0]
    assert changed[8:16, 32:40].all()
    assert changed.sum() == 64


def test_patches_are_in_the_order_of_the_picture() -> None:
    """A change in one patch of a picture changes that token most, and its place is counted without the class token."""
    tower, _, _ = build_towers(SMALL.model_copy(update={"stem": "patch"}))
    tower.eval()
    with torch.no_grad():
        picture = torch.rand(1, 3, 48, 48)
        begun = tower(picture)
        assert begun.patches.shape == (1, 36, 96)
        picture[:, :, 40:48, 16:24] += 3
        change = (tower(picture).patches - begun.patches).norm(dim=2)[0]
    assert change.argmax() == 5 * 6 + 2


def test_prompts_weigh_the_same_however_long_their_embeddings_are() -> None:
    embeddings = torch.tensor([[100.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(average_prompts(embeddings), torch.tensor([0.5, 0.5]).sqrt())


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
def test_a_transformer_with_another_readout_takes_no_mask(tmp_path, readout: dict) -> None:
    config = json.loads(SMALL_CONFIG.read_text())
    config["vision_cfg"] |= readout
    name = f"small-with-{next(iter(readout))}"
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    tower, _, _ = build_towers(ImageSettings(model=name))
    assert "class token" in tower.without_tokens
    assert tower(torch.randn(1, 3, tower.image_size, tower.image_size)).patches.numel() == 0


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width=50 is not a multiple of heads=4"):
        PointSettings(width=50, heads=4)
