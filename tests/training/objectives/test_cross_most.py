"""The objective: all six terms, passes, parameter groups, and a loss that falls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from training.data.batch import Batch
from training.models.cross_modal import parameter_groups
from training.models.ema_teacher import Teacher
from training.objectives import self_training
from training.objectives.cross_most import step
from training.objectives.losses import divergence_from_uniform
from training.settings.fit_recipe import CrossMostRecipe, SelfTrainingRecipe
from training.settings.objective import EMASettings, LabelSettings, MaskSettings, ThresholdSettings, Weights

RECIPE = CrossMostRecipe.model_validate(
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


def model_of(recipe: CrossMostRecipe = RECIPE):
    from training.weights.checkpoint import build_model

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
    settings = CrossMostRecipe(
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


def other_views(size: int = 6) -> Batch:
    """Strong views that have nothing to do with the weak ones."""
    g = torch.Generator().manual_seed(1)
    strong = {"strong_image": torch.randn(size, 3, 48, 48, generator=g)}
    strong["strong_points"] = torch.randn(size, 64, 3, generator=g) * torch.tensor([1.0, 3.0, 0.3])
    return replace(batch_of(size), **strong)


def decided_teacher(model):
    """A teacher whose two branches give different labels to different objects."""
    teacher = Teacher(model, EMASettings()).model
    classifier = torch.randn(teacher.classifier.shape, generator=torch.Generator().manual_seed(3))
    teacher.set_classifier(torch.nn.functional.normalize(classifier, dim=0))
    batch = other_views()
    with torch.no_grad():  # about the mean of all features, or one class would win everywhere
        for features in (teacher.image_features(batch.weak_image), teacher.point_features(batch.weak_points)):
            unit = torch.nn.functional.normalize(features.mean(dim=0), dim=0)
            teacher.classifier -= unit[:, None] * (unit @ teacher.classifier)
    return teacher


@pytest.mark.parametrize("mode", ["own", "joint"])
def test_the_teacher_labels_weak_views_of_which_nothing_is_hidden(mode: str) -> None:
    """Its labels of weak views, by hand, teach the student's strong views; what it is asked is what the log tells."""
    model, batch = model_of(), other_views()
    teacher = decided_teacher(model)
    settings = CrossMostRecipe(labels=LabelSettings(mode=mode, threshold=0.0), mask=MaskSettings(passes=2))
    result = step(model, teacher, batch, settings)
    with torch.no_grad():
        image = teacher.image_logits(teacher.image_features(batch.weak_image))
        points = teacher.points_logits(teacher.point_features(batch.weak_points))
        strong = model.image_logits(model.image_features(batch.strong_image))
        strong_points = model.points_logits(model.point_features(batch.strong_points))
    assert result.figures["entropy_image"].item() == pytest.approx(divergence_from_uniform(image).item(), rel=1e-4)
    assert result.figures["entropy_points"].item() == pytest.approx(divergence_from_uniform(points).item(), rel=1e-4)
    for name, logits in (("image", image), ("points", points)):
        assert result.counts[name].tolist() == torch.bincount(logits.argmax(dim=1), minlength=3).tolist()
    surer = image.softmax(dim=1).amax(dim=1) >= points.softmax(dim=1).amax(dim=1)
    label = torch.where(surer, image.argmax(dim=1), points.argmax(dim=1))
    labels = (image.argmax(dim=1), points.argmax(dim=1)) if mode == "own" else (label, label)
    assert not torch.equal(image.argmax(dim=1), points.argmax(dim=1))
    expected = cross_entropy(strong, labels[0]) + cross_entropy(strong_points, labels[1])
    assert result.terms["cls"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_log_tells_shares_of_each_branch() -> None:
    """Thresholds of its own let one object of the image and four of the points through."""
    model, batch = model_of(), other_views()
    teacher = decided_teacher(model)
    with torch.no_grad():
        image = teacher.image_logits(teacher.image_features(batch.weak_image)).softmax(dim=1).amax(dim=1)
        points = teacher.points_logits(teacher.point_features(batch.weak_points)).softmax(dim=1).amax(dim=1)
    above = {"image_threshold": image.sort().values[-2:].mean().item()}
    above["points_threshold"] = points.sort().values[1:3].mean().item()
    found = step(model, teacher, batch, CrossMostRecipe(labels=LabelSettings(mode="own", **above)))
    assert found.figures["confident_image"].item() == pytest.approx(1 / 6)
    assert found.figures["confident_points"].item() == pytest.approx(4 / 6)
    assert found.counts["labels_image"].sum() == 1
    assert found.counts["labels_points"].sum() == 4
    assert found.figures["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-3)
    surest = torch.maximum(image, points)
    joint = CrossMostRecipe(labels=LabelSettings(threshold=surest.sort().values[1:3].mean().item()))
    found = step(model, teacher, batch, joint)
    share = (image >= points)[surest > joint.labels.threshold].float().mean().item()
    assert found.figures["confident_image"].item() == pytest.approx(4 / 6)
    assert found.figures["from_image"].item() == pytest.approx(share)


def test_each_pass_hides_what_it_says() -> None:
    """Masks change the masked losses; of the others they change all with one pass, and none with two."""
    model = model_of()
    teacher, batch = decided_teacher(model), other_views()
    for name, moved in (("image_mask", ("mim",)), ("points_draw", ("mpm",))):
        other = 1 - batch.points_draw if name == "points_draw" else batch.image_mask.flip(1, 2)
        for passes in (1, 2):
            settings = CrossMostRecipe(labels=LabelSettings(threshold=0.0), mask=MaskSettings(passes=passes))
            begun = step(model, teacher, batch, settings).terms
            found = step(model, teacher, replace(batch, **{name: other}), settings).terms
            same = {term for term in TERMS if torch.equal(found[term], begun[term])}
            assert not same & {*moved, "lg_align"}
            assert bool(same & {"cls", "fair", "align"}) is (passes == 2)
            assert passes == 1 or {"cls", "fair", "align"} <= same


@pytest.mark.parametrize(
    ("term", "points"),
    [*((term, "tower") for term in ("cls", "align", "fair", "mim", "lg_align")), ("lg_align", "own")],
)
def test_gradients_are_those_of_the_value(term: str, points: str) -> None:
    """Against a small step along them, in float64: no side of a term is cut off (in L_mpm the target is)."""
    model, batch = model_of().double(), other_views()
    floating = {n: v.double() for n, v in vars(batch).items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    batch = replace(batch, **floating)
    teacher = Teacher(model, EMASettings()).model
    settings = CrossMostRecipe(labels=LabelSettings(threshold=0.0), lg_align={"points": points})
    for tower in ("image.", "points."):
        model.zero_grad()
        step(model, teacher, batch, settings).terms[term].backward()
        own = {name: p for name, p in model.named_parameters() if name.startswith(tower) and p.grad is not None}
        gradients = {name: p.grad.clone() for name, p in own.items()}
        if term == "mim" and tower == "points.":
            assert all(not gradient.any() for gradient in gradients.values())
            continue
        length = sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5
        values = []
        for move in (1e-5, -2e-5):  # ahead, then as far behind where it began
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter += move * gradients[name] / length
            values.append(step(model, teacher, batch, settings).terms[term].item())
        with torch.no_grad():
            for name, parameter in own.items():
                parameter += 1e-5 * gradients[name] / length
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(length, rel=1e-3), tower


def test_the_divisor_of_the_classification_loss_by_key() -> None:
    """`selected` is `batch` times B over the number of confident objects."""
    model, batch = model_of(), batch_of()
    teacher = Teacher(model, EMASettings()).model
    with torch.no_grad():
        confidence = teacher.image_logits(teacher.image_features(batch.weak_image)).softmax(dim=1).amax(dim=1)
    labels = LabelSettings(mode="image", threshold=confidence.sort().values[-2:].mean().item())  # one is above
    values = {}
    for divisor in ("batch", "selected"):
        settings = CrossMostRecipe(labels=labels, cls={"divisor": divisor})
        values[divisor] = step(model, teacher, batch, settings).terms["cls"].item()
    assert values["batch"] > 0
    assert values["selected"] == pytest.approx(6 * values["batch"], rel=1e-4)


def test_nothing_confident_gives_no_classification_loss() -> None:
    model = model_of()
    settings = CrossMostRecipe(labels=LabelSettings(threshold=1.0))
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
    settings = CrossMostRecipe(labels=LabelSettings(threshold=0.0), mask=MaskSettings(passes=2))
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


def test_each_branch_learns_where_its_own_labels_are_sure() -> None:
    """With labels of one's own: the cross-entropy of each branch, over its own confident objects."""
    model, batch = model_of(), batch_of()
    teacher = Teacher(model, EMASettings()).model
    with torch.no_grad():
        taught = (
            teacher.image_logits(teacher.image_features(batch.weak_image)),
            teacher.points_logits(teacher.point_features(batch.weak_points)),
        )
    limits = [logits.softmax(dim=1).max(dim=1).values.sort().values for logits in taught]
    labels = LabelSettings(
        mode="own", image_threshold=float(limits[0][1:3].mean()), points_threshold=float(limits[1][3:5].mean())
    )
    result = step(model, teacher, batch, CrossMostRecipe(labels=labels, mask=MaskSettings(passes=2)))
    with torch.no_grad():
        seen = (
            model.image_logits(model.image_features(batch.strong_image)),
            model.points_logits(model.point_features(batch.strong_points)),
        )
    expected, sure = 0.0, []
    for own, logits, limit in zip(taught, seen, (labels.image_threshold, labels.points_threshold), strict=True):
        confidence, label = own.softmax(dim=1).max(dim=1)
        sure.append(confidence > limit)
        expected += (cross_entropy(logits, label, reduction="none") * sure[-1]).mean()
    assert [int(each.sum()) for each in sure] == [4, 2]
    assert result.terms["cls"].item() == pytest.approx(float(expected), rel=1e-4)


def test_the_log_tells_whose_labels_were_taken() -> None:
    """Among the confident objects: of the others no label is taken."""
    model, batch = model_of(), batch_of()
    teacher = Teacher(model, EMASettings()).model
    with torch.no_grad():
        image = teacher.image_logits(teacher.image_features(batch.weak_image)).softmax(dim=1).max(dim=1).values
        points = teacher.points_logits(teacher.point_features(batch.weak_points)).softmax(dim=1).max(dim=1).values
    surer = torch.maximum(image, points)
    told = set()
    for limit in (surer.sort().values[:-1] + 1e-6).tolist():
        settings = CrossMostRecipe(labels=LabelSettings(threshold=limit))
        taken = (image >= points)[surer > limit].float().mean().item()
        assert step(model, teacher, batch, settings).figures["from_image"].item() == pytest.approx(taken)
        told.add(round(taken, 3))
    assert len(told) > 1  # or it could be the share of all objects


def test_self_training_is_taught_by_each_branchs_own_labels(monkeypatch) -> None:
    model, batch = model_of(), batch_of()
    teacher = Teacher(model, EMASettings()).model
    points_logits = teacher.points_logits  # its branches name different classes
    monkeypatch.setattr(teacher, "points_logits", lambda features: points_logits(features).roll(1, dims=1))
    joint = CrossMostRecipe(labels=LabelSettings(threshold=0.0))
    own = CrossMostRecipe(labels=LabelSettings(threshold=0.0, mode="own"))
    alone = SelfTrainingRecipe(method="self_training", labels=ThresholdSettings(threshold=0.0))
    found = self_training.step(model, teacher, batch, alone).terms["cls"].item()
    assert found == pytest.approx(step(model, teacher, batch, own).terms["cls"].item(), rel=1e-5)
    assert found != pytest.approx(step(model, teacher, batch, joint).terms["cls"].item(), rel=1e-3)
