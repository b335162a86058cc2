"""Weak and strong pictures, image masks: seeded, within their ranges, and without the released defects."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.image_augment import StrongPicture, crop_box, image_mask, jittered, normalize_cloud, weak_picture
from training.settings.data import AugmentSettings


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(size: int = 80) -> np.ndarray:
    return rng(1).integers(0, 255, (size, size, 3), dtype=np.uint8)


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


def test_threads_that_draw_change_no_picture() -> None:
    """As those of a store's client do, which wait for a random time before they ask again."""
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    strong = StrongPicture(AugmentSettings(), 64, (120, 120, 120))
    quiet = [strong(picture, np.random.default_rng(seed)) for seed in range(150)]
    over = threading.Event()

    def draw() -> None:
        while not over.is_set():
            random.random()

    thread = threading.Thread(target=draw)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        beside = [strong(picture, np.random.default_rng(seed)) for seed in range(150)]
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert all(np.array_equal(one, other) for one, other in zip(quiet, beside, strict=True))


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


def test_half_of_the_pictures_are_mirrored() -> None:
    """Or as many as the key says."""
    ramp = np.arange(64, dtype=np.uint8)[None, :, None].repeat(64, axis=0).repeat(3, axis=2)
    for flip, low, high in ((0.5, 75, 125), (0.0, 0, 0), (1.0, 200, 200)):
        strong = StrongPicture(AugmentSettings(image_magnitude=0, image_flip=flip), 64, (122, 116, 104))
        g = rng()
        pictures = [strong(ramp, g).astype(int) for _ in range(200)]
        assert low <= sum(each[0, 0, 0] > each[0, -1, 0] for each in pictures) <= high


def test_colours_are_jittered_as_by_torchvision() -> None:
    """Brightness, contrast and colourfulness of 800 pictures of both, and the seed that decides alone."""
    from torchvision.transforms.v2 import ColorJitter

    pixels = torch.from_numpy(picture(24)).permute(2, 0, 1)[None] // torch.tensor([1, 2, 4])[None, :, None, None]

    def measured(change: Callable[[], torch.Tensor]) -> np.ndarray:
        made = torch.cat([change() for _ in range(800)]).float()
        grey = made.mean(dim=1)
        deviation, colour = grey.std(dim=(1, 2)), made.std(dim=1).mean(dim=(1, 2))
        return torch.stack([grey.mean(dim=(1, 2)), deviation, colour / deviation]).numpy()

    g, theirs = rng(), ColorJitter(0.4, 0.4, 0.4)
    torch.manual_seed(0)
    ours, expected = measured(lambda: jittered(pixels, 0.4, g)), measured(lambda: theirs(pixels))
    np.testing.assert_allclose(ours.mean(axis=1), expected.mean(axis=1), rtol=0.05)
    np.testing.assert_allclose(ours.std(axis=1), expected.std(axis=1), rtol=0.12)
    strong = StrongPicture(AugmentSettings(image_jitter=0.4, image_magnitude=0, image_crop=1), 80, (0, 0, 0))
    plain = StrongPicture(AugmentSettings(image_magnitude=0, image_crop=1), 80, (0, 0, 0))
    np.testing.assert_array_equal(strong(picture(), rng(3)), strong(picture(), rng(3)))
    assert not np.array_equal(strong(picture(), rng(3)), plain(picture(), rng(3)))


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


def test_a_normalised_cloud_is_the_released_one(golden) -> None:
    held = np.load(golden / "method/augment/augment.npz")
    np.testing.assert_allclose(normalize_cloud(held["points"]), held["normalize.out"], atol=1e-6)
