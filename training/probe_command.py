"""The command `probe`: a linear probe, few-shot episodes or retrieval on frozen features, as a table and as JSON."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from manifests import store
from manifests.config import Value
from manifests.errors import Refused
from manifests.layout import require_manifest
from manifests.plain_text import PlainConsole, tell
from manifests.records import json_text
from training.paper_tables.columns import TASK_FLAGS
from training.typed_keys import typed_changes, typed_source

if TYPE_CHECKING:
    import torch

    from training.evaluation.probed_features import ProbedSplit
    from training.weights.open_models import Opened

Update = Callable[[str], None]
TOWERS = {"points": ("points",), "image": ("image",), "both": ("image", "points")}
MARKS = {"points": "point cloud", "image": "image (mean of views)", "both": "image and point cloud"}
WIDTH = 100  # characters of the widest table
EPISODES = ("shots", "queries", "episodes")  # flags that need --ways


@dataclass(frozen=True)
class Asked:
    """What is asked for. changes: keys of data and of towers. own: names of the features that are probed, side by side;
    wanted: these, and those that retrieval compares; splits: that are read, train first."""

    source: str
    changes: dict[str, Value]
    features: str
    own: tuple[str, ...]
    wanted: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """Tensors without which a feature is noise."""
        tensors = {"points_own": "points.", "points_clip": "points.projection"}
        return tuple(dict.fromkeys(tensors.get(name, "image.") for name in self.wanted))


def probe(options: argparse.Namespace, console: Console) -> int:
    """Probes, and gives the exit code."""
    from training import distributed
    from training.evaluation.judged_models import TOWER_KEYS, open_judged

    source, changes = typed_source(options), typed_changes(options, ("data", *TOWER_KEYS))
    tasks = [options, *map(partial(_further, options), options.also)]
    every = [_asked(task, source, changes) for task in tasks]
    device = distributed.device_of(options.device)
    about = (device, options.precision, options.recipe, lambda lines: console.print(*lines, sep="\n"))
    needs = tuple(dict.fromkeys(name for asked in every for name in asked.needs))
    opened = open_judged(source, options.shards, changes, *about, options.other_neighbours, needs)
    if options.who not in opened.models:
        raise Refused(f"--who {options.who}: {options.checkpoint} has no {options.who}")
    for task, asked in zip(tasks, every, strict=True):
        _refuse_untrained(task, asked, opened)
    with console.status("reading") as status:
        read = _read(options, every, opened, device, status.update)
        results = []
        for task, asked in zip(tasks, every, strict=True):
            splits = [read[split] for split in asked.splits]
            work = _retrieval if task.retrieval else _episodes if task.ways else _linear
            rows = work(task, asked, splits, status.update)
            results.append(_facts(task, asked, opened, splits) | rows[0] | {"rows": rows})
        result = results[0]
        if options.plot:
            status.update("drawing")
            result["plot"] = _draw(options, every[0], read[every[0].splits[-1]], result)
    if options.json:
        tell(json_text(result | ({"also": results[1:]} if options.also else {})))
        return 0
    for task, each in zip(tasks, results, strict=True):
        PlainConsole(width=WIDTH).print(_table(task, each))
        tell(_line(each))
    tell(*([_plot_line(result["plot"])] if options.plot else []))
    return 0


def _further(options: argparse.Namespace, flags: str) -> argparse.Namespace:
    """The options of a further probe: its own flags in place of the first one's. Raises Refused for any other flag."""
    from training.command_line import add_probe_tasks

    program = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    add_probe_tasks(program)
    try:
        own, others = program.parse_known_args(shlex.split(flags))
    except (argparse.ArgumentError, argparse.ArgumentTypeError, ValueError) as error:
        raise Refused(f"--also {flags!r}: {error}") from error
    if others:
        raise Refused(f"--also {flags!r}: {others[0]} is no flag of a further probe ({', '.join(TASK_FLAGS)})")
    return argparse.Namespace(**(vars(options) | vars(own) | {"plot": None}))


