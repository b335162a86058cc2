"""Learning rates, momentum and parameter groups: by hand, and against the released code's."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from released import NAMES
from torch import nn

from training.loop.update import learning_rate
from training.models.cross_modal import parameter_groups
from training.models.ema_teacher import Teacher
from training.settings.fit_recipe import CrossMostRecipe, OptimizerSettings
from training.settings.objective import EMASettings
from training.weights.checkpoint import build_model

UNDECAYED = re.compile(r"token|cls_pos|positional_embedding|logit_scale")


def released_name(ours: str) -> str:
    for prefix, other in NAMES.items():
        if ours == prefix or ours.startswith(f"{prefix}."):
            return other + ours.removeprefix(prefix)
    return ours


def test_the_schedule_by_hand() -> None:
    settings = OptimizerSettings(lr=1.0, batch_size=256, floor=0.1)
    rates = [learning_rate(step, 100, 11, settings) for step in range(100)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == rates[11] == 1.0
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert 0.1 <= rates[-1] < 0.102
    assert learning_rate(50, 100, 0, OptimizerSettings(lr=1.0, batch_size=128)) < 0.5


def test_learning_rates_equal_golden(golden) -> None:
    folder = golden / "method" / "schedules"
    stored = np.load(folder / "schedules.npz")
    for name, about in json.loads((folder / "meta.json").read_text())["info"].items():
        settings = OptimizerSettings(batch_size=about["bs"] * about["world"])
        assert settings.lr * settings.batch_size / 256 == pytest.approx(about["lr"])
        ours = [
            learning_rate(step, about["total"], about["steps_per_epoch"], settings) for step in range(about["total"])
        ]
        np.testing.assert_allclose(ours, stored[f"lr_{name}"], rtol=1e-12)


def test_parameter_groups_of_the_full_model_equal_golden(golden) -> None:
    """Equal but for what is mended: no decay on tokens, positions and the logit scale."""
    folder = golden / "method" / "schedules"
    released = json.loads((folder / "param_groups_vitb16_pointbert.json").read_text())
    recipe = CrossMostRecipe()
    model, _ = build_model(recipe, tuple(f"class {i}" for i in range(40)))
    settings = recipe.optimizer
    of = {}
    for group in parameter_groups(model, settings.weight_decay, settings.layer_decay, 1.0):
        of |= {id(parameter): group for parameter in group["params"]}
    ours = {released_name(name): (of[id(p)], p) for name, p in model.named_parameters() if p.requires_grad}
    assert set(ours) == set(released["parameters"])
    frozen = {released_name(name) for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set(released["frozen_not_in_optimizer"])
    for name, about in released["parameters"].items():
        group, parameter = ours[name]
        assert parameter.numel() == np.prod(about["shape"], dtype=int), name
        assert group["lr_scale"] == pytest.approx(about["lr_scale"], rel=1e-9), name
        expected = 0.0 if UNDECAYED.search(name) else about["weight_decay"]
        assert group["weight_decay"] == expected, name
    scales = np.load(folder / "schedules.npz")["group_lr_scales"]
    assert {round(s, 12) for s in scales.tolist()} <= {round(g["lr_scale"], 12) for g, _ in ours.values()}


def test_the_teachers_updates_equal_golden(golden) -> None:
    stored = np.load(golden / "method" / "schedules" / "ema_update.npz")
    student = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    student.load_state_dict(tensors(stored, "init."))
    follower = Teacher(student, EMASettings())
    for step, decay in enumerate(stored["decays"].tolist()):
        student.load_state_dict(tensors(stored, f"step{step}.model."))
        teacher = Teacher(follower.model, EMASettings(start=decay, end=decay))
        teacher.update(student, 0)
        follower = teacher
        for name, value in tensors(stored, f"step{step}.ema.").items():
            if value.is_floating_point():  # the released code truncates the count of batches
                torch.testing.assert_close(teacher.model.state_dict()[name], value, atol=1e-6, rtol=0)


def tensors(stored, prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): torch.from_numpy(stored[n]) for n in stored.files if n.startswith(prefix)}
