"""One file a dataset: what each of them offers (`Dataset`), and how the file of a dataset is found."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, cast

from manifests import plugins
from manifests.dataset_info import DatasetTable
from manifests.errors import Refused
from manifests.records import Asset
from pipeline.datasets.options import DatasetOptions
from pipeline.datasets.splits import count_shortfalls
from pipeline.formats.frame import Frame
from pipeline.sources.raw_shape import RawShape

MODULES = {"parametric": "pipeline.datasets.synthetic.generator"}  # reader -> module; the others are named as readers
Options = Any  # an instance of the module's own OPTIONS, which only this module looks into
FramesHook = Callable[[Asset, Path | None, Options], AbstractContextManager[list[Frame]]]


class Dataset(Protocol):
    """What a module of this folder offers. It defines `assets` and `read`; DEFAULTS has the other hooks.

    `root` is the folder that --source names; None for a dataset that is made and not read.
    NEEDS_SOURCE: whether there is such a folder. SAVES_SPLITS: whether the recipe divides the objects into splits, so
    that a build stores the lists. OPTIONS: the keys that the dataset reads, or such a class for each dataset's name.
    frames: the frames of one object while its files are open, or None where the dataset has no sequences.
    """

    NEEDS_SOURCE: bool
    SAVES_SPLITS: bool
    OPTIONS: type[DatasetOptions] | dict[str, type[DatasetOptions]]
    frames: FramesHook | None

    def assets(self, root: Path | None, table: DatasetTable, options: Options) -> Iterator[Asset]:
        """Every object of a source, without reading a shape. Raises Refused where the source is not the dataset."""

    def read(self, asset: Asset, root: Path | None, options: Options) -> RawShape:
        """One object. Raises ValueError, in one line, where it cannot be read."""

    def complete(self, table: DatasetTable, root: Path | None) -> DatasetTable:
        """The table with classes and counts from the source, where that holds them."""

    def shortfalls(
        self, options: Options, table: DatasetTable, found: list[Asset], splits: tuple[str, ...]
    ) -> list[str]:
        """What a partial copy lacks, one text each. splits: only these are built; () for all."""

    def notes(self, options: Options, table: DatasetTable) -> tuple[str, ...]:
        """What a person should know about the choice of objects, one line each."""

    def passed_over(self, options: Options, root: Path | None) -> dict[str, int]:
        """Suffix -> number of files of the source that look like shapes and are not read."""


DEFAULTS: dict[str, object] = {
    "NEEDS_SOURCE": True,
    "SAVES_SPLITS": False,
    "OPTIONS": DatasetOptions,
    "frames": None,
    "complete": lambda table, root: table,
    "shortfalls": count_shortfalls,
    "notes": lambda options, table: (),
    "passed_over": lambda options, root: {},
}


def dataset_module(table: DatasetTable) -> Dataset:
    """The module that reads a dataset, with the default of each hook that it does not define."""
    own = plugins.offered("DATASETS").get(table.name)
    reader = table.reader or table.name
    module = own[1] if own else importlib.import_module(MODULES.get(reader, f"{__name__}.{reader}"))
    for hook in ("assets", "read"):
        if not hasattr(module, hook):
            raise Refused(f"dataset {table.name}: its reader has no function {hook} (docs/extending.md)")
    return cast(Dataset, SimpleNamespace(**{**DEFAULTS, **vars(module)}))


def options_of(table: DatasetTable) -> type[DatasetOptions]:
    """The class of the keys that a dataset reads beside those of every recipe."""
    options = dataset_module(table).OPTIONS
    return options[table.name] if isinstance(options, dict) else options
