"""N-way K-shot episodes: a classifier learns N classes from K objects each, and is asked about others of them.

CrossPoint's rule: support and queries are of one split; features are standardised over the support; SVC(linear), C 1;
mean and population deviation over the episodes.

Shape letters: N objects, D width, S support objects, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests.errors import Refused
from manifests.plain_text import number_of
from manifests.rng import generator
from training.evaluation.linear_probe import Kind, answers, standardised
from training.evaluation.metrics import percent

C = 1.0
EPISODES = 10


@dataclass(frozen=True)
class EpisodeSize:
    """The size of an episode: `ways` classes, of each `shots` support objects and `queries` others."""

    ways: int = 5
    shots: int = 10
    queries: int = 20


@dataclass(frozen=True)
class Episode:
    """classes: labels, ways of them. support (S,) and query (Q,): numbers of objects, class after class."""

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray


def draw(label_N: np.ndarray, task: EpisodeSize, episodes: int, seed: int) -> list[Episode]:
    """Episodes of classes with enough objects, each drawn by (seed, its number). Raises Refused for too few classes."""
    present, counts = np.unique(label_N, return_counts=True)
    each = task.shots + task.queries
    enough = present[counts >= each]
    if len(enough) < task.ways:
        raise Refused(
            f"--ways {task.ways}: {number_of(len(enough), 'class')} of {len(present)} have {task.shots} + "
            f"{task.queries} labelled objects (the smallest has {counts.min()}): fewer --ways, --shots or --queries"
        )
    found = []
    for number in range(episodes):
        rng = generator(seed, "episode", number)
        classes = rng.choice(enough, task.ways, replace=False)
        own = [rng.choice(np.flatnonzero(label_N == label), each, replace=False) for label in classes]
        support, query = ([part[where] for part in own] for where in (slice(task.shots), slice(task.shots, None)))
        found.append(Episode(classes, np.concatenate(support), np.concatenate(query)))
    return found


def answer(features_ND: np.ndarray, label_N: np.ndarray, episode: Episode, kind: Kind = "svm") -> np.ndarray:
    """int64 (Q,): for each query the place of its class, as it is predicted, in `episode.classes`."""
    support, query = standardised(features_ND[episode.support], features_ND[episode.query])
    place = places(label_N[episode.support], episode)
    (said,) = answers(kind, support, place, query, [None if kind == "knn" else C])
    return said


def places(label: np.ndarray, episode: Episode) -> np.ndarray:
    """Labels as places in `episode.classes`."""
    return (label[:, None] == episode.classes).argmax(axis=1)


def few_shot(
    features_ND: np.ndarray, label_N: np.ndarray, episodes: list[Episode], kind: Kind = "svm"
) -> dict[str, Any]:
    """`{mean, std}`, percent right over the episodes."""
    shares = [
        100 * (answer(features_ND, label_N, each, kind) == places(label_N[each.query], each)).mean()
        for each in episodes
    ]
    return {"mean": percent(np.mean(shares) / 100), "std": percent(np.std(shares) / 100)}
