"""PointNet with its two spatial transforms (T-nets), of the coordinates and of the first features (Qi et al. 2017).

Source: yanx27's release, from which PointCMT's row of PointNet is.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from training.networks.point_backbone import PointBackbone, new_projection
from training.settings.point_networks import TransformedPointNetSettings

WIDTH = 1024
ORTHOGONAL = 0.001  # weight of |I - A A^T|, as released


class SpatialTransform(nn.Module):
    """A matrix (B, C, C) for each cloud, predicted from the cloud; it begins near the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv1, self.bn1 = nn.Conv1d(channels, 64, 1), nn.BatchNorm1d(64)
        self.conv2, self.bn2 = nn.Conv1d(64, 128, 1), nn.BatchNorm1d(128)
        self.conv3, self.bn3 = nn.Conv1d(128, 1024, 1), nn.BatchNorm1d(1024)
        self.fc1, self.bn4 = nn.Linear(1024, 512), nn.BatchNorm1d(512)
        self.fc2, self.bn5 = nn.Linear(512, 256), nn.BatchNorm1d(256)
        self.fc3 = nn.Linear(256, channels**2)

    def forward(self, x: Tensor) -> Tensor:
        """The matrices of features (B, C, N)."""
        x = relu(self.bn1(self.conv1(x)))
        x = relu(self.bn2(self.conv2(x)))
        x = relu(self.bn3(self.conv3(x))).max(dim=2).values
        x = relu(self.bn5(self.fc2(relu(self.bn4(self.fc1(x))))))
        identity = torch.eye(self.channels, dtype=x.dtype, device=x.device)
        return self.fc3(x).unflatten(1, (self.channels, self.channels)) + identity


class TransformedEncoder(nn.Module):
    """The part with upstream's name `feat`: (B, 1024) of clouds, and the second transform."""

    def __init__(self) -> None:
        super().__init__()
        self.stn, self.fstn = SpatialTransform(3), SpatialTransform(64)
        self.conv1, self.bn1 = nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64)
        self.conv2, self.bn2 = nn.Conv1d(64, 128, 1), nn.BatchNorm1d(128)
        self.conv3, self.bn3 = nn.Conv1d(128, WIDTH, 1), nn.BatchNorm1d(WIDTH)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The feature (B, 1024) of clouds (B, N, 3), and the transform (B, 64, 64) of their first features."""
        x = (points @ self.stn(points.transpose(1, 2))).transpose(1, 2)
        x = relu(self.bn1(self.conv1(x)))
        transform = self.fstn(x)
        x = (x.transpose(1, 2) @ transform).transpose(1, 2)
        x = self.bn3(self.conv3(relu(self.bn2(self.conv2(x)))))  # released: no ReLU here
        return x.max(dim=2).values, transform


class TransformedPointNet(PointBackbone):
    """PointNet as first published; `regulariser` holds the second transform near orthogonal."""

    def __init__(self, settings: TransformedPointNetSettings, embed_dim: int) -> None:
        super().__init__()
        self.feat = TransformedEncoder()
        self.transform: Tensor | None = None
        self.projection = new_projection(WIDTH, embed_dim)

    def represent(self, points: Tensor) -> Tensor:
        """(B, 1024) of clouds (B, N, 3)."""
        feature, transform = self.feat(points)
        self.transform = transform if self.training else None
        return feature

    def regulariser(self) -> Tensor | None:
        """0.001 |I - A A^T|, the Frobenius norm, a mean over the clouds of the last pass."""
        if self.transform is None:
            return None
        matrix, self.transform = self.transform, None
        identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        return ORTHOGONAL * torch.linalg.matrix_norm(matrix @ matrix.transpose(1, 2) - identity).mean()

    def classification_head(self, classes: int) -> nn.Module:
        """Three linear layers; released code drops features before the second norm (defect B6)."""
        return nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(WIDTH, 512),
                bn1=nn.BatchNorm1d(512),
                relu1=nn.ReLU(),
                fc2=nn.Linear(512, 256),
                dropout=nn.Dropout(0.4),
                bn2=nn.BatchNorm1d(256),
                relu2=nn.ReLU(),
                fc3=nn.Linear(256, classes),
            )
        )
