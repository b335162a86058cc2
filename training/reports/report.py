"""Reports on runs, as HTML, Markdown and JSON: accuracies, gains over zero-shot, curves and example objects.

Rows: zero-shot (step 0 of the first run), each run under the name of its method, and an oracle (trained with labels).
Several runs of a method have the names of their folders, too, and the keys that differ from the first of them.
Runs that differ in nothing but the seed are one row: the mean of their figures, and their deviation. Columns: percent
right of the student at its last step on single views (`image`), averaged views (`image_star`) and clouds (`points`),
and their mean.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from manifests import store
from manifests.config import Value
from manifests.errors import Refused
from manifests.layout import BuildManifest, library_versions, require_manifest
from manifests.plain_text import number_of
from manifests.records import json_text
from training.data.dataset import open_source
from training.evaluation.evaluate import Unlabelled, examine, teacher_labels
from training.evaluation.metrics import NORMAL_95, Examined, SplitAnswers, percent, wilson
from training.loop.fit import LIBRARIES, POLICY
from training.loop.metric_log import LOG
from training.objectives import is_supervised
from training.objectives.losses import biasedness
from training.plots import curves
from training.reports import page, prediction_sheet
from training.reports.evaluation_files import write_files
from training.reports.page import COLUMNS, NAMES, ORACLE, OURS, ZERO_SHOT
from training.settings.row_terms import terms_of
from training.weights.checkpoint import Checkpoint, open_checkpoint, step_folders
from training.weights.run_folder import read_about

OF_SEED = "_seed_"  # in the name of a run that shares its row with others
_NO_KEYS = {"seed", *POLICY}  # of a recipe: they do not make another row


@dataclass(frozen=True)
class Report:
    """values: the object of report.json. pictures: the PNG files that could be drawn, by name, such as `losses`."""

    values: dict[str, Any]
    pictures: dict[str, bytes]


@dataclass(frozen=True)
class _OpenRun:
    """A run of the report. row: of its method in the tables; name: its own, which is the row's if it is alone there.

    shown: the row's name for people; path: as given; about: its run.json; columns: of its log.
    """

    row: str
    name: str
    shown: str
    path: str
    about: dict[str, Any]
    first: Checkpoint
    last: Checkpoint
    columns: curves.Columns

    @property
    def loss_curves(self) -> curves.Curves:
        return curves.Curves(self.shown, self.columns, self.last.recipe.pseudo_labels.mode == "own")


def paired_gain(new: Tensor, old: Tensor, z: float = NORMAL_95) -> tuple[float, float, float]:
    """Mean of new - old over the same objects, float (N,) each, and its 95% interval: mean -+ z sd / sqrt(N)."""
    difference = (new - old).double()
    mean = float(difference.mean())
    half = z * float(difference.std(correction=0)) / math.sqrt(len(difference))
    return mean, mean - half, mean + half


def collect(
    runs: Sequence[str | Path],
    shards: str,
    source: str | None = None,
    oracle: str | Path | None = None,
    split: str = "test",
    device: torch.device | None = None,
    on_progress: Callable[[str], None] = lambda words: None,
) -> Report:
    """Everything of a report; writes nothing.

    Raises Refused when a path is no run, a run was trained with labels (or the oracle without), or on other shards or
    classes than `shards`; or when the shards have no such split or no labels there.
    """
    manifest = require_manifest(store.absolute(shards), f"--shards {shards}")
    opened = _open_runs(runs, shards, manifest)
    settings = opened[-1].last.recipe.judged_data
    target = open_source(shards, settings.model_copy(update={"split": split}))
    begun = None if source is None else open_source(source, settings)
    known = None if oracle is None else _open_oracle(str(oracle), shards, manifest)
    checkpoints = {ZERO_SHOT: opened[0].first} | {run.name: run.last for run in opened}
    if known is not None:
        checkpoints[ORACLE] = known[0]

    def progress(what: str) -> Callable[[int, int], None]:
        return lambda done, total: on_progress(f"{what}: {done:,} of {number_of(total, 'object')}")

    examined = examine(list(checkpoints.values()), shards, split, device, on_progress=progress(split))
    rows = dict(zip(checkpoints, examined, strict=True))
    labels = _pseudo_labels(opened, shards, device, progress("pseudo-labels"))
    values = _values(opened, rows, labels, manifest.dataset, split)
    if known is not None:
        values["runs"][ORACLE] = _about(str(oracle), *known)
        values["rows"][ORACLE] = terms_of(known[0].recipe, manifest.dataset, [known[0].recipe.seed])
    on_progress("pictures")
    methods = _methods(opened)
    every = [curves.mean_of_seeds(_legend(each), [run.loss_curves for run in each]) for each in methods.values()]
    shown = [ZERO_SHOT, *(each[0].name for each in methods.values())]
    seed, named = values["seed"], {values["names"][name]: rows[name] for name in shown}
    drawn = {
        "losses": curves.losses(every),
        "pseudo_labels": curves.pseudo_labels(every),
        "analysis": curves.analysis(every),
        "labelled": curves.labelled(every),
        "target": prediction_sheet.sheet(prediction_sheet.target_objects(target, settings, named, seed)),
        "source": begun and prediction_sheet.sheet(prediction_sheet.source_objects(begun, settings), across=2),
    }
    return Report(values, {name: png for name, png in drawn.items() if png})


def write(report: Report, out: str | Path, seconds: float | None = None, max_rss_mb: float | None = None) -> Path:
    """Writes OUT/report.html, report.md with its pictures beside it, and report.json; gives the path of the first.

    seconds, max_rss_mb: of all commands that led to the report. Raises Refused where OUT cannot be written.
    """
    report = replace(report, values=report.values | {"seconds": seconds, "max_rss_mb": max_rss_mb})
    shown = page.page_of(report.values, report.pictures)
    files = {"report.json": (json_text(report.values, indent=1) + "\n").encode()}
    files |= {page.picture_file(name): png for name, png in report.pictures.items()}
    files |= {"report.md": page.to_markdown(shown).encode(), "report.html": page.to_html(shown).encode()}
    return write_files(str(out), files) / "report.html"


def _open_runs(paths: Sequence[str | Path], shards: str, manifest: BuildManifest) -> list[_OpenRun]:
    opened: list[_OpenRun] = []
    for path in map(str, paths):
        folders = step_folders(Path(path))
        last = open_checkpoint(path)
        columns = _read_log(Path(path) / LOG)
        if not folders or columns is None:
            raise Refused(f"{path} is no run (it has no {LOG} with rows, or no checkpoints)")
        first = open_checkpoint(str(folders[0]))
        if first.step:
            raise Refused(f"{path} has no checkpoint of step 0, which is zero-shot")
        if last.recipe.data.classes:
            raise Refused(f"{path} knows a part of the classes (data.classes); `training evaluate` judges such runs")
        about = _same_shards(path, shards, manifest)
        if about.get("oracle") or is_supervised(last.recipe.method):
            raise Refused(f"{path} was trained with labels: it can be the --oracle alone")
        opened.append(_OpenRun("", "", "", path, about, first, last, columns))
    return _named(opened)


def _named(runs: list[_OpenRun]) -> list[_OpenRun]:
    """The runs with their rows and names. Those that differ in nothing but the seed share a row."""
    methods: list[list[_OpenRun]] = []
    for run in runs:
        same = next((each for each in methods if all(_differ_in_the_seed_alone(run, other) for other in each)), None)
        if same is None:
            methods.append([run])
        else:
            same.append(run)
    named: list[_OpenRun] = []
    for each in methods:
        method = each[0].last.recipe.method
        before = len({run.row for run in named if run.last.recipe.method == method})
        row = method + (f"_{before + 1}" if before else "")
        shown = _shown(method, [other for other in methods if other[0].last.recipe.method == method], each)
        shown += f" {row.rpartition('_')[2]}" if shown in {run.shown for run in named} else ""
        for run in each:
            name = row if len(each) == 1 else f"{row}{OF_SEED}{run.last.recipe.seed}"
            named.append(replace(run, row=row, name=name, shown=shown))
    return named


def _shown(method: str, rows: list[list[_OpenRun]], each: list[_OpenRun]) -> str:
    """The name of a row. Where a method has several, with the folder of its runs and the keys that its first row lacks.

    Runs of several seeds have the beginning that their folders share.
    """
    name = NAMES.get(method, method)
    if len(rows) == 1:
        return name
    folders = [Path(run.path).absolute().name for run in each]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*folders, strict=False))
    folder = "".join(letters[0] for letters in same)
    folder = folder.rstrip("-_.=") if len(each) > 1 else folder
    old, new = (run.last.recipe.model_dump(mode="json", exclude=_NO_KEYS) for run in (rows[0][0], each[0]))
    changed = ", ".join(_changed_keys(old, new))
    return name + (f", {folder}" if folder else "") + (f" ({changed})" if changed else "")


def _changed_keys(old: dict[str, Value], new: dict[str, Value], prefix: str = "") -> Iterator[str]:
    """`key=value` of the second of two recipes, for each key in which it differs from the first."""
    for key in dict.fromkeys([*old, *new]):
        before, value = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            yield from _changed_keys(before, value, f"{prefix}{key}.")
        elif before != value:
            yield f"{prefix}{key}={value if isinstance(value, str) else json_text(value)}"


def _differ_in_the_seed_alone(one: _OpenRun, other: _OpenRun) -> bool:
    first, second = ((run.last.step, run.last.recipe.model_dump(exclude=_NO_KEYS)) for run in (one, other))
    return first == second and one.last.recipe.seed != other.last.recipe.seed


def _methods(runs: Sequence[_OpenRun]) -> dict[str, list[_OpenRun]]:
    """The runs of each row."""
    return {row: [run for run in runs if run.row == row] for row in dict.fromkeys(run.row for run in runs)}


def _seeds(runs: Sequence[_OpenRun]) -> list[int]:
    return [run.last.recipe.seed for run in runs]


def _legend(runs: Sequence[_OpenRun]) -> str:
    return runs[0].shown + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")


def _open_oracle(path: str, shards: str, manifest: BuildManifest) -> tuple[Checkpoint, dict[str, Any]]:
    checkpoint = open_checkpoint(path)
    if not step_folders(Path(path)):
        raise Refused(f"--oracle {path} is no run (it has no checkpoints)")
    about = _same_shards(path, shards, manifest)
    if not about.get("oracle") and not is_supervised(checkpoint.recipe.method):
        raise Refused(f"--oracle {path} was trained without labels (method={checkpoint.recipe.method})")
    if len(checkpoint.recipe.towers) < 2:
        raise Refused(
            f"--oracle {path} trained {checkpoint.recipe.towers[0]} alone: an oracle has supervised.towers=both"
        )
    return checkpoint, about


def _same_shards(path: str, shards: str, manifest: BuildManifest) -> dict[str, Any]:
    """run.json of a run; raises Refused unless it was trained on a build with this manifest."""
    about = read_about(Path(path))
    if tuple(about["classes"]) != manifest.classes:
        raise Refused(
            f"{shards} has {number_of(len(manifest.classes), 'class')}, {path} {len(about['classes'])} others"
        )
    for name in ("assets_hash", "shapes_hash"):
        if about.get(name) != getattr(manifest, name):
            raise Refused(f"{path} was trained on other shards than --shards {shards} (another {name})")
    return about


def _read_log(path: Path) -> curves.Columns | None:
    """Columns of log.csv by name; None if the file or its rows are missing. Raises Refused when it is damaged."""
    try:
        rows = list(csv.DictReader(io.StringIO(store.read_text(path), newline="")))
        return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else None
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise Refused(f"{path} is damaged: {error}") from error


def _score(answers: SplitAnswers) -> dict[str, Tensor]:
    """By column, float (N,): 1 where an object is right; `mean`: the mean of its three columns."""
    right = {name: answers.right(name) for name in COLUMNS if name != "mean"}
    return right | {"mean": torch.stack(list(right.values())).mean(dim=0)}


def _mean(scores: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """By column, the mean score of each object over several runs: of their figures too."""
    return {name: torch.stack([score[name].double() for score in scores]).mean(dim=0) for name in scores[0]}


def _deviation(seeds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By column, the sample deviation (n - 1) of the seeds' figures, in points."""
    return {name: round(stdev(seed[name] for seed in seeds), 2) for name in COLUMNS}


