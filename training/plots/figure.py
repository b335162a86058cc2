"""What all figures share: resolution, colours, harmless text, and a figure as PNG.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from manifests.plain_text import for_terminal

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000"
DPI = 150


def literal(text: str) -> str:
    """Text that matplotlib draws letter by letter: unescaped, $...$ is a formula, and a wrong formula an error."""
    return for_terminal(text).replace("$", r"\$")


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of this many inches, with a title at its left."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    if title:
        figure.suptitle(literal(title), x=0.01, ha="left", fontsize=10)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
