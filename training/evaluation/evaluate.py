"""Asks a checkpoint about every object of a split: student and teacher, image and points.

training/evaluation/metrics.py measures the answers. Several processes (torchrun) share the batches; together they give
the figures of one process. Beside the objectives in SUPERVISED, this is the only reader of labels.

Shape letters: B batch, N objects of a split, V views, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manifests.config import Value, merge, parse_recipe
from manifests.errors import Refused
from manifests.picture_mapping import Statistics
from manifests.rng import seed_digest
from training import distributed
from training.data.dataset import Source, open_source
from training.data.labels import labelled
from training.data.point_augment import scaled_clouds
from training.data.whole_split import BATCH, SplitReader, WholeBatch, batch_numbers
from training.evaluation.features import Features, features_of, gathered, gathered_keys, require_finite
from training.evaluation.metrics import MODALITIES, PREDICTED, Examined, SplitAnswers, pseudo_label_quality
from training.models.clip import pixel_statistics
from training.models.cross_modal import CrossModalModel
from training.settings.data import DataSettings
from training.settings.model import Precision
from training.weights.checkpoint import Checkpoint
from training.weights.grouping import warn_of_other_clouds
from training.weights.open_models import Opened, fit_classes, open_models, text_prompts, warn_of_own_heads

Progress = Callable[[int, int], None]


class Unlabelled(Refused):
    """A split without labels was given where accuracies are measured."""


@dataclass(frozen=True)
class Options:
    """How a split is read and judged.

    classes_from_text: makes a new classifier from the shards' class names; prompts: the same, in these prompts.
    every_view: reads all views; else only the one that the column `image` judges. labels: reads labels. workers: reader
    processes; None: data.workers, if that is among `changes`, else 0. precision: of the towers of checkpoints; None: as
    trained on CUDA, fp32 on the CPU. changes: keys of `data` that replace the recipe's, such as classes, candidates,
    objects, num_views, workers, cache. warn: logs how many objects are left out. votes: passes over each cloud: after
    the first its axes are scaled anew, always from the stored cloud, and logits are averaged. views_weight: of the
    views in `image_star`, empty for the same of all. searched: the split whose labels chose them.
    """

    classes_from_text: bool = False
    every_view: bool = True
    labels: bool = True
    workers: int | None = None
    precision: Precision | None = None
    changes: dict[str, Value] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    warn: bool = True
    votes: int = 1
    views_weight: tuple[float, ...] = ()
    searched: str = ""

    def prompts_of(self, opened: Opened) -> tuple[str, ...]:
        """The prompts of the classifier to make from text; none where the checkpoint's own classifier answers."""
        own = text_prompts(opened.checkpoint.recipe) if self.classes_from_text else ()
        return self.prompts or opened.prompts or own


WHOLE = Options()


def examine(
    checkpoints: Sequence[Checkpoint],
    shards: str,
    split: str = "test",
    device: torch.device | None = None,
    options: Options = WHOLE,
    on_progress: Progress = lambda done, total: None,
) -> list[Examined]:
    """The answers of several checkpoints. Those that read the same data share one pass over the shards.

    Raises Refused when the shards have no such split or view set, no labels, or other classes than a checkpoint;
    Stopped where answers are not finite.
    """
    device = device or torch.device("cpu")
    with distributed.together():
        if options.every_view:  # a report, which has said it, asks again by one view
            warn_of_own_heads(checkpoints)
        opened = [open_models(each, precision=options.precision, device=device) for each in checkpoints]
    return judge(opened, shards, split, device, options, on_progress)


@torch.inference_mode()
def judge(
    models: Sequence[Opened],
    shards: str,
    split: str,
    device: torch.device,
    options: Options = WHOLE,
    on_progress: Progress = lambda done, total: None,
) -> list[Examined]:
    """The answers of opened models that are on the device; otherwise as `examine`."""
    with distributed.together():
        columns = PREDICTED if options.every_view else MODALITIES
        opened = [_Examinee(each, _asked(columns, each.random), options.prompts_of(each), options) for each in models]
        if options.votes > 1 and not any("points" in each.columns for each in opened):
            raise Refused(f"--votes {options.votes} are of clouds, and {opened[0].checkpoint.folder} answers by none")
        streams = _streams(opened, shards, split, options)
    found: dict[int, Examined] = {}
    for stream in streams:
        keys, label = stream.ask(options, device, on_progress)
        if not keys:
            raise Unlabelled(
                f"{shards}: no object of {split} has a label; --without-labels gives what can be said without"
            )
        for each in stream.examinees:
            found[id(each)] = each.examined(stream.source, split, keys, label, options.labels)
    return [found[id(each)] for each in opened]


