"""The linear probe at the size of ModelNet40: seconds and memory of 9,840 + 2,468 features of 2,048 dimensions.

    python tests/bench/bench_probe.py

The features are random, around a middle a class. Says the seconds of a probe with one C, by the kernel of all objects
at once and by libsvm's own, of a search for C and of ten episodes, and the process's largest memory after each.
"""

from __future__ import annotations

import time

import numpy as np
from machine import describe_machine

from manifests.process_info import peak_resident_mb
from training.evaluation import few_shot, linear_probe

TRAIN, TEST, WIDTH, CLASSES = 9840, 2468, 2048, 40


def features(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (count, WIDTH) around the middle of each object's class, and labels (count,)."""
    middles = np.random.default_rng(0).normal(scale=0.1, size=(CLASSES, WIDTH))
    rng = np.random.default_rng(seed)
    label = rng.integers(CLASSES, size=count)
    return (middles[label] + rng.normal(size=(count, WIDTH))).astype(np.float32), label


def main() -> None:
    """Prints a line for each."""
    train, test = features(TRAIN, 1), features(TEST, 2)
    largest = linear_probe.LARGEST_KERNEL
    print(f"{describe_machine()}; {TRAIN:,} + {TEST:,} features of {WIDTH:,}: {peak_resident_mb():,.0f} MB before")

    def tell(name: str, start: float, said: str) -> None:
        print(f"{name}: {time.perf_counter() - start:.1f} s, {peak_resident_mb():,.0f} MB at most, {said}")

    for name, C in (("svm, C 0.01", 0.01), ("svm, C by search", "search")):
        start = time.perf_counter()
        row = linear_probe.probe("svm", train, test, True, C)
        tell(name, start, f"{row['accuracy']} % with C {row['C']:g}")
    start = time.perf_counter()
    drawn = few_shot.draw(train[1], few_shot.EpisodeSize(), 10, 0)
    tell("10 episodes, 5-way 10-shot", start, f"{few_shot.few_shot(*train, drawn)['mean']} %")
    linear_probe.LARGEST_KERNEL = 0
    start = time.perf_counter()
    row = linear_probe.probe("svm", train, test, True, 0.01)
    linear_probe.LARGEST_KERNEL = largest
    tell("svm, C 0.01, kernel by libsvm", start, f"{row['accuracy']} %")


if __name__ == "__main__":
    main()
