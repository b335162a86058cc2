"""Shards -> batches: shapes and views are merge-joined by their records, shuffled with a seed, decoded, augmented.

An epoch's order depends on (seed, epoch, records) alone: shards are permuted, their concatenation is cut into as many
contiguous ranges as there are readers (offsets in the records let a range begin inside a shard), and each reader
shuffles in a buffer. View, augmentation and mask of a sample are drawn from (seed, epoch, key).
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from manifests import store
from manifests.errors import Refused
from manifests.mappings import NORMALIZE, to_picture
from manifests.records import Record, read_record, record_path
from manifests.samples import POINTS, Sample, decode_array, decode_picture, depth_of_codes, read_samples, view_member
from manifests.shards import (
    BuildManifest,
    ViewSetManifest,
    read_manifest,
    read_view_set,
    shapes_tar,
    view_set_names,
    views_tar,
)
from training.augment import AugmentSettings, StrongPicture, image_mask, normalize_cloud, strong_cloud, to_tensor
from training.augment import weak_cloud as make_weak_cloud
from training.augment import weak_picture as make_weak_picture

log = logging.getLogger(__name__)
Positive = Annotated[int, Field(ge=1)]


class DataSettings(BaseModel):
    """What is read. views: a view set's name. channel: which of its pictures. num_points: a prefix of the cloud.

    shuffle: size of the buffer, samples. workers: reader processes. allow_incomplete: read an unfinished build.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    views: str = "rgb12"
    channel: Literal["rgb", "depth", "gray"] = "rgb"
    split: str = "train"
    num_points: Positive = 8192
    shuffle: Positive = 1024
    workers: Annotated[int, Field(ge=0)] = 0
    allow_incomplete: bool = False


@dataclass(frozen=True)
class Batch:
    """What training sees: no label.

    weak_image, strong_image: float32 (B, 3, S, S), normalised. weak_points, strong_points: float32 (B, N, 3).
    image_mask: bool (B, S/p, S/p), true where hidden. points_draw: float32 (B, 2) and modality_draw: float32 (B,),
    uniform draws for the point mask and for labels.mode=random.
    """

    keys: tuple[str, ...]
    weak_image: Tensor
    strong_image: Tensor
    weak_points: Tensor
    strong_points: Tensor
    image_mask: Tensor
    points_draw: Tensor
    modality_draw: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if name != "keys"}
        return Batch(keys=self.keys, **tensors)


@dataclass(frozen=True)
class LabelledBatch:
    """What evaluation sees: all views of each object, float32 (B, V, 3, S, S), clouds (B, N, 3), label int64 (B,)."""

    keys: tuple[str, ...]
    images: Tensor
    points: Tensor
    label: Tensor