def _asked(columns: Sequence[str], random: Sequence[str]) -> tuple[str, ...]:
    """The columns of towers with trained weights."""
    return tuple(name for name in columns if name.removesuffix("_star") not in random)


def settings_of(checkpoint: Checkpoint, split: str, changes: dict[str, Value]) -> DataSettings:
    """The data settings for judging a checkpoint. Raises Refused for an unknown key of `data`."""
    values = merge(checkpoint.recipe.judged_data.model_dump(mode="json") | {"split": split}, changes)
    settings = parse_recipe(DataSettings, values, "data")
    warn_of_other_clouds(checkpoint.recipe, settings.num_points)
    return settings


@dataclass
class _Examinee:
    """A checkpoint being examined. prompts: of a classifier that text makes, if one does. logits: by model, then a
    table by column for each batch."""

    opened: Opened
    columns: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    options: Options = WHOLE
    logits: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(model.adapter is not None for model in self.opened.models.values()):
            self.columns = tuple(name for name in self.columns if name == "image_star")

    @property
    def checkpoint(self) -> Checkpoint:
        return self.opened.checkpoint

    @property
    def image_size(self) -> int:
        return self.opened.models["student"].image.image_size

    def answer(self, batch: WholeBatch, every_view: bool, device: torch.device) -> None:
        """Adds the answers of student and teacher about a batch."""
        asked: dict[int, dict[str, Tensor]] = {}
        for who, model in self.opened.models.items():
            if id(model) not in asked:
                features = features_of(model, batch, device, self.options.views_weight, "points" in self.columns)
                found = logits_of(model, batch, features, self.checkpoint.recipe.seed, every_view)
                if self.options.votes > 1 and "points" in self.columns:
                    found["points"] = self._voted(model, batch, found["points"])
                require_finite(batch.keys, *(found[name] for name in self.columns))
                asked[id(model)] = found
            self.logits.setdefault(who, []).append(asked[id(model)])

    def _voted(self, model: CrossModalModel, batch: WholeBatch, first: Tensor) -> Tensor:
        """The mean of the points' logits (B, C) over all votes; first: those of the cloud as it is stored."""
        device = model.classifier.device
        digests = [seed_digest(self.checkpoint.recipe.seed, key) for key in batch.keys]
        seed = torch.tensor([int.from_bytes(each[:8], "big", signed=True) for each in digests], device=device)
        clouds, spread = batch.points.to(device), self.checkpoint.recipe.vote_spread
        for vote in range(1, self.options.votes):
            scaled = scaled_clouds(clouds, seed, vote, spread)
            first = first + model.points_logits(model.point_features(scaled)).cpu()
        return first / self.options.votes

    def examined(self, source: Source, split: str, keys: tuple[str, ...], label_N: Tensor, labels: bool) -> Examined:
        """The answers in all processes."""
        found = {who: self._answers(who, label_N) for who in self.opened.models}
        return Examined(
            source.manifest.dataset,
            split,
            source.manifest.classes,
            self.checkpoint.step,
            keys,
            found["student"],
            found.get("teacher"),
            labels,
            self.checkpoint.recipe.pseudo_labels,
            self.opened.precision,
            self.prompts,
            self.options.votes,
            self.options.views_weight,
            self.options.searched,
        )

    def _answers(self, who: str, label_N: Tensor) -> SplitAnswers:
        parts = self.logits.get(who, [])
        classes = self.opened.models[who].classifier.shape[1]
        logits = {name: gathered([part[name] for part in parts], classes) for name in self.columns}
        return SplitAnswers(label_N, logits, gathered([part["views_right"] for part in parts]))


