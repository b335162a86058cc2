"""The keys of the point towers that label points (method=parts). Their sizes are those of the released code."""

from __future__ import annotations

from typing import Literal

from training.settings.model import BackboneSettings, Positive


class PartBackboneSettings(BackboneSettings):
    """Keys of a point tower that can label points (method=parts)."""

    @property
    def learns_batch_norms(self) -> bool:
        """In every layer."""
        return True


class DGCNNPartSettings(PartBackboneSettings):
    """DGCNN's network for parts, with its spatial transform. k: neighbours of a point, in the space of each layer's
    features."""

    backbone: Literal["dgcnn_parts"] = "dgcnn_parts"
    k: Positive = 40

    @property
    def fewest_points(self) -> int:
        """A point's neighbours are different points, itself among them."""
        return self.k


class PointNet2PartSettings(PartBackboneSettings):
    """PointNet++'s network for parts, with several sizes of neighbourhood (MSG); it has no other key."""

    backbone: Literal["pointnet2_msg_parts"] = "pointnet2_msg_parts"

    @property
    def fewest_points(self) -> int:
        """The first layer has 512 centres."""
        return 512


class PointNet2SSGPartSettings(PartBackboneSettings):
    """The same with one size of neighbourhood (SSG)."""

    backbone: Literal["pointnet2_ssg_parts"] = "pointnet2_ssg_parts"

    @property
    def fewest_points(self) -> int:
        """As above."""
        return 512