def _asked(options: argparse.Namespace, source: str, changes: dict[str, Value]) -> Asked:
    """Raises Refused, before any work, for flags that do not go together and for splits that are not there."""
    from training.evaluation.embed import require_library

    if options.retrieval and options.ways:
        raise Refused("--retrieval and --ways are two probes: one of them")
    if options.retrieval and (options.C is not None or options.standardise or options.classifier):
        raise Refused("--retrieval has no classifier: leave out --classifier, --C and --standardise")
    options.classifier = options.classifier or "svm"
    if options.ways == 1:
        raise Refused("--ways 1: an episode tells two or more classes apart")
    if options.ways and (options.C is not None or options.standardise):
        raise Refused("--ways: of episodes C is 1 and the features are always standardised (docs/probe.md)")
    if given := [name for name in EPISODES if getattr(options, name) is not None and not options.ways]:
        raise Refused(f"--{given[0]} is of episodes, which --ways N asks for")
    if options.C is not None and options.classifier == "knn":
        raise Refused("--C: of --classifier svm and logistic; knn has none")
    if options.plot:
        store.absolute(options.plot)
        if not options.plot.endswith(".png"):
            raise Refused(f"--plot {options.plot}: the picture is a PNG, so its name must end in .png")
        require_library(options.picture)
    splits: tuple[str, ...] = (options.train_split, options.test_split)
    if options.retrieval or options.ways:
        splits = splits[1:] if options.retrieval else splits[:1]
    elif options.train_split == options.test_split:
        raise Refused(
            f"--test-split {options.test_split}: the classifier learns from these objects; name another split"
        )
    there = require_manifest(store.absolute(options.shards), f"--shards {options.shards}").splits
    for split in splits:
        if split not in there:
            flag = "train" if split == options.train_split else "test"
            raise Refused(f"--{flag}-split {split}: {options.shards} has {', '.join(there)}")
    features = options.features or ("both" if options.retrieval else "points")
    own = tuple(f"{tower}_{options.space}" for tower in TOWERS[features])
    across = ("image_clip", "points_clip") if options.retrieval and features == "both" else ()
    return Asked(source, changes, features, own, tuple(dict.fromkeys((*own, *across))), splits)


def _refuse_untrained(options: argparse.Namespace, asked: Asked, opened: Opened) -> None:
    """Raises Refused for a feature that a run left at random: of a tower that it does not train, or of the shared space
    where a head of its own reads the tower's own feature."""
    from training.weights.open_models import untaught

    recipe, model = opened.checkpoint.recipe, opened.models[options.who]
    whose = f"a run of method={recipe.method}"
    for tower in TOWERS[asked.features]:
        if tower in untaught(recipe):
            other = "image" if tower == "points" else "points"
            raise Refused(f"{whose} trains no {tower}: --features {other}")
        headed = model.points_head if tower == "points" else model.image_head
        if headed is not None and f"{tower}_clip" in asked.wanted:
            raise Refused(f"{whose} has a head of its own, and no shared space: --space own")


def _read(
    options: argparse.Namespace, every: list[Asked], opened: Opened, device: torch.device, update: Update
) -> dict[str, ProbedSplit]:
    """The splits that are read, by the trained network and, unless it is left out, the random one."""
    from training.evaluation.probed_features import RANDOM, TRAINED, random_twin, read_split

    networks = {TRAINED: opened.models[options.who]}
    if not options.without_random:
        networks[RANDOM] = random_twin(opened.checkpoint, networks[TRAINED], device)
    wanted = tuple(dict.fromkeys(name for asked in every for name in asked.wanted))
    changes = every[0].changes["data"]
    how = (device, changes, options.workers, lambda done, total: update(f"{done:,} of {total:,} objects"))
    splits = dict.fromkeys(split for asked in every for split in asked.splits)
    return {split: read_split(networks, opened.checkpoint, options.shards, split, wanted, *how) for split in splits}


