"""Retrieval: which objects lie nearest to one, across modalities or within one, and a picture of the neighbourhoods.

An object of the query's class counts as right; recall at k is the share of queries with a right one among the k
nearest, mAP the mean of their average precision over all objects. Nearness is the angle.

Shape letters: N objects, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from manifests.errors import Refused
from training.evaluation.embed import NAMES, Method, in_plane, some_of, unit_rows
from training.evaluation.metrics import percent
from training.plots.scatter import scatter_picture

NEAREST = (1, 5, 10)  # the k of recall
PURITY = 10  # neighbours
_ROWS = 512  # queries at once


def ranked(query_ND: np.ndarray, gallery_ND: np.ndarray, itself: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers of some queries, (rows, N) numbers of the gallery from near to far), of equals the first first.

    itself: whether an object is its own neighbour; where it is none, rows have N - 1 numbers.
    """
    gallery = gallery_ND.astype(np.float64)
    lengths = (gallery**2).sum(axis=1)
    for start in range(0, len(query_ND), _ROWS):
        query = query_ND[start : start + _ROWS].astype(np.float64)
        rows = np.arange(start, start + len(query))
        farness = lengths - 2 * query @ gallery.T  # the squared distance without the query's own length
        if not itself:
            farness[np.arange(len(query)), rows] = np.inf
        order = farness.argsort(axis=1, kind="stable")
        yield rows, order if itself else order[:, :-1]


def retrieve(query_ND: np.ndarray, gallery_ND: np.ndarray, label_N: np.ndarray, across: bool) -> dict[str, Any]:
    """`{recall {1, 5, 10}, map, instance {1, 5, 10}, queries}`, percent, of unit features of the same N objects.

    across: the two are of different modalities. Then `instance` is the share of queries whose own object is among the k
    nearest; else the own object is left out, and `instance` is None. Queries: those that have a right answer. Raises
    Refused where there is none.
    """
    recall: dict[int, list[bool]] = {k: [] for k in NEAREST}
    instance: dict[int, list[bool]] = {k: [] for k in NEAREST}
    precision: list[float] = []
    for rows, order in ranked(query_ND, gallery_ND, across):
        right = label_N[order] == label_N[rows][:, None]
        answered = right.any(axis=1)
        so_far = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
        precision += ((so_far * right).sum(axis=1)[answered] / right.sum(axis=1)[answered]).tolist()
        for k in NEAREST:
            recall[k] += right[answered, :k].any(axis=1).tolist()
            instance[k] += (order[:, :k] == rows[:, None]).any(axis=1).tolist()
    if not precision:
        raise Refused("--retrieval: no class has two objects, of which one could find the other")
    return {
        "recall": {str(k): percent(float(np.mean(found))) for k, found in recall.items()},
        "map": percent(float(np.mean(precision))),
        "instance": {str(k): percent(float(np.mean(found))) for k, found in instance.items()} if across else None,
        "queries": len(precision),
    }


def purity(features_ND: np.ndarray, label_N: np.ndarray) -> float:
    """Percent of the PURITY nearest neighbours that are of their object's class, mean over objects."""
    near = [
        (label_N[order[:, :PURITY]] == label_N[rows][:, None]).mean(axis=1)
        for rows, order in ranked(features_ND, features_ND, itself=False)
    ]
    return percent(np.concatenate(near).mean())


def picture(
    features_ND: np.ndarray,
    label_N: np.ndarray,
    keys: tuple[str, ...],
    classes: tuple[str, ...],
    mark: str,
    about: str,
    method: Method,
    seed: int,
) -> tuple[bytes, dict[str, Any]]:
    """PNG of up to embed.DRAWN objects in the plane, and `{purity, purity_in_plane, drawn, method}`, also in its title.

    purity is of the features that are drawn, by angle; mark: what a mark is. Raises Refused for fewer than 5 objects.
    """
    drawn, counted = some_of(keys, seed)
    features, label = unit_rows(features_ND[drawn]), label_N[drawn]
    plane = in_plane(features, method, seed)
    found = {"purity": purity(features, label), "purity_in_plane": purity(plane, label)}
    title = f"{about}: {NAMES[method]} of {counted}; {PURITY} nearest of the same class: "
    title += f"{found['purity']:.1f} % by features, {found['purity_in_plane']:.1f} % in the plane"
    return scatter_picture({mark: plane}, label, classes, title), found | {"drawn": len(drawn), "method": method}
