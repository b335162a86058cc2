"""ResNet-18 and ResNet-50 of torchvision as image tower (`image.backbone`), into the space of a CLIP's text tower.

CrossPoint and PointCMT train them from scratch; a weights file of torchvision fills all but the projection.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import get_model

from training.models.image_backbone import ImageBackbone, through
from training.networks.point_backbone import new_projection
from training.networks.precision import project, widened


class ResNetTower(ImageBackbone):
    """The network without its classes, by torchvision's names in `visual`, and a projection (W, E).

    W, the width of its own feature (`ImageTokens.cls`), is 512 for resnet18 and 2,048 for resnet50.
    """

    def __init__(self, name: str, embed_dim: int, image_size: int) -> None:
        super().__init__()
        self.visual = get_model(name, weights=None)
        self.projection = new_projection(self.visual.fc.in_features, embed_dim)
        self.visual.fc = nn.Identity()
        self.image_size = self.patch = image_size

    def represent(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the last map, and its projection."""
        visual = self.visual
        x = visual.maxpool(visual.relu(visual.bn1(visual.conv1(pictures))))
        own = widened(through(self.blocks, x)).mean(dim=(2, 3))
        return own, project(own, self.projection)
