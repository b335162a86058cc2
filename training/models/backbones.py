"""The backbones of the point tower by name (`points.backbone`), ours and those of plugins.

A new one of ours is a file here with a PointBackbone, a row in TOWERS, and in training/settings the class of its keys
and a row in BACKBONE_SETTINGS (backbone_rows.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import Parameter

from manifests.errors import Refused
from training.networks.dgcnn import Dgcnn
from training.networks.part_networks import PART_TOWERS
from training.networks.point_backbone import PointBackbone
from training.networks.point_bert import PointTower
from training.networks.pointmlp import PointMlp
from training.networks.pointnet import PointNet
from training.networks.pointnet2 import MultiScalePointNet2, PointCmtPointNet2, SingleScalePointNet2
from training.networks.pointnet_tnet import TransformedPointNet
from training.networks.rscnn import RelationShapeNet
from training.settings.from_plugins import backbones
from training.settings.model import BackboneSettings

TOWERS: dict[str, Callable[[Any, int], PointBackbone]] = {
    "point_bert": PointTower,
    "pointnet": PointNet,
    "pointnet_tnet": TransformedPointNet,
    "dgcnn": Dgcnn,
    **PART_TOWERS,
    "pointnet2_ssg": SingleScalePointNet2,
    "pointnet2_msg": MultiScalePointNet2,
    "pointnet2_pointcmt": PointCmtPointNet2,
    "rscnn": RelationShapeNet,
    "pointmlp": PointMlp,
    "pointmlp_elite": PointMlp,
}


def point_tower(settings: BackboneSettings, embed_dim: int) -> PointBackbone:
    """A new tower of these settings, with random weights. Raises Refused where a plugin's is none."""
    towers = TOWERS | {name: row.tower for name, row in backbones().items()}
    tower = towers[settings.backbone](settings, embed_dim)
    matrix = getattr(tower, "projection", None)
    if not isinstance(tower, PointBackbone) or not isinstance(matrix, Parameter) or matrix.shape[1:] != (embed_dim,):
        raise Refused(
            f"points.backbone={settings.backbone}: its tower is no PointBackbone with a projection (width, "
            f"{embed_dim}), which new_projection makes (docs/extending.md)"
        )
    return tower
