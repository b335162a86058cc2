"""Batches of image-depth pre-training: an RGB view of each object and two depth maps of the same camera.

The maps are drawn on the device of the training, from the stored cloud, at two random distances; or they are those of
view sets beside the RGB one. No label is read.

Shape letters: B objects, M maps of each, S side of a picture, N points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifests.errors import Refused
from manifests.layout import asked_view_set
from manifests.picture_mapping import Statistics, mean_and_deviation
from manifests.presets import AnyViews, load_preset
from manifests.samples import JSON, Sample, split_view_member
from renderers.point_depth_torch import DISTANCE_SPREAD, turned_pictures
from training.data.batch import mapped, moved, normalized, pixel_constants
from training.data.dataset import Shard, Source, open_source
from training.data.decode import picture_of
from training.data.image_augment import weak_picture
from training.data.loader import Drawn, EpochSamples
from training.data.point_augment import random_part, uniforms
from training.data.sample_index import naming
from training.data.sampler import Range
from training.data.shard_reader import read_pieces
from training.settings.data import DataSettings

DISTANCE = -2  # the stream of draws of the distances


@dataclass(frozen=True)
class PairBatch:
    """What image-depth pre-training sees, normalised: image float32 (B, 3, S, S), depth float32 (B, M, 3, S, S)."""

    keys: tuple[str, ...]
    image: Tensor
    depth: Tensor


@dataclass(frozen=True)
class Live:
    """How maps are drawn: discs of a radius (half the picture = 1) in a window of half_extent world units; of how many
    points; whether these are random ones. pixels: mean and deviation of a map's numbers in [0, 1]."""

    disc_radius: float
    half_extent: float
    points: int
    random: bool
    pixels: Statistics


@dataclass(frozen=True)
class RawPairBatch:
    """What a loader gives: image uint8 (B, 3, S, S); stored maps uint8 (B, M, 3, S, S), M = 0 where they are drawn.

    points: float32 (B, N, 3). seed: int64 (B,). rotation: float32 (B, 3, 3), of the camera of the image. pixels: mean
    and deviation of the image, then of each stored map.
    """

    keys: tuple[str, ...]
    image: Tensor
    maps: Tensor
    points: Tensor
    seed: Tensor
    rotation: Tensor
    pixels: tuple[Statistics, ...]
    live: Live | None

    def pin_memory(self) -> RawPairBatch:
        """In memory that a GPU reads by itself; DataLoader(pin_memory=True) calls it."""
        return mapped(self, Tensor.pin_memory)

    def to(self, device: torch.device) -> PairBatch:
        """The batch on a device, where maps are drawn."""
        here = moved(self, device)
        image = normalized(here.image, *self.pixels[0])
        if self.live is not None:
            return PairBatch(
                self.keys, image, drawn_pairs(here.points, here.seed, here.rotation, here.image, self.live)
            )
        maps = zip(here.maps.unbind(dim=1), self.pixels[1:], strict=True)
        return PairBatch(self.keys, image, torch.stack([normalized(each, *pixels) for each, pixels in maps], dim=1))


def drawn_pairs(points: Tensor, seed: Tensor, rotation: Tensor, image: Tensor, live: Live) -> Tensor:
    """Two normalised maps (B, 2, 3, S, S) of each cloud, from distances d = 1 + U(-0.1, 0.1), drawn by its seed.

    image: whose size the maps get.
    """
    chosen = random_part(points, seed, live.points) if live.random else points[:, : live.points]
    distances = 1 + (uniforms(seed, DISTANCE, 2) - 0.5) * (2 * DISTANCE_SPREAD)
    middle, width = pixel_constants(*live.pixels, points.device)
    maps = turned_pictures(chosen, rotation, distances, image.shape[-1], live.half_extent, live.disc_radius)
    return (maps[:, :, None] - middle) / width


def depth_preset(shards: str, name: str) -> AnyViews:
    """The preset of the build's view set of this name, else the shipped one. Raises Refused where there is neither."""
    found = asked_view_set(shards, name)
    return load_preset(name)[1] if found is None else found.preset


def live_of(preset: AnyViews, name: str, points: int, random: bool, tower: Statistics | None) -> Live:
    """How maps of a preset are drawn.

    Raises Refused unless it is the released renderer, whose distance is a zoom.
    """
    discs = preset.released_discs
    if discs is None:
        raise Refused(
            f"clip2point.depth={name}: maps at random distances are drawn by merge=disc and mapping=clip2point alone, "
            "as depth10_release has them; clip2point.maps takes stored ones of other presets"
        )
    pixels = mean_and_deviation("depth", preset, tower)
    return Live(*discs, points, random, pixels)