@dataclass
class _Stream:
    """Checkpoints that read the same data of a split, and the reader of this process's part of it."""

    source: Source
    settings: DataSettings
    reader: SplitReader
    examinees: list[_Examinee]

    def ask(self, options: Options, device: torch.device, on_progress: Progress) -> tuple[tuple[str, ...], Tensor]:
        """Lets every examinee answer each batch. Gives keys and labels (N,) of all processes' objects."""
        workers = self.settings.workers if options.workers is None else options.workers
        keys: list[str] = []
        labels: list[int] = []
        with distributed.together():
            for batch in self.reader.batches(workers):
                for examinee in self.examinees:
                    examinee.answer(batch, options.every_view, device)
                keys += batch.keys
                labels += batch.labels
                on_progress(min(len(keys) * distributed.world(), self.source.total), self.source.total)
        return gathered_keys(keys), distributed.gather_rows(torch.tensor(labels, dtype=torch.int64))


def _streams(opened: list[_Examinee], shards: str, split: str, options: Options) -> list[_Stream]:
    """One stream for all checkpoints that share settings, picture size and, where one view is read, its seed."""
    alike: dict[tuple[DataSettings, int, int | None, Statistics | None, bool], list[_Examinee]] = {}
    for examinee in opened:
        settings = settings_of(examinee.checkpoint, split, options.changes)
        seed = None if options.every_view else examinee.checkpoint.recipe.seed
        tower, pictures = pixel_statistics(examinee.checkpoint.recipe), "image" not in examinee.opened.random
        key = settings, examinee.image_size, seed, tower, pictures
        alike.setdefault(key, []).append(examinee)
    streams = []
    for (settings, image_size, seed, tower, pictures), examinees in alike.items():
        source = open_source(shards, settings, options.warn, tower, pictures)
        for examinee in examinees:
            for model in examinee.opened.models.values():
                model.look_at(settings.channel)
            fit_classes(examinee.opened, source, shards, examinee.prompts, bool(settings.classes))
        numbers = batch_numbers(source.total, BATCH, distributed.rank(), distributed.world())
        make = labelled if options.labels else SplitReader
        view_of = None if seed is None else partial(one_view, seed)
        reader = make(source, settings, image_size, numbers, BATCH, view_of)
        streams.append(_Stream(source, settings, reader, examinees))
    return streams


def logits_of(
    model: CrossModalModel, batch: WholeBatch, features: Features, seed: int, every_view: bool
) -> dict[str, Tensor]:
    """On the CPU: logits (B, C) of a batch by column, and `views_right` (B,), which is (0,) without every_view.

    A batch without pictures has the column `points` alone, and a point tower that is not asked has none. An adapter
    answers about all views together, and has `image_star` alone.
    """
    if features.adapted is not None:
        return {"views_right": torch.zeros(0), "image_star": model.image_logits(features.adapted).cpu()}
    by_view = model.image_logits(features.views)
    found = {"views_right": torch.zeros(0)}
    if every_view and by_view.shape[1]:
        views = [one_view(seed, key, count) for key, count in zip(batch.keys, batch.num_views, strict=True)]
        there = batch.there().to(by_view.device)
        label_B = torch.tensor(batch.labels, device=by_view.device)
        right = (by_view.argmax(dim=2) == label_B[:, None]) & there
        found = {
            "image": by_view[torch.arange(len(views)), views],
            "image_star": model.image_logits(features.image()),
            "views_right": right.float().sum(dim=1) / features.num_views[:, 0],
        }
    elif by_view.shape[1]:
        found["image"] = by_view[:, 0]
    if features.points.shape[1]:
        found["points"] = model.points_logits(features.points)
    return {name: value.cpu() for name, value in found.items()}


def one_view(seed: int, key: str, num_views: int) -> int:
    """The view that the column `image` judges: the same for every model and machine."""
    return int.from_bytes(seed_digest(seed, key)[:8], "big") % num_views


def teacher_labels(
    checkpoints: Sequence[Checkpoint],
    shards: str,
    split: str = "train",
    device: torch.device | None = None,
    on_progress: Progress = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Compares the pseudo-labels of the checkpoints' teachers, on unaugmented objects with one view, with the labels.

    Gives `{step, n, image {selected, precision}, points, joint}` for each checkpoint. Raises Unlabelled where no object
    of the split has a label.
    """
    found = []
    examined = examine(checkpoints, shards, split, device, Options(every_view=False), on_progress)
    for checkpoint, each in zip(checkpoints, examined, strict=True):
        answers = each.teacher or each.student
        quality = pseudo_label_quality(
            answers.logits["image"], answers.logits["points"], answers.label, checkpoint.recipe.pseudo_labels
        )
        found.append({"step": each.step, "n": len(each.keys), **quality})
    return found
