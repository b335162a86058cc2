"""One update of a run: gradients of this step alone, rates by layer, the held logit scale, the teacher's own step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manifests.config import parse_changes
from manifests.errors import Stopped
from training.data.batch import Batch
from training.loop.schedule import Schedule
from training.loop.update import Updates, updates_of
from training.models.cross_modal import CrossModalModel, parameter_groups
from training.settings.fit_recipe import read_recipe
from training.settings.optimizer import OptimizerSettings
from training.weights.checkpoint import build_model

FEW = ("points.depth=1", "data.num_points=64", "points.drop_path=0", "labels.threshold=0.0", "optimizer.batch_size=4")


def updates(*changes: str) -> Updates:
    """Of a small Cross-MoST of three classes, ten steps an epoch."""
    recipe = read_recipe("small_cross_most", parse_changes((*FEW, *changes)))
    return updates_of(build_model(recipe, ("mug", "bowl", "chair"))[0].train(), recipe, 10)


def batch_of(seed: int = 0, size: int = 4) -> Batch:
    g = torch.Generator().manual_seed(seed)
    pictures, clouds = torch.randn(2, size, 3, 48, 48, generator=g), torch.randn(2, size, 64, 3, generator=g)
    mask = torch.zeros(size, 6, 6, dtype=torch.bool)
    mask[:, :2, :4] = True
    draws = torch.rand(size, 3, generator=g)
    return Batch(tuple(map(str, range(size))), *pictures, *clouds, mask, draws[:, :2], draws[:, 2])


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: nn.Module) -> dict[str, float]:
    """The largest change of each weight."""
    return {name: (value - before[name]).abs().max().item() for name, value in values(model).items()}


def test_the_teachers_step_is_that_of_the_update() -> None:
    """Momentum 0 in the first update and 1 from the second on: the teacher is the student after one update."""
    run = updates("ema.start=0.0", "ema.end=1.0", "ema.steps=1", "optimizer.warmup_epochs=0", "optimizer.lr=0.1")
    run(batch_of(), 0)
    assert max(moved(values(run.student), run.teacher.model).values()) < 1e-6
    first = values(run.teacher.model)
    run(batch_of(1), 1)
    assert max(moved(first, run.teacher.model).values()) < 1e-6
    assert moved(first, run.student)["classifier"] > 1e-4
    assert not run.teacher.model.training
    assert run.student.training


def test_the_momentum_between_is_that_of_the_step() -> None:
    run = updates("ema.start=0.5", "ema.end=0.9", "ema.steps=4", "optimizer.warmup_epochs=0", "optimizer.lr=0.1")
    for step, d in enumerate((0.5, 0.6, 0.7)):
        before = values(run.teacher.model)
        run(batch_of(step), step)
        student = values(run.student)
        for name, value in values(run.teacher.model).items():
            torch.testing.assert_close(value, d * before[name] + (1 - d) * student[name], atol=1e-6, rtol=1e-5)


def test_the_gradients_norm_is_in_the_log_and_is_cut_where_that_is_asked() -> None:
    """AdamW's first moment after one step is a tenth of the gradient that it was given."""
    norms = {}
    for clip in (0.0, 0.01):
        run = updates(f"optimizer.clip_norm={clip}", "optimizer.warmup_epochs=0")
        run(batch_of(), 0)
        given = torch.cat([state["exp_avg"].flatten() for state in run.optimizer.state.values()]) / 0.1
        norms[clip] = (run.log.row()["gradient_norm"], given.norm().item())
    assert norms[0.0][0] == pytest.approx(norms[0.0][1], rel=1e-4)
    assert norms[0.01][0] == pytest.approx(norms[0.0][0], rel=1e-5)
    assert norms[0.0][0] > 0.1
    assert norms[0.01][1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("key", "held"), [("clamped", True), ("trained", False)])
def test_a_clamped_scale_is_held_after_each_update(key: str, held: bool) -> None:
    """In 1 to 100, of both branches; a scale beyond it makes logits that no loss comes back from."""
    run = updates(f"logit_scale={key}", "classifier=own", "optimizer.lr=1e-6", "optimizer.warmup_epochs=0")
    for begun, end in ((5.0, 100.0), (-2.0, 1.0)):
        with torch.no_grad():
            run.student.logit_scale.fill_(begun)
            run.student.points_logit_scale.fill_(begun)
        run(batch_of(), 0)
        for scale in (run.student.logit_scale, run.student.points_logit_scale):
            assert (scale.exp().item() == pytest.approx(end, rel=1e-3)) is held


def test_a_frozen_scale_stays_and_is_not_in_the_optimiser() -> None:
    run = updates("logit_scale=frozen", "classifier=own", "optimizer.lr=0.1", "optimizer.warmup_epochs=0")
    before = values(run.student)
    run(batch_of(), 0)
    changes = moved(before, run.student)
    assert changes["logit_scale"] == changes["points_logit_scale"] == 0
    given = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert not given & {id(run.student.logit_scale), id(run.student.points_logit_scale)}