def _features(split: ProbedSplit, network: str, asked: Asked) -> np.ndarray:
    """float32 (N, D): what is probed; of both towers the features side by side."""
    return np.concatenate([split.features[network][name] for name in asked.own], axis=1)


def _facts(options: argparse.Namespace, asked: Asked, opened: Opened, splits: list[ProbedSplit]) -> dict[str, Any]:
    """What every row and table says beside its figures. partition: the release's division, where it has several."""
    from training.evaluation.probed_features import TRAINED

    checkpoint, manifest = opened.checkpoint, splits[0].manifest
    points = checkpoint.recipe.points
    return {
        "dataset": manifest.dataset,
        "partition": manifest.recipe.get("split"),
        "splits": list(asked.splits),
        "classes": len(np.unique(splits[0].label)),
        "step": checkpoint.step,
        "who": options.who,
        "precision": opened.precision,
        "run_seed": checkpoint.recipe.seed,
        "seed": options.seed,
        "backbone": points.backbone,
        "k": getattr(points, "k", None),
        "features": asked.features,
        "space": options.space,
        "width": _features(splits[0], TRAINED, asked).shape[1],
    }


def _linear(
    options: argparse.Namespace, asked: Asked, splits: list[ProbedSplit], update: Update
) -> list[dict[str, Any]]:
    """A row a network and scale; that of the trained network and the asked scale first."""
    from training.evaluation import linear_probe

    train, test = splits
    rows = []
    for network in train.features:
        given = [(_features(each, network, asked), each.label) for each in splits]
        for scaled in (options.standardise, not options.standardise):
            update(f"{options.classifier}: {network}, {'standardised' if scaled else 'raw'}")
            found = linear_probe.probe(options.classifier, given[0], given[1], scaled, options.C, options.seed)
            about = {"network": network, "classifier": options.classifier}
            rows.append(about | found | {"n_train": len(train.label), "n_test": len(test.label)})
    return rows


def _episodes(
    options: argparse.Namespace, asked: Asked, splits: list[ProbedSplit], update: Update
) -> list[dict[str, Any]]:
    """A row a network, all of the same episodes."""
    from training.evaluation import few_shot

    (split,) = splits
    sizes = {name: getattr(options, name) for name in ("ways", *EPISODES) if getattr(options, name) is not None}
    count = sizes.pop("episodes", few_shot.EPISODES)
    task = few_shot.EpisodeSize(**sizes)
    drawn = few_shot.draw(split.label, task, count, options.seed)
    rows = []
    for network in split.features:
        update(f"{count} episodes: {network}")
        about = {"network": network, "classifier": options.classifier}
        about |= {"ways": task.ways, "shots": task.shots, "queries": task.queries, "episodes": count}
        C = None if options.classifier == "knn" else few_shot.C
        found = few_shot.few_shot(_features(split, network, asked), split.label, drawn, options.classifier)
        rows.append(about | found | {"C": C, "standardised": True, "n": len(split.label)})
    return rows


def _retrieval(
    options: argparse.Namespace, asked: Asked, splits: list[ProbedSplit], update: Update
) -> list[dict[str, Any]]:
    """A row a network: figures by direction. Image against cloud is in CLIP's space, whatever --space says."""
    from training.evaluation.embed import unit_rows
    from training.evaluation.retrieval import retrieve

    (split,) = splits
    names = {"image": "image", "points": "cloud"}
    rows = []
    for network, features in split.features.items():
        update(f"retrieval: {network}")
        row: dict[str, Any] = {"network": network, "n": len(split.label)}
        if asked.features == "both":
            for query, gallery in (("image", "points"), ("points", "image")):
                given = features[f"{query}_clip"], features[f"{gallery}_clip"]
                row[f"{names[query]}_to_{names[gallery]}"] = retrieve(*given, split.label, across=True)
        for tower in TOWERS[asked.features]:
            own = unit_rows(features[f"{tower}_{options.space}"])
            row[f"{names[tower]}_to_{names[tower]}"] = retrieve(own, own, split.label, across=False)
        rows.append(row)
    return rows


