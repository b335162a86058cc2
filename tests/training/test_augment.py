"""Weak and strong views: seeded, within their ranges, and without the released defects."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from training.augment import (
    AugmentSettings,
    StrongPicture,
    crop_box,
    image_mask,
    in_box,
    normalize_cloud,
    strong_cloud,
    turned_cloud,
    weak_cloud,
    weak_picture,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cloud(count: int = 500) -> np.ndarray:
    return rng(5).normal(size=(count, 3)).astype(np.float32) * [3, 1, 2] + 4


def picture(size: int = 80) -> np.ndarray:
    return rng(1).integers(0, 255, (size, size, 3), dtype=np.uint8)


def test_a_weak_cloud_is_normalised_and_nearly_itself() -> None:
    plain, weak = normalize_cloud(cloud()), weak_cloud(cloud(), rng())
    radius = np.linalg.norm(weak, axis=1).max()
    assert 0.9 <= radius <= 1.1
    turned = np.einsum("nk,nk->n", plain, weak) / np.linalg.norm(plain, axis=1) / np.linalg.norm(weak, axis=1)
    assert turned.min() > np.cos(0.18 * np.sqrt(3) + 0.02)


def test_a_strong_cloud_keeps_its_size_and_really_loses_points() -> None:
    settings = AugmentSettings()
    unique = [len(np.unique(strong_cloud(cloud(), settings, rng(i)), axis=0)) for i in range(30)]
    assert all(strong_cloud(cloud(), settings, rng(i)).shape == (500, 3) for i in range(3))
    assert min(unique) < 150 < max(unique)


def test_the_crop_keeps_a_box() -> None:
    axes = np.ascontiguousarray(cloud().T)
    kept = [in_box(axes, 0.7, rng(i)) for i in range(50)]
    assert min(mask.sum() for mask in kept) < 450
    for mask in kept:
        inside = axes[:, mask]
        low, high = inside.min(axis=1, keepdims=True), inside.max(axis=1, keepdims=True)
        np.testing.assert_array_equal(((axes >= low) & (axes <= high)).all(axis=0), mask)
    assert in_box(axes, 1.0, rng()).all()


def test_a_supervised_cloud_is_turned_about_up_and_jittered() -> None:
    plain, turned = normalize_cloud(cloud()), [turned_cloud(cloud(), rng(i)) for i in range(40)]
    radius = np.hypot(plain[:, 0], plain[:, 2])
    for found in turned:
        assert np.abs(found[:, 1] - plain[:, 1]).max() <= 0.05 + 1e-6
        assert np.abs(np.hypot(found[:, 0], found[:, 2]) - radius).max() <= 0.08
        assert 0.008 < (found[:, 1] - plain[:, 1]).std() < 0.012
    far = radius.argmax()
    angles = [np.arctan2(found[far, 0], found[far, 2]) for found in turned]
    assert np.histogram(angles, 4, (-np.pi, np.pi))[0].min() >= 3


def test_strengths_are_keys() -> None:
    calm = AugmentSettings(points_scale=1, points_shift=0, points_dropout=0, points_crop=1)
    strong = strong_cloud(cloud(), calm, rng())
    radius = np.linalg.norm(strong - strong.mean(axis=0), axis=1).max()
    assert radius == pytest.approx(1, abs=0.1)
    assert len(np.unique(strong, axis=0)) == 500


def test_pictures_are_seeded_by_the_generator_alone() -> None:
    strong = StrongPicture(AugmentSettings(), 64, (122, 116, 104))
    random.seed(1)
    first = strong(picture(), rng(3))
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002 - the point of the test
    state = random.getstate()
    second = strong(picture(), rng(3))
    assert random.getstate() == state
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, strong(picture(), rng(4)))
    assert first.shape == (64, 64, 3)


def test_crops_are_those_of_torchvision() -> None:
    """Mean and deviation of area, shape and place of 3000 boxes of both."""
    from torchvision.transforms import RandomResizedCrop

    empty = torch.zeros(3, 90, 120)
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(empty, (0.3, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)]
    theirs = np.array([(left, top, width, height) for top, left, height, width in theirs])
    g = rng()
    ours = np.array([crop_box(120, 90, 0.3, g) for _ in range(3000)])
    for boxes in (ours, theirs):
        assert (boxes[:, :2] >= 0).all()
        assert ((boxes[:, :2] + boxes[:, 2:]) <= [120, 90]).all()
    for measure in (lambda b: b[:, 2] * b[:, 3] / 10800, lambda b: b[:, 2] / b[:, 3] - 1, lambda b: b[:, :2] / 120):
        np.testing.assert_allclose(measure(ours).mean(axis=0), measure(theirs).mean(axis=0), atol=0.02)
        np.testing.assert_allclose(measure(ours).std(axis=0), measure(theirs).std(axis=0), atol=0.02)


def test_a_crop_is_the_one_of_pillow() -> None:
    """Without flip and operations; one level of rounding apart."""
    smooth = np.add.outer(np.arange(80), 2 * np.arange(80))[..., None].repeat(3, 2).astype(np.uint8)
    strong = StrongPicture(AugmentSettings(image_magnitude=0, image_flip=0), 64, (122, 116, 104))
    for seed in range(10):
        left, top, width, height = crop_box(80, 80, 0.3, rng(seed))
        box = Image.fromarray(smooth).crop((left, top, left + width, top + height))
        expected = np.asarray(box.resize((64, 64), Image.Resampling.BICUBIC), int)
        assert np.abs(strong(smooth, rng(seed)).astype(int) - expected).max() <= 1


def test_every_operation_bears_every_magnitude() -> None:
    """timm draws magnitudes up to 10, at which posterising would raise."""
    strong = StrongPicture(AugmentSettings(image_magnitude=10), 32, (122, 116, 104))
    g = rng()
    names = {operation.name for operation in strong._operations}
    assert len(names) == len(strong._operations) == 15
    changed = sum(not np.array_equal(strong(picture(40), g), strong(picture(40), g)) for _ in range(300))
    assert changed == 300


def test_a_weak_picture_is_resized_and_cut() -> None:
    wide = np.zeros((50, 100, 3), np.uint8)
    wide[:, 30:70] = 200
    assert weak_picture(wide, 64).shape == (64, 64, 3)
    assert (weak_picture(wide, 64)[:, 10:50] == 200).all()
    np.testing.assert_array_equal(weak_picture(picture(64), 64), picture(64))


def test_image_masks_are_whole_cells() -> None:
    mask = image_mask(224, 16, 32, 0.3, rng())
    assert mask.shape == (14, 14)
    assert mask.sum() == 4 * 15
    cells = mask.reshape(7, 2, 7, 2)
    assert (cells.all(axis=(1, 3)) == cells.any(axis=(1, 3))).all()
    with pytest.raises(ValueError, match="image_cell=24"):
        image_mask(64, 8, 24, 0.3, rng())
