"""What a figure rests on beside its method: seeds, which checkpoint, neighbours of the point network, the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.settings.fit_recipe import FitRecipe

SCANOBJECTNN = {
    "scanobjectnn_obj": "OBJ_ONLY",
    "scanobjectnn_bg": "OBJ_BG",
    "scanobjectnn_hardest": "PB_T50_RS",
}


def terms_of(recipe: FitRecipe, dataset: str, seeds: Sequence[int], checkpoint: str = "last") -> dict[str, Any]:
    """The object `rows` of report.json has for each row.

    backbone: of the points, or the image tower where pictures alone answer. k, fraction, shots, variant: null where
    there is nothing to say.
    """
    points = "points" in recipe.towers
    return {
        "seeds": list(seeds),
        "checkpoint": checkpoint,
        "backbone": recipe.points.backbone if points else recipe.image.tower.partition("=")[2],
        "k": getattr(recipe.points, "k", None) if points else None,
        "fraction": recipe.data.fraction if recipe.data.fraction < 1 else None,
        "shots": recipe.data.shots or None,
        "votes": 1,
        "variant": SCANOBJECTNN.get(dataset),
    }


def term_lines(values: dict[str, Any]) -> list[str]:
    """`terms_of` each row in words: `Cross-MoST: last checkpoint, seeds 0 and 1, point_bert.`"""
    names = values["names"]
    return [f"{names[row]}: {', '.join(term_words(terms).values())}." for row, terms in values["rows"].items()]


def term_words(terms: dict[str, Any]) -> dict[str, str]:
    """What `terms_of` has to say, in words by its keys."""
    seeds = " and ".join(map(str, terms["seeds"]))
    told = {
        "checkpoint": f"{terms['checkpoint']} checkpoint",
        "seeds": f"seed{'s' * (len(terms['seeds']) > 1)} {seeds}",
        "backbone": terms["backbone"],
        "k": f"k {terms['k']}" if terms["k"] else "",
        "fraction": f"{terms['fraction']:.0%} of the labels" if terms["fraction"] else "",
        "shots": f"labels of {terms['shots']} objects a class" if terms["shots"] else "",
        "variant": f"ScanObjectNN {terms['variant']}" if terms["variant"] else "",
        "votes": "1 vote",
    }
    return {key: words for key, words in told.items() if words}
