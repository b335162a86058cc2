"""The settings of every backbone by its name, `points.backbone`. Their towers: training/models/backbones.py."""

from __future__ import annotations

from training.settings.model import BackboneSettings, PointSettings
from training.settings.point_set_networks import (
    MultiScaleSettings,
    PointCmtSettings,
    PointMlpEliteSettings,
    PointMlpSettings,
    RelationShapeSettings,
    SingleScaleSettings,
)

BACKBONE_SETTINGS: dict[str, type[BackboneSettings]] = {
    "point_bert": PointSettings,
    "pointnet2_ssg": SingleScaleSettings,
    "pointnet2_msg": MultiScaleSettings,
    "pointnet2_pointcmt": PointCmtSettings,
    "rscnn": RelationShapeSettings,
    "pointmlp": PointMlpSettings,
    "pointmlp_elite": PointMlpEliteSettings,
}
