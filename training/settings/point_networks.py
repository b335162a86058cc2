"""The keys of PointNet (two forms) and DGCNN. Their sizes are by default those of the released code."""

from __future__ import annotations

from typing import Literal

from training.settings.model import BackboneSettings, Positive


class PointNetSettings(BackboneSettings):
    """PointNet without spatial transforms, as DGCNN's authors and CrossPoint have it.

    widths: of the layers that every point goes through, before the last one. emb_dims: of the last, and of the feature.
    """

    backbone: Literal["pointnet"] = "pointnet"
    widths: tuple[Positive, Positive, Positive, Positive] = (64, 64, 64, 128)
    emb_dims: Positive = 1024

    @property
    def learns_batch_norms(self) -> bool:
        """Those after every layer."""
        return True


class TransformedPointNetSettings(BackboneSettings):
    """PointNet with its two spatial transforms. All sizes are the paper's."""

    backbone: Literal["pointnet_tnet"] = "pointnet_tnet"

    @property
    def learns_batch_norms(self) -> bool:
        """Those after every layer."""
        return True


class DgcnnSettings(BackboneSettings):
    """DGCNN. k: nearest neighbours of a point, itself among them, found anew before each of the four edge convolutions.

    No weight shows k. widths: of the edge convolutions. emb_dims: of the layer after them; the feature has twice that,
    its maximum and its mean over the points.
    """

    backbone: Literal["dgcnn"] = "dgcnn"
    k: Positive = 20
    widths: tuple[Positive, Positive, Positive, Positive] = (64, 64, 128, 256)
    emb_dims: Positive = 1024

    @property
    def fewest_points(self) -> int:
        """Its neighbours are different points."""
        return self.k

    @property
    def learns_batch_norms(self) -> bool:
        """Those after every layer."""
        return True
