"""Text of pictures: long names, titles and numbers stay inside the picture and apart from each other."""

from __future__ import annotations

from itertools import combinations
from types import ModuleType

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import ImageDraw

from training.plots import confusion, curves, scatter
from training.plots.curves import Curves
from training.plots.figure import shortened
from training.reports.prediction_sheet import Answer, Shown, sheet

NAMES = ["computer keyboard, keypad", "W" * 90, "a", *(f"class {number}" for number in range(9))]
TITLE = f"a_dataset_{'m' * 90} test, step 80, student: averaged views (Image*), 55.3% of 627 right, and of others fewer"
STEPS = [1_000_000.0, 2_000_000.0, 3_000_000.0]
LOG = {
    "step": STEPS,
    "loss": [100_000.001, 100_000.002, 100_000.003],
    "weighted_cls": [1e-6, 2e-6, 3e-6],
    "weighted_a_very_long_name_of_a_loss_that_somebody_else_has_written": [1.0, 2.0, 3.0],
    "biasedness_image": [1.0, 2.0, 3.0],
    "biasedness_points": [1.0, 2.0, 3.0],
    "entropy_image": [1.0, 2.0, 3.0],
    "entropy_points": [1.0, 2.0, 3.0],
    "confident_image": [0.1, 0.2, 0.3],
    "confident_points": [0.1, 0.2, 0.3],
    "from_image": [0.1, 0.2, 0.3],
    "agreement": [0.1, 0.2, 0.3],
}
LONG_RUN = f"Cross-MoST, a_folder_of_a_long_name ({', '.join(f'weights.loss_{n}=2.0' for n in range(12))})"
RUNS = [Curves("Cross-MoST, base", LOG, False), Curves(LONG_RUN, LOG, False), Curves("self-training", LOG, True)]


def drawn(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, *arguments: object) -> Figure:
    """The figure of a drawing function, laid out as in its file."""
    figures: list[Figure] = []
    save = module.png
    monkeypatch.setattr(module, "png", lambda figure: figures.append(figure) or save(figure))
    assert getattr(module, name)(*arguments)
    FigureCanvasAgg(figures[0]).draw()
    return figures[0]


def confirm_fits(figure: Figure) -> None:
    """All that is drawn is inside the figure, titles do not touch, and every tick says its own number."""
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01
    titles = [axis.title if axis.title.get_text() else axis._left_title for axis in figure.axes]
    boxes = [title.get_window_extent() for title in titles if title.get_text()]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for axis in (side for axes in figure.axes for side in (axes.xaxis, axes.yaxis)):
        assert axis.get_offset_text().get_text() == ""
        shown = [label.get_text() for label in axis.get_ticklabels() if label.get_text()]
        assert len(shown) == len(set(shown))


@pytest.mark.parametrize("name", ["losses", "analysis", "pseudo_labels"])
def test_curves_fit(monkeypatch, name: str) -> None:
    confirm_fits(drawn(monkeypatch, curves, name, RUNS))


def test_curves_of_seeds_that_lack_a_column(monkeypatch) -> None:
    """Self-training of two seeds has no alignment; Cross-MoST has."""
    lacking = {name: values for name, values in LOG.items() if name != "weighted_cls"}
    mean = curves.mean_of_seeds("self-training", [Curves("a", lacking, True), Curves("b", lacking, True)])
    figure = drawn(monkeypatch, curves, "losses", [RUNS[0], mean])
    assert [len(axis.lines) for axis in figure.axes] == [4, 1, 4]


def test_confusion_and_histogram_fit(monkeypatch) -> None:
    counts = np.arange(len(NAMES) ** 2).reshape(len(NAMES), -1)
    confirm_fits(drawn(monkeypatch, confusion, "confusion_picture", counts, NAMES, TITLE))
    series = {name: list(counts[0] + 100_000) for name in ("predicted, one view", "predicted, cloud", "joint")}
    confirm_fits(drawn(monkeypatch, confusion, "histogram_picture", series, NAMES, TITLE))


def test_scatter_fits(monkeypatch) -> None:
    places = np.arange(2.0 * len(NAMES)).reshape(-1, 2)
    labels, given = np.arange(len(NAMES)), {"image (mean of views)": places, "point cloud": places + 1}
    confirm_fits(drawn(monkeypatch, scatter, "scatter_picture", given, labels, NAMES, TITLE))


def test_a_sheet_writes_nothing_beyond_its_columns(monkeypatch) -> None:
    ends: list[tuple[float, str]] = []
    write = ImageDraw.ImageDraw.text

    def noted(pen, at, text, **options) -> None:
        ends.append((at[0] + options["font"].getlength(text), text))
        write(pen, at, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    answers = tuple((name, (Answer("Image*", "W" * 90, 1.0, False),)) for name in ("W" * 90, LONG_RUN))
    sheet([Shown("W" * 300, (np.zeros((8, 8, 3), np.uint8),), np.zeros((4, 3), np.float32), answers)])
    edges = [2 * 135 + 6 + 273, 2 * 135 + 6 + 2 * 273]  # pixels: two tiles, a gap, then a column for each model
    assert all(end <= edges[-1] for end, _ in ends)
    first = [(end, text) for end, text in ends if text.startswith("W") or "100 %" in text]
    assert sum(end <= edges[0] for end, _ in first) >= 2
    assert sum(text.endswith(" 100 %") for _, text in ends) == 2


def test_a_long_text_keeps_its_ends() -> None:
    def five(text: str) -> bool:
        return len(text) <= 5

    assert [shortened(text, five) for text in ("", "12345", "123456", "\u202e")] == [
        "",
        "12345",
        "12…56",
        "\\u202e"[:2] + "…2e",
    ]
