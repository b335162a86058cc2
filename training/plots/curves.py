"""Draws curves of log.csv: losses, pseudo-labels, and the figures of the paper's analysis.

Lines differ in colour and in dashes, for colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from training.plots.figure import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION, literal, new_figure, png, width_of

Dashes = Literal["-", "--", "-.", ":"]
Line = tuple[str, Dashes]  # colour, dashes
LINES: tuple[Line, ...] = ((BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, "-"), (BLACK, "--"))
ACROSS = 4  # panels in a row
THIN = 0.5  # opacity of a line of one seed
WIDTH = 10.0  # inches: 1000 pixels as shown, 1500 as drawn
BESIDE = 1.0  # inches of a panel beside its axis at most: wide ticks and the unit
SIZE = 9.0  # of titles and legends, in points
LINE_INCHES = 0.6  # of a legend: a line and the space about it
LOSSES = {
    "cls": "pseudo-labels",
    "align": "alignment",
    "fair": "fairness",
    "mim": "masked image",
    "mpm": "masked points",
    "lg_align": "local-global",
}
Columns = dict[str, list[float]]


@dataclass(frozen=True)
class Curves:
    """A run's log: columns of log.csv by name, each as long as `step`. own_labels: each branch has its own.

    seeds: the logs of the runs whose mean this is; they are drawn thin below it.
    """

    name: str
    columns: Columns
    own_labels: bool
    seeds: tuple[Columns, ...] = ()


def mean_of_seeds(name: str, runs: Sequence[Curves]) -> Curves:
    """The mean of runs that differ in the seed, over the rows and columns that all of them have."""
    if len(runs) == 1:
        return replace(runs[0], name=name)
    common = [column for column in runs[0].columns if all(column in run.columns for run in runs)]
    means = {
        column: [sum(values) / len(runs) for values in zip(*(run.columns[column] for run in runs), strict=False)]
        for column in common
    }
    return Curves(name, means, runs[0].own_labels, tuple(run.columns for run in runs))


def losses(runs: Sequence[Curves]) -> bytes | None:
    """PNG: the total and each weighted loss by step, a line for each run. None if every log is empty."""
    names = {name: None for run in runs for name in run.columns if name.startswith("weighted_")}
    panels = {"loss": "total"}
    for name in names:
        loss = name.removeprefix("weighted_")
        panels[name] = f"{LOSSES[loss]} ({loss})" if loss in LOSSES else loss
    return _by_column(runs, panels, "weighted loss")


def analysis(runs: Sequence[Curves]) -> bytes | None:
    """PNG: entropy and biasedness of the teacher's predictions by step, a line for each run (the paper's figure 3)."""
    panels = {
        f"{figure}_{modality}": f"{figure}: {shown}"
        for figure in ("entropy", "biasedness")
        for modality, shown in (("image", "image"), ("points", "point cloud"))
    }
    return _by_column(runs, panels, "KL to uniform, nats", from_zero=True)


def labelled(runs: Sequence[Curves]) -> bytes | None:
    """PNG: percent of the labelled test split that student and teacher name right, of runs that looked (eval_every)."""
    columns = {"image": "one view", "image_star": "averaged views", "points": "point cloud"}
    panels = {
        f"labelled_{who}{column}": f"{model}: {shown}"
        for who, model in (("", "student"), ("teacher_", "teacher"))
        for column, shown in columns.items()
    }
    return _by_column(runs, panels, "percent right", across=len(columns))


def _by_column(
    runs: Sequence[Curves], panels: dict[str, str], unit: str, from_zero: bool = False, across: int = ACROSS
) -> bytes | None:
    """Small multiples: a panel for each column that some run has, a line for each run that has it.

    A line joins the rows of the log that have a value.
    """
    panels = {name: title for name, title in panels.items() if any(name in run.columns for run in runs)}
    if not panels:
        return None
    across = min(across, len(panels))
    figure, axes = _grid(len(panels), across)
    for number, (axis, (name, title)) in enumerate(zip(axes, panels.items(), strict=True)):
        for run, (colour, dashes) in zip(runs, cycle(LINES), strict=False):
            for columns in (each for each in run.seeds if name in each):
                axis.plot(columns["step"], columns[name], "-", color=colour, linewidth=0.6, alpha=THIN)
            if name in run.columns:
                values = np.array([run.columns["step"], run.columns[name]])
                axis.plot(*values[:, ~np.isnan(values[1])], dashes, color=colour, linewidth=1.6)
        if from_zero:
            axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        _finish(axis, title, unit if number % across == 0 else "", across)
    named = [(run.name, *line) for run, line in zip(runs, cycle(LINES), strict=False)]
    return _png(figure, named)


def pseudo_labels(runs: Sequence[Curves]) -> bytes | None:
    """PNG: percent of a batch with a pseudo-label by modality, and agreement of the branches; a panel for each run.

    The paper's figure 4. A joint label counts for the modality that gave it; otherwise each branch has its own labels.
    """
    runs = [run for run in runs if "confident_image" in run.columns]
    if not runs:
        return None
    across = min(len(runs), 3)
    figure, axes = _grid(len(runs), across, height=2.9)
    named: list[tuple[str, str, Dashes]] = [
        ("label from the image", BLUE, "-"),
        ("label from the point cloud", VERMILLION, "--"),
    ]
    named.append(("both branches predict the same class", BLACK, ":"))
    for number, (axis, run) in enumerate(zip(axes, runs, strict=True)):
        shares = (*selected_by_modality(run), np.array(run.columns["agreement"]))
        for columns in run.seeds:
            each = (*selected_by_modality(replace(run, columns=columns)), np.array(columns["agreement"]))
            for share, (_, colour, _) in zip(each, named, strict=True):
                axis.plot(columns["step"], 100 * share, "-", color=colour, linewidth=0.6, alpha=THIN)
        for share, (_, colour, dashes) in zip(shares, named, strict=True):
            axis.plot(run.columns["step"], 100 * share, dashes, color=colour, linewidth=1.6)
        axis.set_ylim(0, 100)
        kind = "each branch its own label" if run.own_labels else "one label for both branches"
        _finish(axis, f"{run.name}\n{kind}", "share of the batch, %" if number % across == 0 else "", across)
    return _png(figure, named)


def selected_by_modality(run: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the batch with a pseudo-label from the image, and from the points.

    Of joint labels the log has the share of the batch and, among those, the share from the image.
    """
    image, points, from_image = (
        np.array(run.columns[name]) for name in ("confident_image", "confident_points", "from_image")
    )
    return (image, points) if run.own_labels else (image * from_image, image * (1 - from_image))


def _grid(count: int, across: int, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `across` in a row."""
    down = -(-count // across)
    figure = new_figure(WIDTH, height * down + 0.4)
    return figure, [figure.add_subplot(down, across, number + 1) for number in range(count)]


def _finish(axis: Axes, title: str, unit: str, across: int) -> None:
    inches = WIDTH / across - BESIDE
    axis.set_title("\n".join(literal(line, SIZE, inches) for line in title.split("\n")), fontsize=SIZE, loc="left")
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel(unit, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.ticklabel_format(useOffset=False, style="plain")  # each tick says its own number
    axis.locator_params(axis="x", nbins=4, integer=True)


def _png(figure: Figure, named: Sequence[tuple[str, str, Dashes]]) -> bytes:
    """The figure with one legend of (name, colour, dashes) above its panels."""
    lines = [(literal(name, SIZE, WIDTH - 2 * LINE_INCHES), colour, dashes) for name, colour, dashes in named]
    handles = [Line2D([], [], color=c, linestyle=d, linewidth=1.6, label=n) for n, c, d in lines]
    columns = int(WIDTH / (LINE_INCHES + max(width_of(name, SIZE) for name, _, _ in lines)))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(len(named), columns), frameon=False, fontsize=SIZE
    )
    return png(figure)
