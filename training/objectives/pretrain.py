"""Contrastive pre-training of all three towers on a labelled source domain: what CLIP and ULIP are at full size.

One joint loop: image-text, then points-text and points-image towards the others as they stand (ULIP keeps them frozen;
here they are only detached). A caption is a class name in a prompt that is drawn for the whole batch, so equal classes
have equal captions and are positives of one another (Khosla et al. 2020, supervised contrastive learning).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn.functional import normalize

from training import distributed, losses
from training.batches import LabelledBatch
from training.model import CrossModalModel
from training.objectives.step import Step, weigh

if TYPE_CHECKING:
    from training.recipe import FitRecipe

Weight = Annotated[float, Field(ge=0)]


class PretrainSettings(BaseModel):
    """Weights of the three contrastive losses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_text: Weight = 1.0
    points_text: Weight = 1.0
    points_image: Weight = 1.0


def step(student: CrossModalModel, teacher: None, batch: LabelledBatch, recipe: FitRecipe) -> Step:
    """The three losses of one batch of single views: of the global batch, the same in every process."""
    image = distributed.gather(student.image_features(batch.images[:, 0]))
    points = distributed.gather(student.point_features(batch.points))
    classes, caption = distributed.gather_rows(batch.label).unique(return_inverse=True)
    prompt = distributed.same(int(torch.randint(student.captions.shape[1], ())))
    text = normalize(student.text.encode(student.captions[classes, prompt]), dim=1)
    scale = student.logit_scale.exp()
    same = caption[:, None] == caption[None]
    alone = torch.eye(len(caption), dtype=torch.bool, device=same.device)
    terms = {
        "image_text": losses.contrastive(image, text[caption], same, scale),
        "points_text": losses.contrastive(points, text[caption].detach(), same, scale),
        "points_image": losses.contrastive(points, image.detach(), alone, scale),
    }
    with torch.no_grad():
        right = {
            "right_image": ((image @ text.T).argmax(dim=1) == caption).float().mean(),
            "right_points": ((points @ text.T).argmax(dim=1) == caption).float().mean(),
        }
    return weigh(terms, recipe.pretrain.model_dump(), right | {"logit_scale": scale.detach()})
