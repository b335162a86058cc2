"""Draws a sheet of objects with their parts in colours: as found, and beside that as they are where that is known."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from manifests.picture_mapping import part_colors
from manifests.plain_text import for_terminal
from training.evaluation.part_iou import LabelledPoints
from training.reports.prediction_sheet import cloud_picture, spread

TILE, GAP, CAPTION = 160, 6, 22
ACROSS = 4  # objects in a row
MOST = 24


def part_sheet(objects: Sequence[LabelledPoints], rows: Sequence[dict[str, Any]], seed: int) -> bytes:
    """PNG of up to MOST objects, spread over the classes; the seed chooses. rows: what `predict` says of each."""
    chosen = spread([each.key for each in objects], [each.category for each in objects], MOST, seed)
    known = all(objects[number].parts is not None for number in chosen)
    cell = (1 + known) * (TILE + GAP)
    across, down = min(ACROSS, max(len(chosen), 1)), -(-len(chosen) // ACROSS)
    page = Image.new("RGB", (across * cell + GAP, down * (TILE + CAPTION + GAP) + CAPTION), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    pen.text((GAP, 4), "parts as found" + (" | as they are" if known else ""), fill="black", font=font)
    for place, number in enumerate(chosen):
        each, row = objects[number], rows[number]
        left = GAP + place % ACROSS * cell
        top = CAPTION + place // ACROSS * (TILE + CAPTION + GAP)
        iou = "" if row["iou"] is None else f"  IoU {row['iou']:.0f} %"
        pen.text((left, top + 3), for_terminal(f"{row['class']}{iou}"), fill="black", font=font)
        for side, parts in enumerate([each.found["class"], *([each.parts] if known else [])]):
            assert parts is not None  # `known` says so
            picture = cloud_picture(each.points, TILE, part_colors(parts))
            page.paste(Image.fromarray(picture), (left + side * (TILE + GAP), top + CAPTION))
    data = io.BytesIO()
    page.save(data, format="png")
    return data.getvalue()