@dataclass(frozen=True)
class Shard:
    """One joined shard: its tars, and of every key in both the offset of its sample in each."""

    shapes: str
    views: str
    keys: tuple[str, ...]
    shapes_offsets: tuple[int, ...]
    views_offsets: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A split of a build joined with one view set."""

    manifest: BuildManifest
    view_set: ViewSetManifest
    shards: tuple[Shard, ...]
    left_out: int

    @property
    def total(self) -> int:
        """Number of objects."""
        return sum(len(shard.keys) for shard in self.shards)


def open_source(shards: str, settings: DataSettings) -> Source:
    """Joins the records of a split with those of a view set; reads no tar.

    Raises Refused when there is no build, it is not finished, the split or the view set is missing, or a record is.
    """
    out = store.absolute(shards)
    try:
        manifest, view_set = read_manifest(out), read_view_set(out, settings.views)
    except ValueError as error:
        raise Refused(str(error)) from error
    if manifest is None:
        raise Refused(f"--shards {shards} holds no build (no manifest.json)")
    if not manifest.complete and not settings.allow_incomplete:
        raise Refused(
            f"--shards {shards} is not finished: run its build again, or insist with data.allow_incomplete=true"
        )
    if settings.split not in manifest.splits:
        raise Refused(f"data.split={settings.split}: {shards} has {', '.join(manifest.splits)}")
    if view_set is None:
        names = ", ".join(view_set_names(out)) or "none"
        raise Refused(f"data.views={settings.views}: {shards} has no such view set (it has: {names})")
    if view_set.shapes_hash != manifest.shapes_hash:
        raise Refused(f"{out}/views/{settings.views} was drawn from other shapes: delete it and draw it again")
    joined, left_out = [], 0
    for number in range(manifest.num_shards[settings.split]):
        tars = shapes_tar(out, settings.split, number), views_tar(out, settings.views, settings.split, number)
        shard, missing = _join(*tars, settings.allow_incomplete)
        if shard is not None:
            joined.append(shard)
        left_out += missing
    if left_out:
        log.warning("%s: %d objects are left out: their views failed or were skipped", out, left_out)
    return Source(manifest, view_set, tuple(joined), left_out)


def _join(shapes: str, views: str, allow_incomplete: bool) -> tuple[Shard | None, int]:
    """The joined shard and how many objects are declared to have no views. Raises Refused where records disagree."""
    records: list[Record] = []
    for tar in (shapes, views):
        try:
            record = read_record(record_path(tar))
        except ValueError as error:
            raise Refused(str(error)) from error
        if record is None or not store.exists(tar):
            if allow_incomplete:
                return None, 0
            raise Refused(f"{tar} or its record is missing: run the build again, or data.allow_incomplete=true")
        records.append(record)
    declared = {f.key for f in records[1].failures} | {s.key for s in records[1].skipped}
    expected = tuple(key for key in records[0].keys if key not in declared)
    if expected != records[1].keys:
        odd = sorted(set(expected) ^ set(records[1].keys)) or ["the order"]
        raise Refused(f"{views} does not fit {shapes}: {odd[0]} differs; draw this view set again")
    offsets = dict(zip(records[0].keys, records[0].offsets, strict=True))
    shard = Shard(shapes, views, expected, tuple(offsets[key] for key in expected), records[1].offsets)
    return shard, records[0].count - len(expected)


def read_joined(shard: Shard, start: int, stop: int) -> Iterator[tuple[Sample, Sample]]:
    """(shape, views) samples number start..stop of a joined shard.

    Raises ValueError naming the tar and the key when a tar ends early, is damaged or holds another key.
    """
    if start >= stop:
        return
    with store.open_reading(shard.shapes) as shapes_file, store.open_reading(shard.views) as views_file:
        shapes_file.seek(shard.shapes_offsets[start])
        views_file.seek(shard.views_offsets[start])
        shapes, views = read_samples(shapes_file), read_samples(views_file)
        for key in shard.keys[start:stop]:
            yield _next(shapes, shard.shapes, key, skip=True), _next(views, shard.views, key, skip=False)


def _next(samples: Iterator[tuple[int, Sample]], tar: str, key: str, skip: bool) -> Sample:
    """The next sample, which must be `key`; shapes may hold objects between that have no views."""
    try:
        for _, sample in samples:
            if sample.key == key:
                return sample
            if not skip:
                raise ValueError(f"{tar}: found {sample.key} where its record says {key}")
    except ValueError as error:
        raise ValueError(str(error) if tar in str(error) else f"{tar}: at {key}: {error}") from error
    raise ValueError(f"{tar}: ends before {key}: fewer samples than its record says")


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of everything random about one sample in one epoch."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()[:16], "big"))


def picture_of(views: Sample, number: int, channel: str, mapping: str) -> Image.Image:
    """One view as an RGB picture; depth is mapped as its preset says. Raises ValueError naming the key."""
    suffixes = [name for s in ("png", "jpg") if (name := view_member(number, channel, s)) in views.members]
    if not suffixes:
        raise ValueError(f"{views.key} has no {channel} picture of view {number}")
    array = decode_picture(views.members[suffixes[0]])
    if channel == "depth":
        camera = views.json["views"][number]
        depth = depth_of_codes(array, camera["near"], camera["far"])
        array = np.rint(to_picture(depth, mapping) * 255).astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


def num_views(views: Sample) -> int:
    """How many views an object has."""
    return len(views.json["views"])


@dataclass(frozen=True)
class Form:
    """What a model takes: side of a picture, patch and mask cell in pixels, share of hidden cells."""

    image_size: int
    patch: int
    mask_cell: int
    mask_ratio: float


class UnlabelledSamples(IterableDataset):
    """Batches of one process for one epoch; call `set_epoch` before iterating."""

    def __init__(
        self,
        source: Source,
        settings: DataSettings,
        augment: AugmentSettings,
        form: Form,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.source, self.settings, self.form = source, settings, form
        self.augment, self.batch_size, self.seed = augment, batch_size, seed
        self.rank, self.world, self.epoch = rank, world, 0
        self.num_batches = source.total // (batch_size * world)
        if not self.num_batches:
            raise Refused(
                f"optimizer.batch_size={batch_size * world} is more than the {source.total} objects of "
                f"data.split={settings.split}"
            )
        mean = NORMALIZE[source.view_set.preset.normalize][0]
        fill = tuple(round(255 * m) for m in mean)
        self._strong = StrongPicture(augment, form.image_size, fill)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the draws of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        pipeline = wds.DataPipeline(
            lambda: self._range(worker, workers),
            wds.shuffle(
                self.settings.shuffle,
                initial=self.settings.shuffle,
                rng=random.Random(f"{self.seed}/{self.epoch}/{self.rank}/{worker}"),
            ),
            wds.map(self._make),
            wds.batched(self.batch_size, collation_fn=collate, partial=False),
        )
        yield from pipeline

    def _range(self, worker: int, workers: int) -> Iterator[tuple[Sample, Sample]]:
        """The joined samples of one reader: whole batches, contiguous in the permuted concatenation of all shards."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.source.shards))
        each = self.num_batches // workers + (worker < self.num_batches % workers)
        before = worker * (self.num_batches // workers) + min(worker, self.num_batches % workers)
        first = (self.rank * self.num_batches + before) * self.batch_size
        last = first + each * self.batch_size
        position = 0
        for index in order:
            shard = self.source.shards[index]
            start, stop = max(first - position, 0), min(last - position, len(shard.keys))
            if start < stop:
                yield from read_joined(shard, start, stop)
            position += len(shard.keys)

    def _make(self, pair: tuple[Sample, Sample]) -> dict[str, object]:
        shape, views = pair
        rng = sample_rng(self.seed, self.epoch, shape.key)
        preset, form = self.source.view_set.preset, self.form
        view = int(rng.integers(num_views(views)))
        picture = picture_of(views, view, self.settings.channel, preset.mapping)
        mean, deviation = NORMALIZE[preset.normalize]
        points = decode_array(shape.members[POINTS])[: self.settings.num_points]
        points = pad_cloud(points, self.settings.num_points, rng)
        return {
            "key": shape.key,
            "weak_image": to_tensor(make_weak_picture(picture, form.image_size), mean, deviation),
            "strong_image": to_tensor(self._strong(picture, rng), mean, deviation),
            "weak_points": torch.from_numpy(make_weak_cloud(points, rng)),
            "strong_points": torch.from_numpy(strong_cloud(points, self.augment, rng)),
            "image_mask": torch.from_numpy(
                image_mask(form.image_size, form.patch, form.mask_cell, form.mask_ratio, rng)
            ),
            "points_draw": torch.from_numpy(rng.random(2).astype(np.float32)),
            "modality_draw": torch.tensor(rng.random(), dtype=torch.float32),
        }


def pad_cloud(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """A cloud with fewer points than `count`, filled up by repeating some of them."""
    if len(points) >= count:
        return points
    return np.concatenate([points, points[rng.integers(len(points), size=count - len(points))]])


def collate(samples: list[dict[str, object]]) -> Batch:
    """One batch of samples."""
    stacked = {name: torch.stack([s[name] for s in samples]) for name in samples[0] if name != "key"}
    return Batch(keys=tuple(s["key"] for s in samples), **stacked)


def unlabelled(
    shards: str, settings: DataSettings, augment: AugmentSettings, form: Form, batch_size: int, seed: int
) -> tuple[UnlabelledSamples, DataLoader]:
    """Batches without labels for training. `set_epoch` on the first, iterate over the second. Raises Refused."""
    samples = UnlabelledSamples(open_source(shards, settings), settings, augment, form, batch_size, seed)
    loader = DataLoader(samples, batch_size=None, num_workers=settings.workers, persistent_workers=False)
    return samples, loader


def labelled(
    shards: str, settings: DataSettings, image_size: int, batch_size: int
) -> tuple[Source, Callable[[], Iterator[LabelledBatch]]]:
    """Batches with labels for evaluation, in the order of the shards; objects without a label are left out."""
    source = open_source(shards, settings)

    def batches() -> Iterator[LabelledBatch]:
        samples: list[tuple[str, Tensor, Tensor, int]] = []
        for shard in source.shards:
            for shape, views in read_joined(shard, 0, len(shard.keys)):
                label = shape.json["label"]
                if label is not None:
                    samples.append((shape.key, *_whole(shape, views, source, settings, image_size), label))
                if len(samples) == batch_size:
                    yield _collate_labelled(samples)
                    samples = []
        if samples:
            yield _collate_labelled(samples)

    return source, batches


def _whole(
    shape: Sample, views: Sample, source: Source, settings: DataSettings, image_size: int
) -> tuple[Tensor, Tensor]:
    preset = source.view_set.preset
    mean, deviation = NORMALIZE[preset.normalize]
    pictures = [
        to_tensor(
            make_weak_picture(picture_of(views, v, settings.channel, preset.mapping), image_size), mean, deviation
        )
        for v in range(num_views(views))
    ]
    points = decode_array(shape.members[POINTS])[: settings.num_points]
    points = pad_cloud(points, settings.num_points, sample_rng(0, 0, shape.key))
    return torch.stack(pictures), torch.from_numpy(normalize_cloud(points))


def _collate_labelled(samples: list[tuple[str, Tensor, Tensor, int]]) -> LabelledBatch:
    keys, images, points, labels = zip(*samples, strict=True)
    return LabelledBatch(keys, torch.stack(images), torch.stack(points), torch.tensor(labels))
