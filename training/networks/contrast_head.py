"""The head that contrastive pre-training puts on a tower and throws away afterwards. Source: CrossPoint's release."""

from __future__ import annotations

from torch import nn

HEAD_WIDTH = 256  # of the vectors that are compared


def contrast_head(width: int, between: int, bias: bool = True) -> nn.Sequential:
    """A new head (B, width) -> (B, HEAD_WIDTH) of two linear layers, by upstream's names (`inv_head`)."""
    return nn.Sequential(
        nn.Linear(width, between, bias=bias),
        nn.BatchNorm1d(between),
        nn.ReLU(),
        nn.Linear(between, HEAD_WIDTH, bias=bias),
    )
