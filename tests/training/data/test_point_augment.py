"""Clouds of a batch: the released operations, drawn from each sample's own seed, within their ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data import point_augment
from training.data.batch import RawBatch
from training.data.image_augment import normalize_cloud
from training.data.point_augment import strong_clouds, turned_clouds, ulip_clouds, weak_clouds
from training.networks.neighbours import farthest_points
from training.settings.data import AugmentSettings, CrossPointAugmentSettings

STRONG = AugmentSettings()


def cloud(count: int = 500) -> Tensor:
    points = np.random.default_rng(5).normal(size=(count, 3)) * [3, 1, 2] + 4
    return torch.from_numpy(points.astype(np.float32))


def many(number: int, count: int = 500) -> tuple[Tensor, Tensor]:
    """The same cloud many times, each with a seed of its own."""
    return cloud(count).expand(number, -1, -1), torch.arange(number)


@pytest.fixture(scope="module")
def released(golden) -> dict[str, Tensor]:
    held = np.load(golden / "method/augment/augment.npz")
    return {name: torch.from_numpy(held[name]).float() for name in held.files}


def axes_of(released: dict[str, Tensor]) -> Tensor:
    return released["points"].T[None].contiguous()


def close(axes: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(axes[0].T, expected, atol=1e-6, rtol=1e-6)


def test_operations_are_the_released_ones(released) -> None:
    points = axes_of(released)
    close(point_augment.normalized_axes(released["points"][None]), released["normalize.out"])
    angle = 2 * math.pi * released["rotate_y.draw1_uniform"]
    close(point_augment.turned_about_up(points, angle[None]), released["rotate_y.out"])
    angles = (0.06 * released["rotate_perturbation.draw1_randn"]).clamp(-0.18, 0.18)
    close(point_augment._turned(points, point_augment.turn_matrices(angles[None])), released["rotate_perturbation.out"])
    close(point_augment.shifted(points, released["translate.draw1_uniform"][None]), released["translate.out"])
    assert released["jitter.delta"].abs().max() <= point_augment.JITTER_LIMIT


def test_numbers_are_those_of_splitmix64() -> None:
    """Against the published algorithm in Python's integers."""
    mask = 2**64 - 1

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    seeds = [0, 1, 2**63 - 1, 123456789123456789]
    found = point_augment._hashed(torch.tensor(seeds), 3, 5)
    for seed, row in zip(seeds, found.tolist(), strict=True):
        start = mixed(mixed(seed) + 3 & mask)
        expected = [mixed(start + i * 0x9E3779B97F4A7C15 & mask) for i in range(1, 6)]
        assert [number & mask for number in row] == expected


def test_draws_are_even_and_independent() -> None:
    draw = point_augment.uniforms(torch.arange(500), point_augment.WEAK, 500)
    assert 0 < draw.min() < 1e-5
    assert 1 - 1e-5 < draw.max() < 1
    assert draw.mean() == pytest.approx(0.5, abs=0.002)
    assert draw.var() == pytest.approx(1 / 12, abs=0.001)
    other = point_augment.uniforms(torch.arange(500), point_augment.STRONG, 500)
    for left, right in ((draw[1:], draw[:-1]), (draw[:, 1:], draw[:, :-1]), (draw, other), (draw, draw.T)):
        assert abs(np.corrcoef(left.flatten(), right.flatten())[0, 1]) < 0.01 or left is draw is right
    noise = point_augment.jitter(torch.arange(40), 1000)
    assert noise.std() == pytest.approx(0.01, rel=0.01)
    assert noise.abs().max() <= 0.05
    assert np.abs(np.corrcoef(noise.transpose(0, 1).reshape(3, -1)) - np.eye(3)).max() < 0.02


@pytest.mark.parametrize("make", [weak_clouds, turned_clouds, ulip_clouds, lambda p, s: strong_clouds(p, s, STRONG)])
def test_a_cloud_depends_on_its_own_seed_alone(make) -> None:
    """Alone, in a batch, at any place of it: the same to the last bit."""
    points = torch.randn(7, 300, 3, generator=torch.Generator().manual_seed(0))
    seed = torch.randint(2**62, (7,), generator=torch.Generator().manual_seed(1))
    whole = make(points, seed)
    assert whole.shape == (7, 300, 3)
    for i in range(7):
        assert torch.equal(make(points[i : i + 1], seed[i : i + 1])[0], whole[i])
    order = torch.tensor([3, 6, 0])
    assert torch.equal(make(points[order], seed[order]), whole[order])
    assert not torch.equal(make(points, seed + 1), whole)


