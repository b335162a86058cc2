"""What `check` finds in a build, and how it is printed as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from manifests.records import Failure

EXAMPLES = 3  # keys that are named for each type of warning


@dataclass
class Findings:
    """What `check` found. problems: damage, one line each, naming the file. failures: of assets; view_failures: of
    objects in a view set, by its name. gates: of each view set the smallest, mean and largest coverage and the smallest
    mask_iou. hashes: of the shapes, of the asset list and of each view set. keys: of each split, all different.
    warning_examples: the first keys with each type of warning, EXAMPLES at most. passed_over: suffix -> files of the
    source that look like shapes and were not read."""

    complete: bool = False
    samples: int = 0
    failures: list[Failure] = field(default_factory=list)
    expected_failures: int = 0  # of them: objects that the dataset's table knows to be broken
    view_sets: dict[str, dict[str, int]] = field(default_factory=dict)
    view_failures: dict[str, list[Failure]] = field(default_factory=dict)
    classes: dict[str, Counter[str]] = field(default_factory=dict)
    warnings: Counter[str] = field(default_factory=Counter)
    warning_examples: dict[str, list[str]] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    gates: dict[str, dict[str, float]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    damaged: dict[str, None] = field(default_factory=dict)  # the tars among them (or their records), in order
    bytes: int = 0  # of all tars that were read

    def blame(self, tar: str, problem: str) -> None:
        """Notes a problem of one tar or its record."""
        self.problems.append(problem)
        self.damaged[tar] = None

    def warn(self, key: str, counts: dict[str, int]) -> None:
        """Notes the warnings of one sample: type -> count."""
        self.warnings.update(counts)
        for kind in counts:
            examples = self.warning_examples.setdefault(kind, [])
            if len(examples) < EXAMPLES and key not in examples:
                examples.append(key)

    def to_json(self) -> dict[str, Any]:
        """The object that `check --json` prints."""
        return {
            "ok": not self.problems,
            "complete": self.complete,
            "samples": self.samples,
            "failures": [vars(failure) for failure in self.failures],
            "view_sets": self.view_sets,
            "classes": {split: dict(sorted(counts.items())) for split, counts in self.classes.items()},
            "warnings": dict(sorted(self.warnings.items())),
            "warning_examples": dict(sorted(self.warning_examples.items())),
            "gates": self.gates,
            "hashes": self.hashes,
            "keys": self.keys,
            "problems": self.problems,
        } | ({"passed_over": self.passed_over} if self.passed_over else {})
