"""CLIP2Point: golden values, six LAMB steps through the towers, live depth pairs, and what a run keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from golden_backbones import filled
from torch import nn

from manifests.config import parse_changes
from training.data.depth_pairs import PairBatch
from training.loop.lamb import Lamb
from training.loop.schedule import Schedule
from training.loop.update import optimizer_of
from training.models.backbones import point_tower
from training.models.clip import ImageTower
from training.models.cross_modal import CrossModalModel
from training.objectives.clip2point import best_sigma, freeze, step, total_of
from training.settings.backbone_rows import BACKBONE_SETTINGS
from training.settings.clip2point_recipe import Clip2PointSettings
from training.settings.fit_recipe import read_recipe


@pytest.mark.parametrize("sigma", [1.0, 0.6, 1.7])
def test_the_losses_and_gradients_equal_golden(golden, sigma: float) -> None:
    folder = golden / "method" / "clip2point"
    stored, about = np.load(folder / "losses.npz"), json.loads((folder / "expected.json").read_text())["results"]
    first, second, image = (torch.from_numpy(stored[name]).double() for name in ("depth1", "depth2", "image"))
    depth, balance = torch.stack([first, second], dim=1).requires_grad_(), nn.Parameter(torch.tensor(sigma).double())
    found, expected = total_of(depth, image, balance, Clip2PointSettings()), about[f"sigma{sigma}_f64"]
    found.total.backward()
    assert found.total.item() == pytest.approx(expected["total"], rel=1e-7)  # upstream's sigma is float32
    assert found.terms["cross"].item() == pytest.approx(expected["cross_image_loss"], rel=1e-10)
    assert found.terms["intra"].item() == pytest.approx(expected["intra_depth_loss"], rel=1e-10)
    assert balance.grad.item() == pytest.approx(expected["grad_sigma"], rel=1e-6)
    for number, name in enumerate(("depth1", "depth2")):
        np.testing.assert_allclose(depth.grad[:, number], stored[f"sigma{sigma}.grad_{name}_f64"], atol=1e-8)


def test_lamb_equals_golden_over_its_steps(golden) -> None:
    data = np.load(golden / "method" / "clip2point_training" / "lamb.npz")
    weights = [nn.Parameter(torch.from_numpy(data[f"start{number}"]).clone()) for number in range(5)]
    lamb = Lamb([{"params": weights, "lr": 0.006, "weight_decay": 1e-4}], (0.9, 0.999))
    steps = {int(name[5:].partition(".")[0]) for name in data.files if name.startswith("value")}
    for number in sorted(steps):
        for place, weight in enumerate(weights):
            weight.grad = torch.from_numpy(np.asarray(data[f"grad{number}.{place}"]))
        lamb.found_inf = torch.ones(())
        lamb.step()  # of a loss that was not finite
        lamb.found_inf = torch.zeros(())
        lamb.step()
        for place, weight in enumerate(weights):
            np.testing.assert_allclose(weight.detach(), data[f"value{number}.{place}"], rtol=0, atol=1e-12)
    assert len(steps) > 2


def golden_model(folder: Path, about: dict) -> CrossModalModel:
    """Both towers filled as upstream's, in float64."""
    size = about["visual"]
    visual = open_clip.transformer.VisionTransformer(
        image_size=size["input_resolution"],
        patch_size=size["patch_size"],
        width=size["width"],
        layers=size["layers"],
        heads=size["heads"],
        mlp_ratio=4,
        output_dim=size["output_dim"],
        act_layer=open_clip.transformer.QuickGELU,
    )
    shapes = json.loads((folder / "pretrain_steps.keys.json").read_text())["visual"]
    weights = {name: filled(name, shapes[name], j, about["salt"]) for j, name in enumerate(sorted(shapes))}
    image = ImageTower(visual)
    assert set(weights) == set(visual.state_dict())
    visual.load_state_dict(weights)
    points = point_tower(BACKBONE_SETTINGS["pointnet"](backbone="pointnet"), size["output_dim"])
    model = CrossModalModel(image, points, torch.zeros(size["output_dim"], 2), 1.0)
    model.add_depth_tower()
    freeze(model)
    model.freeze_scale()
    return model.double()


def test_six_lamb_steps_through_the_towers_equal_golden(golden) -> None:
    """Losses, sigma's gradient, every gradient's norm, and weights after a restart of the rate."""
    folder = golden / "method" / "clip2point_training"
    data, about = np.load(folder / "pretrain_steps.npz"), json.loads((folder / "meta.json").read_text())["cases"]
    about = about["pretrain_steps"]
    model = golden_model(folder, about).train()
    keys = ("optimizer.batch_size=6", "optimizer.epochs=2", "optimizer.restart_epochs=1")
    recipe = read_recipe("clip2point", parse_changes(keys))
    optimizer, schedule = optimizer_of(model, recipe.optimizer), Schedule.of(recipe.optimizer, 4)
    for number, expected in enumerate(about["steps"]):
        depth, image = (torch.from_numpy(data[f"step{number % 3}.{name}"]).double() for name in ("depth", "image"))
        rate = schedule.learning_rate(number)
        assert rate == pytest.approx(expected["lr"], rel=1e-12)
        assert model.balance.item() == pytest.approx(expected["sigma"], rel=1e-7)
        for group in optimizer.param_groups:
            group["lr"] = rate
        found = step(model, None, PairBatch(tuple("abcdef"), image[:, 0], depth), recipe)
        optimizer.zero_grad()
        found.total.backward()
        assert found.total.item() == pytest.approx(expected["total"], rel=1e-7), number
        assert found.terms["cross"].item() == pytest.approx(expected["cross"], rel=1e-7)
        assert found.terms["intra"].item() == pytest.approx(expected["intra"], rel=1e-7)
        learned = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        assert {our_name(name) for name in expected["grad_norms"]} == set(learned)
        for name, norm in expected["grad_norms"].items():
            assert learned[our_name(name)].norm().item() == pytest.approx(norm, rel=1e-6), name
        optimizer.step()
    after = model.state_dict()
    for name in (name for name in data.files if name.startswith("after6.")):
        np.testing.assert_allclose(after[our_name(name[7:])], data[name], rtol=0, atol=1e-7)


def our_name(name: str) -> str:
    """What a model of ours calls a weight of upstream's."""
    return "balance" if name == "weights" else name.replace("point_model.", "depth.visual.")


@pytest.mark.parametrize(("intra", "sigma"), [(0.6, 1.43), (0.1, 0.70), (0.01, 0.30)])
def test_the_best_sigma_is_where_the_loss_is_lowest(intra: float, sigma: float) -> None:
    found = best_sigma(torch.tensor(intra, dtype=torch.float64))
    assert found.item() == pytest.approx(sigma, abs=5e-3)
    assert 2 * intra * (found.item() + 1) == pytest.approx(found.item() ** 3, rel=1e-9)


def test_without_intra_the_loss_is_the_cross_term_alone() -> None:
    depth, image = torch.randn(2, 4, 1, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    sigma = nn.Parameter(torch.ones(()))
    found = total_of(depth.requires_grad_(), image[:, 0], sigma, Clip2PointSettings(intra=0))
    found.total.backward()
    assert found.total == found.terms["cross"]
    assert list(found.terms) == ["cross"]
    assert sigma.grad is None
