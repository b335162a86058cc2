"""Linear probe: how well a classifier that learns from frozen features tells the classes of other objects apart.

CrossPoint's rule is scikit-learn's SVC(kernel="linear"), one against one, on raw features. They flatter pre-training:
those of a random network are a hundred times smaller, and C is relative to their size. So a probe is made of raw and
of standardised features (mean 0 and deviation 1 over the train objects).

Shape letters: N train objects, M test objects, D width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from manifests.errors import Refused
from manifests.rng import generator
from training.evaluation.metrics import percent, wilson

log = logging.getLogger(__name__)
Kind = Literal["svm", "logistic", "knn"]
DEFAULT_C: dict[Kind, float | None] = {"svm": 0.01, "logistic": 1.0, "knn": None}  # svm: of CrossPoint's table
STRENGTHS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0)  # that a search tries
HELD_OUT = 0.2  # of each class's train objects, by which a search judges
NEIGHBOURS = 10  # of knn, by cosine
ITERATIONS = 2000  # of the logistic regression at most
LARGEST_KERNEL = 20_000  # train objects whose kernel is computed at once: 3.2 GB


def standardised(train_ND: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """The same with mean 0 and deviation 1 over the train objects; a feature that is constant there is not scaled."""
    scaler = StandardScaler().fit(train_ND)
    return [scaler.transform(each) for each in (train_ND, *others)]


def answers(
    kind: Kind, train_ND: np.ndarray, label_N: np.ndarray, test_MD: np.ndarray, strengths: Sequence[float | None]
) -> list[np.ndarray]:
    """int64 (M,) for each C: what a classifier that learned from the train objects says of the test objects.

    svm: the products of all features are computed once, by a matrix product (a fifth of the time in which libsvm
    computes them, measured). knn has no C.
    """
    if len(np.unique(label_N)) < 2:
        raise Refused("the train objects are of one class: a probe tells two or more apart")
    if kind == "knn":
        near = KNeighborsClassifier(min(NEIGHBOURS, len(train_ND)), metric="cosine").fit(train_ND, label_N)
        return [near.predict(test_MD)] * len(strengths)
    if kind == "logistic":
        return [_logistic(train_ND, label_N, test_MD, C) for C in strengths]
    train, test = train_ND.astype(np.float64), test_MD.astype(np.float64)
    if len(train) > LARGEST_KERNEL:
        return [SVC(kernel="linear", C=C).fit(train, label_N).predict(test) for C in strengths]
    kernel, asked = train @ train.T, test @ train.T
    return [SVC(kernel="precomputed", C=C).fit(kernel, label_N).predict(asked) for C in strengths]


def _logistic(train_ND: np.ndarray, label_N: np.ndarray, test_MD: np.ndarray, C: float | None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told below, in one line
        model = LogisticRegression(C=C, max_iter=ITERATIONS).fit(train_ND, label_N)
    if model.n_iter_.max() >= ITERATIONS:
        log.warning("logistic: not at its minimum after %d steps with C=%g; try --standardise", ITERATIONS, C)
    return model.predict(test_MD)


def search(kind: Kind, train_ND: np.ndarray, label_N: np.ndarray, seed: int) -> float:
    """The C of STRENGTHS that is right most often on a fifth of each class's train objects, of equals the smallest.

    The fifth is drawn by the seed; no test object is looked at. Raises Refused where no class has two objects.
    """
    held = held_out(label_N, seed)
    if not held.any():
        raise Refused("--C search: no class has two train objects, of which one could judge")
    found = answers(kind, train_ND[~held], label_N[~held], train_ND[held], STRENGTHS)
    return STRENGTHS[int(np.argmax([(said == label_N[held]).mean() for said in found]))]


def held_out(label_N: np.ndarray, seed: int) -> np.ndarray:
    """bool (N,): HELD_OUT of each class's objects, at least one of two."""
    held = np.zeros(len(label_N), bool)
    for label in np.unique(label_N):
        own = generator(seed, "held out", int(label)).permutation(np.flatnonzero(label_N == label))
        held[own[: max(1, round(HELD_OUT * len(own))) if len(own) > 1 else 0]] = True
    return held


def figures(said_M: np.ndarray, label_M: np.ndarray) -> dict[str, Any]:
    """Percent right over objects, with the ends of Wilson's 95% interval, and over the classes that have objects."""
    right = said_M == label_M
    shares = [right[label_M == label].mean() for label in np.unique(label_M)]
    interval = [percent(end) for end in wilson(float(right.mean()), len(right))]
    return {"accuracy": percent(right.mean()), "mean_per_class": percent(np.mean(shares)), "interval": interval}


def probe(
    kind: Kind,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    scaled: bool,
    C: float | Literal["search"] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """A row `{accuracy, mean_per_class, interval, C, standardised}`, percent. train, test: features and labels.

    C: None for DEFAULT_C. Raises Refused as `answers` and `search` do.
    """
    (train_ND, label_N), (test_MD, label_M) = train, test
    if scaled:
        train_ND, test_MD = standardised(train_ND, test_MD)
    chosen = search(kind, train_ND, label_N, seed) if C == "search" else DEFAULT_C[kind] if C is None else C
    (said,) = answers(kind, train_ND, label_N, test_MD, [chosen])
    return figures(said, label_M) | {"C": chosen, "standardised": scaled}
