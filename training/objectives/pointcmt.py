"""PointCMT (Yan et al. 2022), three methods in a row: pictures teach a point network that sees points alone afterwards.

I `multiview`: a picture network over all views of an object learns labels. II `cross_modal_generator`: a generator
learns to make the object's cloud of that network's feature. III `pointcmt`: a point network learns labels, and from the
feature of the pictures: clouds that the generator makes of both features shall be alike (eq. 5), and its classifier
shall answer the same to both (eq. 7). Teacher and generator are part of the student's model, frozen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.data.batch import LabelledBatch
from training.models.cross_modal import CrossModalModel
from training.networks.cloud_generator import SharedSpaceHead
from training.objectives.distillation import divergence, normalised_feature_error
from training.objectives.losses import right, smoothed_cross_entropy
from training.objectives.step import Step, weigh
from training.objectives.transport import earth_movers_distance
from training.settings.objective import TransferSettings
from training.settings.pointcmt_recipes import GeneratorRecipe, MultiviewRecipe, PointCmtRecipe


def freeze(student: CrossModalModel, recipe: MultiviewRecipe | GeneratorRecipe | PointCmtRecipe) -> None:
    """Freezes all but what the stage trains; `student.train()` leaves a frozen tower in eval mode."""
    taught: tuple[nn.Module | None, ...]
    if isinstance(recipe, MultiviewRecipe):
        taught = student.image, student.image_head
    else:
        taught = (student.generator,) if isinstance(recipe, GeneratorRecipe) else (student.points, student.points_head)
    student.requires_grad_(False)
    for part in taught:
        if part is not None:
            part.requires_grad_(True)
    for tower in (student.image, student.points):
        tower.projection.requires_grad_(False)  # into CLIP's space, which no loss here knows


def multiview_step(student: CrossModalModel, teacher: None, batch: LabelledBatch, recipe: MultiviewRecipe) -> Step:
    """Cross-entropy of the classifier over the largest of all views' features (eq. 3)."""
    logits = student.image_logits(student.object_features(batch.images))
    settings = recipe.multiview
    loss = smoothed_cross_entropy(logits, batch.label, settings.smoothing, settings.smoothing_form)
    return weigh({"image": loss}, {"image": 1.0}, {"right_image": right(logits, batch.label)})


def generator_step(student: CrossModalModel, teacher: None, batch: LabelledBatch, recipe: GeneratorRecipe) -> Step:
    """The distance of a generated cloud from the object's own (eq. 4)."""
    settings = recipe.generator
    with torch.no_grad():
        feature = student.object_features(batch.images)
    made = student.generated(feature)
    distance = earth_movers_distance(made, batch.points, settings.emd, settings.box_scale).mean()
    return weigh({"generator": distance}, {"generator": settings.weight})


def step(student: CrossModalModel, teacher: None, batch: LabelledBatch, recipe: PointCmtRecipe) -> Step:
    """Cross-entropy of the points, and what the pictures add; where no term is of pictures, none is looked at."""
    head = student.points_head
    assert isinstance(head, SharedSpaceHead)
    own = head.feature(student.point_features(batch.points))
    if not recipe.pointcmt.of_pictures:
        return weigh(*labelled(head.classify(own), batch.label, recipe.pointcmt))
    with torch.no_grad():
        picture = student.object_features(batch.images)
        answers = student.image_logits(picture)
    return transfer(student, head, own, picture, answers, batch.label, recipe.pointcmt)


def transfer(
    student: CrossModalModel,
    head: SharedSpaceHead,
    own: Tensor,
    picture: Tensor,
    answers: Tensor,
    label: Tensor,
    settings: TransferSettings,
) -> Step:
    """The losses of features (B, D) of points and pictures, and of the teacher's logits (B, C). A term of weight 0 is
    not computed."""
    logits = head.classify(own)
    terms, weights, figures = labelled(logits, label, settings)
    for name in ("feature", "classifier", "hinton", "normalized"):
        if weight := getattr(settings, name):
            weights[name] = weight
    if "feature" in weights:
        made, goal = student.generated(own), student.generated(picture)
        terms["feature"] = earth_movers_distance(made, goal, settings.emd, settings.box_scale).mean()
    if "classifier" in weights:
        terms["classifier"] = divergence(logits, head.classify(picture), settings.kl, settings.detach_target)
    if "hinton" in weights:
        terms["hinton"] = divergence(logits, answers, settings.kl)
    if "normalized" in weights:
        terms["normalized"] = normalised_feature_error(own, picture, settings.normalize)
    return weigh(terms, weights, figures | {"right_teacher": right(answers, label)})


def labelled(
    logits: Tensor, label: Tensor, settings: TransferSettings
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
    """What the points learn of labels alone: the loss, its weight, and how many are right."""
    loss = smoothed_cross_entropy(logits, label, settings.smoothing, settings.smoothing_form)
    return {"points": loss}, {"points": 1.0}, {"right_points": right(logits, label)}
