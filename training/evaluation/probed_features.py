"""Reads the features that a probe judges: of every labelled object of a split, by a network and by its random twin.

A feature is named TOWER_SPACE. `points_own` is what the backbone makes before its projection into CLIP's space (of
Point-BERT the class token and the maximum over tokens), `image_own` the mean over views of the image tower's feature,
of method=multiview the largest of them, none of them scaled; `points_clip` and `image_clip` are the unit features of
the shared space.

Shape letters: N objects, B batch, V views, W width, E embedding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from manifests.config import Value
from manifests.errors import Refused
from manifests.layout import BuildManifest
from training.data.dataset import open_source
from training.data.labels import labelled
from training.data.whole_split import BATCH, WholeBatch, batch_numbers
from training.evaluation.evaluate import Progress, settings_of
from training.evaluation.features import Features, by_view, require_finite, view_counts
from training.models.clip import pixel_statistics
from training.models.cross_modal import CrossModalModel
from training.networks.point_backbone import PointTokens
from training.weights.checkpoint import Checkpoint, build_model, without_pretrained
from training.weights.open_models import rest

TRAINED, RANDOM = "trained", "random"


@dataclass(frozen=True)
class ProbedSplit:
    """keys: of the N labelled objects. label: int64 (N,), a number among the manifest's classes. features: float32
    (N, W) by network (TRAINED, RANDOM), then by name."""

    manifest: BuildManifest
    split: str
    keys: tuple[str, ...]
    label: np.ndarray
    features: dict[str, dict[str, np.ndarray]]


def random_twin(checkpoint: Checkpoint, model: CrossModalModel, device: torch.device) -> CrossModalModel:
    """A network of the same shape with the random weights of the recipe's seed, in eval mode on the device."""
    twin, _ = build_model(without_pretrained(checkpoint.recipe), checkpoint.prompt_names, blank=True)
    rest([twin], model.precision)
    return twin.to(device)


@torch.inference_mode()
def read_split(
    networks: dict[str, CrossModalModel],
    checkpoint: Checkpoint,
    shards: str,
    split: str,
    wanted: Collection[str],
    device: torch.device,
    changes: dict[str, Value],
    workers: int | None = None,
    on_progress: Progress = lambda done, total: None,
) -> ProbedSplit:
    """The wanted features of a split; where no picture is asked for, of all objects, and no view set is needed.

    Raises Refused as `evaluate` does, Stopped where a feature is not finite.
    """
    settings = settings_of(checkpoint, split, changes)
    pictures = any(name.startswith("image") for name in wanted)
    source = open_source(shards, settings, tower=pixel_statistics(checkpoint.recipe), pictures=pictures)
    image_size = networks[TRAINED].image.image_size
    for model in networks.values():
        model.look_at(settings.channel)
    numbers = batch_numbers(source.total, BATCH)
    reader = labelled(source, settings, image_size, numbers)
    keys: list[str] = []
    labels: list[int] = []
    rows: dict[str, dict[str, list[Tensor]]] = {name: defaultdict(list) for name in networks}
    for batch in reader.batches(settings.workers if workers is None else workers):
        for network, model in networks.items():
            for name, value in features_by_name(model, batch, wanted, device).items():
                require_finite(batch.keys, value)
                rows[network][name].append(value.cpu())
        keys += batch.keys
        labels += batch.labels
        on_progress(len(keys), source.total)
    if not keys:
        raise Refused(f"{shards}: no object of {split} has a label, which a probe needs")
    found = {
        network: {name: torch.cat(parts).numpy() for name, parts in by_name.items()}
        for network, by_name in rows.items()
    }
    return ProbedSplit(source.manifest, split, tuple(keys), np.array(labels, np.int64), found)


def features_by_name(
    model: CrossModalModel, batch: WholeBatch, wanted: Collection[str], device: torch.device
) -> dict[str, Tensor]:
    """float32 (B, W) of each wanted feature; a tower of which no feature is wanted is not asked."""
    towers: dict[str, Callable[[CrossModalModel, WholeBatch, torch.device], tuple[Tensor, Tensor]]]
    towers = {"points": _points, "image": _image}
    found: dict[str, Tensor] = {}
    for tower, features in towers.items():
        names = (f"{tower}_own", f"{tower}_clip")
        if not set(names).isdisjoint(wanted):
            found |= dict(zip(names, features(model, batch, device), strict=True))
    return {name: found[name].float() for name in wanted}


def _points(model: CrossModalModel, batch: WholeBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    tokens = model.encode(*model.tokenize(batch.points.to(device)))
    return own_feature(tokens), normalize(tokens.feature, dim=1)


def _image(model: CrossModalModel, batch: WholeBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    if model.image_head is not None:  # its feature is not projected
        largest = by_view(batch, device, model.image_features).amax(dim=1)
        return largest, largest
    views = by_view(batch, device, lambda pictures: model.image_tokens(pictures).feature)
    if model.adapter is not None:
        found = model.adapted(by_view(batch, device, model.image_features), batch.num_views)
        return found, normalize(found, dim=1)
    counts = view_counts(batch, views)
    unit = Features(normalize(views, dim=2), counts, views.new_zeros(0))
    return views.sum(dim=1) / counts, unit.image()


def own_feature(tokens: PointTokens) -> Tensor:
    """(B, W): what the point tower projects into CLIP's space."""
    if not tokens.tokens.shape[1]:
        return tokens.cls
    return torch.cat([tokens.cls, tokens.tokens.max(dim=1).values], dim=1)
