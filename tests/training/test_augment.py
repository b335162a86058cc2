"""Weak and strong views: seeded, within their ranges, and without the released defects."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from training.augment import (
    AugmentSettings,
    StrongPicture,
    crop_cloud,
    image_mask,
    normalize_cloud,
    strong_cloud,
    weak_cloud,
    weak_picture,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cloud(count: int = 500) -> np.ndarray:
    return rng(5).normal(size=(count, 3)).astype(np.float32) * [3, 1, 2] + 4


def picture(size: int = 80) -> Image.Image:
    return Image.fromarray(rng(1).integers(0, 255, (size, size, 3), dtype=np.uint8))


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


def test_the_crop_crops() -> None:
    cropped = [len(crop_cloud(cloud(), 0.7, rng(i))) for i in range(20)]
    assert max(cropped) < 500
    assert len(crop_cloud(cloud(), 1.0, rng())) == 500


def test_strengths_are_keys() -> None:
    calm = AugmentSettings(points_scale=1, points_shift=0, points_dropout=0, points_crop=1)
    strong = strong_cloud(cloud(), calm, rng())
    radius = np.linalg.norm(strong - strong.mean(axis=0), axis=1).max()
    assert radius == pytest.approx(1, abs=0.1)
    assert len(np.unique(strong, axis=0)) == 500


def test_pictures_are_seeded_by_the_generator_alone() -> None:
    strong = StrongPicture(AugmentSettings(), 64, (122, 116, 104))
    random.seed(1)
    first = np.asarray(strong(picture(), rng(3)))
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002 - the point of the test
    state = random.getstate()
    second = np.asarray(strong(picture(), rng(3)))
    assert random.getstate() == state
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, np.asarray(strong(picture(), rng(4))))
    assert first.shape == (64, 64, 3)


def test_a_weak_picture_is_resized_and_cut() -> None:
    wide = Image.fromarray(np.zeros((50, 100, 3), np.uint8))
    assert weak_picture(wide, 64).size == (64, 64)
    same = picture(64)
    np.testing.assert_array_equal(np.asarray(weak_picture(same, 64)), np.asarray(same))


def test_image_masks_are_whole_cells() -> None:
    mask = image_mask(224, 16, 32, 0.3, rng())
    assert mask.shape == (14, 14)
    assert mask.sum() == 4 * 15
    cells = mask.reshape(7, 2, 7, 2)
    assert (cells.all(axis=(1, 3)) == cells.any(axis=(1, 3))).all()
    with pytest.raises(ValueError, match="image_cell=24"):
        image_mask(64, 8, 24, 0.3, rng())
