"""Searches the weights of views in their mean, as PointCLIP does, but on a split of training and never on the test.

Shape letters: N objects, V views, C classes, K candidates.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from manifests.errors import Refused
from training import distributed
from training.data.dataset import open_source
from training.data.labels import labelled
from training.data.whole_split import BATCH, batch_numbers
from training.evaluation.evaluate import Options, Progress, Unlabelled, settings_of
from training.evaluation.features import by_view
from training.models.clip import pixel_statistics
from training.weights.open_models import Opened, fit_classes

STEPS = (0.25, 0.5, 0.75, 1.0)  # released: MODEL.SEARCH of PointCLIP's configurations
ALL_OF = 6  # views up to whose number every combination is tried (4,096)
AT_ONCE = 2**24  # numbers of the products that are computed at once
RELEASED = "PointCLIP's released search_weights.py fits them to the labels that then judge them"


def require_other_split(searched: str, judged: str) -> None:
    """Raises Refused where weights would be searched on the split that is judged, or on a test split."""
    if searched == judged or searched == "test":
        raise Refused(f"--search-view-weights {searched}: {RELEASED}: give a split of training, and judge another")


@torch.inference_mode()
def searched_weights(
    opened: Opened, shards: str, split: str, device: torch.device, options: Options, on_progress: Progress
) -> tuple[float, ...]:
    """The weights with which most objects of a labelled split are right; where several are best, the evenest found.

    The student is asked. Up to ALL_OF views every combination of STEPS is tried, as released; of more views each
    weight in turn, until none helps (released: 4^10 combinations). Raises Refused where objects have different numbers
    of views, Unlabelled without labels.
    """
    if distributed.world() > 1:
        raise Refused("--search-view-weights runs in one process: search once, and give views_weight=[...]")
    settings = settings_of(opened.checkpoint, split, options.changes)
    source = open_source(shards, settings, options.warn, pixel_statistics(opened.checkpoint.recipe))
    fit_classes(opened, source, shards, options.prompts_of(opened), bool(settings.classes))
    model = opened.models["student"]
    model.look_at(settings.channel)
    logits: list[Tensor] = []
    labels: list[int] = []
    reader = labelled(source, settings, model.image.image_size, batch_numbers(source.total, BATCH))
    for batch in reader.batches(options.workers or 0):
        views = by_view(batch, device, model.image_features, model.image_width)
        if len(set(batch.num_views)) > 1 or (logits and logits[0].shape[1] != views.shape[1]):
            raise Refused(f"--search-view-weights: objects of {settings.views} have different numbers of views")
        logits.append(model.image_logits(views))
        labels += batch.labels
        on_progress(len(labels), source.total)
    if not labels:
        raise Unlabelled(f"{shards}: no object of {split} has a label, to which weights of views could be fitted")
    return best_weights(torch.cat(logits), torch.tensor(labels, device=device))


def best_weights(logits_NVC: Tensor, label_N: Tensor) -> tuple[float, ...]:
    """The weights of V views whose sums of logits are right most often."""
    views = logits_NVC.shape[1]
    best = (STEPS[-1],) * views
    if views <= ALL_OF:
        return _best_of([best, *product(STEPS, repeat=views)], logits_NVC, label_N)
    while True:
        before = best
        for view in range(views):
            best = _best_of([best, *((*best[:view], step, *best[view + 1 :]) for step in STEPS)], logits_NVC, label_N)
        if best == before:
            return best


def _best_of(candidates: list[tuple[float, ...]], logits_NVC: Tensor, label_N: Tensor) -> tuple[float, ...]:
    """The first of the candidates with the most right answers."""
    weights_KV = logits_NVC.new_tensor(candidates)
    count = max(1, AT_ONCE // (logits_NVC.shape[0] * logits_NVC.shape[2]))
    right = [
        (torch.einsum("kv,nvc->knc", part, logits_NVC).argmax(dim=2) == label_N).sum(dim=1)
        for part in weights_KV.split(count)
    ]
    return candidates[int(torch.cat(right).argmax())]
