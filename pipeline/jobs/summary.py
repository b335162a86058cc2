"""How a build or the drawing of a view set ended, summed up from the records of its tars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from manifests.layout import shapes_tar, views_tar
from manifests.plain_text import number_of
from manifests.records import Failure
from pipeline.jobs.record_cache import FinishedRecords
from pipeline.plan.plan import Job, Plan, ViewSet


@dataclass(frozen=True)
class Summary:
    """How a build or a view set ended.

    failures: of assets (a build), then of objects in view sets, each object once. skipped: reason -> count. samples:
    objects written. expected: how many of the failures are of objects that the dataset's table knows to be broken.
    of_assets: how many of them are of assets; None for a view set alone.
    """

    samples: int
    failures: tuple[Failure, ...]
    skipped: dict[str, int]
    attempted: int
    expected: int = 0
    of_assets: int | None = None

    @property
    def failed_fraction(self) -> float:
        """Share of the attempted that failed; expected failures are in neither number."""
        attempted = self.attempted - self.expected
        return (len(self.failures) - self.expected) / attempted if attempted else 0.0

    def in_words(self) -> str:
        """`9 objects, 3 failures: 1 of assets, 2 of views`."""
        failures = len(self.failures)
        told = f"{number_of(self.samples, 'object')}, {number_of(failures, 'failure')}"
        if self.of_assets is None:
            told += " of views"
        told += f" ({self.expected:,} expected)" if self.expected else ""
        if self.of_assets is not None and failures:
            told += f": {self.of_assets:,} of assets, {failures - self.of_assets:,} of views"
        return told


def summed_up(plan: Plan, jobs: list[Job], finished: FinishedRecords) -> Summary:
    """What the records of a finished build say, those of the plan's view sets included."""
    records = [finished[shapes_tar(plan.out, job.split, job.shard)] for job in jobs]
    failures = [f for record in records for f in record.failures]
    of_assets = len(failures)
    skipped: Counter[str] = Counter()
    for view_set in plan.view_sets:
        summary = view_set_summary(plan, jobs, view_set, finished)
        known = {failure.key for failure in failures}
        failures += [failure for failure in summary.failures if failure.key not in known]
        skipped.update(summary.skipped)
    samples = sum(record.count for record in records)
    attempted = sum(len(job.assets) for job in jobs)
    return Summary(samples, tuple(failures), dict(skipped), attempted, _expected(plan, failures), of_assets)


def _expected(plan: Plan, failures: Iterable[Failure]) -> int:
    return sum(failure.id in plan.table.expected_failures for failure in failures)


def view_set_summary(plan: Plan, jobs: list[Job], view_set: ViewSet, finished: FinishedRecords) -> Summary:
    """Samples, failures and skipped of one finished view set."""
    records = [finished[views_tar(plan.out, view_set.name, job.split, job.shard)] for job in jobs]
    skipped = Counter(s.reason for record in records for s in record.skipped)
    failures = tuple(f for record in records for f in record.failures)
    samples = sum(record.count for record in records)
    return Summary(samples, failures, dict(skipped), samples + len(failures), _expected(plan, failures))
