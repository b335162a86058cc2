"""Rows of the log: means and histograms of the steps since the last row, kept and cut at a checkpoint."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import distributed
from training.loop.metric_log import Log, Logged, append_histograms, append_row, cut_rows, events
from training.objectives.step import Step, weigh

CPU = torch.device("cpu")


def step_of(value: float, counts: list[int], weight: float = 2.0) -> Step:
    terms = {"cls": torch.tensor(value)}
    return weigh(terms, {"cls": weight}, {"agreement": torch.tensor(value / 10)}, {"image": torch.tensor(counts)})


def test_a_row_is_the_mean_of_its_steps_and_the_sum_of_their_counts() -> None:
    log = Log()
    for number, (value, counts) in enumerate(((1.0, [4, 0]), (3.0, [1, 3])), 1):
        log.add(step_of(value, counts), number)
    row = log.row()
    assert row["loss"] == pytest.approx(4)
    assert row["loss_cls"] == pytest.approx(2)
    assert row["weighted_cls"] == pytest.approx(4)
    assert row["agreement"] == pytest.approx(0.2)
    assert log.histograms == {"image": [5, 3]}
    log.add(step_of(7.0, [0, 4]), 3)
    row = log.row()  # nothing of the row before
    assert row["loss_cls"] == pytest.approx(7)
    assert log.histograms == {"image": [0, 4]}


def test_a_row_that_a_checkpoint_cuts_is_the_same_in_the_end() -> None:
    whole, begun, again = Log(), Log(), Log()
    for log in (whole, begun):
        log.add(step_of(1.0, [4, 0]), 1)
        log.add(step_of(2.0, [3, 1]), 2)
    again.restore(begun.state(), CPU)
    for log in (whole, again):
        log.add(step_of(6.0, [0, 4]), 3)
    assert again.row() == whole.row()
    assert again.histograms == whole.histograms == {"image": [7, 5]}


def test_a_figure_that_an_earlier_checkpoint_lacks_is_missing_for_one_row() -> None:
    """The checkpoint lies between two rows: what the other columns had by then still counts."""
    begun, again = Log(), Log()
    begun.add(step_of(1.0, [4, 0]), 1)
    again.restore(begun.state(), CPU)
    with_norm = step_of(3.0, [1, 3])
    again.add(replace(with_norm, figures={"gradient_norm": torch.tensor(5.0)} | with_norm.figures), 2)
    row = again.row()
    assert (row["loss_cls"], row["agreement"]) == (pytest.approx(2), pytest.approx(0.2))
    assert math.isnan(row["gradient_norm"])
    again.add(replace(with_norm, figures={"gradient_norm": torch.tensor(5.0)}), 3)
    assert again.row()["gradient_norm"] == 5


def test_sums_of_several_processes_are_taken_together_by_one() -> None:
    """Means of what each had, all that each counted."""
    log = Log()
    counts = {"image": torch.tensor([[1, 2], [10, 20], [0, 3]])}
    log.restore({"names": ["loss"], "sums": torch.tensor([[2.0], [4.0], [9.0]]), "steps": 2, "counts": counts}, CPU)
    assert log.row()["loss"] == pytest.approx(2.5)
    assert log.histograms == {"image": [11, 25]}


def test_rows_behind_the_checkpoint_are_cut_and_no_others(tmp_path: Path) -> None:
    """The checkpoint's own row stays, what follows is made again; a row that a full disk cut goes too."""
    log, histograms = tmp_path / "log.csv", tmp_path / "histograms.csv"
    for step in (2, 4, 6, 10):
        append_row(log, step, {"loss": step / 2})
        append_histograms(histograms, step, {"image": [step, 1], "points": [0, step]}, ("mug", "a bowl"))
    before = histograms.read_text()
    with open(log, "a") as file:
        file.write("3,0.2")
    cut_rows(log, 6)
    cut_rows(histograms, 6)
    with open(log) as file:
        assert [(row["step"], row["loss"]) for row in csv.DictReader(file)] == [("2", "1"), ("4", "2"), ("6", "3")]
    assert histograms.read_text() == "".join(before.splitlines(keepends=True)[:-2])
    append_row(log, 8, {"loss": 4.0})
    assert log.read_text().splitlines()[-2:] == ["6,3", "8,4"]
    cut_rows(log, 0)
    assert log.read_text().splitlines() == ["step,loss"]


def test_events_behind_the_checkpoint_are_dropped_and_its_own_stays(tmp_path: Path) -> None:
    with events(tmp_path, True, 0) as write:
        for step in (2, 4, 6):
            write("loss", float(step), step)
    with events(tmp_path, True, 4) as write:
        write("loss", 60.0, 6)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(2, 2.0), (4, 4.0), (6, 60.0)]


def test_the_time_left_is_that_of_the_steps_that_are_left() -> None:
    assert Logged(30, 90, {"ms_per_step": 500.0}).seconds_left == pytest.approx(30)
    assert Logged(90, 90, {"ms_per_step": 500.0}).seconds_left == 0


def test_counts_are_those_of_all_processes(monkeypatch) -> None:
    log = Log()
    log.add(step_of(1.0, [4, 1]), 1)
    monkeypatch.setattr(distributed, "summed", lambda count: count + torch.tensor([10, 20]))  # another process's
    log.row()
    assert log.histograms == {"image": [14, 21]}


def test_each_process_goes_on_with_its_own_counts(monkeypatch) -> None:
    counts = {"image": torch.tensor([[1, 2], [10, 20]])}
    saved = {"names": ["loss"], "sums": torch.tensor([[2.0], [4.0]]), "steps": 2, "counts": counts}
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world", lambda: 2)
        log = Log()
        log.restore(saved, CPU)
        assert log.counts["image"].tolist() == counts["image"][rank].tolist()
        assert log.sums.tolist() == saved["sums"][rank].tolist()
