"""The keys of each backbone of the point tower, by the name that `points.backbone` has."""

from __future__ import annotations

from training.settings.model import BackboneSettings, PointSettings
from training.settings.part_backbones import DGCNNPartSettings, PointNet2PartSettings, PointNet2SSGPartSettings
from training.settings.point_networks import DgcnnSettings, PointNetSettings, TransformedPointNetSettings
from training.settings.point_set_networks import (
    MultiScaleSettings,
    PointCmtSettings,
    PointMlpEliteSettings,
    PointMlpSettings,
    RelationShapeSettings,
    SingleScaleSettings,
)

BACKBONE_SETTINGS: dict[str, type[BackboneSettings]] = {  # towers: training/models/backbones.py
    "point_bert": PointSettings,
    "pointnet": PointNetSettings,
    "pointnet_tnet": TransformedPointNetSettings,
    "dgcnn": DgcnnSettings,
    "dgcnn_parts": DGCNNPartSettings,
    "pointnet2_msg_parts": PointNet2PartSettings,
    "pointnet2_ssg_parts": PointNet2SSGPartSettings,
    "pointnet2_ssg": SingleScaleSettings,
    "pointnet2_msg": MultiScaleSettings,
    "pointnet2_pointcmt": PointCmtSettings,
    "rscnn": RelationShapeSettings,
    "pointmlp": PointMlpSettings,
    "pointmlp_elite": PointMlpEliteSettings,
}
