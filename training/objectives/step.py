"""The result of one step of any method, for the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from manifests.errors import Stopped
from training.settings import from_plugins


@dataclass(frozen=True)
class Step:
    """Losses and figures of one batch.

    total: the weighted sum, a scalar. terms, weighted: each loss by name, without and with its weight. figures: scalars
    to log. counts: histograms (C,) of classes; the loop adds them up between two rows of the log and writes their
    biasedness. Figures and counts carry no gradient.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weighted: dict[str, Tensor]
    figures: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)


StepFunction = Callable[..., Step]  # of student, teacher, batch and recipe, each of the method's own type


def plugin_terms(student: nn.Module, teacher: nn.Module, batch: Any, branches: Any) -> dict[str, Tensor]:
    """The terms of loaded plugins by name, of whole batches also where the towers take a batch in parts.

    branches: training.objectives.cross_most.Branches. Raises Stopped where a term is no scalar.
    """
    found = {name: row.loss(student, teacher, batch, branches) for name, row in from_plugins.terms().items()}
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.ndim:
            form = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"[:40]
            raise Stopped(f"the term {name} of a plugin gives {form}; a loss is a scalar tensor, such as a mean")
    return found


def weigh(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float],
    figures: dict[str, Tensor] | None = None,
    counts: dict[str, Tensor] | None = None,
) -> Step:
    """The Step of these terms, in the order of their weights."""
    ordered = {name: terms[name] for name in weights}
    weighted = {name: weights[name] * value for name, value in ordered.items()}
    return Step(torch.stack(list(weighted.values())).sum(), ordered, weighted, figures or {}, counts or {})
