"""A pass of a tower over a batch in parts, which keeps the activations of one part at a time.

Of each part only what goes in and comes out is kept. When the gradients at the outputs of the whole batch are known,
each part is computed again and takes them through the tower (GradCache; Gao et al. 2021). A loss sees all outputs, so
that gradients are those of the whole batch for any loss. What a tower computes across samples would differ: a batch
norm that learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Out = TypeVar("Out")  # a tensor, a tuple of tensors or a dataclass of tensors, all with a row for each sample


def in_parts(parts: int, run: Callable[..., Out], *rows: Tensor | None, again: bool = True) -> Out:
    """`run` of rows (B, ...), which are divided into `parts`; None is given to every part as it is.

    again: activations are not kept but computed again. With one part it is the plain call.
    """
    if parts == 1:
        return run(*rows)
    divided = [[None] * parts if each is None else each.chunk(parts) for each in rows]
    if again and torch.is_grad_enabled():
        return _joined([checkpoint(run, *part, use_reentrant=False) for part in zip(*divided, strict=False)])
    return _joined([run(*part) for part in zip(*divided, strict=False)])


def _joined(results: Sequence[Any]) -> Any:
    """The outputs of all parts as those of one pass."""
    first = results[0]
    if isinstance(first, Tensor):
        return torch.cat(list(results))
    if isinstance(first, tuple):
        return tuple(map(torch.cat, zip(*results, strict=True)))
    joined = {field.name: torch.cat([getattr(each, field.name) for each in results]) for field in fields(first)}
    return replace(first, **joined)
