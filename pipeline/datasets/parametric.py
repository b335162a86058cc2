"""The embedded dataset: everyday objects made from a seed, so that everything runs without a download.

Nineteen classes, each an assembly of textured parts with six or more continuous parameters. The same seed gives
the same bytes; colours and textures are drawn from one palette for all classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from manifests.records import Asset
from manifests.seeds import generator
from manifests.tables import DatasetTable
from pipeline.datasets.assemblies import ASSEMBLIES, Parameter
from pipeline.datasets.primitives import assemble, make_paint
from pipeline.load import RawShape
from renderers.geometry import Mesh

NEEDS_SOURCE = False
NUM_PAINTS = 3


class ParametricOptions(BaseModel):
    """How many objects to make: `objects` in all, dealt to the classes in turn, then cut into the splits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objects: Annotated[int, Field(ge=1)] = 240
    seed: int = 0
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _leaves_train(self) -> ParametricOptions:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing for train")
        return self


def assets(root: Path | None, table: DatasetTable, options: ParametricOptions) -> Iterator[Asset]:
    """One asset an object. Every class has as many as any other, give or take one, in every split."""
    for index in range(options.objects):
        class_name = table.classes[index % len(table.classes)]
        number = index // len(table.classes)
        yield Asset(
            id=f"{class_name}_{number:06d}",
            source=f"parametric:{class_name}:{options.seed}:{number}",
            split=_split(number, options),
            class_name=class_name,
        )


def _split(number: int, options: ParametricOptions) -> str:
    """The split of a class's n-th object: fractions are met as closely as whole objects allow, from the start on."""
    held_out = options.test_fraction + options.val_fraction
    before = int(number * held_out)
    if int((number + 1) * held_out) == before:
        return "train"
    of_test = options.test_fraction / held_out
    return "test" if int((before + 1) * of_test) > int(before * of_test) else "val"


def read(asset: Asset, root: Path | None) -> RawShape:
    """Makes the object that an asset's source describes."""
    _, class_name, seed, number = asset.source.split(":")
    return RawShape(mesh=generate(class_name, int(seed), int(number)))


def generate(class_name: str, seed: int, number: int) -> Mesh:
    """One object in the world frame, standing upright with its front towards -Z.

    Raises ValueError naming the nearest class when there is no such class.
    """
    rng = object_rng(class_name, seed, number)
    values = {p.name: float(rng.uniform(p.low, p.high)) for p in describe(class_name)}
    return assemble_object(class_name, values, rng)


def assemble_object(class_name: str, values: dict[str, float], rng: np.random.Generator) -> Mesh:
    """The object of given parameter values, painted by `rng`."""
    parts = ASSEMBLIES[class_name][0](values)
    return assemble(parts, [make_paint(rng) for _ in range(NUM_PAINTS)])


def describe(class_name: str) -> tuple[Parameter, ...]:
    """The parameters of a class and their ranges."""
    if class_name not in ASSEMBLIES:
        near = difflib.get_close_matches(class_name, ASSEMBLIES, n=1, cutoff=0.0)
        raise ValueError(f"unknown class {class_name}; did you mean {near[0]}?")
    return ASSEMBLIES[class_name][1]


def object_rng(class_name: str, seed: int, number: int) -> np.random.Generator:
    """The generator of one object, from (class, seed, number) alone."""
    return generator("parametric", class_name, seed, number)
