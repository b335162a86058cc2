"""Objects with different numbers of views, as real frames have them: each is judged by its own."""

from __future__ import annotations

import pytest
import torch

from training.data.whole_split import WholeBatch
from training.evaluation.evaluate import logits_of, one_view
from training.evaluation.features import features_of


class Linear:
    """A model whose features and logits are linear in a picture's first pixels."""

    image_width = 5
    image_head = adapter = None

    def image_features(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(pictures.flatten(1)[:, :5] + 0.1, dim=1)

    def image_logits(self, feature: torch.Tensor) -> torch.Tensor:
        return feature @ torch.arange(20.0).sin().reshape(5, 4)

    def point_features(self, points: torch.Tensor) -> torch.Tensor:
        return points.mean(dim=1)

    def points_logits(self, feature: torch.Tensor) -> torch.Tensor:
        return feature @ torch.ones(3, 4)


def batch_of(*samples: tuple[str, torch.Tensor, torch.Tensor], labels: tuple[int, ...] = ()) -> WholeBatch:
    keys, views, points = zip(*samples, strict=True)
    counts = tuple(map(len, views))
    pictures = torch.zeros(len(keys), max(counts), 3, 4, 4, dtype=torch.uint8)
    for row, each in zip(pictures, views, strict=True):
        row[: len(each)] = each
    return WholeBatch(
        keys, pictures, torch.stack(points), counts, labels or (0,) * len(keys), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    )


def answers(batch: WholeBatch) -> dict[str, torch.Tensor]:
    features = features_of(Linear(), batch, torch.device("cpu"))
    return logits_of(Linear(), batch, features, 7, True)


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_answers_do_not_depend_on_the_other_objects_of_the_batch(monkeypatch, at_once: int) -> None:
    """Nor on how many pictures pass the tower at once."""
    monkeypatch.setattr("training.evaluation.features.PICTURES", at_once)
    generator = torch.Generator().manual_seed(0)
    samples = [
        (
            f"k{n}",
            torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator),
            torch.randn(8, 3, generator=generator),
        )
        for n in (5, 2, 1)
    ]
    labels = (1, 2, 1)
    together = answers(batch_of(*samples, labels=labels))
    for row, sample in enumerate(samples):
        for name, value in answers(batch_of(sample, labels=labels[row : row + 1])).items():
            torch.testing.assert_close(together[name][row], value[0], msg=name)


def test_views_that_are_not_there_are_never_right() -> None:
    """Whatever the class: an object's padded views answer nothing, and its share is of its own views."""
    generator = torch.Generator().manual_seed(0)
    samples = [
        (f"k{n}", torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator), torch.randn(8, 3))
        for n in (6, 1, 2)
    ]
    total = torch.zeros(3)
    features = features_of(Linear(), batch_of(*samples), torch.device("cpu"))
    for label in range(4):
        share = answers(batch_of(*samples, labels=(label,) * 3))["views_right"]
        total += share
        for row, (_, views, _) in enumerate(samples):
            predicted = Linear().image_logits(features.views[row, : len(views)]).argmax(dim=1)
            assert share[row].item() == pytest.approx((predicted == label).float().mean().item())
    assert total.tolist() == pytest.approx([1, 1, 1])  # each view has one answer


def test_the_averaged_views_are_a_unit_feature() -> None:
    """Or its logits, and so what is sure, would shrink with how much the views differ."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator) for n in (4, 2)]
    batch = batch_of(*((f"k{n}", each, torch.randn(8, 3)) for n, each in enumerate(views)))
    found = answers(batch)["image_star"]
    single = features_of(Linear(), batch, torch.device("cpu")).views
    unit = torch.nn.functional.normalize(single.sum(dim=1), dim=1)
    torch.testing.assert_close(found, Linear().image_logits(unit))


def test_the_view_that_is_judged_depends_on_seed_and_object() -> None:
    keys = [f"object_{number}" for number in range(60)]
    views = {seed: [one_view(seed, key, 12) for key in keys] for seed in (0, 1)}
    assert views[0] == [one_view(0, key, 12) for key in keys]
    assert sum(a == b for a, b in zip(*views.values(), strict=True)) < 20
    assert set(views[0]) == set(range(12))
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8, generator=generator) for _ in range(8)]
    batch = batch_of(*((f"k{n}", views, torch.randn(8, 3)) for n, views in enumerate(pictures)))
    features = features_of(Linear(), batch, torch.device("cpu"))
    logits = Linear().image_logits(features.views)
    for seed in (0, 7):
        found = logits_of(Linear(), batch, features, seed, True)["image"]
        for row, key in enumerate(batch.keys):
            torch.testing.assert_close(found[row], logits[row, one_view(seed, key, 5)])


def test_features_by_hand() -> None:
    """Two views of one object and one of another: unit features, their mean, and the same made unit."""
    pictures = torch.zeros(2, 2, 3, 4, 4, dtype=torch.uint8)
    pictures[0, 0, 0, 0, 0] = pictures[0, 1, 0, 0, 1] = pictures[1, 0, 0, 0, 2] = 255
    batch = WholeBatch(("a", "b"), pictures, torch.ones(2, 4, 3), (2, 1), (0, 0), (0.1 / 1,) * 3, (1.0,) * 3)
    found = features_of(Linear(), batch, torch.device("cpu"))
    axes = torch.eye(5)
    torch.testing.assert_close(found.views[:, 0], axes[[0, 2]])
    torch.testing.assert_close(found.mean(), torch.stack([(axes[0] + axes[1]) / 2, axes[2]]))
    torch.testing.assert_close(found.image().norm(dim=1), torch.ones(2))
    assert found.views[1, 1].abs().max() == 0
