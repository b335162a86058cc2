"""The colours in which parts of objects are drawn, the same in every picture."""

from __future__ import annotations

import numpy as np

# Eight colours that colour-blind people tell apart (Okabe and Ito 2008); no class of a known dataset has more parts.
PALETTE = np.array(
    [
        *[(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)],
        *[(86, 180, 233), (213, 94, 0), (120, 120, 120), (200, 180, 40)],
    ],
    np.uint8,
)


def part_colors(parts: np.ndarray) -> np.ndarray:
    """RGB, uint8 (N, 3), of part numbers (N,). The parts of one class follow one another, so their colours differ."""
    return PALETTE[np.asarray(parts, np.int64) % len(PALETTE)]
