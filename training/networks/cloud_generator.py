"""PointCMT's generator of clouds: what an object's picture feature says of its shape (stage II), then frozen (III)."""

from __future__ import annotations

from torch import Tensor, nn

from training.settings.objective import GeneratorSettings


class CloudGenerator(nn.Module):
    """R^D -> R^(N x 3), D the width of a feature, N points. `fc_l` has the released name where it is one layer."""

    def __init__(self, width: int, points: int, settings: GeneratorSettings) -> None:
        super().__init__()
        self.points = points
        out, hidden, drop = 3 * points, settings.hidden, nn.Dropout(settings.dropout)
        if settings.form == "linear":
            self.fc_l = nn.Sequential(drop, nn.Linear(width, out, bias=False))
        else:
            first = (nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
            self.fc_l = nn.Sequential(*first, drop, nn.Linear(hidden, out))

    def forward(self, features: Tensor) -> Tensor:
        """Clouds (B, N, 3) of features (B, D)."""
        return self.fc_l(features).unflatten(1, (self.points, 3))


class SharedSpaceHead(nn.Module):
    """A student's head whose inner feature has the width of its teacher's, so that a generator reads either.

    `feature` makes it of the tower's own: a linear layer, norm and ReLU, as PointCMT's PointNet++ has, or nothing where
    the tower ends in such a layer itself. `classify` is one linear layer, which the teacher's feature passes, too.
    """

    def __init__(self, width: int, shared: int, classes: int, ready: bool) -> None:
        super().__init__()
        layer = (nn.Linear(width, shared, bias=False), nn.BatchNorm1d(shared), nn.ReLU())
        self.feature = nn.Identity() if ready else nn.Sequential(*layer)
        self.classify = nn.Linear(shared, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, width)."""
        return self.classify(self.feature(features))