def _table(score: dict[str, Tensor]) -> dict[str, float]:
    return {name: percent(each.double().mean()) for name, each in score.items()}


def _intervals(score: dict[str, Tensor]) -> dict[str, list[float]]:
    """95% intervals of a row.

    The mean of an object's three answers varies at most as much as one answer. So the interval of `mean` is too wide.
    """
    return {name: [percent(x) for x in wilson(float(s.double().mean()), len(s))] for name, s in score.items()}


def _values(
    runs: list[_OpenRun], rows: dict[str, Examined], labels: dict[str, Any] | None, dataset: str, split: str
) -> dict[str, Any]:
    """The object of report.json, without seconds and max_rss_mb, which `write` adds."""
    scores = {name: _score(each.student) for name, each in rows.items()}
    oracle = scores.pop(ORACLE, None)
    some, methods = rows[ZERO_SHOT], _methods(runs)
    seeds = {
        row: [{"seed": run.last.recipe.seed, "run": run.name} | _table(scores[run.name]) for run in each]
        for row, each in methods.items()
        if len(each) > 1
    }
    scores = {ZERO_SHOT: scores[ZERO_SHOT]} | {
        row: _mean([scores[run.name] for run in each]) for row, each in methods.items()
    }
    taught = {row: [each for run in runs if (each := rows[run.name].teacher)] for row, runs in methods.items()}
    names = {row: NAMES[row] for row in (ZERO_SHOT, ORACLE)} | {run.row: run.shown for run in runs}
    names |= {run.name: f"{run.shown}, seed {run.last.recipe.seed}" for run in runs if run.name != run.row}
    taught = {ZERO_SHOT: [some.teacher] if some.teacher else []} | taught
    return {
        "dataset": dataset,
        "split": split,
        "n": len(some.keys),
        "names": names,
        "table": {row: _table(score) for row, score in scores.items()},
        "interval": {row: _intervals(score) for row, score in scores.items()},
        "oracle": oracle and _table(oracle) | {"interval": _intervals(oracle)},
        "seeds": seeds,
        "deviation": {row: _deviation(each) for row, each in seeds.items()},
        "gains": _gains(scores),
        "teacher": {
            row: _table(_mean([_score(each) for each in teachers])) for row, teachers in taught.items() if teachers
        },
        "pseudo_labels": labels,
        "analysis": {row: each.result()["analysis"] for row, each in rows.items()},
        "labels_biasedness": _labels_biasedness(some),
        "runs": {run.name: _about(run.path, run.last, run.about) for run in runs},
        "rows": {ZERO_SHOT: terms_of(runs[0].first.recipe, dataset, [runs[0].first.recipe.seed], "first")}
        | {row: terms_of(each[0].last.recipe, dataset, _seeds(each)) for row, each in methods.items()},
        "seed": runs[-1].last.recipe.seed,
        "versions": library_versions(*LIBRARIES, "matplotlib"),
    }


