"""The embedded dataset: everyday objects made from a seed, so that everything runs without a download.

Nineteen classes, each an assembly of textured parts with six or more continuous parameters. The same seed gives
the same bytes; colours and textures are drawn from one palette for all classes.

`domain=source` gives clean objects, their clouds sampled from the whole surface. `domain=target` gives other objects
of the same classes as they are met outside: scanned from a few viewpoints, in other paints, on a floor, among other
things, turned at random about +Y.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from pydantic import Field, model_validator

from manifests.dataset_info import DatasetTable
from manifests.records import Asset
from manifests.rng import generator
from pipeline.datasets.options import DatasetOptions
from pipeline.datasets.synthetic.domain_gap import (
    SCAN_LEVELS,
    SCENE_LEVELS,
    Gap,
    Levels,
    ScanOptions,
    SceneOptions,
    Side,
    knobs,
    level_of,
)
from pipeline.datasets.synthetic.object_models import ASSEMBLIES, Parameter
from pipeline.datasets.synthetic.primitives import assemble, make_paint
from pipeline.datasets.synthetic.scenes import draw_scene, extent, make_target_paint, surroundings
from pipeline.sources.raw_shape import RawShape
from renderers.cameras import rigid
from renderers.geometry import Mesh, join, transform

NEEDS_SOURCE = False
NUM_PAINTS = 3


class ParametricOptions(DatasetOptions):
    """How many objects to make: `objects` in all, dealt to the classes in turn, then cut into the splits.

    gap: how far the target domain lies from the source. stronger: the side whose gap is one level milder (below
    mild: no gap). scan and scene: single knobs of the clouds and of the pictures; what is not given comes from the gap.
    """

    IN_TABLE: ClassVar[bool] = True

    objects: Annotated[int, Field(ge=1)] = 240
    seed: int = 0
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    domain: Literal["source", "target"] = "source"
    gap: Gap = "medium"
    stronger: Literal["both", "image", "points"] = "both"
    scan: ScanOptions | None = None
    scene: SceneOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _knobs_of_the_gap(cls, values: Any) -> Any:
        """Fills in the knobs that are not given, so that the stored recipe and its hash hold them."""
        if not isinstance(values, dict) or values.get("domain", "source") == "source":
            given = values if isinstance(values, dict) else {}
            for name in ("gap", "stronger", "scan", "scene"):
                if given.get(name) not in (None, cls.model_fields[name].default):
                    raise ValueError(f"{name} is a key of domain=target")
            return values
        gap, stronger, filled = values.get("gap", "medium"), values.get("stronger", "both"), dict(values)
        if gap not in get_args(Gap) or stronger not in ("both", "image", "points"):
            return values  # refused by their types
        sides: tuple[tuple[str, Side, Levels], ...] = (
            ("scan", "points", SCAN_LEVELS),
            ("scene", "image", SCENE_LEVELS),
        )
        for name, side, levels in sides:
            given = values.get(name) or {}
            if isinstance(given, dict):
                filled[name] = {**knobs(levels, level_of(side, gap, stronger)), **given}
        return filled

    @model_validator(mode="after")
    def _leaves_train(self) -> ParametricOptions:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing for train")
        return self


OPTIONS = ParametricOptions


def assets(root: Path | None, table: DatasetTable, options: ParametricOptions) -> Iterator[Asset]:
    """One asset an object. Every class has as many as any other, give or take one, in every split."""
    kind = {"source": "parametric", "target": "parametric-target"}[options.domain]
    for index in range(options.objects):
        class_name = table.classes[index % len(table.classes)]
        number = index // len(table.classes)
        yield Asset(
            id=f"{class_name}_{number:06d}",
            source=f"{kind}:{class_name}:{options.seed}:{number}",
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


def read(asset: Asset, root: Path | None, options: ParametricOptions) -> RawShape:
    """Makes the object that an asset's source describes, seen as the options say."""
    _, class_name, seed, number = asset.source.split(":")
    if options.scan is not None and options.scene is not None:  # both are given in the target domain
        return observe(class_name, int(seed), int(number), options.scan, options.scene)
    return RawShape(mesh=generate(class_name, int(seed), int(number)))


def observe(class_name: str, seed: int, number: int, scan_knobs: ScanOptions, scene_knobs: SceneOptions) -> RawShape:
    """One object of the target domain: the mesh is what pictures show, the points are a scan of the same scene.

    The object, its surroundings, the paints, the yaw and the scan are drawn from generators of their own, so a knob
    changes nothing but what it names. Raises ValueError when the scan meets nothing.
    """
    from pipeline.datasets.synthetic.range_scan import scan  # brings Open3D

    def rng(what: str) -> np.random.Generator:
        return generator("parametric", "target", class_name, seed, number, what)

    parts = ASSEMBLIES[class_name][0](_values(class_name, rng("object")))
    paint_rng = rng("paints")
    paints = [make_target_paint(paint_rng, scene_knobs) for _ in range(NUM_PAINTS + 2)]
    solid = assemble(parts, paints[:NUM_PAINTS])
    around, draws = extent(solid), draw_scene(rng("scene"))

    def scene(of: ScanOptions | SceneOptions) -> Mesh:
        beside = surroundings(draws, of, around)
        return join([solid, assemble(beside, paints[NUM_PAINTS:])]) if beside else solid

    points = scan(scene(scan_knobs), solid, around, scan_knobs, rng("scan"))
    yaw = _yaw(2 * np.pi * rng("yaw").random())
    return RawShape(mesh=scene(scene_knobs).transformed(yaw), points=transform(yaw, points))


def _yaw(radians: float) -> np.ndarray:
    """The rotation (4, 4) about +Y."""
    c, s = np.cos(radians), np.sin(radians)
    return rigid(np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]), np.zeros(3))


def generate(class_name: str, seed: int, number: int) -> Mesh:
    """One object in the world frame, standing upright with its front towards -Z.

    Raises ValueError naming the nearest class when there is no such class.
    """
    rng = object_rng(class_name, seed, number)
    return assemble_object(class_name, _values(class_name, rng), rng)


def _values(class_name: str, rng: np.random.Generator) -> dict[str, float]:
    return {p.name: float(rng.uniform(p.low, p.high)) for p in describe(class_name)}


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
