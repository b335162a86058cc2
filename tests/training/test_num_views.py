"""Objects with different numbers of views, as real frames have them: each is judged by its own."""

from __future__ import annotations

import torch

from training.evaluate import _logits
from training.labelled import _collate_labelled


class Linear:
    """A model whose features and logits are linear in a picture's first pixels."""

    def image_features(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(pictures.flatten(1)[:, :5] + 0.1, dim=1)

    def image_logits(self, feature: torch.Tensor) -> torch.Tensor:
        return feature @ torch.arange(20.0).sin().reshape(5, 4)

    def point_features(self, points: torch.Tensor) -> torch.Tensor:
        return points.mean(dim=1)

    def points_logits(self, feature: torch.Tensor) -> torch.Tensor:
        return feature @ torch.ones(3, 4)


def test_answers_do_not_depend_on_the_other_objects_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = (5, 2, 1)
    samples = [
        (f"k{n}", torch.randn(n, 3, 4, 4, generator=generator), torch.randn(8, 3, generator=generator), n % 4)
        for n in counts
    ]
    batch = _collate_labelled(samples)
    assert batch.images.shape == (3, 5, 3, 4, 4)
    assert batch.num_views == counts
    together = _logits(Linear(), batch, 7, True, torch.device("cpu"))
    for row, sample in enumerate(samples):
        alone = _collate_labelled([sample])
        assert alone.num_views == ()
        for name, value in _logits(Linear(), alone, 7, True, torch.device("cpu")).items():
            torch.testing.assert_close(together[name][row], value[0], msg=name)
    same = [(key, images[:1], *rest) for key, images, *rest in samples]
    assert _collate_labelled(same).num_views == ()
