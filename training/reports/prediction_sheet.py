"""Draws contact sheets: objects of shards with views and cloud, and the models' answers about them.

Right and wrong answers differ in colour and in their marks, for colour-blind readers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from manifests.rng import seed_digest
from manifests.samples import Sample
from training.data.dataset import Shard, Source
from training.data.decode import num_views, picture_of
from training.data.sample_index import naming
from training.data.shard_reader import read_joined
from training.data.whole_split import whole_cloud
from training.evaluation.metrics import Examined
from training.plots.figure import shortened
from training.settings.data import DataSettings

# Colours that are dark enough on white for small print.
BLACK, RIGHT, WRONG, QUIET, RULE = "#000000", "#00664A", "#B8420A", "#666666", "#cccccc"
SHARPNESS = 1.5  # pixels drawn for each pixel shown
NUM_VIEWS = 4
NUM_SHOWN = 12
ANSWERED = {"image_star": "Image*", "points": "Point cloud"}


@dataclass(frozen=True)
class Answer:
    """One prediction. column: shown name of the modality; confidence: probability of the predicted class."""

    column: str
    predicted: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class Shown:
    """An object of a contact sheet. pictures: uint8 (H, W, 3) each; points: float32 (N, 3); answers: of each model."""

    name: str
    pictures: tuple[np.ndarray, ...]
    points: np.ndarray
    answers: tuple[tuple[str, tuple[Answer, ...]], ...] = ()


def spread(keys: Sequence[str], labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Numbers of up to `count` objects, spread over the classes. Choice and order depend on the seed."""
    by_class: dict[int, list[int]] = {}
    for number in sorted(range(len(keys)), key=lambda number: seed_digest(seed, keys[number])):
        by_class.setdefault(labels[number], []).append(number)
    classes = sorted(by_class, key=lambda label: seed_digest(seed, "class", label))
    rounds = range(max(map(len, by_class.values()), default=0))
    return [by_class[label][turn] for turn in rounds for label in classes if turn < len(by_class[label])][:count]


def target_objects(source: Source, settings: DataSettings, rows: Mapping[str, Examined], seed: int) -> list[Shown]:
    """Objects of an evaluated split, with the answers of the students. rows: by the name that the sheet shows."""
    some = next(iter(rows.values()))
    labels = some.student.label.tolist()
    wanted = {some.keys[number]: number for number in spread(some.keys, labels, NUM_SHOWN, seed)}
    found: dict[str, Shown] = {}
    for shard in source.shards:
        inside = [number for number, key in enumerate(shard.keys) if key in wanted]
        for shape, views in read_joined(shard, inside):
            title = f"{some.classes[labels[wanted[shape.key]]]}   ({shape.key})"
            answers = tuple((name, _answers(each, each.keys.index(shape.key))) for name, each in rows.items())
            found[shape.key] = object_of(source, settings, shard, (shape, views), title, answers)
    return [found[key] for key in wanted]


def _answers(examined: Examined, number: int) -> tuple[Answer, ...]:
    answers = []
    for column, shown in ANSWERED.items():
        predicted, confidence = examined.student.guess(column, number)
        right = predicted == int(examined.student.label[number])
        answers.append(Answer(shown, examined.classes[predicted], confidence, right))
    return tuple(answers)


def source_objects(source: Source, settings: DataSettings) -> list[Shown]:
    """Up to NUM_SHOWN objects of different classes, from the first shards (their order is random)."""
    found: dict[str, Shown] = {}
    for shard in source.shards:
        for shape, views in read_joined(shard, range(len(shard.keys))):
            name = shape.json["class"] or "no class"
            if name not in found:
                found[name] = object_of(source, settings, shard, (shape, views), name)
            if len(found) == NUM_SHOWN:
                return list(found.values())
    return list(found.values())