def test_a_bent_cloud_moves_smoothly_and_as_far_as_its_strength_says() -> None:
    """Near points move alike, far ones by draws of their own; nothing else of a strong cloud changes."""
    axes = point_augment.normalized_axes(cloud(400).expand(400, -1, -1))
    seed = torch.arange(400)
    moved = point_augment.bent(axes, seed, 0.4) - axes
    assert moved.std() == pytest.approx(0.04, rel=0.2)
    assert moved.mean().abs() < 0.004
    torch.testing.assert_close(point_augment.bent(axes, seed, 0.8) - axes, 2 * moved, atol=1e-5, rtol=0)
    assert torch.equal(point_augment.bent(axes[3:4], seed[3:4], 0.4), point_augment.bent(axes, seed, 0.4)[3:4])
    flat = moved.transpose(0, 1).flatten(0, 1)
    gaps = torch.cdist(axes[0].T, axes[0].T)
    alike = torch.corrcoef(flat.T)  # of two points, over all seeds and axes
    assert alike[(gaps > 0) & (gaps < 0.05)].mean() > 0.95
    assert alike[gaps > 1].mean().abs() < 0.1
    assert torch.corrcoef(moved.transpose(0, 1).flatten(1)).fill_diagonal_(0).abs().max() < 0.15  # of two axes
    calm = AugmentSettings(points_dropout=0, points_crop=1)
    for bent, plain in zip(
        strong_clouds(*many(9), calm.model_copy(update={"points_elastic": 0.4})),
        strong_clouds(*many(9), calm),
        strict=True,
    ):
        assert 0.01 < (bent - plain).norm(dim=1).mean() < 0.3
        assert len(bent.unique(dim=0)) == 500


def test_crosspoints_two_clouds_are_strong_ones_of_draws_of_their_own() -> None:
    """Both as strong; the second as without the key; the first as Cross-MoST's weak one where the key says so."""
    points, seed, rest = *many(64), torch.zeros(64, 3, 4, 4, dtype=torch.uint8)
    mask, form = torch.zeros(64, 1, 1, dtype=torch.bool), ((0.5,) * 3, (0.25,) * 3)

    def both(**keys: object) -> tuple[Tensor, Tensor]:
        augment = CrossPointAugmentSettings(points_crop=1, **keys)
        draws = torch.zeros(64, 2), torch.zeros(64)
        raw = RawBatch(tuple(map(str, range(64))), rest, rest, points, seed, mask, *draws, *form, augment)
        batch = raw.to(torch.device("cpu"))
        return batch.weak_points, batch.strong_points

    first, second = both()
    extents = [(each.amax(dim=1) - each.amin(dim=1)).norm(dim=1) for each in (first, second)]
    assert extents[0].mean() == pytest.approx(extents[1].mean().item(), rel=0.15)
    for each in (first, second):
        assert 200 < sum(len(cloud.unique(dim=0)) for cloud in each) / 64 < 360
    assert abs(np.corrcoef(extents[0], extents[1])[0, 1]) < 0.35
    weak, same = both(first_cloud="weak")
    assert torch.equal(same, second)
    assert torch.equal(weak, weak_clouds(points, seed))


def test_a_weak_cloud_is_normalised_and_nearly_itself() -> None:
    plain = torch.from_numpy(normalize_cloud(cloud().numpy()))
    weak = weak_clouds(*many(200))
    radius = weak.norm(dim=2).amax(dim=1)
    assert 0.9 <= radius.min() < 0.92
    assert 1.08 < radius.max() <= 1.1 + 1e-6
    cosine = torch.nn.functional.cosine_similarity(weak, plain.expand_as(weak), dim=2)
    assert cosine.min() > math.cos(0.18 * math.sqrt(3) + 0.02)
    assert weak.mean(dim=1).abs().max() < 1e-6