def _gains(scores: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{gain, interval} in the mean column, in points: of each run over zero-shot, of Cross-MoST over other methods."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in scores:
        others = [other for other in scores if not other.startswith(OURS)] if row.startswith(OURS) else [ZERO_SHOT]
        if row != ZERO_SHOT:
            found[row] = {other: _gain(scores[row]["mean"], scores[other]["mean"]) for other in others}
    return found


def _gain(new: Tensor, old: Tensor) -> dict[str, Any]:
    gain, *interval = paired_gain(new, old)
    return {"gain": percent(gain), "interval": [percent(x) for x in interval]}


def _labels_biasedness(some: Examined) -> float:
    return round(float(biasedness(torch.bincount(some.student.label, minlength=len(some.classes)).float())), 4)


def _about(path: str, checkpoint: Checkpoint, about: dict[str, Any]) -> dict[str, Any]:
    names = ("seconds", "max_rss_mb", "ms_per_step")
    init = checkpoint.recipe.init.all
    return {"path": path, "init": init, "step": checkpoint.step, **{name: about.get(name) for name in names}}


def _pseudo_labels(
    runs: list[_OpenRun], shards: str, device: torch.device | None, progress: Callable[[int, int], None]
) -> dict[str, Any] | None:
    """Quality of the pseudo-labels of each run's teacher, at its first and last step, on its training split.

    None where a training split has no labels.
    """
    found: dict[str, Any] = {}
    for split in {run.last.recipe.data.split: None for run in runs}:
        chosen = [run for run in runs if run.last.recipe.data.split == split]
        checkpoints = [checkpoint for run in chosen for checkpoint in (run.first, run.last)]
        try:
            quality = teacher_labels(checkpoints, shards, split, device, progress)
        except Unlabelled:
            return None
        for run, first, last in zip(chosen, quality[::2], quality[1::2], strict=True):
            settings = run.last.recipe.pseudo_labels
            found[run.name] = {
                "split": split,
                "threshold": settings.threshold,
                "points_weight": settings.points_weight,
                "first": first,
                "last": last,
            }
    return found
