"""bf16, torch.compile, the fused optimiser and a step that never waits for the device: on a CPU, as CI has no GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manifests.config import parse_changes
from training.data.batch import RawBatch, RawLabelledBatch
from training.loop.update import Updates, updates_of
from training.models.cross_modal import CrossModalModel
from training.models.ema_teacher import Teacher
from training.networks.precision import inside_towers, project, settle
from training.objectives import METHODS, SUPERVISED
from training.objectives.pretrain import captions_of
from training.settings.data import AugmentSettings, LabelledAugmentSettings
from training.settings.fit_recipe import FitRecipe, read_recipe
from training.weights.checkpoint import build_model

CPU = torch.device("cpu")
NAMES = ("mug", "bowl", "chair", "table")
FEW = ("points.depth=2", "data.num_points=128", "optimizer.batch_size=8", "optimizer.steps=40")
ALL_SURE = ("labels.threshold=0.0",)  # every pseudo-label is taught
# What a step asks of a device that has to answer before the step goes on.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "is_nonzero", "equal.default")


def recipe_of(method: str, *changes: str) -> FitRecipe:
    """Recipes of methods without pseudo-labels have no threshold."""
    sure = ALL_SURE if method in ("cross_most", "self_training") else ()
    recipe = "small_cross_most" if method == "supervised" else f"small_{method}"
    return read_recipe(recipe, parse_changes((*FEW, *sure, f"method={method}", *changes)))


@pytest.fixture(scope="module")
def cross_most() -> CrossModalModel:
    torch.manual_seed(0)
    return build_model(recipe_of("cross_most"), NAMES)[0].train()


def raw(method: str, size: int = 8) -> RawBatch | RawLabelledBatch:
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(rng.integers(0, 256, (2, size, 3, 48, 48), dtype=np.uint8))
    points = torch.from_numpy(rng.standard_normal((size, 128, 3), np.float32))
    keys, seed, form = tuple(map(str, range(size))), torch.arange(size), ((0.5,) * 3, (0.25,) * 3)
    if method in SUPERVISED:
        return RawLabelledBatch(
            keys, pictures[0][:, None], points, seed, seed % len(NAMES), *form, LabelledAugmentSettings()
        )
    mask = torch.zeros(size, 6, 6, dtype=torch.bool)
    mask[:, :2, :4] = True
    draws = torch.from_numpy(rng.random((size, 3), np.float32))
    return RawBatch(keys, *pictures, points, seed, mask, draws[:, :2], draws[:, 2], *form, AugmentSettings())


def test_a_batch_gives_the_teacher_weak_views() -> None:
    """A weak cloud keeps its points and nearly its size, a strong one loses some; pictures stay what they were."""
    given = raw("cross_most")
    batch = given.to(CPU)
    for name in ("weak_image", "strong_image"):
        torch.testing.assert_close(getattr(batch, name), (getattr(given, name) / 255 - 0.5) / 0.25)
    assert [len(cloud.unique(dim=0)) for cloud in batch.weak_points] == [128] * 8
    assert ((batch.weak_points.norm(dim=2).amax(dim=1) - 1).abs() < 0.101).all()
    assert sum(len(cloud.unique(dim=0)) for cloud in batch.strong_points) < 100 * 8
    labelled = raw("pretrain")
    for kind, kept in (("turned", True), ("ulip", False)):
        changed = replace(labelled, augment=LabelledAugmentSettings(labelled_points=kind))
        assert all(len(cloud.unique(dim=0)) == 128 for cloud in changed.to(CPU).points) is kept


def terms_of(model: CrossModalModel, recipe: FitRecipe) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Every loss of a step, and the gradients."""
    teacher = Teacher(model, recipe.ema).model
    model.zero_grad()
    torch.manual_seed(0)
    result = METHODS[recipe.method](model, teacher, raw(recipe.method).to(CPU), recipe)
    result.total.backward()
    return result.terms, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("passes", [1, 2])