def test_a_strong_cloud_keeps_its_size_and_really_loses_points() -> None:
    strong = strong_clouds(*many(100), STRONG)
    unique = [len(each.unique(dim=0)) for each in strong]
    assert min(unique) < 100
    assert 350 < max(unique) < 500
    assert len(strong[:, 0].unique(dim=0)) > 95  # where farthest-point sampling starts


def test_what_a_strong_cloud_repeats_is_drawn_evenly() -> None:
    """Half of the points stay once or more; how often a point comes again is spread as drawing gives it."""
    settings = AugmentSettings(points_crop=1, points_fill="repeat")
    counts = [each.unique(dim=0, return_counts=True)[1] - 1 for each in strong_clouds(*many(300), settings)]
    least = [count for count in counts if 150 < len(count) < 250]
    expected = torch.cat([torch.full_like(count, 500 - len(count)).float() / len(count) for count in least])
    repeats = torch.cat(least).float()
    assert repeats.mean() == pytest.approx(expected.mean().item())
    assert (repeats - expected).var() == pytest.approx(expected.mean().item(), rel=0.1)  # as Poisson's


def test_what_fills_a_strong_cloud_up() -> None:
    """`first` repeats one point, `neighbours` makes means of ten near ones; what remained comes before, the same."""
    points, seed = many(20)
    ways = {way: AugmentSettings(points_fill=way) for way in ("repeat", "first", "neighbours")}
    made = {way: strong_clouds(points, seed, settings) for way, settings in ways.items()}
    for repeated, first, near in zip(*made.values(), strict=True):
        left = len(repeated.unique(dim=0))
        assert torch.equal(first[:left], repeated[:left])
        assert torch.equal(near[:left], repeated[:left])
        assert (first[left:] == first[0]).all()
        there = repeated[:left]
        gaps = torch.cdist(near[left:], there)
        assert len(near.unique(dim=0)) > left
        for point, distance in zip(near[left:], gaps, strict=True):
            about = there[distance.argmin()]  # a mean of near points lies among them
            nearest = torch.cdist(about[None], there)[0].sort().values[min(30, left - 1)]
            assert (point - about).norm() <= nearest + 1e-6


def groups_of(clouds: torch.Tensor, groups: int, size: int) -> float:
    """The mean number of distinct points in the groups that the tokenizer makes."""
    centres = clouds.gather(1, farthest_points(clouds, groups)[..., None].expand(-1, -1, 3))
    near = torch.cdist(centres, clouds).topk(size, largest=False).indices
    each = [len(cloud[n].unique(dim=0)) for cloud, of_cloud in zip(clouds, near, strict=True) for n in of_cloud]
    return sum(each) / len(each)


def test_the_default_leaves_the_fullest_groups() -> None:
    """Of 32 points in a student's sub-cloud nearly all are distinct, as in the teacher's; repeats left half of them."""
    points = torch.nn.functional.normalize(torch.randn(4, 2048, 3, generator=torch.Generator().manual_seed(0)), dim=2)
    seed = torch.arange(4)
    found = {
        way: groups_of(strong_clouds(points, seed, AugmentSettings(points_fill=way)), 64, 32)
        for way in ("repeat", "first", "neighbours")
    }
    assert max(found, key=lambda way: found[way]) == AugmentSettings().points_fill
    assert found["first"] > 30
    assert found["repeat"] < 24
    assert groups_of(weak_clouds(points, seed), 64, 32) == 32


def test_dropout_and_crop_leave_the_shares_that_they_say() -> None:
    points, seed = many(400)
    share = torch.tensor([len(each.unique(dim=0)) / 500 for each in strong_clouds(points, seed, STRONG)])
    calm = STRONG.model_copy(update={"points_crop": 1.0})
    dropped = torch.tensor([len(each.unique(dim=0)) / 500 for each in strong_clouds(points, seed, calm)])
    assert dropped.mean() == pytest.approx(1 - 0.875 / 2, abs=0.03)
    assert dropped.min() > 0.07
    assert (share <= dropped).all()
    assert 0.9 < (share / dropped).mean() < 0.99


