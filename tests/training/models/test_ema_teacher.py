"""Momentum, the moving average, and every mode of pseudo-labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from training.models.ema_teacher import Teacher, momentum
from training.objectives.pseudo_labels import pseudo_labels
from training.settings.objective import EMASettings, LabelSettings


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.log(torch.tensor(rows))


IMAGE = logits([0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.95, 0.05])
POINTS = logits([0.2, 0.8], [0.95, 0.05], [0.3, 0.7], [0.05, 0.95])


def test_joint_takes_the_surer_modality_and_a_tie_goes_to_the_image() -> None:
    labels = pseudo_labels(IMAGE, POINTS, LabelSettings(threshold=0.84))
    assert labels.image_label.tolist() == labels.points_label.tolist() == [0, 0, 1, 0]
    assert labels.from_image.tolist() == [True, False, True, True]
    assert labels.image_confident.tolist() == [1, 1, 0, 1]
    weighted = pseudo_labels(IMAGE, POINTS, LabelSettings(threshold=0.84, points_weight=0.8))
    assert weighted.from_image.tolist() == [True, False, True, True]
    assert weighted.image_confident.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("mode", "image", "points", "confident"),
    [
        ("image", [0, 1, 1, 0], [0, 1, 1, 0], ([1, 0, 0, 1], [1, 0, 0, 1])),
        ("points", [1, 0, 1, 1], [1, 0, 1, 1], ([0, 1, 0, 1], [0, 1, 0, 1])),
        ("own", [0, 1, 1, 0], [1, 0, 1, 1], ([1, 0, 0, 1], [0, 1, 0, 1])),
        ("random", [0, 0, 1, 1], [0, 0, 1, 1], ([1, 1, 0, 1], [1, 1, 0, 1])),
    ],
)
def test_modes(mode: str, image: list, points: list, confident: tuple) -> None:
    draw = torch.tensor([0.1, 0.9, 0.2, 0.7])
    labels = pseudo_labels(IMAGE, POINTS, LabelSettings(mode=mode, threshold=0.84), draw)
    assert labels.image_label.tolist() == image
    assert labels.points_label.tolist() == points
    assert (labels.image_confident.tolist(), labels.points_confident.tolist()) == confident


def test_agreement_takes_what_both_say_and_both_are_sure_of() -> None:
    """Same class and both sure; the image unsure; the points unsure; both sure of different classes."""
    image = logits([0.9, 0.1], [0.15, 0.85], [0.9, 0.1], [0.9, 0.1])
    points = logits([0.95, 0.05], [0.05, 0.95], [0.6, 0.4], [0.1, 0.9])
    labels = pseudo_labels(image, points, LabelSettings(mode="agreement", threshold=0.88))
    assert labels.image_confident.tolist() == labels.points_confident.tolist() == [1, 0, 0, 0]
    assert labels.image_label[:3].tolist() == labels.points_label[:3].tolist() == [0, 1, 0]
    weighted = LabelSettings(mode="agreement", threshold=0.88, points_weight=0.9)  # 0.855 of the points
    assert pseudo_labels(image, points, weighted).image_confident.tolist() == [0, 0, 0, 0]


def test_each_branch_has_its_own_threshold() -> None:
    own = LabelSettings(mode="own", threshold=0.99, image_threshold=0.92, points_threshold=0.0)
    labels = pseudo_labels(IMAGE, POINTS, own)
    assert labels.image_confident.tolist() == [0, 0, 0, 1]
    assert labels.points_confident.tolist() == [1, 1, 1, 1]
    without = pseudo_labels(IMAGE, POINTS, LabelSettings(mode="own", threshold=0.92))
    assert without.points_confident.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("mode", ["joint", "image", "own", "agreement"])
def test_a_confidence_of_exactly_the_threshold_is_not_enough(mode: str) -> None:
    half = torch.zeros(1, 2)
    for threshold, taken in ((0.5, 0.0), (0.49, 1.0)):
        labels = pseudo_labels(half, half, LabelSettings(mode=mode, threshold=threshold))
        assert labels.image_confident.item() == labels.points_confident.item() == taken


def test_random_needs_a_draw() -> None:
    with pytest.raises(ValueError, match="draw"):
        pseudo_labels(IMAGE, POINTS, LabelSettings(mode="random"))


def test_momentum_rises_to_its_end_and_stays() -> None:
    settings = EMASettings(start=0.5, end=0.9, steps=4)
    found = [momentum(step, settings) for step in range(7)]
    assert found == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9])


def test_momentum_is_linear_then_constant(golden) -> None:
    settings = EMASettings()
    assert momentum(0, settings) == 0.99
    assert momentum(200, settings) == pytest.approx((0.99 + 0.9998) / 2)
    assert momentum(10**6, settings) == 0.9998
    stored = np.load(golden / "method" / "schedules" / "schedules.npz")
    name = next(n for n in stored.files if "ema_decay" in n)
    ours = [momentum(step, settings) for step in range(len(stored[name]))]
    np.testing.assert_allclose(ours, stored[name], rtol=1e-12)


def test_the_teacher_follows_parameters_and_floating_buffers() -> None:
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = Teacher(student, EMASettings(start=0.9, end=0.9, steps=1))
    before = [p.clone() for p in teacher.model.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
        student[1].running_mean.fill_(5.0)
        student[1].num_batches_tracked.fill_(7)
    assert teacher.update(student, 3) == 0.9
    for old, new in zip(before, teacher.model.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
        assert not new.requires_grad
    torch.testing.assert_close(teacher.model[1].running_mean, torch.full((2,), 0.5))
    assert teacher.model[1].num_batches_tracked.item() == 7
    assert not teacher.model.training
