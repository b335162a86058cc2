"""The objective: all six terms, passes, parameter groups, and a loss that falls."""

from __future__ import annotations

import pytest
import torch

from training.batches import Batch
from training.model import parameter_groups
from training.objectives.cross_most import CrossMostSettings, MaskSettings, Weights, step
from training.recipe import FitRecipe
from training.teacher import EMASettings, LabelSettings, Teacher

RECIPE = FitRecipe.model_validate(
    {
        "image": {"model": "cross_most_small", "stem": "conv"},
        "points": {
            "groups": 8,
            "group_size": 8,
            "tokenizer_width": 32,
            "width": 48,
            "depth": 1,
            "heads": 2,
            "drop_path": 0,
            "freeze_tokenizer": False,
        },
    }
)
TERMS = ["cls", "align", "fair", "mim", "mpm", "lg_align"]


def model_of(recipe: FitRecipe = RECIPE):
    from training.checkpoint import build_model

    return build_model(recipe, ("mug", "bowl", "chair"))[0]


def batch_of(size: int = 6) -> Batch:
    g = torch.Generator().manual_seed(0)
    pictures, clouds = torch.randn(size, 3, 48, 48, generator=g), torch.randn(size, 64, 3, generator=g)
    mask = torch.zeros(size, 6, 6, dtype=torch.bool)
    mask[:, :4, :4] = True
    return Batch(
        tuple(map(str, range(size))),
        pictures,
        pictures + 0.1 * torch.randn(size, 3, 48, 48, generator=g),
        clouds,
        clouds * 1.2,
        mask,
        torch.rand(size, 2, generator=g),
        torch.rand(size, generator=g),
    )


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("points", ["tower", "own"])
def test_all_six_terms_and_their_weights(passes: int, points: str) -> None:
    model, batch = model_of(), batch_of()
    weights = Weights(cls=2, align=3, fair=5, mim=7, mpm=11, lg_align=13)
    settings = CrossMostSettings(
        weights=weights,
        mask=MaskSettings(passes=passes),
        lg_align={"points": points},
        labels=LabelSettings(threshold=0.0),
    )
    result = step(model, Teacher(model, EMASettings()).model, batch, settings)
    assert list(result.terms) == TERMS
    assert all(torch.isfinite(value) and value > 0 for value in result.terms.values())
    expected = sum(getattr(weights, name) * value.item() for name, value in result.terms.items())
    assert result.total.item() == pytest.approx(expected, rel=1e-5)
    result.total.backward()
    untouched = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untouched == ([] if points == "own" else ["points.own_projection"])


def test_the_divisor_of_the_classification_loss_by_key() -> None:
    """`selected` is `batch` times B over the number of confident objects."""
    model, batch = model_of(), batch_of()
    teacher = Teacher(model, EMASettings()).model
    with torch.no_grad():
        confidence = teacher.image_logits(teacher.image_features(batch.weak_image)).softmax(dim=1).amax(dim=1)
    labels = LabelSettings(mode="image", threshold=confidence.sort().values[-2:].mean().item())  # one is above
    values = {}
    for divisor in ("batch", "selected"):
        settings = CrossMostSettings(labels=labels, cls={"divisor": divisor})
        values[divisor] = step(model, teacher, batch, settings).terms["cls"].item()
    assert values["batch"] > 0
    assert values["selected"] == pytest.approx(6 * values["batch"], rel=1e-4)


def test_nothing_confident_gives_no_classification_loss() -> None:
    model = model_of()
    settings = CrossMostSettings(labels=LabelSettings(threshold=1.0))
    result = step(model, Teacher(model, EMASettings()).model, batch_of(), settings)
    assert result.terms["cls"].item() == 0
    result.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_decay_is_for_matrices_and_layers_are_scaled() -> None:
    model = model_of()
    groups = parameter_groups(model, 0.05, 0.5, 1e-3)
    of = {id(p): group for group in groups for p in group["params"]}
    named = {name: of[id(p)] for name, p in model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name in ("logit_scale", "points.cls_token", "points.cls_pos", "points.mask_token", "image.mask_token"):
        assert named[name]["weight_decay"] == 0, name
    assert named["image.visual.positional_embedding"]["weight_decay"] == 0
    assert named["points.norm.weight"]["weight_decay"] == 0
    assert named["classifier"]["weight_decay"] == 0.05
    assert named["image.visual.class_embedding"]["lr_scale"] == 0.5**4
    assert named["image.visual.transformer.resblocks.0.mlp.c_fc.weight"]["lr_scale"] == 0.5**3
    assert named["points.lm_head.weight"]["lr_scale"] == 1
    assert named["image.visual.proj"]["lr_scale"] == 1


def test_the_total_falls() -> None:
    model, batch = model_of(), batch_of()
    teacher = Teacher(model, EMASettings())
    settings = CrossMostSettings(labels=LabelSettings(threshold=0.0), mask=MaskSettings(passes=2))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05, 1.0, 1e-3))
    totals = []
    for number in range(30):
        result = step(model, teacher.model, batch, settings)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        teacher.update(model, number)
        totals.append(result.total.item())
    assert totals[-1] < 0.9 * totals[0]
    assert result.terms["mim"].item() < 0.95
    assert 0 <= result.figures["from_image"].item() <= 1
    for name in ("entropy_image", "entropy_points"):
        assert 0 <= result.figures[name].item() <= torch.log(torch.tensor(3.0)).item()
