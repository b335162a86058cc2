"""The losses of all methods as pure functions: tensors in, a scalar out. Paper: section 3, equations 2-4.

Shape letters: B batch, C classes, E embedding, L tokens, D token width. Confident sets and masks are multiplied, never
indexed, so that an empty one gives exactly zero with finite gradients.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

from training import distributed
from training.distributed import gather


def counted(mask: Tensor) -> Tensor:
    """The number of set entries of a mask (or confident set) in the global batch, at least 1, divided by the processes.

    It is the divisor of a mean over the set entries. Their number differs between processes; with this divisor the mean
    of the processes' losses is the loss of the global batch, and so are its gradients.
    """
    wide = torch.promote_types(mask.dtype, torch.float32)  # a sum in bf16 counts to 256
    return distributed.summed(mask.detach().sum(dtype=wide)).clamp(min=1) / distributed.world()


def confident_cross_entropy(
    logits_BC: Tensor, label_B: Tensor, confident_B: Tensor, divisor: Literal["batch", "selected"] = "batch"
) -> Tensor:
    """L_cls of one modality, eq. 2: the sum over confident samples divided by B.

    confident_B: float, 1 where the pseudo-label counts. divisor: `selected` divides by how many are confident in the
    global batch (released code: per GPU, and NaN if there are 0; here that gives 0).
    """
    each = cross_entropy(logits_BC, label_B, reduction="none")
    total = (each * confident_B.to(each.dtype)).sum()
    return total / (counted(confident_B) if divisor == "selected" else len(each))


def smoothed_cross_entropy(
    logits_BC: Tensor, label_B: Tensor, smoothing: float = 0.0, form: Literal["upstream", "torch"] = "upstream"
) -> Tensor:
    """Mean cross-entropy with labels whose true class has 1 - smoothing.

    form: `upstream` divides the rest by the C - 1 other classes (DGCNN's and PointMLP's code), `torch` by all C, so
    that the true class has smoothing / C more.
    """
    if form == "torch" or not smoothing:
        return cross_entropy(logits_BC, label_B, label_smoothing=smoothing)
    log_probability = log_softmax(logits_BC, dim=1)
    right = log_probability.gather(1, label_B[:, None])[:, 0]
    others = (log_probability.sum(dim=1) - right) / (logits_BC.shape[1] - 1)
    return -((1 - smoothing) * right + smoothing * others).mean()


def fairness(logits_BC: Tensor) -> Tensor:
    """L_fair of one modality, eq. 4: -1/C sum_c log(mean over the global batch of softmax_c).

    Computed from log-softmax, so that a vanishing class gives a large number and not infinity.
    """
    log_probability = gather(log_softmax(logits_BC, dim=1))
    return -(torch.logsumexp(log_probability, dim=0) - math.log(len(log_probability))).mean()


def alignment(
    image_BE: Tensor,
    points_BE: Tensor,
    temperature: float,
    reduction: Literal["mean", "sum"] = "mean",
    global_negatives: bool = True,
) -> Tensor:
    """L_align, eq. 3: half of both directions' cross-entropies between unit features of the same objects.

    reduction: `sum` as printed, `mean` divided by B (default; the printed sum grows with the batch). (Released code:
    temperature 1, local negatives, and only while masking is on.)
    """
    if global_negatives:
        image_BE, points_BE = gather(image_BE), gather(points_BE)
    similarity = image_BE @ points_BE.T / temperature
    target = torch.arange(len(similarity), device=similarity.device)
    both = cross_entropy(similarity, target, reduction=reduction)
    return (both + cross_entropy(similarity.T, target, reduction=reduction)) / 2


def contrastive(left_BE: Tensor, right_BE: Tensor, positive_BB: Tensor, scale: Tensor) -> Tensor:
    """Half of both directions' cross-entropies between unit features, where a row may have several positives.

    positive_BB: bool, symmetric, true on the diagonal; a row's target is uniform over its positives. scale: factor on
    the cosine, exp(logit_scale). With the identity it is CLIP's loss. (Supervised contrastive: Khosla et al., L_out.)
    """
    logits = scale * left_BE @ right_BE.T
    target = positive_BB.to(logits.dtype)
    target = target / target.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def nt_xent(left_BE: Tensor, right_BE: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy: each of 2B features picks its partner among the 2B - 1 others.

    Cosines over the global batch, mean over all 2B. Source: SimCLR; CrossPoint, eq. 1-2 and 4-5.
    """
    both = normalize(torch.cat([gather(left_BE), gather(right_BE)]), dim=1)
    count = len(both)
    itself = torch.eye(count, dtype=torch.bool, device=both.device)
    similarity = (both @ both.T / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(count, device=both.device).roll(count // 2)
    return cross_entropy(similarity, partner)


def masked_image(predicted: Tensor, image: Tensor, pixel_mask: Tensor) -> Tensor:
    """L_mim: mean absolute error over masked pixels and channels of the normalised strong image.

    predicted, image: (B, 3, H, W). pixel_mask: float (B, H, W), 1 where masked. (Released code divides by 197, not 3.)
    """
    error = (predicted - image).abs().sum(dim=1)
    return (error * pixel_mask).sum() / (counted(pixel_mask) * image.shape[1])


def masked_points(predicted_BLD: Tensor, token_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """L_mpm: mean absolute error over masked tokens and their dimensions.

    token_BLD: the original tokens; they are detached here. (Released code: the target is the mask token itself, and the
    sum is divided by the batch size.)
    """
    error = (predicted_BLD - token_BLD.detach()).abs().sum(dim=2)
    return (error * mask_BL).sum() / (counted(mask_BL) * token_BLD.shape[2])


def local_global(local_BLE: Tensor, global_BE: Tensor, mask_BL: Tensor) -> Tensor:
    """L_lg-align of one modality: squared distance of unit vectors, mean over masked tokens, no stop-gradient."""
    distance = (local_BLE - global_BE[:, None]).pow(2).sum(dim=2)
    return (distance * mask_BL).sum() / counted(mask_BL)


def divergence_from_uniform(logits_BC: Tensor) -> Tensor:
    """The figure `entropy` of the paper's analysis: mean over B of KL(softmax || uniform), natural log. Not a loss."""
    log_probability = log_softmax(logits_BC, dim=1)
    return ((log_probability.exp() * log_probability).sum(dim=1) + math.log(logits_BC.shape[1])).mean()


def biasedness(count_C: Tensor) -> Tensor:
    """The figure `biasedness` of the paper's analysis: KL(share of each class among hard predictions || uniform).

    count_C: how often each class was predicted. Natural log; 0 is even, log C is one class alone. Not a loss.
    """
    share = count_C / count_C.sum().clamp(min=1)
    return torch.special.xlogy(share, share * len(count_C)).sum()


def right(logits: Tensor, label: Tensor) -> Tensor:
    """The share of logits (B, C, ...) that are highest at their label (B, ...), for the log."""
    return (logits.detach().argmax(dim=1) == label).float().mean()
