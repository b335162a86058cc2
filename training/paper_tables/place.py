"""Where and how the rows of a table are run: folders, devices, and the commands that a person could type for them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manifests.config import Value
from manifests.errors import Refused
from training.paper_tables.judged_rows import Figure, Judged
from training.settings.checkpoint_recipe import checkpoint_data
from training.settings.fit_recipe import FitRecipe

FIRST = "checkpoints/step-00000000"


@dataclass(frozen=True)
class Place:
    """Where and how rows are run. processes: of one fit, by torchrun. say: a line; status: what goes on now.

    slots: for each run that is trained at once, the variables of its commands' environment. plugins: as `--plugin` of
    the table names them, and of its commands. stopping: set to end all.
    """

    folder: Path
    device: str = "cpu"
    processes: int = 1
    say: Callable[[str], None] = lambda line: None
    status: Callable[[str], None] = lambda line: None
    slots: tuple[dict[str, str], ...] = ({},)
    plugins: tuple[str, ...] = ()
    stopping: threading.Event = field(default_factory=threading.Event)

    def program(self, processes: int = 1) -> list[str]:
        """How `training` is called."""
        if processes == 1:
            return [sys.executable, "-m", "training"]
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return [sys.executable, "-m", *torchrun, "-m", "--", "training"]  # without --, it takes --run as one of its own

    def fit_command(self, judged: Judged) -> list[str]:
        """Trains the row's run, or goes on with it."""
        recipe = str(self.folder / "recipes" / f"{judged.row.run}.toml")
        places = ["--shards", str(judged.shards), "--run", str(self.folder / judged.row.run), "--device", self.device]
        return [*self.program(self.processes), "fit", recipe, *places, *self._with_plugins()]

    def judge_commands(self, judged: Judged, figures: Sequence[Figure] | None = None) -> list[Command]:
        """Judge the row's checkpoint: one command for all figures that it can give.

        Those of `probe` that differ in their task alone read the features once, by `--also`.
        """
        commands: dict[tuple[str, ...], list[Figure]] = {}
        for figure in judged.figures if figures is None else figures:
            if figure.shards is not None:
                key = (figure.column.command, figure.shards, *figure.column.shared)
                commands.setdefault(key, []).append(figure)
        return [self._judge_command(judged, each) for each in commands.values()]

    def _judge_command(self, judged: Judged, figures: list[Figure]) -> Command:
        run, column = self.folder / judged.row.run, figures[0].column
        checkpoint = str(run / FIRST if judged.row.step == "first" else run)
        changes = assignments(_own_data(judged.recipe) | judged.row.evaluate, "data.")
        places = ["--shards", str(figures[0].shards), "--device", self.device, "--json"]
        tasks = list(dict.fromkeys(figure.column.task for figure in figures))
        probe = ["--without-random"] * (column.command == "probe")
        also = [word for task in tasks[1:] for word in ("--also", " ".join(task))]
        words = [*probe, *tasks[0], *also, *column.shared, *changes, *self._with_plugins()]
        line = [*self.program(), column.command, checkpoint, *places, *words]
        return Command(line, tuple((figure, tasks.index(figure.column.task)) for figure in figures))

    def _with_plugins(self) -> list[str]:
        return [word for name in self.plugins for word in ("--plugin", name)]

    def result_path(self, judged: Judged, figure: Figure | None = None) -> Path:
        """The file with a row's figures, or with one of them."""
        identity = figure.identity if figure else judged.identity
        return self.folder / "results" / f"{judged.row.run}-{identity[:8]}.json"


@dataclass(frozen=True)
class Command:
    """A command line, and which of its tasks each figure is of: 0, or n for its n-th `--also`."""

    line: list[str]
    figures: tuple[tuple[Figure, int], ...]


def _own_data(recipe: FitRecipe) -> dict[str, Value]:
    """Keys of data that a checkpoint does not bring along, where they are given."""
    given, brought = recipe.data.model_dump(exclude_defaults=True), checkpoint_data(recipe).model_dump()
    return {name: value for name, value in given.items() if value != brought[name]}


def assignments(changes: dict[str, Value], prefix: str = "") -> list[str]:
    """Nested values as `key=value` arguments."""
    found = []
    for key, value in changes.items():
        inside = isinstance(value, dict)
        found += assignments(value, f"{prefix}{key}.") if inside else [f"{prefix}{key}={json.dumps(value)}"]
    return found


def slots_of(parallel: int, processes: int, gpus: Sequence[str] | None, cores: int) -> tuple[dict[str, str], ...]:
    """The environments of `parallel` runs at once, each of `processes` processes, one a GPU; gpus: None on the CPU.

    Raises Refused where there are too few GPUs.
    """
    wanted = parallel * processes
    if gpus is not None and wanted > len(gpus):
        raise Refused(f"--parallel {parallel} --processes {processes} needs {wanted} GPUs, and {len(gpus)} are visible")
    if parallel == 1:
        return ({},)
    if gpus is None:
        return ({"OMP_NUM_THREADS": str(max(cores // wanted, 1))},) * parallel
    groups = [gpus[first : first + processes] for first in range(0, wanted, processes)]
    return tuple({"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups)
