"""Depth drawn in a training step: random distances as CLIP2Point pre-trains with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manifests.picture_mapping import to_picture
from manifests.presets import load_preset
from renderers.backend_table import draw, preset_cameras
from renderers.point_depth_torch import depth_maps, distance_pictures, random_distance_pair, to_pictures

OBJECTS = ("mn10_chair_0890", "sn_car_2cbe6850")


def clouds(count: int, num_points: int = 300) -> torch.Tensor:
    """Clouds in the unit ball, float32 (count, num_points, 3)."""
    points = np.random.default_rng(0).normal(size=(count, num_points, 3))
    points /= np.linalg.norm(points, axis=2).max(axis=1)[:, None, None]
    return torch.from_numpy(points.astype(np.float32))


def release(**changes: object):
    return load_preset("depth10_release", changes)[1]


@pytest.mark.parametrize("name", OBJECTS)
def test_random_distances_equal_golden(golden, name: str) -> None:
    data = np.load(golden / "render" / f"clip2point_depth_{name}.npz")
    points = torch.from_numpy(data["points_world"]).expand(2, -1, -1)
    pictures = distance_pictures(points, preset_cameras(release()), torch.from_numpy(data["aug_dist"]).float())
    index = data["aug_idx"].reshape(2, 10, 224, 224)
    values = data["aug_depth_of_point"].reshape(2, 10, -1)
    for repeat in range(2):
        for view in range(10):
            shown = index[repeat, view]
            expected = np.where(shown >= 0, values[repeat, view][shown], 1)
            assert (np.abs(pictures[repeat, view].numpy() - expected) > 2e-6).sum() <= 3


def numpy_picture(points: np.ndarray, distance: float, view: int, preset) -> np.ndarray:
    changed = preset.model_copy(update={"distance": distance, "depth_range": 1.5})
    return to_picture(draw(changed, points=points / np.float32(distance))[view].depth, "clip2point")


def test_distances_equal_the_numpy_renderer() -> None:
    preset, points = release(image_size=64, disc_radius=0.06), clouds(3)
    distances = torch.tensor([0.9, 1.0, 1.1])
    pictures = distance_pictures(points, preset_cameras(preset), distances, disc_radius=0.06)
    assert pictures.shape == (3, 10, 64, 64)
    for sample, distance in enumerate(distances.tolist()):
        for view in range(10):
            expected = numpy_picture(points[sample].numpy(), distance, view, preset)
            assert (np.abs(pictures[sample, view].numpy() - expected) > 2e-6).sum() <= 2
    assert (pictures[0] - pictures[2]).abs().mean() > 0.01


def test_one_view_of_each_sample_is_that_of_all_views() -> None:
    cameras, points = preset_cameras(release(image_size=48)), clouds(4)
    distances, views = torch.tensor([0.95, 1.0, 1.02, 1.08]), torch.tensor([3, 0, 9, 5])
    whole = distance_pictures(points, cameras, distances)
    alone = distance_pictures(points, cameras, distances, views=views)
    assert alone.shape == (4, 1, 48, 48)
    assert ((alone[:, 0] - whole[torch.arange(4), views]).abs() > 1e-5).sum() <= 4  # sums in another order
    assert not torch.equal(alone[0], alone[1])


def test_a_pair_is_two_distances_of_one_view() -> None:
    cameras, points, views = preset_cameras(release(image_size=48)), clouds(5), torch.tensor([0, 2, 4, 6, 8])
    first, second = random_distance_pair(points, cameras, views=views, generator=torch.Generator().manual_seed(3))
    draws = torch.rand((2, 5), generator=torch.Generator().manual_seed(3))
    for pictures, draw_ in zip((first, second), draws, strict=True):
        distances = 0.9 + 0.2 * draw_  # 1 + U(-0.1, 0.1)
        expected = distance_pictures(points, cameras, distances, views=views)
        assert ((pictures - expected).abs() > 1e-5).sum() <= 10  # rounding of the distance moves an edge
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    again, _ = random_distance_pair(points, cameras, views=views, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, again)


def test_distances_keep_to_their_range() -> None:
    """Dots at depths d and z = d + 0.5 / d; the farther is (z - min(1, d)) / z: 1/3 at d = 1, the most at d = 0.9."""
    cameras = preset_cameras(release(image_size=32))[:1]
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.5, 0.0, -0.5]]]).repeat(400, 1, 1)
    most = 1 - 0.9 / (0.9 + 0.5 / 0.9)
    for pictures in random_distance_pair(points, cameras, disc_radius=0.1, generator=torch.Generator().manual_seed(0)):
        far = torch.where(pictures < 1, pictures, 0).amax(dim=(1, 2, 3)) / (200 / 255)
        assert 1 / 3 - 1e-5 <= far.min() < 1 / 3 + 0.01
        assert most - 0.01 < far.max() <= most + 1e-5


def test_perspective_cameras_have_no_released_distance() -> None:
    with pytest.raises(ValueError, match="orthographic"):
        random_distance_pair(clouds(1), preset_cameras(load_preset("depth10")[1]))


@pytest.mark.gpu
def test_random_distances_on_an_accelerator_equal_numpy() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    preset, points = release(), clouds(3, 1024)
    cameras = preset_cameras(preset)
    distances, views = torch.tensor([0.93, 1.0, 1.06]), torch.tensor([0, 4, 9])
    pictures = distance_pictures(points.cuda(), cameras, distances.cuda(), views=views.cuda()).cpu().numpy()
    for sample in range(3):
        expected = numpy_picture(points[sample].numpy(), float(distances[sample]), int(views[sample]), preset)
        assert (np.abs(pictures[sample, 0] - expected) > 1e-5).sum() <= 4
    generator = torch.Generator("cuda").manual_seed(1)
    first, second = random_distance_pair(points.cuda(), cameras, generator=generator)
    assert first.is_cuda
    assert first.shape == second.shape == (3, 10, 224, 224)
    assert not torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["depth10", "depth10_release", "depth6_release", "weighted10_r2"])
def test_every_merge_on_an_accelerator_equals_numpy(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    _, preset = load_preset(name)
    points = clouds(1, 1024)
    options = {"merge": preset.merge, "dilation": preset.dilation, "disc_radius": preset.disc_radius}
    live = to_pictures(depth_maps(points.cuda(), preset_cameras(preset), **options))[0].cpu().numpy()
    for view, picture in zip(draw(preset, points=points[0].numpy()), live, strict=True):
        assert (np.abs(to_picture(view.depth, "clip2point") - picture) > 1e-4).mean() < 1e-3


def test_cameras_of_two_sizes_and_merges_that_are_none_are_refused() -> None:
    small, large = preset_cameras(release(image_size=8))[:1], preset_cameras(release(image_size=16))[:1]
    with pytest.raises(ValueError, match="one size"):
        depth_maps(clouds(1), small + large, merge="disc")
    with pytest.raises(ValueError, match="unknown merge"):
        depth_maps(clouds(1), small, merge="mean")


def test_pictures_of_depth_equal_those_of_numpy() -> None:
    """Also where every point is nearer or farther than 1, and where there is none."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.2, 3, (4, 5, 5)).astype(np.float32)
    depth[0] = rng.uniform(0.2, 0.8, (5, 5))
    depth[1] = rng.uniform(1.2, 3, (5, 5))
    depth[3] = np.inf
    depth[:3, 0] = np.inf
    expected = np.stack([to_picture(each, "clip2point") for each in depth])
    np.testing.assert_allclose(to_pictures(torch.from_numpy(depth)).numpy(), expected, atol=1e-6)
