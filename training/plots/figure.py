"""What all figures share: resolution, colours, text that is harmless and fits, and a figure as PNG.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from manifests.plain_text import for_terminal

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000"
DPI = 150
NAME_INCHES = 1.6  # of a class, beyond which the middle of its name is left out
_MOST = 200  # letters of a text that is cut


def width_of(text: str, size: float) -> float:
    """Inches that a line takes at this font size."""
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]) / 72


def shortened(text: str, fits: Callable[[str], bool]) -> str:
    """One line that fits: of a longer text the beginning and the end."""
    whole = shown = for_terminal(text)
    kept = min(len(whole), _MOST)
    while kept and not fits(shown):
        kept -= 1
        shown = f"{whole[: (kept + 1) // 2]}…{whole[len(whole) - kept // 2 :]}"
    return shown


def literal(text: str, size: float, inches: float = NAME_INCHES) -> str:
    """Text that matplotlib draws letter by letter in one line of at most this width.

    Unescaped, $...$ is a formula, and a wrong formula an error.
    """
    return shortened(text, lambda shown: width_of(shown, size) <= inches).replace("$", r"\$")


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of this many inches, with a title at its left, in as many lines as it needs."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    if title:
        words = (literal(word, 10, width / 2) for word in title.split(" "))
        figure.suptitle(" ".join(words), x=0.01, ha="left", fontsize=10, wrap=True)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
