"""Writes the page of `predict --html`: each object as it was drawn, and its three best answers, in one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from manifests.plain_text import html_page, number_of
from training.data.dataset import Source
from training.data.shard_reader import read_joined
from training.data.whole_split import clouds_alone
from training.reports.prediction_sheet import cloud_picture, object_of
from training.settings.data import DataSettings

TEMPLATE = Path(__file__).with_name("predictions.html.j2")
TILE = 112  # side of a picture as shown; twice as many pixels are stored, for sharp screens
MOST_SHOWN = 300  # objects of a page: 20 kB each
BEST = 3


class PredictionPage:
    """Takes the pictures of objects while their shards are there, then sets their answers beside them."""

    def __init__(self) -> None:
        self._pictures: dict[str, list[str]] = {}

    def look(self, source: Source, settings: DataSettings, files: Mapping[str, str]) -> None:
        """Takes views and cloud of each object, of objects without views the cloud. files: name of each by its key."""
        for shard in source.shards:
            for shape, views in read_joined(shard, range(len(shard.keys))):
                if len(self._pictures) >= MOST_SHOWN:
                    return
                shown = object_of(source, settings, shard, (shape, views), files[shape.key])
                self._pictures[shown.name] = [*map(_uri, shown.pictures), _of_cloud(shown.points)]
        for keys, clouds in clouds_alone(source, settings.num_points):
            for key, points in zip(keys, clouds.numpy(), strict=True):
                self._pictures.setdefault(files[key], [_of_cloud(points)])

    def html(self, title: str, rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> str:
        """The page. rows: as `predict` gives them; of more than MOST_SHOWN the first are shown."""
        return html_page(
            TEMPLATE,
            title=title,
            rows=[row | {"pictures": self._pictures.get(row["file"], [])} for row in rows[:MOST_SHOWN]],
            unanswered=sum(row["label"] is None for row in rows),
            total=len(rows),
            classes=list(classes),
            tile=TILE,
            best=BEST,
            number_of=number_of,
        )


def _of_cloud(points: np.ndarray) -> str:
    return _uri(cloud_picture(points, 2 * TILE))


def _uri(picture: np.ndarray) -> str:
    """The address of a picture, uint8 (H, W, 3), that holds the picture itself."""
    image, file = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((2 * TILE, 2 * TILE))
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