def object_of(
    source: Source,
    settings: DataSettings,
    shard: Shard,
    joined: tuple[Sample, Sample],
    title: str,
    answers: tuple[tuple[str, tuple[Answer, ...]], ...] = (),
) -> Shown:
    """An object with up to NUM_VIEWS of the views that are used, evenly chosen; without pictures its cloud."""
    shape, views = joined
    if source.view_set is None:
        return Shown(title, (), whole_cloud(shard, shape, settings.num_points), answers)
    with naming(shard.views, views.key):
        used, preset = settings.views_of(num_views(views)), source.preset
        count = min(NUM_VIEWS, len(used))
        numbers = [used[number * len(used) // count] for number in range(count)]
        pictures = tuple(np.asarray(picture_of(views, number, settings.channel, preset)) for number in numbers)
    return Shown(title, pictures, whole_cloud(shard, shape, settings.num_points), answers)


def sheet(objects: Sequence[Shown], across: int = 1) -> bytes:
    """PNG: objects in rows, `across` beside one another: views, the cloud, and every model's answers.

    Right answers are green with a tick, wrong ones red with a cross, with their probability.
    """
    tile, gap, caption, column = (round(SHARPNESS * pixels) for pixels in (86, 4, 22, 182))
    pictures = max(len(each.pictures) for each in objects) + 1
    models = [name for name, _ in objects[0].answers]
    cell = pictures * (tile + gap) + len(models) * column + 2 * gap
    row, head = tile + caption + 2 * gap, caption + gap if models else 0
    down = -(-len(objects) // across)
    page = Image.new("RGB", (across * cell, head + down * row + gap), "white")
    pen = ImageDraw.Draw(page)
    for number, model in enumerate(models):
        at, bold = (gap + pictures * (tile + gap) + number * column, gap), _font(14, bold=True)
        pen.text(at, _fitted(model, bold, column - 2 * gap), fill=BLACK, font=bold)
    for number, each in enumerate(objects):
        left, top = gap + number % across * cell, head + number // across * row
        pen.line((left, top, left + cell - 3 * gap, top), fill=RULE)
        bold = _font(14, bold=True)
        pen.text((left, top + gap), _fitted(each.name, bold, cell - 4 * gap), fill=BLACK, font=bold)
        for place, picture in enumerate([*each.pictures, cloud_picture(each.points, tile)]):
            shown = Image.fromarray(picture).resize((tile, tile), Image.Resampling.BICUBIC)
            page.paste(shown, (left + place * (tile + gap), top + caption))
        for place, (_, answers) in enumerate(each.answers):
            at = left + pictures * (tile + gap) + place * column, top + caption
            _write_answers(pen, at, answers, column - 2 * gap)
    data = io.BytesIO()
    page.save(data, format="png")
    return data.getvalue()


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """One line of at most this many pixels."""
    return shortened(text, lambda shown: font.getlength(shown) <= width)


def _write_answers(pen: ImageDraw.ImageDraw, place: tuple[int, int], answers: Sequence[Answer], width: int) -> None:
    left, top = place
    line, font = round(SHARPNESS * 17), _font(14)
    for number, answer in enumerate(answers):
        at = top + 2 * number * line + number * line // 2
        pen.text((left, at), answer.column, fill=QUIET, font=_font(12))
        mark, colour = ("✓", RIGHT) if answer.right else ("✗", WRONG)
        share = f" {100 * answer.confidence:.0f} %"
        told = _fitted(f"{mark} {answer.predicted}", font, width - font.getlength(share)) + share
        pen.text((left, at + line), told, fill=colour, font=font)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships: it has a tick and a cross. size: pixels as shown."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, round(SHARPNESS * size))


def cloud_picture(points: np.ndarray, size: int, colors: np.ndarray | None = None) -> np.ndarray:
    """Draws a cloud within the unit sphere, +Y up, from the front right and a little above: uint8 (size, size, 3).

    Nearer points are darker, or with colors, uint8 (N, 3), drawn over those behind them.
    """
    azimuth, elevation = np.deg2rad(30), np.deg2rad(20)
    right = np.array([np.cos(azimuth), 0, np.sin(azimuth)])
    up = np.array([-np.sin(azimuth) * np.sin(elevation), np.cos(elevation), np.cos(azimuth) * np.sin(elevation)])
    towards = np.cross(right, up)
    scale = 4 * size / 2.2
    plain = colors is None
    page = Image.new("L" if plain else "RGB", (4 * size, 4 * size), "white")  # four times as large: smooth dots
    pen = ImageDraw.Draw(page)
    for number in np.argsort(points @ towards):
        point = points[number]
        x, y = 2 * size + scale * (point @ right), 2 * size - scale * (point @ up)
        gray = int(np.clip(150 - 75 * (point @ towards + 1), 0, 200))
        shade = gray if colors is None else tuple(colors[number].tolist())
        radius = size / 24
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade)
    return np.asarray(page.resize((size, size), Image.Resampling.BOX).convert("RGB"))
