"""What the model asks of a point tower, whatever its architecture: unit features of clouds, and tokens if it has any.

Shape letters: B clouds, N points, G groups, D token width, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from training.networks.contrast_head import contrast_head
from training.networks.precision import project, widened


@dataclass(frozen=True)
class PointTokens:
    """Output of a pass: feature (B, E), not normalised; tokens (B, G, D) after the last norm; cls (B, D);
    original (B, G, D), the input tokens before any mask; mask float (B, G), 1 where masked.

    A backbone without tokens has G = 0, and in `cls` its own feature, before the projection.
    """

    feature: Tensor
    tokens: Tensor
    cls: Tensor
    original: Tensor
    mask: Tensor


def new_projection(width: int, embed_dim: int) -> nn.Parameter:
    """A random matrix (width, E) from a tower's own feature to CLIP's space."""
    return nn.Parameter(torch.randn(width, embed_dim) * embed_dim**-0.5)


class PointBackbone(nn.Module):
    """A point tower. A subclass has `represent` and, made by `new_projection`, the matrix `projection` (width, E).

    What stands here is a tower without tokens. One whose tokens can be masked has all of it anew, as PointTower does,
    and `has_tokens` in its settings. checkpointing: a run asks the tower to compute its blocks again in backward.
    A published network has its authors' names of weights, so that their files fill it. twice: beginnings of names that
    such a file has for a weight which it holds by another name as well, and those other beginnings.
    """

    twice: ClassVar[Mapping[str, str]] = MappingProxyType({})
    projection: nn.Parameter
    own_projection: nn.Parameter  # (D, E) of tokens, for lg_align.points=own
    checkpointing = False

    def represent(self, points: Tensor) -> Tensor:
        """The tower's own features (B, width) of clouds (B, N, 3), inside the run's precision."""
        raise NotImplementedError

    def classification_head(self, classes: int) -> nn.Module:
        """A new head from features of `represent` to logits (B, classes): the authors' own, by their names of weights;
        of a backbone of which no head was published, one linear layer."""
        return nn.Linear(self.projection.shape[0], classes)

    def contrast_head(self) -> nn.Module:
        """A new head from features of `represent` to the vectors that CrossPoint compares: as wide as the feature in
        between, as its authors have it for the trunk of part segmentation."""
        width = self.projection.shape[0]
        return contrast_head(width, width)

    def regulariser(self) -> Tensor | None:
        """A scalar that the authors add to the loss of the last pass in training; None for most networks. It is given
        once a pass."""
        return None

    def tokenize(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """What `encode` takes: centres and tokens of clouds (B, N, 3); here the clouds and no token."""
        return points, points.new_zeros(len(points), 0, 1)

    def drawn_paths(self, tokens: Tensor) -> Tensor | None:
        """(B, ...): random factors that `encode` would draw for a whole batch; None where it draws none."""
        return None

    def encode(
        self, centres: Tensor, original: Tensor, mask_draw: Tensor | None = None, paths: Tensor | None = None
    ) -> PointTokens:
        """The pass over what `tokenize` gave; mask_draw (B, 2) uniforms choose the tokens that are masked."""
        own = widened(self.represent(centres))
        return PointTokens(project(own, self.projection), original, own, original, original[..., 0])

    def readout(self, found: PointTokens) -> Tensor:
        """(B, width) of a pass: what `projection` and a head of the tower's own read."""
        return found.cls

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """Features (B, G, E) of single tokens (B, G, D)."""
        return tokens.expand(-1, -1, self.projection.shape[1])

    def reconstruct(self, tokens: Tensor) -> Tensor:
        """Predicts the input tokens (B, G, D) from the output tokens."""
        return tokens

    def compile_inside(self) -> None:
        """Compiles the slow parts in place; the names of weights do not change."""
        self.represent = torch.compile(self.represent)  # type: ignore[method-assign]  # it hides the method
