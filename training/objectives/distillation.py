"""What a point network learns from a picture network's feature, as pure functions (PointCMT, eq. 5-7 and 11-13).

Shape letters: B batch, C classes, D width of both features. Whatever is the teacher's gets no gradient, but where it is
said.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, mse_loss

from training import distributed


def divergence(
    taught_BC: Tensor, teaching_BC: Tensor, reduction: Literal["sum", "mean"] = "mean", detach: bool = True
) -> Tensor:
    """KL(softmax teaching || softmax taught) of logits, over the batch.

    Of a student's classifier on the teacher's feature it is eq. 7, of the teacher's own logits eq. 6 (Hinton's, without
    temperature). reduction: `mean` (printed) or `sum` over the global batch (released: its weight grows with the
    batch). detach: else the teaching logits learn as well (released).
    """
    log_target = log_softmax(teaching_BC.detach() if detach else teaching_BC, dim=1)
    each = (log_target.exp() * (log_target - log_softmax(taught_BC, dim=1))).sum(dim=1)
    return each.sum() * distributed.world() if reduction == "sum" else each.mean()


def normalised_feature_error(taught_BD: Tensor, image_BD: Tensor, how: Literal["moments", "norm"]) -> Tensor:
    """MSE against the picture feature scaled to the size of the points' (eq. 11-13).

    how: `moments` (Normalize-I), to the mean and deviation of the points' features over the batch, dimension by
    dimension; `norm` (Normalize-II), to their mean length.
    """
    image, own = image_BD.detach(), taught_BD.detach()
    if how == "norm":
        return mse_loss(taught_BD, image * (own.norm(dim=1).mean() / image.norm(dim=1).mean().clamp(min=1e-12)))
    width, middle = image.std(dim=0, correction=0, keepdim=True), image.mean(dim=0, keepdim=True)
    even = (image - middle) / torch.where(width > 0, width, 1)
    return mse_loss(taught_BD, even * own.std(dim=0, correction=0, keepdim=True) + own.mean(dim=0, keepdim=True))