def test_the_crop_keeps_a_box() -> None:
    axes = cloud().T[None].expand(50, -1, -1)
    kept = torch.rand(50, 500, generator=torch.Generator().manual_seed(0)) < 0.8
    draw = torch.rand(50, 6, generator=torch.Generator().manual_seed(1))
    inside = point_augment.in_box(axes, kept, 0.7 + 0.3 * draw[:, :3], draw[:, 3:])
    assert 300 < inside.sum(dim=1).min() < 450
    for each, mask, had in zip(axes, inside, kept, strict=True):
        low, high = each[:, mask].amin(dim=1, keepdim=True), each[:, mask].amax(dim=1, keepdim=True)
        assert torch.equal(((each >= low) & (each <= high)).all(dim=0), mask)
        extent = each[:, had].amax(dim=1) - each[:, had].amin(dim=1)
        assert ((high - low)[:, 0] <= extent).all()


def test_a_cloud_of_which_nothing_is_left_is_its_first_point() -> None:
    bits = point_augment._hashed(torch.arange(3), point_augment.POINT, 20)
    kept = torch.zeros(3, 20, dtype=torch.bool)
    kept[1, [4, 9]] = True
    kept[2] = True
    order = point_augment._filled(kept, bits)
    assert order[0].tolist() == [0] * 20
    assert set(order[1].tolist()) == set(order[1, :2].tolist()) == {4, 9}
    assert sorted(order[2].tolist()) == list(range(20))
    alone = strong_clouds(torch.ones(1, 8, 3), torch.tensor([0]), STRONG)  # eight times the same point
    assert torch.isfinite(alone).all()


def test_a_supervised_cloud_is_turned_about_up_and_jittered() -> None:
    plain, turned = normalize_cloud(cloud().numpy()), turned_clouds(*many(40)).numpy()
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
    strong = strong_clouds(*many(5), calm)
    radius = (strong - strong.mean(dim=1, keepdim=True)).norm(dim=2).amax(dim=1)
    torch.testing.assert_close(radius, torch.ones(5), atol=0.1, rtol=0)
    assert [len(each.unique(dim=0)) for each in strong] == [500] * 5
    far = AugmentSettings(points_scale=3, points_shift=1, points_dropout=0, points_crop=1)
    centre = strong_clouds(*many(50), far).mean(dim=1)
    assert centre.norm(dim=1).max() > 1.5


def test_ulips_clouds_are_scaled_moved_turned_and_thinned() -> None:
    """In numpy from the same draws; every point is one of the moved cloud's, and as many are left as were drawn."""
    points, seed = many(100)
    plain = normalize_cloud(cloud().numpy()).astype(np.float64)
    draws = point_augment.uniforms(seed, point_augment.STRONG, 9)
    angles = (point_augment._normal(draws[:, 4:7]) * 0.06).clamp(-0.18, 0.18)
    left, radii = [], []
    for found, draw, (a, b, c) in zip(ulip_clouds(points, seed).numpy(), draws.numpy(), angles.numpy(), strict=True):
        moved = plain * (0.8 + 0.45 * draw[0]) + (0.2 * draw[1:4] - 0.1)
        turn = np.eye(3)
        for axis, angle in ((0, a), (1, b), (2, c), (1, 2 * np.pi * draw[7])):
            i, j = [(1, 2), (2, 0), (0, 1)][axis]
            step = np.eye(3)
            step[i, i], step[j, j], step[i, j], step[j, i] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
            turn = step @ turn
        distance = np.linalg.norm(found[:, None] - (moved @ turn.T)[None], axis=2)
        assert distance.min(axis=1).max() < 1e-5
        share = len(np.unique(distance.argmin(axis=1))) / len(plain)
        assert share == pytest.approx(1 - 0.875 * draw[8], abs=0.09)
        left.append(share)
        radii.append(np.linalg.norm(found, axis=1).max())
    assert min(left) < 0.25
    assert max(left) > 0.9
    assert max(radii) < 1.25 + 0.1 * np.sqrt(3)


def test_strong_clouds_are_smaller_and_larger_than_they_were() -> None:
    """By U(1 / scale, scale); the normalised cloud has its farthest point at 1."""
    settings = AugmentSettings(points_scale=1.5, points_shift=0, points_dropout=0, points_crop=1)
    radius = strong_clouds(*many(400), settings).norm(dim=2).max(dim=1).values
    assert 1 / 1.5 - 0.05 < radius.min() < 0.7
    assert 1.4 < radius.max() < 1.5 + 0.05
    assert radius.median() == pytest.approx((1.5 + 1 / 1.5) / 2, abs=0.06)