def _draw(options: argparse.Namespace, asked: Asked, split: ProbedSplit, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes the picture of the trained network's features of the last split; gives what is said of it."""
    from training.evaluation.probed_features import TRAINED
    from training.evaluation.retrieval import picture

    about = f"{facts['dataset']} {split.split}, step {facts['step']}, {facts['who']}"
    features, mark = _features(split, TRAINED, asked), MARKS[asked.features]
    given = (split.label, split.keys, split.manifest.classes, mark, about, options.picture, options.seed)
    data, found = picture(features, *given)
    try:
        store.write_bytes(store.absolute(options.plot), data)
    except OSError as error:
        raise Refused(f"{options.plot} cannot be written: {error.strerror or error}") from error
    return {"file": options.plot} | found


def _table(options: argparse.Namespace, result: dict[str, Any]) -> Table:
    """The rows of a result for a terminal."""
    from training.reports import terminal

    title = f"{result['dataset']} {' -> '.join(result['splits'])}"
    if options.retrieval:
        head = ["retrieval, %", "at 1", "at 5", "at 10", "mAP", "own at 1", "at 5", "at 10"]
        lines = [
            [f"{row['network']}: {name.replace('_', ' ')}", *_shares(found)]
            for row in result["rows"]
            for name, found in row.items()
            if isinstance(found, dict)
        ]
        return terminal.table(f"{title}, n={result['n']}", head, lines, whole=True)
    if options.ways:
        size = (
            f"{result['ways']}-way {result['shots']}-shot, {result['queries']} queries, {result['episodes']} episodes"
        )
        lines = [[row["network"], f"{row['mean']:.1f}", f"{row['std']:.1f}"] for row in result["rows"]]
        return terminal.table(f"{title}: {size}", ["accuracy, %", "mean", "std"], lines, whole=True)
    head = [f"{options.classifier}, %", "accuracy", "95% interval", "mean per class", "C"]
    lines = [
        [
            f"{row['network']}, {'standardised' if row['standardised'] else 'raw'}",
            f"{row['accuracy']:.1f}",
            "-".join(f"{end:.1f}" for end in row["interval"]),
            f"{row['mean_per_class']:.1f}",
            terminal.ABSENT if row["C"] is None else f"{row['C']:g}",
        ]
        for row in result["rows"]
    ]
    return terminal.table(f"{title}, n={result['n_train']} -> {result['n_test']}", head, lines, whole=True)


def _shares(found: dict[str, Any]) -> Iterable[str]:
    from training.reports.terminal import ABSENT

    own = found["instance"] or dict.fromkeys(found["recall"])
    for value in (*found["recall"].values(), found["map"], *own.values()):
        yield ABSENT if value is None else f"{value:.1f}"


def _line(result: dict[str, Any]) -> str:
    """What every row shares, in one line."""
    words = [f"{result['features']} ({result['space']}, width {result['width']}) of {result['backbone']}"]
    words += [f"k {result['k']}"] if result["k"] is not None else []
    words += [f"step {result['step']}", result["who"], result["precision"]]
    words += [f"seed {result['run_seed']} of the run, {result['seed']} of the probe"]
    if "ways" in result:
        C = "" if result["C"] is None else f" C {result['C']:g}"
        words += [f"{result['classifier']}{C} on features standardised over the support"]
    words += [f"partition {result['partition']}"] if result["partition"] else []
    random = "; random: a network of the same shape before any training" if len(result["rows"]) > 1 else ""
    return ", ".join(words) + random


def _plot_line(plot: dict[str, Any]) -> str:
    return (
        f"{plot['file']}: 10 nearest of the same class {plot['purity']:.1f} % by features, "
        f"{plot['purity_in_plane']:.1f} % in the plane"
    )
