"""CrossPoint: a point tower taught without labels by two augmentations of each cloud and by pictures of the object.

Afham et al. 2022: L_imid between the two augmented clouds, L_cmid between the mean of their vectors and the picture's,
both NT-Xent at temperature 0.1, weights 1 : 1 (eq. 1-6). The vectors are those of heads over the towers' own features,
which are part of a checkpoint, so that a run can go on, and of no other use: a probe, `init.points` and part
segmentation read the towers. The clouds are the weak and the strong one of a batch, both of them strong by default
(`augment.first_cloud`); the pictures are the strong ones. `image=frozen` is not in the paper: points then learn the
space of CLIP's pictures by the towers' projections, and text classifies them without a label or a caption.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.batch import Batch
from training.models.cross_modal import CrossModalModel
from training.objectives import losses
from training.objectives.step import Step, weigh
from training.settings.fit_recipe import CrossPointRecipe


def freeze(student: CrossModalModel, recipe: CrossPointRecipe) -> None:
    """Freezes what is not trained; `student.train()` leaves a frozen tower in eval mode."""
    student.image.requires_grad_(recipe.crosspoint.image == "trained")
    if recipe.crosspoint.has_heads:
        student.points.projection.requires_grad_(False)


def step(student: CrossModalModel, teacher: None, batch: Batch, recipe: CrossPointRecipe) -> Step:
    """Both losses of one batch. They use no classes, so the classifier stays as it was made from text."""
    settings = recipe.crosspoint
    clouds = (batch.weak_points, batch.strong_points)
    if settings.passes == 1:
        first, second = _of_clouds(student, torch.cat(clouds)).chunk(2)
    else:
        first, second = (_of_clouds(student, points) for points in clouds)
    with torch.set_grad_enabled(settings.image == "trained"):
        image = of_pictures(student, batch.strong_image)
    terms = terms_of(first, second, image, settings.temperature)
    return weigh(terms, {"intra": settings.intra, "cross": settings.cross})


def _of_clouds(student: CrossModalModel, points: Tensor) -> Tensor:
    """What is compared of clouds: (B, 256) of the head, or (B, E)."""
    found = student.encode(*student.tokenize(points))
    return found.feature if student.contrast is None else student.contrast["points"](student.points.readout(found))


def of_pictures(student: CrossModalModel, pictures: Tensor) -> Tensor:
    """What is compared of pictures (B, 3, S, S), or of several views (B, V, 3, S, S): their mean."""
    views = pictures[:, None] if pictures.ndim == 4 else pictures
    found = student.image_tokens(views.flatten(0, 1))
    each = found.feature if student.contrast is None else student.contrast["image"](found.cls)
    return each.unflatten(0, views.shape[:2]).mean(dim=1)


def terms_of(first_BE: Tensor, second_BE: Tensor, image_BE: Tensor, temperature: float) -> dict[str, Tensor]:
    """L_imid and L_cmid of vectors, not normalised: of two augmented clouds of each object, and of its pictures."""
    middle = (first_BE + second_BE) / 2
    return {
        "intra": losses.nt_xent(first_BE, second_BE, temperature),
        "cross": losses.nt_xent(middle, image_BE, temperature),
    }
