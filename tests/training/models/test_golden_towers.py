"""Upstream weights in upstream files give upstream outputs: features, masked passes, reconstructions, gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from weight_files import GOLDEN_POINTS, recipe_of, register, save_archive, save_released, save_ulip

from training.models.clip import pixel_mask
from training.models.cross_modal import CrossModalModel
from training.networks import point_bert
from training.networks.neighbours import farther, farthest_points
from training.networks.point_bert import group_points
from training.objectives import losses
from training.weights.checkpoint import build_model
from training.weights.pretrained import initial_towers

TIGHT = {"rtol": 1e-8, "atol": 1e-10}


@pytest.fixture(scope="module")
def data(golden: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "method" / "crossmost_small" / "io.npz"))


@pytest.fixture
def model(golden: Path, tmp_path: Path) -> CrossModalModel:
    """The released model of golden crossmost_small, read from a file as the released code saves it, in float64."""
    state = load_file(golden / "method" / "crossmost_small" / "state_dict.safetensors")
    path = save_released(tmp_path / "checkpoint-best.pth", state)
    recipe = recipe_of(register(tmp_path, "golden-small", 64), init={"all": str(path), "classifier": "file"})
    built, _ = build_model(recipe, ("a", "b", "c", "d", "e"))
    return built.double().eval()


def tensor(data: dict[str, np.ndarray], name: str) -> Tensor:
    value = torch.from_numpy(data[name])
    return value.double() if value.is_floating_point() else value


def drawn_mask(data: dict[str, np.ndarray]) -> Tensor:
    """The uniform draws that give the stored mask of groups."""
    return torch.from_numpy(
        np.stack([(data["pc_mask_center_index"] + 0.5) / 16, (data["pc_mask_ratio"] - 0.3) / 0.1], 1)
    )


def masked_losses(model: CrossModalModel, data: dict[str, np.ndarray], mode: str) -> dict[str, Tensor]:
    """A masked pass of both towers; every output is compared with the golden one of `mode` (eval or train)."""
    pictures, mask = tensor(data, "image"), tensor(data, "image_mask")
    image, points = model.image(pictures, mask), model.points(tensor(data, "points"), drawn_mask(data))
    image_unit, points_unit = normalize(image.feature, dim=1), normalize(points.feature, dim=1)
    own = model.points.own_projection
    local = normalize(model.image.project_tokens(image.patches), dim=2)
    np.testing.assert_array_equal(points.mask.numpy().astype(bool), data["pc_mask"])
    rebuilt = model.image.reconstruct(image.patches)
    found = {
        "image_logits": model.image_logits(image_unit),
        "pc_logits": model.points_logits(points_unit),
        "pc_image_align_logits": points_unit @ image_unit.T,
        "L_mim_paper": losses.masked_image(rebuilt, pictures, pixel_mask(mask.double(), 16)),
        "L_mpm_paper": losses.masked_points(model.points.reconstruct(points.tokens), points.original, points.mask),
        "L_glalign_image": losses.local_global(local, image_unit, mask.flatten(1).double()),
        "L_glalign_pc": losses.local_global(
            normalize(points.tokens @ own, dim=2), normalize(points.cls @ own, dim=1), points.mask
        ),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value.detach().numpy(), data[f"{mode}_{name}_f64"], **TIGHT, err_msg=name)
    if mode == "eval":
        np.testing.assert_allclose(rebuilt.detach().numpy(), data["eval_img_rec_f64"], **TIGHT)
        np.testing.assert_allclose(points.tokens.detach().numpy(), data["eval_pc_x_norm_f64"][:, 1:], **TIGHT)
        predicted = model.points.reconstruct(points.tokens).detach().numpy()
        np.testing.assert_allclose(predicted, data["eval_pc_pred_tokens_f64"], **TIGHT)
    return found


def test_masked_outputs_in_evaluation_equal_golden(model, data) -> None:
    with torch.no_grad():
        masked_losses(model, data, "eval")


def test_masked_outputs_gradients_and_batch_norms_in_training_equal_golden(model, data) -> None:
    found = masked_losses(model.train(), data, "train")
    for name, value in model.points.encoder.state_dict().items():
        if "running" in name:
            np.testing.assert_allclose(value.numpy(), data[f"train_after_{name}_f64"], **TIGHT)
    found["L_glalign_pc"].backward(retain_graph=True)
    np.testing.assert_allclose(model.points.own_projection.grad, data["train_grad_glalign_pc_proj_f64"], **TIGHT)
    assert model.points.projection.grad is None  # released: f^P learns nothing from this term
    (found["L_mim_paper"] * 3 / 17).backward()  # released: divided by the tokens, not by the colours
    np.testing.assert_allclose(model.image.mask_token.grad, data["train_grad_mim_mask_token_embedding_f64"], **TIGHT)
    np.testing.assert_allclose(model.image.decoder.bias.grad, data["train_grad_mim_decoder_bias_f64"], **TIGHT)


def test_unmasked_outputs_equal_golden_in_both_precisions(model, data) -> None:
    for kind, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model.to(kind)
        with torch.no_grad():
            image = model.image_logits(model.image_features(torch.from_numpy(data["weak_image"]).to(kind)))
            points = model.points_logits(model.point_features(torch.from_numpy(data["points"]).to(kind)))
        for value, name in ((image, "teacher_image_logits_f64"), (points, "teacher_pc_logits_f64")):
            scale = np.abs(data[name]).max()
            np.testing.assert_allclose(value.double().numpy(), data[name], atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("wrapped", ["ulip", "bare"])
def test_a_point_bert_of_ulip_gives_its_features(golden: Path, tmp_path: Path, wrapped: str) -> None:
    folder = golden / "method" / "pointbert_small"
    state = load_file(folder / "state_dict.safetensors")
    if wrapped == "ulip":
        projection = {"pc_projection": state.pop("pc_projection")}
        path = save_ulip(tmp_path / "ulip.pt", {f"point_encoder.{n}": v for n, v in state.items()} | projection)
    else:
        path = tmp_path / "points.pt"
        torch.save(state, path)
    recipe = recipe_of(register(tmp_path, "golden-small", 64), init={"points": str(path), "other_space": "keep"})
    towers = initial_towers(recipe)
    stored = np.load(folder / "io.npz")
    with torch.no_grad():
        out = towers.points.double().eval()(torch.from_numpy(stored["points"]).double())
    np.testing.assert_allclose(out.feature.numpy(), stored["pc_embed_f64"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(out.original.numpy(), stored["reduced_tokens_f64"], rtol=0, atol=1e-12)
    readout = torch.cat([out.cls, out.tokens.max(dim=1).values], dim=1)
    np.testing.assert_allclose(readout.numpy(), stored["feature_f64"], rtol=0, atol=1e-12)
    assert set(towers.loaded[0].missing) == {
        f"points.{n}" for n in ("mask_token", "lm_head.weight", "lm_head.bias", "own_projection")
    }


@pytest.mark.filterwarnings("ignore:.*is deprecated. Please switch:FutureWarning")
@pytest.mark.parametrize("form", ["archive", "state_dict"])
def test_the_text_classifier_of_a_clip_file_equals_golden(golden: Path, tmp_path: Path, form: str) -> None:
    folder = golden / "method" / "text_classifier"
    small = load_file(golden / "method" / "crossmost_small" / "state_dict.safetensors")
    state = load_file(folder / "text_tower.safetensors") | {"logit_scale": torch.tensor(4.6052)}
    vision = ("visual.class", "visual.pos", "visual.conv1", "visual.ln_p", "visual.transformer")
    state |= {n: v for n, v in small.items() if n.startswith(vision) and "ln_patch" not in n}
    state["visual.proj"] = small["image_projection"]
    path = tmp_path / "clip.pt"
    save_archive(path, state) if form == "archive" else torch.save({"state_dict": state}, path)
    towers = initial_towers(recipe_of(register(tmp_path, "golden-small", 64), init={"image": str(path)}))
    assert towers.loaded[0].kind == ("openai_clip" if form == "archive" else "open_clip")
    stored = np.load(folder / "io.npz")
    tokens = torch.from_numpy(stored["token_ids"])
    # a published archive is in half precision
    atol = 2e-3 if form == "archive" else 1e-5
    with torch.no_grad():
        raw = torch.stack([towers.text.encode(prompts) for prompts in tokens])
    np.testing.assert_allclose(
        raw.numpy(), stored["raw_text_embeddings_f32"], atol=atol * np.abs(stored["raw_text_embeddings_f32"]).max()
    )
    classifier = torch.stack([towers.text.average(prompts) for prompts in tokens], dim=1)
    np.testing.assert_allclose(classifier.numpy(), stored["classifier_f32"], atol=atol)
    assert towers.scale == pytest.approx(4.6052, abs=2e-3)
    assert json.dumps(towers.loaded[0].summary())


def test_group_centres_and_neighbours_equal_golden(golden: Path) -> None:
    data = np.load(golden / "method" / "point_ops" / "point_ops.npz")
    clouds = torch.from_numpy(data["points"])
    np.testing.assert_array_equal(farthest_points(clouds, 64).numpy(), data["fps_start0_idx"])
    centres, neighbours = group_points(clouds, 64, 32)
    np.testing.assert_allclose(centres.numpy(), data["fps_start0_centers"], atol=1e-6)
    np.testing.assert_allclose(neighbours.numpy(), data["neighborhood_sorted"], atol=1e-6)


def test_group_centres_are_the_same_every_time() -> None:
    """Released code begins at a random point, at evaluation too."""
    clouds = torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(0))
    first = farthest_points(clouds, 40)
    torch.manual_seed(7)
    assert torch.equal(first, farthest_points(clouds, 40))
    assert (first[:, 0] == 0).all()


def test_all_clouds_at_once_and_one_by_one_give_the_same_groups(monkeypatch) -> None:
    """What a CPU does cloud by cloud, another device does for all at once, by a step that may be compiled."""
    clouds = torch.rand(5, 300, 3, generator=torch.Generator().manual_seed(0))
    clouds[:, 200:] = clouds[:, :1]  # as dropout leaves them: copies of point 0

    def step(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        return farther(*arguments)

    assert torch.equal(farthest_points(clouds, 240, step), farthest_points(clouds, 240))
    whole = group_points(clouds, 40, 8)
    monkeypatch.setattr(point_bert, "LARGEST_DISTANCES", 2 * 40 * 300)
    torch.testing.assert_close(group_points(clouds, 40, 8), whole, atol=0, rtol=0)


def test_512_groups_of_32_are_a_key() -> None:
    from training.networks.point_bert import PointTower
    from training.settings.model import PointSettings

    settings = PointSettings(groups=512, group_size=32, width=96, depth=1, heads=3, tokenizer_widths=(8, 8, 8))
    assert PointSettings() == PointSettings(groups=64, group_size=32)
    out = PointTower(settings, 16).eval()(torch.rand(1, 1024, 3))
    assert out.tokens.shape == (1, 512, 96)
    assert GOLDEN_POINTS.groups == 16