def test_losses_in_bf16_are_those_of_fp32(cross_most, passes: int) -> None:
    """Within 2 %: bfloat16 has eight bits. All losses, gradients and what logits are made of stay float32."""
    recipe = recipe_of("cross_most", f"mask.passes={passes}")
    exact, exact_gradients = terms_of(cross_most, recipe)
    cross_most.precision = "bf16"
    try:
        terms, gradients = terms_of(cross_most, recipe)
        batch = raw("cross_most").to(CPU)
        assert cross_most.image_features(batch.weak_image).dtype == torch.float32
        assert cross_most.point_features(batch.weak_points).dtype == torch.float32
    finally:
        cross_most.precision = "fp32"
    assert not all(torch.equal(terms[name], exact[name]) for name in terms)
    for name, value in terms.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, exact[name], rtol=0.02, atol=0, msg=name)
    assert set(gradients) == set(exact_gradients)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all(), name
    flat, expected = (torch.cat([g[name].flatten() for name in gradients]) for g in (gradients, exact_gradients))
    assert torch.nn.functional.cosine_similarity(flat, expected, dim=0) > 0.99


def test_what_logits_are_made_of_is_not_rounded() -> None:
    """The last product inside a tower: float32 of bfloat16 numbers, to float32's last digits."""
    g = torch.Generator().manual_seed(0)
    values, matrix = torch.randn(4, 32, generator=g), torch.randn(32, 8, generator=g)
    narrow = values.to(torch.bfloat16)
    with inside_towers("bf16", CPU):
        found = project(narrow, matrix)
        assert (values @ matrix).dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, narrow.float() @ matrix, atol=0, rtol=0)
    with inside_towers("fp32", CPU):
        assert (values @ matrix).dtype == torch.float32


class Products(TorchDispatchMode):
    """The types in which matrices are multiplied, and the operations of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()
        self.attention: list[str] = []
        self.unfused = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function)
        if name.startswith(("aten.addmm", "aten.mm.", "aten.convolution.")):
            self.types.add(arguments[-1].dtype if name.startswith(("aten.mm", "aten.addmm")) else arguments[0].dtype)
        if "attention" in name and "backward" not in name:
            self.attention.append(name.removeprefix("aten.").partition(".")[0])
        self.unfused += name.startswith(("aten._softmax", "aten.bmm"))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_is_fused_in_both_towers(cross_most, precision: str) -> None:
    """Training and evaluation: scaled_dot_product_attention, or the fused layer of torch without gradients in fp32."""
    batch, fused = raw("cross_most").to(CPU), "_scaled_dot_product_flash_attention_for_cpu"
    cross_most.precision = precision
    settle(precision)
    for training in (True, False):
        cross_most.train(training)
        with torch.set_grad_enabled(training), Products() as seen:
            cross_most.image_features(batch.weak_image)
            cross_most.point_features(batch.weak_points)
        layers = len(cross_most.image.visual.transformer.resblocks)
        whole = precision == "fp32" and not training  # nn.MultiheadAttention's own fast path
        image = "_native_multi_head_attention" if whole else fused
        assert seen.attention == [image] * layers + [fused] * 2
        assert not seen.unfused
        assert torch.bfloat16 in seen.types or precision == "fp32"
    cross_most.precision = "fp32"
    cross_most.train()
    settle("fp32")


def updates(method: str, *changes: str) -> Updates:
    recipe = recipe_of(method, *changes)
    torch.manual_seed(0)
    return updates_of(build_model(recipe, NAMES)[0].to(CPU).train(), recipe, 10)


@pytest.mark.parametrize("changes", [(), ("mask.passes=1",)])
def test_training_in_bf16_lowers_the_loss(changes: tuple[str, ...]) -> None:
    batch, losses = raw("cross_most").to(CPU), []
    for precision in ("precision=fp32", "precision=bf16"):
        run = updates("cross_most", *changes, precision)
        for step in range(30):
            run(batch, step)
            losses.append(run.log.row()["loss"])
            run.log.refuse_fault()
    exact, loss = losses[:30], losses[30:]
    assert np.isfinite(loss).all()
    assert loss[-1] < loss[0] - 1
    np.testing.assert_allclose(loss, exact, rtol=0.02)
    held = [*run.student.parameters(), *run.teacher.model.parameters()]
    held += [value for state in run.optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in held} == {torch.float32}


class NeverWaits(TorchDispatchMode):
    """Refuses what would make a CPU wait for a GPU: reading a value, or a shape that depends on values."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function).removeprefix("aten.")
        assert not any(name.startswith(wait) for wait in WAITS), f"{name} waits for the device"
        assert not name.startswith("lift_fresh"), "a constant is copied to the device"
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("method", "mode"),
    [*(("cross_most", (f"labels.mode={mode}",)) for mode in ("joint", "random", "own")), ("self_training", ())],
)
def test_a_step_never_waits_for_the_device(method: str, mode: tuple[str, ...]) -> None:
    """From the raw batch to the teacher, after a first step (which makes AdamW's state and constants)."""
    run, batch = updates(method, "precision=bf16", *mode), raw(method)
    run(batch.to(CPU), 0)
    with NeverWaits():
        run(batch.to(CPU), 1)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NeverWaits():
        run.log.row()


