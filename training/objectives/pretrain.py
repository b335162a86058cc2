"""Contrastive pre-training on a labelled source domain: of all three towers, or of points towards a frozen CLIP (ULIP).

Image-text, points-text and points-image. A caption is a class name in a prompt that is drawn for the whole batch, so
equal classes have equal captions; with `positives=class` they are positives of one another (Khosla et al. 2020,
supervised contrastive learning), with `object` an object has its own caption alone (CLIP, ULIP). Captions are those of
the key `prompts`; `["{}"]` is the class name by itself (ULIP and released code; their synonyms are not in shards).

Image and text tower, by key: `trained`: only the image-text term trains the tower, the terms of points give it no
gradient. `projection`: every term trains its last matrix (paper, section 4: f^I and f^S are pre-trained with the point
tower; released code for Redwood and ScanObjectNN). `frozen`: nothing is trained (ULIP; released code for ModelNet and
Co3D). In ULIP negatives of other processes carry no gradient; here they do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training import distributed
from training.data.batch import LabelledBatch
from training.models.cross_modal import CrossModalModel
from training.models.image_backbone import SPACES
from training.objectives import losses
from training.objectives.step import Step, weigh
from training.settings.fit_recipe import PretrainRecipe
from training.settings.objective import PretrainSettings

PROJECTIONS = (*SPACES, "clip.text_projection", "clip.text.text_projection")  # f^I and f^S, by their names inside


def freeze(student: CrossModalModel, recipe: PretrainRecipe) -> None:
    """Freezes the weights that a tower does not learn; `student.train()` leaves a wholly frozen one in eval mode."""
    text, _ = student.text_and_captions()
    if recipe.text.freeze_tokens:
        getattr(text.clip, "text", text.clip).token_embedding.requires_grad_(False)
    for tower, learns in ((student.image, recipe.pretrain.image), (text, recipe.pretrain.text)):
        if learns == "trained":
            continue
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_(learns == "projection" and name.startswith(PROJECTIONS))


def step(student: CrossModalModel, teacher: None, batch: LabelledBatch, recipe: PretrainRecipe) -> Step:
    """The losses of the global batch of single views, the same in every process."""
    settings, (_, captions) = recipe.pretrain, student.text_and_captions()
    with torch.set_grad_enabled(settings.image != "frozen"):
        image = distributed.gather(student.image_features(batch.images[:, 0]))
    points = distributed.gather(student.point_features(batch.points))
    prompt = distributed.same(int(torch.randint(captions.shape[1], ())))
    shown, caption = captions_of(captions[:, prompt], distributed.gather_rows(batch.label))
    with torch.set_grad_enabled(settings.text != "frozen"):
        text = student.encode_text(shown)
    scale = student.logit_scale.exp()
    terms = terms_of(image, text[caption], points, caption, scale, settings)
    with torch.no_grad():
        shares = {
            "right_image": losses.right(image @ text.T, caption),
            "right_points": losses.right(points @ text.T, caption),
        }
    weights = {name: value for name, value in settings.model_dump().items() if name in terms}
    return weigh(terms, weights, shares | {"logit_scale": scale.detach()})


def captions_of(tokens_CL: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """Captions to encode, tokens (P, L), and the index (B,) of each object's own caption among them.

    They are the captions of all classes; or, if there are fewer objects, of each object, and objects of one class share
    the first one's. (The captions of the classes in the batch would be fewest, but only the device knows their number,
    and asking would wait for it.)
    """
    if len(tokens_CL) <= len(label_B):
        return tokens_CL, label_B
    same = label_B[:, None] == label_B[None]
    return tokens_CL[label_B], same.int().argmax(dim=1)


def terms_of(
    image_BE: Tensor, text_BE: Tensor, points_BE: Tensor, caption_B: Tensor, scale: Tensor, settings: PretrainSettings
) -> dict[str, Tensor]:
    """The losses of unit features. text_BE: of each object's caption; caption_B: the index of that caption.

    image_text is left out where both towers are frozen: it has nothing to train.
    """
    alone = torch.eye(len(caption_B), dtype=torch.bool, device=caption_B.device)
    same = caption_B[:, None] == caption_B[None] if settings.positives == "class" else alone
    image = image_BE.detach() if settings.image == "trained" else image_BE
    text = text_BE.detach() if settings.text == "trained" else text_BE
    terms = {}
    if (settings.image, settings.text) != ("frozen", "frozen"):
        terms["image_text"] = losses.contrastive(image_BE, text_BE, same, scale)
    terms["points_text"] = losses.contrastive(points_BE, text, same, scale)
    terms["points_image"] = losses.contrastive(points_BE, image, alone, scale)
    return terms
