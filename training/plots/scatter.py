"""Draws features in the plane: a mark for each object and modality, coloured by class.

Shape letters: N objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from training.plots.figure import literal, new_figure, png

GREY = "#9a9a9a"
MAPS = ("tab20", "tab20b", "tab20c")
MARKS = (("o", 16), ("^", 20))  # and their sizes
ROWS = 32  # of the legend


def class_colours(number: int) -> list[tuple[float, float, float]]:
    """A colour for each class; the 61st is the first again."""
    maps = [matplotlib.colormaps[name] for name in MAPS]
    colours = [each(index)[:3] for each in maps for index in range(each.N)]
    return [colours[index % len(colours)] for index in range(number)]


def scatter_picture(places: dict[str, np.ndarray], label_N: np.ndarray, classes: Sequence[str], title: str) -> bytes:
    """PNG: places (N, 2) in the plane by what is there, each with a mark of its own; the legend lists the classes that
    occur.

    Forty colours are hard to tell apart, so the number of a class is written over the middle of its marks.
    """
    there = [int(label) for label in np.unique(label_N) if label >= 0]
    columns = -(-(len(there) + len(places) + 1) // ROWS)
    figure = new_figure(8.2 + 1.7 * columns, 8.0, title)
    axis = figure.add_subplot()
    colours = class_colours(len(classes))
    marks = tuple(zip(places.items(), MARKS, strict=False))
    for (_, places_N2), (mark, size) in marks:
        for label in [-1, *there]:
            chosen = places_N2[label_N == label]
            colour = GREY if label < 0 else colours[label]
            axis.scatter(chosen[:, 0], chosen[:, 1], s=size, marker=mark, color=[colour], linewidths=0, alpha=0.75)
    for places_N2 in places.values():
        for label in there:
            axis.annotate(
                str(label),
                np.median(places_N2[label_N == label], axis=0),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
                fontweight="bold",
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color("#cccccc")
    handles = [_mark(mark, "#444444", name) for (name, _), (mark, _) in marks]
    handles += [_mark("s", colours[label], literal(f"{label}  {classes[label]}", 8)) for label in there]
    if (label_N < 0).any():
        handles.append(_mark("s", GREY, "no label"))
    figure.legend(handles=handles, loc="outside right upper", ncols=columns, frameon=False, fontsize=8)
    return png(figure)


def _mark(marker: str, colour: str | tuple[float, float, float], name: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6, label=name)
