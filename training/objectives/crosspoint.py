"""CrossPoint: a point tower taught without labels by two augmentations of each cloud and by a picture of the object.

Afham et al. 2022: L_imid between the two augmented clouds, L_cmid between the mean of their features and the picture's,
both NT-Xent at temperature 0.1, weights 1 : 1 (eq. 6). The two clouds are the weak and the strong one of a batch; the
picture is the strong one. The paper trains a ResNet-50 and a DGCNN from scratch, with projection heads of their own;
here the towers' projected features are used. `image=frozen` is not in the paper: points then learn the space of CLIP's
pictures, and text classifies them without a label or a caption.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.batch import Batch
from training.models.cross_modal import CrossModalModel
from training.objectives import losses
from training.objectives.step import Step, weigh
from training.settings.fit_recipe import CrossPointRecipe
from training.settings.objective import CrossPointSettings


def freeze(student: CrossModalModel, settings: CrossPointSettings) -> None:
    """Freezes what is not trained; `student.train()` leaves a frozen tower in eval mode."""
    student.image.requires_grad_(settings.image == "trained")


def step(student: CrossModalModel, teacher: None, batch: Batch, recipe: CrossPointRecipe) -> Step:
    """Both losses of one batch. They use no classes, so the classifier stays as it was made from text."""
    settings = recipe.crosspoint
    clouds = (batch.weak_points, batch.strong_points)
    weak, strong = (student.encode(*student.tokenize(points)).feature for points in clouds)
    with torch.set_grad_enabled(settings.image == "trained"):
        image = student.image_tokens(batch.strong_image).feature
    terms = terms_of(weak, strong, image, settings.temperature)
    return weigh(terms, {"intra": settings.intra, "cross": settings.cross})


def terms_of(first_BE: Tensor, second_BE: Tensor, image_BE: Tensor, temperature: float) -> dict[str, Tensor]:
    """L_imid and L_cmid of features, not normalised: of two augmented clouds of each object, and of its picture."""
    middle = (first_BE + second_BE) / 2
    return {
        "intra": losses.nt_xent(first_BE, second_BE, temperature),
        "cross": losses.nt_xent(middle, image_BE, temperature),
    }