@pytest.mark.parametrize("size", [3, 8])  # objects: fewer than classes, or more
def test_a_step_of_pretraining_never_waits_for_the_device(monkeypatch, size: int) -> None:
    """Beside it the prompt is drawn on the CPU, for any device."""
    run, batch = updates("pretrain", "precision=bf16"), raw("pretrain", size)
    run(batch.to(CPU), 0)
    monkeypatch.setattr(torch, "randint", lambda high, size: 0)
    with NeverWaits():
        run(batch.to(CPU), 1)


def test_captions_are_those_of_the_objects() -> None:
    """All classes' where objects are as many, else each object's; equal classes have equal captions."""
    tokens, label = torch.arange(8).reshape(4, 2), torch.tensor([2, 0, 2, 3, 0, 2])
    shown, caption = captions_of(tokens, label)
    assert torch.equal(shown, tokens)
    assert torch.equal(caption, label)
    shown, caption = captions_of(tokens, label[:3])
    assert torch.equal(shown, tokens[[2, 0, 2]])
    assert caption.tolist() == [0, 1, 0]


def test_an_update_in_bf16_that_is_not_finite_is_skipped() -> None:
    """Fused AdamW with found_inf, on the device, without a scaler."""
    run, batch = updates("cross_most", "precision=bf16"), raw("cross_most").to(CPU)
    run(batch, 0)
    run(batch, 1)
    with torch.no_grad():
        run.student.image.decoder.bias[0] = torch.inf
    before = [p.clone() for p in run.student.parameters()]
    moments = [state["exp_avg"].clone() for state in run.optimizer.state.values()]
    run(batch, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, run.student.parameters(), strict=True))
    kept = [state["exp_avg"] for state in run.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, kept, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_towers_give_the_same_losses_and_weights(precision: str) -> None:
    plain, compiled = (updates("cross_most", f"precision={precision}", *c) for c in ((), ("compile=true",)))
    assert list(compiled.student.state_dict()) == list(plain.student.state_dict())
    batch = raw("cross_most").to(CPU)
    for step in range(3):
        plain(batch, step)
        compiled(batch, step)
        expected, found = plain.log.row(), compiled.log.row()
        assert found == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 0.03, abs=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_gpu_never_waits_and_sees_the_same_clouds() -> None:
    """torch's own watch over synchronisation; clouds as on a CPU, where rounding cannot change what is cropped."""
    device, recipe = torch.device("cuda"), recipe_of("cross_most", "precision=bf16")
    run = updates_of(build_model(recipe, NAMES)[0].to(device).train(), recipe, 10)
    batch = raw("cross_most").pin_memory()
    run(batch.to(device), 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(batch.to(device), 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    here, there = batch.to(CPU), batch.to(device)
    torch.testing.assert_close(there.weak_points.cpu(), here.weak_points, atol=1e-5, rtol=1e-5)
