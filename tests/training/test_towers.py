"""The towers: golden features, masks, gradients, weights that are refused."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from manifests.errors import Refused
from training.prompts import DEFAULT_PROMPTS
from training.towers.clip import (
    SMALL_CONFIG,
    ImageSettings,
    ImageTower,
    TextTower,
    average_prompts,
    build_towers,
    create_clip,
    pixel_mask,
)
from training.towers.points import PointSettings, PointTower, block_mask, farthest_points, group_points

SMALL = ImageSettings(model="cross_most_small", stem="conv")
GOLDEN_POINTS = PointSettings(
    groups=16, group_size=8, tokenizer_width=64, width=96, depth=2, heads=3, drop_path=0.0, freeze_tokenizer=False
)


def load_points(state: dict, prefix: str = "") -> PointTower:
    """A tower with stored upstream weights under their names here."""
    tower = PointTower(GOLDEN_POINTS, 64).double()
    renamed = {}
    for name, value in state.items():
        if name == "pc_projection":
            renamed["projection"] = value
        elif name == prefix + "proj":
            renamed["own_projection"] = value
        elif name.startswith(prefix):
            renamed[name.removeprefix(prefix).replace("blocks.blocks.", "blocks.")] = value
    own = tower.state_dict()
    known = {name: value for name, value in renamed.items() if name in own}
    missing = set(own) - set(known)
    assert missing <= {"mask_token", "lm_head.weight", "lm_head.bias", "own_projection"}
    tower.load_state_dict(known, strict=False)
    return tower.eval()


def test_farthest_points_and_groups_equal_golden(golden) -> None:
    data = np.load(golden / "method" / "point_ops" / "point_ops.npz")
    clouds = torch.from_numpy(data[next(n for n in data.files if n in ("points", "xyz", "in_points"))])
    name = next(n for n in data.files if n.startswith("fps_start0") and "idx" in n)
    np.testing.assert_array_equal(farthest_points(clouds, 64).numpy(), data[name])


def test_neighbourhoods_equal_golden(golden) -> None:
    data = np.load(golden / "method" / "point_ops" / "point_ops.npz")
    centres, neighbours = group_points(torch.from_numpy(data["points"]), 64, 32)
    np.testing.assert_allclose(centres.numpy(), data["fps_start0_centers"], atol=1e-6)
    stored = np.sort(np.linalg.norm(data["neighborhood_sorted"], axis=3), axis=2)
    np.testing.assert_allclose(np.sort(neighbours.norm(dim=3).numpy(), axis=2), stored, atol=1e-6)


def test_point_bert_features_equal_golden(golden) -> None:
    folder = golden / "method" / "pointbert_small"
    tower = load_points(load_file(folder / "state_dict.safetensors"))
    data = np.load(folder / "io.npz")
    with torch.no_grad():
        out = tower(torch.from_numpy(data["points"]).double())
    np.testing.assert_allclose(out.feature.numpy(), data["pc_embed_f64"], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(out.original.numpy(), data["reduced_tokens_f64"], rtol=1e-9, atol=1e-10)


def test_masked_points_equal_golden(golden) -> None:
    from training import losses

    folder = golden / "method" / "crossmost_small"
    tower = load_points(load_file(folder / "state_dict.safetensors"), "point_encoder.")
    data = np.load(folder / "io.npz")
    points = torch.from_numpy(data["points"]).double()
    centre = (data["pc_mask_center_index"] + 0.5) / 16
    share = (data["pc_mask_ratio"] - 0.3) / 0.1
    draw = torch.from_numpy(np.stack([centre, share], axis=1))
    with torch.no_grad():
        out = tower(points, draw)
        np.testing.assert_array_equal(out.mask.numpy().astype(bool), data["pc_mask"])
        np.testing.assert_allclose(out.tokens.numpy(), data["eval_pc_x_norm_f64"][:, 1:], rtol=1e-9, atol=1e-9)
        rebuilt = tower.reconstruct(out.tokens)
        np.testing.assert_allclose(rebuilt.numpy(), data["eval_pc_pred_tokens_f64"], rtol=1e-9, atol=1e-9)
        loss = losses.masked_points(rebuilt, out.original, out.mask)
        assert loss.item() == pytest.approx(float(data["eval_L_mpm_paper_f64"]), rel=1e-9)
        local = normalize(out.tokens @ tower.own_projection, dim=2)
        whole = normalize(out.cls @ tower.own_projection, dim=1)
        released = losses.local_global(local, whole, out.mask)
        assert released.item() == pytest.approx(float(data["eval_L_glalign_pc_f64"]), rel=1e-9)


def golden_image_tower(state: dict) -> ImageTower:
    clip = open_clip.CLIP(
        64,
        {"image_size": 64, "layers": 2, "width": 96, "head_width": 32, "patch_size": 16},
        {"context_length": 8, "vocab_size": 10, "width": 32, "heads": 2, "layers": 1},
        quick_gelu=True,
    )
    tower = ImageTower(clip.visual).double()
    renamed = {"visual.proj": state["image_projection"]}
    for name, value in state.items():
        if name.startswith("visual.decoder"):
            renamed[name.replace("visual.decoder.0", "decoder")] = (
                value.reshape(value.shape[:2]) if value.ndim == 4 else value
            )
        elif name.startswith("visual.ln_patch"):
            renamed[name.removeprefix("visual.")] = value
        elif name == "visual.mask_token_embedding":
            renamed["mask_token"] = value
        elif name.startswith("visual."):
            renamed[name] = value
    tower.load_state_dict(renamed, strict=True)
    return tower.eval()


def test_image_tower_and_its_losses_equal_golden(golden) -> None:
    from training import losses

    folder = golden / "method" / "crossmost_small"
    state, data = load_file(folder / "state_dict.safetensors"), np.load(folder / "io.npz")
    tower = golden_image_tower(state)
    image, mask = torch.from_numpy(data["image"]).double(), torch.from_numpy(data["image_mask"])
    with torch.no_grad():
        out = tower(image, mask)
        scale, classifier = state["logit_scale"].double().exp(), state["classifier"].double()
        logits = scale * normalize(out.feature, dim=1) @ classifier
        np.testing.assert_allclose(logits.numpy(), data["eval_image_logits_f64"], rtol=1e-8, atol=1e-8)
        rebuilt = tower.reconstruct(out.patches)
        np.testing.assert_allclose(rebuilt.numpy(), data["eval_img_rec_f64"], rtol=1e-8, atol=1e-8)
        loss = losses.masked_image(rebuilt, image, pixel_mask(mask.double(), 16))
        assert loss.item() == pytest.approx(float(data["eval_L_mim_paper_f64"]), rel=1e-9)
        local = normalize(tower.project_tokens(out.patches), dim=2)
        value = losses.local_global(local, normalize(out.feature, dim=1), mask.flatten(1).double())
        assert value.item() == pytest.approx(float(data["eval_L_glalign_image_f64"]), rel=1e-9)
        weak = tower(torch.from_numpy(data["weak_image"]).double())
        teacher = scale * normalize(weak.feature, dim=1) @ classifier
        np.testing.assert_allclose(teacher.numpy(), data["teacher_image_logits_f64"], rtol=1e-8, atol=1e-8)


def test_prompt_average_equals_golden(golden) -> None:
    data = np.load(golden / "method" / "text_classifier" / "io.npz")
    raw = torch.from_numpy(data["raw_text_embeddings_f32"])
    ours = torch.stack([average_prompts(prompts) for prompts in raw], dim=1)
    np.testing.assert_allclose(ours.numpy(), data["classifier_f32"], atol=1e-5)


def test_the_text_tower_and_its_classifier_equal_golden(golden, tmp_path) -> None:
    folder = golden / "method" / "text_classifier"
    about = json.loads((folder / "meta.json").read_text())["config"]
    sizes = {name: about[name] for name in ("width", "heads", "layers", "context_length")}
    config = json.loads(SMALL_CONFIG.read_text()) | {
        "embed_dim": about["embed_dim"],
        "quick_gelu": True,
        "text_cfg": sizes | {"vocab_size": about["vocab"]},
    }
    (tmp_path / "golden-text.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "golden-text.json")
    clip = create_clip(ImageSettings(model="golden-text")).eval()
    missing, unexpected = clip.load_state_dict(load_file(folder / "text_tower.safetensors"), strict=False)
    assert not unexpected
    assert all(name.startswith(("visual.", "logit_scale")) for name in missing)
    data = np.load(folder / "io.npz")
    tokens, text = torch.from_numpy(data["token_ids"]), TextTower(clip, tokenizer=None)
    with torch.no_grad():
        raw = torch.stack([text.encode(prompts) for prompts in tokens])
    np.testing.assert_allclose(raw.numpy(), data["raw_text_embeddings_f32"], atol=1e-5)
    classifier = torch.stack([text.average(prompts) for prompts in tokens], dim=1)
    np.testing.assert_allclose(classifier.numpy(), data["classifier_f32"], atol=1e-5)


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
