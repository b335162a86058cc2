"""Learning rates, momentum and parameter groups: by hand, and against the released code's."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from released import NAMES
from torch import nn

from training.loop.schedule import Schedule
from training.loop.update import optimizer_of
from training.models.cross_modal import parameter_groups
from training.models.ema_teacher import Teacher
from training.settings.fit_recipe import CrossMostRecipe, read_recipe
from training.settings.objective import EMASettings
from training.settings.optimizer import OptimizerSettings
from training.weights.checkpoint import build_model

UNDECAYED = re.compile(r"token|cls_pos|positional_embedding|logit_scale")


def released_name(ours: str) -> str:
    for prefix, other in NAMES.items():
        if ours == prefix or ours.startswith(f"{prefix}."):
            return other + ours.removeprefix(prefix)
    return ours


def test_the_schedule_by_hand() -> None:
    settings = OptimizerSettings(lr=1.0, batch_size=256, floor=0.1)
    rates = [Schedule(settings, 100, 11, 10).learning_rate(step) for step in range(100)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == rates[11] == 1.0
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert 0.1 <= rates[-1] < 0.102
    assert Schedule(OptimizerSettings(lr=1.0, batch_size=128), 100, 0, 10).learning_rate(50) < 0.5


def test_learning_rates_equal_golden(golden) -> None:
    folder = golden / "method" / "schedules"
    stored = np.load(folder / "schedules.npz")
    for name, about in json.loads((folder / "meta.json").read_text())["info"].items():
        settings = OptimizerSettings(batch_size=about["bs"] * about["world"])
        assert settings.lr * settings.batch_size / 256 == pytest.approx(about["lr"])
        schedule = Schedule(settings, about["total"], about["steps_per_epoch"], about["steps_per_epoch"])
        ours = [schedule.learning_rate(step) for step in range(about["total"])]
        np.testing.assert_allclose(ours, stored[f"lr_{name}"], rtol=1e-12)


SGD = {"lr": 0.1, "kind": "sgd", "lr_scaled": False, "warmup_epochs": 0, "schedule": "cosine_epochs", "floor": 0.01}
RSCNN = {"lr": 1e-3, "kind": "adam", "schedule": "decay", "decay": 0.7, "decay_every": 21, "floor": 0.01}
RSCNN |= {
    "lr_scaled": False,
    "warmup_epochs": 0,
    "norm_momentum": 0.9,
    "norm_decay": 0.5,
    "norm_floor": 0.01,
    "norm_ahead": -1,
}
STEPS = 3  # an epoch, where a schedule goes by epochs
RESTARTS = 163  # steps an epoch of CLIP2Point
AUTHORS = {  # the keys that make each released schedule
    "crosspoint_pretrain_100": SGD | {"lr": 1e-3, "floor": 0.0, "ahead": 1},
    "crosspoint_partseg_300": SGD,
    "dgcnn_cls_sgd_250": SGD | {"ahead": 1},
    "pointcmt_teacher_50": SGD | {"lr": 1e-3, "floor": 1.0},
    "pointcmt_student_1000": SGD | {"lr": 1e-3, "floor": 0.0, "ahead": -1},
    "pointmlp_modelnet_300": SGD | {"floor": 0.05},
    "clip2point_pretrain_first_1000_iterations": SGD
    | {"lr": 6e-3, "floor": 1e-5 / 6e-3, "schedule": "cosine", "restart_epochs": 2},
    "rscnn_lr_200": RSCNN,
    "rscnn_bn_momentum_200": RSCNN,
    "yanx_partseg_lr_251": RSCNN | {"decay": 0.5, "decay_every": 20},
    "yanx_partseg_bn_momentum_251": RSCNN | {"decay_every": 20, "norm_momentum": 0.1, "norm_ahead": 0},
}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_schedules_equal_golden(golden, name: str) -> None:
    """Every learning rate and momentum of batch norms, in each step of its epoch."""
    stored = np.load(golden / "method" / "other_schedules" / "schedules.npz")
    assert set(AUTHORS) == set(stored.files)
    expected = stored[name]
    steps = RESTARTS if "iterations" in name else STEPS
    expected = expected if "iterations" in name else expected.repeat(STEPS)
    schedule = Schedule.of(OptimizerSettings(epochs=len(stored[name]), **AUTHORS[name]), steps)
    course = schedule.norm_momentum if "bn_momentum" in name else schedule.learning_rate
    np.testing.assert_allclose([course(step) for step in range(len(expected))], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_the_optimisers_are_torchs_and_skip_a_bad_step(kind: str) -> None:
    """All weights decay, as torch's own optimiser with the same keys; a step that is not finite changes nothing."""
    keys = {"lr": 0.05, "kind": kind, "weight_decay": 0.1, "lr_scaled": False, "decayed": "all", "layer_decay": 1.0}
    recipe = read_recipe("small_cross_most", {"points": {"depth": 1, "freeze_tokenizer": True}})
    model = build_model(recipe, ("mug", "bowl"))[0]
    plain = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
    ours = optimizer_of(model, OptimizerSettings(**keys))
    if kind == "sgd":
        twin: torch.optim.Optimizer = torch.optim.SGD(plain.values(), lr=0.05, momentum=0.9, weight_decay=0.1)
    else:
        twin = torch.optim.Adam(plain.values(), lr=0.05, weight_decay=0.1)
    g = torch.Generator().manual_seed(0)
    for bad in (1.0, 0.0, 0.0, 0.0):
        for name, parameter in model.named_parameters():
            if name in plain:
                parameter.grad = torch.randn(parameter.shape, generator=g)
                plain[name].grad = parameter.grad.clone()
        ours.found_inf = torch.tensor(bad)
        ours.step()
        if not bad:
            twin.step()
    for name, parameter in model.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter, plain[name], atol=1e-6, rtol=1e-5)


def test_a_key_of_another_schedule_is_refused() -> None:
    for keys in ({"ahead": 1}, {"restart_epochs": 2, "schedule": "decay"}):
        with pytest.raises(ValueError, match="is for schedule="):
            OptimizerSettings(**keys)


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