class PairSamples(EpochSamples):
    """An RGB view of each object, its cloud and camera, and stored maps of the same view: RawPairBatch.

    Samples, their order and their views are those of UnlabelledSamples. maps: opened view sets of depth, one for each
    stored map; only objects that all of them have are taken. depth: the preset of the depth pictures that evaluation
    and prediction will show. Making it raises Refused where the cameras are unknown.
    """

    pictures = ("image", "maps")

    def __init__(
        self,
        depth: AnyViews,
        live: Live | None,
        maps: tuple[tuple[Source, DataSettings], ...],
        source: Source,
        *rest: Any,
    ) -> None:
        self.depth, self.live, self.sets = depth, live, maps
        shared = frozenset.intersection(*(_keys(each) for each in (source, *(each for each, _ in maps))))
        self._others = [{shard.shapes: shard for shard in _only(each, shared).shards} for each, _ in maps]
        super().__init__(_only(source, shared), *rest)
        if live is not None and source.preset.reads:
            words = "whose cameras need not be known: clip2point.maps takes stored depth maps"
            raise Refused(f"data.views={self.settings.views} has pictures of the dataset's own, {words}")
        counts = {each.preset.num_views for each in (self.source, *(each for each, _ in maps))}
        if len(counts) > 1:
            names = ", ".join([self.settings.views, *(each.views for _, each in maps)])
            raise Refused(f"clip2point.maps: {names} have different numbers of views, and view i stands beside view i")

    @property
    def num_pictures(self) -> int:
        """With the stored maps."""
        return 1 + len(self.sets)

    @property
    def num_points(self) -> int:
        """No more of a stored cloud than is drawn."""
        if self.live is None:
            return 0
        return self.settings.num_points if self.live.random else self.live.points

    def _wanted(self, shape: Sample, suffix: str) -> bool:
        return self.live is not None and super()._wanted(shape, suffix)

    def _read(self, epoch: int, ranges: list[Range], positions: list[int]) -> Iterator[tuple[int, Drawn]]:
        arriving = super()._read(epoch, ranges, positions)
        if not self.sets:
            yield from arriving
            return
        pieces = self._pieces(ranges, positions)
        readers = [
            _Maps(others, pieces, settings) for others, (_, settings) in zip(self._others, self.sets, strict=True)
        ]
        for position, drawn in arriving:
            yield position, replace(drawn, beside=tuple(reader.next(drawn.view) for reader in readers))

    def _make(self, drawn: Drawn) -> dict[str, Any]:
        size, maps = self.form.image_size, []
        for (source, settings), (shard, views) in zip(self.sets, drawn.beside, strict=True):
            with naming(shard.views, views.key):
                maps.append(weak_picture(picture_of(views, drawn.view, settings.channel, source.preset), size))
        pose = np.eye(4) if self.live is None else drawn.views.json["views"][drawn.view]["camera_from_world"]
        return {
            "key": drawn.shape.key,
            "image": weak_picture(self._picture(drawn), size),
            "maps": np.stack(maps) if maps else np.zeros((0, size, size, 3), np.uint8),
            "points": np.zeros((0, 3), np.float32) if self.live is None else self._cloud(drawn),
            "seed": drawn.rng.integers(2**63),
            "rotation": np.asarray(pose, np.float32)[:3, :3],
        }

    def _collate(self, samples: list[dict[str, Any]]) -> RawPairBatch:
        names = [name for name in samples[0] if name != "key"]
        tensors: dict[str, Any] = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in names}
        tensors |= {name: tensors[name].movedim(-1, -3) for name in self.pictures}
        pixels = ((self.mean, self.deviation), *(source.pixels for source, _ in self.sets))
        return RawPairBatch(tuple(s["key"] for s in samples), **tensors, pixels=pixels, live=self.live)


class _Maps:
    """Reads the views of a depth set beside those of an RGB set, object by object, and of each only the drawn view."""

    def __init__(self, shards: dict[str, Shard], pieces: list[tuple[Shard, list[int]]], settings: DataSettings) -> None:
        self._view, self._channel = 0, settings.channel
        beside = [(shards[shard.shapes], numbers) for shard, numbers in pieces]
        self._shards = iter([shard for shard, numbers in beside for _ in numbers])
        self._samples = read_pieces(beside, lambda shape, suffix: False, self._wanted)

    def _wanted(self, views: Sample, suffix: str) -> bool:
        return suffix == JSON or split_view_member(suffix) == (self._view, self._channel)

    def next(self, view: int) -> tuple[Shard, Sample]:
        """The shard and the views of the next object."""
        self._view = view
        ((_, views),) = islice(self._samples, 1)
        return next(self._shards), views


def opened_maps(
    shards: str, names: tuple[str, ...], settings: DataSettings, tower: Statistics | None
) -> tuple[tuple[Source, DataSettings], ...]:
    """The view sets of stored maps. Raises Refused where one is missing."""
    found = [settings.model_copy(update={"views": name, "channel": "depth"}) for name in names]
    return tuple((open_source(shards, each, tower=tower), each) for each in found)


def _keys(source: Source) -> frozenset[str]:
    return frozenset(key for shard in source.shards for key in shard.keys)


def _only(source: Source, keys: frozenset[str]) -> Source:
    """A source of these objects."""
    shards = [shard.only(keys) for shard in source.shards]
    return replace(source, shards=tuple(shard for shard in shards if shard.keys))
