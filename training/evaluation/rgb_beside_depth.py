"""A sanity number of depth pictures: zero-shot on RGB of the same objects beside it, before hours are spent.

A wrong axis turns every depth map and raises nothing: users of CLIP2Point's first release had 33 where the paper has
49, and others 0.6. There CLIP without pre-training has 54.2 on RGB and 20.0 on depth of ShapeNet's test objects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from manifests.errors import Refused
from training.evaluation.evaluate import Options, Progress, judge
from training.evaluation.metrics import Examined, percent
from training.evaluation.view_weights import require_other_split, searched_weights
from training.weights.open_models import Opened

NO_BETTER = 2.0  # times chance


def judge_pictures(
    opened: Opened,
    shards: str,
    split: str,
    device: torch.device,
    options: Options,
    searched: str,
    beside: str,
    on_progress: Progress,
) -> tuple[Examined, dict[str, Any] | None]:
    """The answers of an opened model and, beside those of RGB of the same objects, their sanity numbers.

    searched: a split on whose labels the weights of views are searched first; empty for none. beside: a view set of
    RGB; empty for no such comparison. Raises Refused as `judge` and `searched_weights` do.
    """
    if (searched or beside) and any(model.adapter is not None for model in opened.models.values()):
        raise Refused("an adapter reads all its views together: --search-view-weights and --beside are for towers")
    if searched:
        require_other_split(searched, split)
        weights = searched_weights(opened, shards, searched, device, options, on_progress)
        options = replace(options, views_weight=weights, searched=searched)
    if beside and not options.labels:
        raise Refused(f"--beside {beside} compares accuracies, and --without-labels reads none")
    (found,) = judge([opened], shards, split, device, options, on_progress)
    if not beside:
        return found, None
    changes = options.changes | {"views": beside, "channel": "rgb", "num_views": 0}
    (rgb,) = judge([opened], shards, split, device, replace(options, changes=changes, views_weight=()), on_progress)
    return found, sanity(found, rgb)


def sanity(depth: Examined, rgb: Examined) -> dict[str, Any]:
    """Percent right of `image_star` on both kinds of pictures, of the n objects that have both, and of chance."""
    shared = set(depth.keys) & set(rgb.keys)
    shares = {}
    for name, found in (("rgb", rgb), ("depth", depth)):
        there = torch.tensor([key in shared for key in found.keys])
        shares[name] = percent(found.student.right("image_star")[there].mean())
    chance = 100 / len(depth.classes)
    wrong = shares["depth"] <= NO_BETTER * chance < shares["rgb"]
    return {"n": len(shared), **shares, "chance": round(chance, 2), "look": wrong}


def sanity_line(found: dict[str, Any]) -> str:
    """The numbers for a person, and what to do where RGB is known and depth is chance."""
    line = f"RGB {found['rgb']:.1f}, depth {found['depth']:.1f}, chance {found['chance']:.1f} of {found['n']} objects"
    look = ": look at the depth maps (python -m pipeline inspect OUT): are they upright, as the RGB views are?"
    return line + (look if found["look"] else "")
