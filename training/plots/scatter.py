"""Features in the plane: a mark an object and modality, coloured by class.

Shape letters: N objects.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from training.plots.curves import DPI, literal

GREY = "#9a9a9a"
MAPS = ("tab20", "tab20b", "tab20c")
ROWS = 32  # of the legend


def class_colours(number: int) -> list[tuple[float, ...]]:
    """A colour for each class; from the 61st on they come again."""
    colours = [colour for name in MAPS for colour in matplotlib.colormaps[name].colors]
    return [colours[index % len(colours)] for index in range(number)]


def scatter_picture(
    image_N2: np.ndarray, points_N2: np.ndarray, label_N: np.ndarray, classes: Sequence[str], title: str
) -> bytes:
    """PNG: discs for images, triangles for clouds. A number stands over the middle of a class's marks of each modality,
    since forty colours alone cannot be told apart; the legend has the classes that there are, by number.
    """
    there = [int(label) for label in np.unique(label_N) if label >= 0]
    columns = -(-(len(there) + 3) // ROWS)
    figure = Figure(figsize=(8.2 + 1.7 * columns, 8.0), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    colours = class_colours(len(classes))
    marks = ((image_N2, "o", 16), (points_N2, "^", 20))
    for places, mark, size in marks:
        for label in [-1, *there]:
            chosen = places[label_N == label]
            colour = GREY if label < 0 else colours[label]
            axis.scatter(*chosen.T, s=size, marker=mark, color=[colour], linewidths=0, alpha=0.75)
    for places, _, _ in marks:
        for label in there:
            axis.annotate(
                str(label),
                np.median(places[label_N == label], axis=0),
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
    figure.suptitle(literal(title), x=0.01, ha="left", fontsize=10)
    handles = [_mark("o", "#444444", "image (mean of views)"), _mark("^", "#444444", "point cloud")]
    handles += [_mark("s", colours[label], literal(f"{label}  {classes[label]}")) for label in there]
    if (label_N < 0).any():
        handles.append(_mark("s", GREY, "no label"))
    figure.legend(handles=handles, loc="outside right upper", ncols=columns, frameon=False, fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _mark(marker: str, colour: str | tuple[float, ...], name: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6, label=name)
