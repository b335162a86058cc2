"""Draws predictions: confusion matrices, and how often each class is predicted.

Shape letters: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import PercentFormatter

from training.plots.figure import BLACK, BLUE, GREEN, VERMILLION, literal, new_figure, png, width_of

MANY = 20  # classes beyond which cells are too small for their counts
DARK = 0.55  # share of a row beyond which a cell's count is written in white
COLOURS = (BLUE, VERMILLION, GREEN, BLACK)


def confusion_picture(counts: np.ndarray, classes: Sequence[str], title: str) -> bytes:
    """PNG of int (C, C): a row a true class, a column a predicted one, coloured by the share of the row.

    With up to MANY classes, the cells show the counts. The row of a class without objects is white.
    """
    number = len(classes)
    small = 8 if number <= MANY else 6.5
    classes = [literal(name, small) for name in classes]
    side = max(4.0, 0.22 * number) + max(1.6, 0.6 + max(width_of(name, small) for name in classes))
    figure = new_figure(side + 0.9, side, title)
    axis = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks(range(number), classes, rotation=90, fontsize=small)
    axis.set_yticks(range(number), classes, fontsize=small)
    axis.set_xticks(np.arange(number + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(number + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="#eeeeee", linewidth=0.5)
    axis.tick_params(which="both", length=0)
    axis.set_xlabel("predicted class", fontsize=10)
    axis.set_ylabel("true class", fontsize=10)
    if number <= MANY:
        for row, column in np.argwhere(counts):
            colour = "white" if share[row, column] > DARK else BLACK
            axis.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(image, ax=axis, shrink=0.6, aspect=30, pad=0.02, format=PercentFormatter(1.0))
    bar.set_label("of the true class's objects", fontsize=9)
    bar.outline.set_visible(False)
    return png(figure)


def histogram_picture(counts: Mapping[str, Sequence[int]], classes: Sequence[str], title: str) -> bytes:
    """PNG: bars by class, a colour a series; the dotted line is an even share of the first."""
    number, several, small = len(classes), len(counts), 8 if len(classes) <= MANY else 7
    classes = [literal(name, small) for name in classes]
    longest = max(width_of(name, small) for name in classes)
    figure = new_figure(max(7.0, 1.5 + 0.28 * number), 3.2 + max(0.6, longest), title)
    axis = figure.add_subplot()
    width = 0.8 / several
    for place, ((name, count), colour) in enumerate(zip(counts.items(), COLOURS, strict=False)):
        middle = np.arange(number) + (place - (several - 1) / 2) * width
        axis.bar(middle, count, width, color=colour, label=name)
    axis.axhline(sum(next(iter(counts.values()))) / number, color="#666666", linestyle=":", linewidth=1, label="even")
    axis.set_xticks(range(number), classes, rotation=90, fontsize=small)
    axis.ticklabel_format(axis="y", useOffset=False, style="plain")
    axis.set_xlim(-0.6, number - 0.4)
    axis.set_ylabel("objects", fontsize=9)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False, ncols=several + 1)
    return png(figure)
