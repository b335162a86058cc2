"""Farthest points, ball queries, nearest neighbours and upsampling against their definitions, loop by loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.networks import neighbours
from training.networks.neighbours import (
    ball_query,
    ball_query_without_centre,
    farther,
    farthest_points,
    gathered,
    nearest_to_centres,
    upsampled,
)


def clouds(count: int = 60, seed: int = 4) -> Tensor:
    """Three clouds in float64, the last on a grid of quarters, where many points are equally far."""
    made = torch.rand(3, count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    made[2] = (made[2] * 4).round() / 4
    return made


@pytest.fixture(autouse=True)
def few_distances_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that every function works in parts, and the last part is smaller."""
    monkeypatch.setattr(neighbours, "LARGEST", 7 * 3 * 60)


def square(a: Tensor, b: Tensor) -> float:
    return sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))


def sampled(cloud: Tensor, count: int, start: int, skip: bool) -> list[int]:
    """As the kernel does it: points near the origin are passed over, the first of the farthest is taken."""
    nearest, chosen = [math.inf] * len(cloud), [start]
    while len(chosen) < count:
        best, index = -1.0, 0
        for k, point in enumerate(cloud):
            if skip and square(point, torch.zeros(3)) <= 1e-3:
                continue
            nearest[k] = min(nearest[k], square(point, cloud[chosen[-1]]))
            if nearest[k] > best:
                best, index = nearest[k], k
        chosen.append(index)
    return chosen


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("step", [farther, lambda *given: farther(*given)])
def test_farthest_points_of_every_family(skip: bool, step) -> None:
    """From index 0, from a drawn start, and without the points near the origin: one by one and all at once."""
    given = clouds()
    given[:, 7] = torch.tensor([0.02, -0.01, 0.01])  # |x|^2 = 0.0006
    given[0, 0] = given[0, 7] / 2  # the first point is the start, even here
    given[1] /= 20  # many points near the origin: the kernel then repeats what it may choose
    for start in (None, torch.tensor([7, 59, 31])):
        found = farthest_points(given, 40, step, start, skip)
        for cloud, begun, chosen in zip(given, (0, 0, 0) if start is None else start.tolist(), found, strict=True):
            assert chosen.tolist() == sampled(cloud, 40, begun, skip)
    assert (farthest_points(torch.zeros(1, 9, 3), 4, step, skip_origin=True) == 0).all()


@pytest.mark.parametrize("closed", [False, True])
def test_a_ball_holds_its_first_points(closed: bool) -> None:
    """In index order, cut at the count, padded with the first; a point at the radius itself is in a closed one only."""
    given = clouds()
    centres = torch.cat([given[:, :20], torch.full((3, 1, 3), 9.0, dtype=given.dtype)], dim=1)
    found = ball_query(given, centres, 0.5, 6, closed)
    assert found.shape == (3, 21, 6)
    for cloud, of, row in zip(given, centres, found.tolist(), strict=True):
        for centre, indices in zip(of, row, strict=True):
            distances = [square(point, centre) for point in cloud]
            hits = [k for k, d in enumerate(distances) if d < 0.25 or (closed and d == 0.25)][:6]
            assert indices == (hits + hits[:1] * 6)[:6] if hits else indices == [0] * 6
    assert not torch.equal(found[2], ball_query(given, centres, 0.5, 6, not closed)[2])


def test_relation_shape_neighbours_are_without_the_centre() -> None:
    """It stands first, and in the slots that no neighbour fills; a copy of it is no neighbour either."""
    given = clouds()
    given[0, 30] = given[0, 3]
    chosen = torch.tensor([[3, 30, 0, 59], [1, 2, 3, 4], [9, 8, 7, 6]])
    found = ball_query_without_centre(given, chosen, 0.5, 5)
    for cloud, own, row in zip(given, chosen.tolist(), found.tolist(), strict=True):
        for centre, indices in zip(own, row, strict=True):
            hits = [k for k, point in enumerate(cloud) if 0 < square(point, cloud[centre]) < 0.25][:5]
            assert indices == [centre, *hits, *[centre] * (5 - len(hits))]


def test_nearest_points_of_centres() -> None:
    given = clouds()[:2]
    found = nearest_to_centres(given, given[:, :25], 9)
    for cloud, rows in zip(given, found.tolist(), strict=True):
        for centre, indices in enumerate(rows):
            order = sorted(range(60), key=lambda k: square(cloud[k], cloud[centre]))
            assert sorted(indices) == sorted(order[:9])
            assert centre in indices


@pytest.mark.parametrize(("squared", "known"), [(False, 20), (True, 20), (True, 2), (False, 1)])
def test_features_between_three_known_points(squared: bool, known: int) -> None:
    """Both weights; a point that is known keeps its feature; with fewer than three known points those there are."""
    given = clouds()[:2]
    features = torch.rand(2, known, 4, dtype=given.dtype, requires_grad=True)
    found = upsampled(features, given[:, :known], given, squared)
    for cloud, own, rows in zip(given, features.detach(), found.detach(), strict=True):
        for point, row in zip(cloud, rows, strict=True):
            near = sorted((square(point, cloud[k]), k) for k in range(known))[:3]
            weights = [1 / ((d if squared else math.sqrt(d)) + 1e-8) for d, _ in near]
            wanted = sum(w / sum(weights) * own[k] for w, (_, k) in zip(weights, near, strict=True))
            torch.testing.assert_close(row, wanted)
    torch.testing.assert_close(found[:, :known], features, atol=1e-6, rtol=0)
    found.sum().backward()
    torch.testing.assert_close(features.grad.sum(), torch.tensor(2.0 * 60 * 4, dtype=given.dtype))


def test_gathered_rows_and_their_gradient() -> None:
    values = torch.rand(2, 5, 3, requires_grad=True)
    indices = torch.tensor([[[0, 4], [4, 4]], [[1, 2], [3, 1]]])
    found = gathered(values, indices)
    assert torch.equal(found[1, 1, 0], values[1, 3])
    assert torch.equal(found[0, 1], values[0, [4, 4]])
    found.sum().backward()
    assert values.grad[..., 0].tolist() == [[1, 0, 0, 0, 3], [0, 2, 1, 1, 0]]


def test_no_table_of_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch of 32 x 1,024 points and 512 centres each: 134 MB in float64."""
    made: list[int] = []
    whole = neighbours._squared_distances

    def counted(*given: Tensor) -> Tensor:
        found = whole(*given)
        made.append(found.numel())
        return found

    monkeypatch.setattr(neighbours, "LARGEST", 2**21)
    monkeypatch.setattr(neighbours, "_squared_distances", counted)
    given = torch.rand(32, 1024, 3, dtype=torch.float64)
    ball_query(given, given[:, :512], 0.2, 16)
    nearest_to_centres(given, given[:, :512], 8)
    assert max(made) <= 2**21
    assert sum(made) == 2 * 32 * 512 * 1024
