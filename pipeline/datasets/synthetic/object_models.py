"""The classes of everyday objects: for each its parameters with their ranges, and the function that builds it.

Some classes are near one another on purpose: stool and chair, desk and table, mug and bowl, bookshelf and cabinet,
vase and bottle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.datasets.synthetic.furniture import bed, bookshelf, cabinet, chair, desk, lamp, sofa, stool, table
from pipeline.datasets.synthetic.household_objects import (
    airplane,
    bathtub,
    bottle,
    bowl,
    car,
    guitar,
    laptop,
    monitor,
    mug,
    vase,
)
from pipeline.datasets.synthetic.primitives import Part, Values


@dataclass(frozen=True)
class Parameter:
    """One continuous parameter and the range it is drawn from, uniformly."""

    name: str
    low: float
    high: float


def _ranges(**ranges: tuple[float, float]) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, low, high) for name, (low, high) in ranges.items())


ASSEMBLIES: dict[str, tuple[Callable[[Values], list[Part]], tuple[Parameter, ...]]] = {
    "airplane": (
        airplane,
        _ranges(
            length=(3, 4.5),
            radius=(0.2, 0.36),
            span=(3, 4.6),
            chord=(0.5, 0.9),
            sweep=(0, 0.9),
            tail=(0.4, 0.7),
            fin=(0.4, 0.8),
            engine=(0.08, 0.18),
        ),
    ),
    "bathtub": (
        bathtub,
        _ranges(
            width=(0.65, 0.9), length=(1.4, 1.9), height=(0.4, 0.6), wall=(0.04, 0.08), slope=(0, 12), feet=(0.04, 0.14)
        ),
    ),
    "bed": (
        bed,
        _ranges(
            width=(0.9, 1.9),
            length=(1.9, 2.2),
            height=(0.2, 0.45),
            mattress=(0.12, 0.3),
            head=(0.4, 1.0),
            foot=(0.15, 0.5),
            pillow=(0.1, 0.2),
        ),
    ),
    "bookshelf": (
        bookshelf,
        _ranges(
            width=(0.6, 1.3),
            height=(1.1, 2.2),
            depth=(0.22, 0.4),
            thickness=(0.02, 0.05),
            shelves=(3, 6.99),
            filling=(0.1, 1.2),
            book_height=(0.5, 0.9),
        ),
    ),
    "bottle": (
        bottle,
        _ranges(
            radius=(0.035, 0.06),
            height=(0.18, 0.32),
            neck=(0.25, 0.5),
            shoulder=(0.45, 0.7),
            slope=(0.05, 0.2),
            foot=(0.8, 1),
            cap=(0.04, 0.12),
        ),
    ),
    "bowl": (
        bowl,
        _ranges(
            radius=(0.06, 0.1),
            height=(0.05, 0.1),
            wall=(0.003, 0.008),
            flare=(0.95, 1.3),
            foot=(0.35, 0.8),
            stand=(0.004, 0.015),
            lugs=(0, 1),
        ),
    ),
    "cabinet": (
        cabinet,
        _ranges(
            width=(0.6, 1.4),
            height=(0.6, 1.8),
            depth=(0.35, 0.6),
            foot=(0.04, 0.2),
            doors=(0, 2.99),
            knob_height=(0.4, 0.7),
        ),
    ),
    "car": (
        car,
        _ranges(
            length=(3.4, 4.8),
            width=(1.5, 1.9),
            body_height=(0.45, 0.75),
            wheel=(0.26, 0.4),
            roof_height=(0.4, 0.75),
            cabin_length=(0.4, 0.75),
            cabin_shift=(-0.3, 0.5),
            cabin_taper=(0.65, 0.9),
            axle=(0.28, 0.36),
        ),
    ),
    "chair": (
        chair,
        _ranges(
            width=(0.38, 0.55),
            depth=(0.38, 0.55),
            seat_height=(0.4, 0.55),
            seat_thickness=(0.03, 0.1),
            leg_thickness=(0.03, 0.06),
            leg_splay=(0, 8),
            back_height=(0.3, 0.6),
            back_tilt=(0, 18),
            slats=(0, 4.99),
            arm_height=(0.05, 0.32),
        ),
    ),
    "desk": (
        desk,
        _ranges(
            width=(1.1, 1.7),
            depth=(0.55, 0.8),
            height=(0.68, 0.8),
            thickness=(0.025, 0.05),
            drawer_width=(0.3, 0.5),
            drawer_height=(0.25, 0.9),
            leg_thickness=(0.04, 0.07),
            panel_height=(0.1, 0.7),
        ),
    ),
    "guitar": (
        guitar,
        _ranges(
            lower=(0.17, 0.22),
            upper=(0.12, 0.17),
            waist=(0.55, 0.85),
            body=(0.4, 0.52),
            thickness=(0.04, 0.11),
            neck=(0.35, 0.5),
            head=(0.12, 0.2),
        ),
    ),
    "lamp": (
        lamp,
        _ranges(
            height=(0.4, 1.5),
            base_radius=(0.08, 0.2),
            pole=(0.01, 0.025),
            shade_radius=(0.12, 0.28),
            shade_height=(0.12, 0.3),
            shade_taper=(0.35, 0.9),
            lean=(-0.1, 0.25),
        ),
    ),
    "laptop": (
        laptop,
        _ranges(
            width=(0.3, 0.4),
            depth=(0.2, 0.28),
            thickness=(0.012, 0.03),
            lid=(0.9, 1),
            opening=(75, 125),
            keys=(0.3, 0.5),
            pad=(0.2, 0.4),
        ),
    ),
    "monitor": (
        monitor,
        _ranges(
            width=(0.45, 0.8),
            ratio=(0.5, 0.78),
            thickness=(0.02, 0.08),
            stand=(0.08, 0.25),
            tilt=(-12, 6),
            foot=(0.3, 0.6),
        ),
    ),
    "mug": (
        mug,
        _ranges(
            radius=(0.035, 0.055),
            height=(0.07, 0.12),
            wall=(0.003, 0.007),
            flare=(0.95, 1.2),
            foot=(0.65, 1),
            handle=(0.015, 0.035),
            handle_height=(0.4, 0.75),
        ),
    ),
    "sofa": (
        sofa,
        _ranges(
            width=(1.2, 2.4),
            depth=(0.75, 1),
            seat_height=(0.25, 0.42),
            back_height=(0.35, 0.65),
            cushion=(0.15, 0.28),
            tilt=(0, 12),
            arm_width=(0.1, 0.26),
            arm_height=(0.1, 0.3),
        ),
    ),
    "stool": (
        stool,
        _ranges(
            radius=(0.15, 0.24),
            height=(0.42, 0.8),
            seat_thickness=(0.03, 0.1),
            seat_taper=(0.9, 1),
            roundness=(0, 1),
            leg_thickness=(0.025, 0.05),
            leg_splay=(0, 9),
            rung_height=(0.2, 0.5),
            back=(0, 1),
        ),
    ),
    "table": (
        table,
        _ranges(
            width=(0.7, 1.7),
            depth=(0.6, 1),
            height=(0.45, 0.8),
            thickness=(0.025, 0.06),
            pedestal=(0, 1),
            inset=(0.75, 1),
            leg_thickness=(0.04, 0.09),
            leg_splay=(0, 7),
            apron=(0.02, 0.12),
        ),
    ),
    "vase": (
        vase,
        _ranges(
            radius=(0.07, 0.13), height=(0.2, 0.4), foot=(0.4, 0.8), belly=(0.25, 0.65), neck=(0.3, 0.8), lip=(1, 1.4)
        ),
    ),
}
