"""Dataset tables: class names in label order, prompt names, expected counts and axes, kept in datasets/*.toml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from manifests import plugins
from manifests.config import load_toml, names_in, parse_recipe, unknown_name

FOLDER = Path(__file__).parent / "datasets"


class DatasetTable(BaseModel):
    """What is fixed about a dataset.

    reader: the file of pipeline/datasets that reads it, by default the one of its name. classes: names as the dataset
    writes them, in label order; empty for a dataset of anyone's own. prompt_names: the same in words for prompts.
    counts: expected objects of each split of a complete copy; split_counts: the same of each other division of the
    dataset, by the name that `split=` takes. subsets: classes that are judged alone, by name. synsets: WordNet synset
    id -> class. expected_failures: id of an object that is broken in the dataset itself -> what is wrong with it; it
    may fail and is counted in no fraction.
    axes: for each world axis, the signed source axis it is (`["y", "z", "x"]`: world = (source y, source z, source x));
    determinant +1. parts: of a dataset with part labels, how many parts each class has; parts are numbered over all
    classes, in their order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    title: str = ""
    reader: str = ""
    classes: tuple[str, ...] = ()
    prompt_names: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    split_counts: dict[str, dict[str, int]] = {}
    subsets: dict[str, tuple[str, ...]] = {}
    synsets: dict[str, str] = {}
    expected_failures: dict[str, str] = {}
    axes: tuple[str, str, str] = ("x", "y", "z")
    parts: tuple[Annotated[int, Field(ge=1)], ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> DatasetTable:
        if len(self.prompt_names) != len(self.classes):
            raise ValueError(f"{len(self.prompt_names)} prompt names for {len(self.classes)} classes")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class comes twice")
        if self.synsets and sorted(self.synsets.values()) != sorted(self.classes):
            raise ValueError("synsets and classes are not the same")
        for name, subset in self.subsets.items():
            strange = set(subset) - set(self.classes)
            if strange or len(set(subset)) != len(subset):
                raise ValueError(f"subsets.{name}: {min(strange, default='a class comes twice')} is no class")
        if self.parts and len(self.parts) != len(self.classes):
            raise ValueError(f"parts of {len(self.parts)} classes for {len(self.classes)} classes")
        axes_matrix(self.axes)
        return self

    def label(self, class_name: str | None) -> int | None:
        """The label of a class, or None where the class is unknown or not in the table."""
        return self.classes.index(class_name) if class_name in self.classes else None

    def parts_of(self, label: int) -> range:
        """The numbers of a class's parts."""
        first = sum(self.parts[:label])
        return range(first, first + self.parts[label])


def axes_matrix(axes: tuple[str, str, str] | list[str]) -> np.ndarray:
    """world_from_source (4, 4) of a signed permutation of axes. Raises ValueError unless its determinant is +1."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    for row, axis in enumerate(axes):
        found = re.fullmatch(r"([+-]?)([xyz])", axis)
        if not found:
            raise ValueError(f"axes: {axis!r} is not x, y, z or one of them with a minus")
        matrix[row, "xyz".index(found[2])] = -1.0 if found[1] == "-" else 1.0
    if abs(np.linalg.det(matrix) - 1.0) > 1e-9:
        raise ValueError(f"axes {list(axes)} do not turn but mirror (or repeat an axis)")
    return matrix


def _shipped() -> list[str]:
    return names_in(FOLDER)


def table_names() -> list[str]:
    """Names of the shipped dataset tables and of those of loaded plugins, sorted."""
    return sorted({*_shipped(), *plugins.offered("DATASETS", _shipped())})


def load_table(name: str) -> DatasetTable:
    """The table of a dataset. Raises Refused for an unknown name."""
    if name not in table_names():
        raise unknown_name("dataset", name, table_names(), "one of your own: --plugin FILE.py")
    if name in _shipped():
        return parse_recipe(DatasetTable, load_toml(FOLDER / f"{name}.toml"), f"dataset table {name}")
    plugin, _, values = plugins.offered("DATASETS")[name]
    return parse_recipe(DatasetTable, {"name": name, **values}, f"plugin {plugin}: dataset {name}")


def default_prompt_name(class_name: str) -> str:
    """A class name in words: underscores and dashes become spaces."""
    return re.sub(r"[_-]+", " ", class_name).strip()
