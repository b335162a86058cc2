"""precision=fp16: gradients are unscaled before they are used, an overflow skips its update, the scale is resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from training_runs import typed

from manifests.config import parse_changes
from manifests.errors import Refused, Stopped
from training.data.batch import LabelledBatch
from training.loop.update import Updates, updates_of
from training.networks.precision import require_precision
from training.settings.fit_recipe import read_recipe
from training.weights.checkpoint import build_model

FEW = ("method=supervised", "points.depth=1", "data.num_points=64", "optimizer.batch_size=4")


def updates(*changes: str) -> Updates:
    """Of a small supervised run, ten steps an epoch, at a constant rate."""
    recipe = read_recipe("small_cross_most", parse_changes((*FEW, "optimizer.warmup_epochs=0", *changes)))
    return updates_of(build_model(recipe, ("mug", "bowl", "chair"))[0].train(), recipe, 10)


def batch() -> LabelledBatch:
    g = torch.Generator().manual_seed(0)
    pictures, clouds = torch.randn(4, 1, 3, 48, 48, generator=g), torch.randn(4, 64, 3, generator=g)
    return LabelledBatch(tuple("abcd"), pictures, clouds, torch.tensor([0, 1, 2, 0]))


def overflowing(run: Updates) -> Callable[[], None]:
    """Makes one gradient infinite, as an overflow does; gives the function that ends this."""
    return run.student.points.cls_token.register_hook(lambda gradient: gradient * torch.inf).remove


def test_norm_and_clipping_are_of_the_unscaled_gradient() -> None:
    """AdamW's first moment after one step is a tenth of the gradient that it was given."""
    norms, given = {}, {}
    for precision in ("fp32", "fp16"):
        run = updates(f"precision={precision}", "optimizer.clip_norm=0.01")
        run.scaler = torch.amp.GradScaler("cpu", init_scale=256, enabled=precision == "fp16")
        run(batch(), 0)
        moments = [state["exp_avg"].flatten() for state in run.optimizer.state.values()]
        given[precision] = torch.cat(moments).norm().item() / 0.1
        row = run.log.row()
        norms[precision] = row["gradient_norm"]
        assert row.get("loss_scale") == (256 if precision == "fp16" else None)
        assert row.get("overflows") == (0 if precision == "fp16" else None)
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.02)
    assert norms["fp16"] != norms["fp32"]
    assert given["fp16"] == pytest.approx(0.01, rel=1e-3)


def test_an_overflow_skips_its_update_and_halves_the_scale() -> None:
    run = updates("precision=fp16")
    run.scaler = torch.amp.GradScaler("cpu", init_scale=256)
    before: dict[str, Tensor] = {name: value.clone() for name, value in run.student.named_parameters()}
    end = overflowing(run)
    run(batch(), 0)
    run.refuse_fault()
    assert all(torch.equal(value, before[name]) for name, value in run.student.named_parameters())
    assert (run.scaler.get_scale(), run.log.row()["overflows"]) == (128, 1)
    end()
    run(batch(), 1)
    run.refuse_fault()
    assert (run.scaler.get_scale(), run.log.row()["overflows"]) == (128, 0)
    assert not torch.equal(run.student.classifier, before["classifier"])


def test_a_scale_that_falls_without_end_stops_the_run() -> None:
    run = updates("precision=fp16")
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2)
    overflowing(run)
    run(batch(), 0)
    run.refuse_fault()
    run(batch(), 1)
    with pytest.raises(Stopped, match=r"gradients overflow float16 at every loss scale down to 1; lower optimizer\.lr"):
        run.refuse_fault()


def test_a_loss_that_is_not_finite_still_stops_the_run() -> None:
    run = updates("precision=fp16")
    with torch.no_grad():
        run.student.image.ln_patch.weight.fill_(1)
        run.student.classifier.fill_(torch.nan)
    run(batch(), 0)
    with pytest.raises(Stopped, match="step 1: the loss image, points is not finite"):
        run.refuse_fault()


def test_a_resumed_run_has_the_same_scale(shards, tmp_path) -> None:
    changes = (*FEW, "precision=fp16", "optimizer.steps=4", "save_every=2", "log_every=2", "tensorboard=false")
    for name in ("whole", "broken"):
        if name == "broken":
            shutil.copytree(tmp_path / "whole", tmp_path / "broken")
            shutil.rmtree(tmp_path / "broken/checkpoints/step-00000004")
        typed("fit", "small_cross_most", *changes, "--shards", shards, "--run", tmp_path / name)
    whole, broken = (tmp_path / name / "checkpoints/step-00000004" for name in ("whole", "broken"))
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    known = torch.load(whole / "state.pt")
    assert torch.load(broken / "state.pt")["loss_scale"] == known["loss_scale"]
    assert known["loss_scale"] not in ((65536, 0), (65536, 4))  # some updates overflowed, some did not
    torch.save(known | {"loss_scale": (float("inf"), 0)}, whole / "state.pt")
    _, err = typed("fit", "small_cross_most", *changes, "--shards", shards, "--run", tmp_path / "whole", code=2)
    assert "state.pt is damaged" in err


def test_bf16_is_refused_on_a_card_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(Refused, match="precision=bf16: Tesla V100 has no bfloat16; use precision=fp16"):
        require_precision("bf16", torch.device("cuda"))
    require_precision("fp16", torch.device("cuda"))
    require_precision("bf16", torch.device("cpu"))