def test_gradients_are_of_this_step_alone() -> None:
    """The second update's gradients are those of its batch, as if there had been no first one."""
    run = updates("optimizer.warmup_epochs=0")
    run(batch_of(), 0)
    run.student.zero_grad()
    teacher, student = run.teacher.model, run.student
    run._step(student, teacher, batch_of(1), run.recipe).total.backward()
    expected = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    run._step(student, teacher, batch_of(), run.recipe).total.backward()  # of another batch: they are to go away
    run(batch_of(1), 1)
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_layers_move_at_their_own_rates() -> None:
    """AdamW's first update of a weight without decay is its rate: the lower a layer, the less."""
    plain = ("optimizer.warmup_epochs=0", "optimizer.weight_decay=0")
    run = updates(*plain, "optimizer.lr=0.64", "optimizer.layer_decay=0.5")
    before = values(run.student)
    assert run(batch_of(), 0) == pytest.approx(0.01)
    change = moved(before, run.student)
    blocks = len(run.student.image.visual.transformer.resblocks)
    assert change["classifier"] == pytest.approx(0.01, rel=0.01)
    assert change["image.visual.proj"] == pytest.approx(0.01, rel=0.01)
    for block in range(blocks):
        name = f"image.visual.transformer.resblocks.{block}.mlp.c_fc.weight"
        assert change[name] == pytest.approx(0.01 * 0.5 ** (blocks - block), rel=0.01)
    assert change["image.visual.class_embedding"] == pytest.approx(0.01 * 0.5 ** (blocks + 1), rel=0.01)


def rate(step: int, total: int, warmup: int, settings: OptimizerSettings) -> float:
    return Schedule(settings, total, warmup, 10).learning_rate(step)


def course(settings: OptimizerSettings) -> tuple[int, int]:
    found = Schedule.of(settings, 10)
    return found.total, found.warmup


def test_the_rate_of_a_step_is_that_of_the_schedule() -> None:
    """The first step of a warm-up learns nothing, the last one at the peak; a run ends at its floor."""
    keys = ("optimizer.lr=0.64", "optimizer.warmup_epochs=0.3", "optimizer.steps=8", "optimizer.floor=0.1")
    run = updates(*keys)
    before = values(run.student)
    rates = [run(batch_of(step), step) for step in range(1)]
    assert max(moved(before, run.student).values()) == 0
    rates += [run(batch_of(step), step) for step in range(1, 8)]
    falling = [rate(step, 8, 3, run.recipe.optimizer) for step in range(4, 8)]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.01, *falling])
    assert rate(8, 8, 3, run.recipe.optimizer) == pytest.approx(0.001)
    assert run.optimizer.param_groups[0]["lr"] == rates[-1] * run.optimizer.param_groups[0]["lr_scale"]


def test_steps_and_warm_up_of_a_recipe() -> None:
    assert course(OptimizerSettings(epochs=3, warmup_epochs=1)) == (30, 10)
    assert course(OptimizerSettings(epochs=3, warmup_epochs=0.5, steps=100)) == (100, 5)
    assert course(OptimizerSettings(epochs=3, warmup_epochs=9)) == (30, 15)  # at most half of them
    settings = OptimizerSettings(lr=1.0, batch_size=128, floor=0.2)
    assert rate(0, 10, 0, settings) == pytest.approx(0.5)
    assert rate(10, 10, 0, settings) == rate(99, 10, 0, settings) == pytest.approx(0.1)
    assert rate(0, 10, 1, settings) == 0
    assert rate(1, 10, 1, settings) == pytest.approx(0.5)
    rates = [rate(step, 40, 8, settings) for step in range(41)]
    assert max(rates) == rates[7] == rates[8] == pytest.approx(0.5)
    assert rates[:8] == sorted(rates[:8])
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert rates[24] == pytest.approx(0.3)


def test_the_optimiser_is_the_recipes() -> None:
    run = updates("optimizer.betas=[0.8, 0.95]", "optimizer.weight_decay=0.03")
    assert {group["betas"] for group in run.optimizer.param_groups} == {(0.8, 0.95)}
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0.0, 0.03}


def test_weights_that_are_not_trained_are_in_no_group() -> None:
    model: CrossModalModel = updates("points.freeze_tokenizer=true").student
    groups = parameter_groups(model, 0.05, 0.5, 1.0)
    given = {id(p) for group in groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}
    assert not given & {id(p) for p in model.points.encoder.parameters()}
    plain = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    assert all(p.ndim >= 2 for p in model.parameters() if id(p) in plain)


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    run = updates()
    run(batch_of(), 0)
    broken = batch_of(1)
    broken.strong_image[0, 0] = torch.nan
    run(broken, 1)
    before = values(run.student)
    run(broken, 2)
    assert max(moved(before, run.student).values()) == 0
    with pytest.raises(Stopped, match=r"^step 2: the loss "):
        run.log.refuse_fault()
