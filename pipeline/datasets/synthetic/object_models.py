"""Everyday objects as assemblies of parts: for each class its parameters with their ranges, and how it is put together.

Lengths are in metres or so (objects are normalised later), angles in degrees. Paint 0 is the body, 1 the second
material, 2 the details. Some classes are near one another on purpose: stool and chair, desk and table, mug and bowl,
bookshelf and cabinet, vase and bottle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.synthetic.primitives import Part, bar, box, cylinder, ellipsoid, plate, tube, turned_solid

Values = dict[str, float]


@dataclass(frozen=True)
class Parameter:
    """One continuous parameter and the range it is drawn from, uniformly."""

    name: str
    low: float
    high: float


def _legs(width: float, depth: float, height: float, thick: float, splay: float, taper: float) -> list[Part]:
    """Four legs from the floor to `height` under the corners of width x depth."""
    legs = []
    for sx in (-1, 1):
        for sz in (-1, 1):
            x, z = sx * (width / 2 - thick), sz * (depth / 2 - thick)
            leg = box((thick, height, thick), (x, height / 2, z), taper=1 / taper)
            legs.append(leg.turned("z", sx * splay, (x, height, z)).turned("x", -sz * splay, (x, height, z)).painted(1))
    return legs


def chair(p: Values) -> list[Part]:
    w, d, h, t = p["width"], p["depth"], p["seat_height"], p["seat_thickness"]
    parts = [box((w, t, d), (0, h, 0)), *_legs(w, d, h, p["leg_thickness"], p["leg_splay"], 1.2)]
    back = p["back_height"]
    slats = 1 + int(p["slats"])
    high, top = back / (1.5 * slats), h + back
    for i in range(slats):
        y = top - high / 2 - i * back / slats
        slat = box((w, high, 0.03), (0, y, d / 2)).turned("x", p["back_tilt"], (0, h, d / 2))
        parts.append(slat)
    for side in (-1, 1):
        post = box((0.035, back, 0.035), (side * (w / 2 - 0.02), h + back / 2, d / 2))
        parts.append(post.turned("x", p["back_tilt"], (0, h, d / 2)).painted(1))
        if p["arm_height"] > 0.2:
            parts.append(box((0.04, 0.03, d), (side * w / 2, h + p["arm_height"], 0)).painted(2))
            parts.append(
                box((0.03, p["arm_height"], 0.03), (side * w / 2, h + p["arm_height"] / 2, -d / 2 + 0.03)).painted(2)
            )
    return parts


def stool(p: Values) -> list[Part]:
    r, h, t = p["radius"], p["height"], p["seat_thickness"]
    if p["roundness"] > 0.5:
        seat = cylinder(r, t, (0, h, 0), top=r * p["seat_taper"])
    else:
        seat = box((2 * r, t, 2 * r), (0, h, 0), taper=p["seat_taper"])
    parts = [seat, *_legs(1.6 * r, 1.6 * r, h, p["leg_thickness"], p["leg_splay"], 1.1)]
    rung, reach = h * p["rung_height"], 0.8 * r
    ring = [(reach * np.cos(a), rung, reach * np.sin(a)) for a in np.linspace(0, 2 * np.pi * 0.98, 16)]
    parts.append(tube(ring, 0.014).painted(1))
    if p["back"] > 0.75:  # a low back: near a chair
        parts.append(box((1.4 * r, 0.1, 0.025), (0, h + 0.16, 0.8 * r)).painted(2))
        parts += [bar((x * 0.5 * r, h, 0.8 * r), (x * 0.5 * r, h + 0.16, 0.8 * r), 0.012).painted(1) for x in (-1, 1)]
    return parts


def table(p: Values) -> list[Part]:
    w, d, h, t = p["width"], p["depth"], p["height"], p["thickness"]
    parts = [box((w, t, d), (0, h, 0))]
    if p["pedestal"] > 0.7:
        parts.append(turned_solid([(0.3 * d, 0), (0.3 * d, 0.04), (0.07, 0.1), (0.06, h)]).painted(1))
    else:
        parts += _legs(w * p["inset"], d * p["inset"], h, p["leg_thickness"], p["leg_splay"], 1.3)
    parts.append(box((0.8 * w, p["apron"], 0.8 * d), (0, h - t / 2 - p["apron"] / 2, 0)).painted(1))
    return parts


def desk(p: Values) -> list[Part]:
    w, d, h, t = p["width"], p["depth"], p["height"], p["thickness"]
    parts = [box((w, t, d), (0, h, 0))]
    block = p["drawer_width"]
    parts.append(box((block, h * p["drawer_height"], d * 0.9), (w / 2 - block / 2, h - h * p["drawer_height"] / 2, 0)))
    for i in range(3):
        y = h - (i + 0.5) * h * p["drawer_height"] / 3
        parts.append(box((0.5 * block, 0.02, 0.03), (w / 2 - block / 2, y, -d * 0.45 - 0.015)).painted(2))
    thick = p["leg_thickness"]
    for x in (-1, 1):
        for z in (-1, 1):
            parts.append(box((thick, h, thick), (x * (w / 2 - thick), h / 2, z * (d / 2 - thick))).painted(1))
    panel = h * p["panel_height"]
    parts.append(box((w * 0.95, panel, 0.02), (0, h - panel / 2, d / 2 - 0.03)).painted(1))
    return parts


def bed(p: Values) -> list[Part]:
    w, d, h = p["width"], p["length"], p["height"]
    parts = [
        box((w, 0.12, d), (0, h, 0)).painted(1),
        box((w * 0.96, p["mattress"], d * 0.96), (0, h + p["mattress"] / 2, 0)),
    ]
    parts.append(box((w, p["head"], 0.06), (0, h + p["head"] / 2 - 0.1, d / 2)).painted(1))
    parts.append(box((w, p["foot"], 0.05), (0, h + p["foot"] / 2 - 0.1, -d / 2)).painted(1))
    parts += _legs(w, d, h, 0.07, 0, 1)
    for x in (-1, 1):
        pillow = ellipsoid(
            (w * 0.4, p["pillow"], 0.4), (x * w * 0.23, h + p["mattress"] + p["pillow"] / 3, d / 2 - 0.3)
        )
        parts.append(pillow.painted(2))
    return parts


def sofa(p: Values) -> list[Part]:
    w, d, h = p["width"], p["depth"], p["seat_height"]
    parts = [box((w, h, d), (0, h / 2 + 0.05, 0))]
    back = box((w, p["back_height"], p["cushion"]), (0, h + p["back_height"] / 2, d / 2 - p["cushion"] / 2))
    parts.append(back.turned("x", p["tilt"], (0, h, d / 2)))
    arm = p["arm_width"]
    for x in (-1, 1):
        parts.append(box((arm, h + p["arm_height"], d), (x * (w / 2 + arm / 2), (h + p["arm_height"]) / 2 + 0.05, 0)))
    seats = 2 + int(w > 1.8)
    for i in range(seats):
        x = (i + 0.5) / seats * w - w / 2
        parts.append(box((w / seats * 0.95, 0.14, d * 0.8), (x, h + 0.1, -0.05)).painted(1))
    return parts


def bookshelf(p: Values) -> list[Part]:
    w, h, d, t = p["width"], p["height"], p["depth"], p["thickness"]
    parts = [box((t, h, d), (x * (w - t) / 2, h / 2, 0)) for x in (-1, 1)]
    parts.append(box((w, h, 0.015), (0, h / 2, d / 2)).painted(1))
    shelves = int(p["shelves"])
    for i in range(shelves + 1):
        y = t / 2 + i / shelves * (h - t)
        parts.append(box((w - 2 * t, t, d), (0, y, 0)))
        if i < shelves:
            filled, high = p["filling"], (h / shelves - t) * p["book_height"]
            for b in range(int(5 * filled)):
                x = -w / 2 + t + (b + 0.5) * (w - 2 * t) / 6
                parts.append(box(((w - 2 * t) / 8, high, d * 0.7), (x, y + t / 2 + high / 2, 0)).painted(1 + b % 2))
    return parts


def cabinet(p: Values) -> list[Part]:
    w, h, d = p["width"], p["height"], p["depth"]
    foot = p["foot"]
    parts = [box((w, h, d), (0, foot + h / 2, 0)), box((w * 1.05, 0.03, d * 1.08), (0, foot + h, 0)).painted(1)]
    parts += _legs(w, d, foot, 0.05, 0, 1)
    doors = 1 + int(p["doors"])
    for i in range(doors):
        x = (i + 0.5) / doors * w - w / 2
        parts.append(box((w / doors * 0.9, h * 0.9, 0.02), (x, foot + h / 2, -d / 2 - 0.01)).painted(1))
        knob = (x + w / doors * 0.35, foot + h * p["knob_height"], -d / 2 - 0.04)
        parts.append(ellipsoid((0.05, 0.05, 0.05), knob).painted(2))
    return parts


def lamp(p: Values) -> list[Part]:
    h, r = p["height"], p["shade_radius"]
    parts = [turned_solid([(p["base_radius"], 0), (p["base_radius"], 0.03), (0.03, 0.06), (0.02, 0.08)]).painted(1)]
    lean = p["lean"]
    parts.append(tube([(lean * (t**2), 0.05 + t * h, 0) for t in np.linspace(0, 1, 8)], p["pole"]).painted(1))
    top = r * p["shade_taper"]
    parts.append(cylinder(r, p["shade_height"], (lean, h, 0), top=top))
    return parts


def _vessel(radius: float, height: float, wall: float, flare: float, foot: float) -> Part:
    """An open pot: outside up, inside down."""
    outer = [(radius * foot, 0.0), (radius * (foot + flare) / 2 * 1.05, height * 0.4), (radius * flare, height)]
    inner = [(r - wall, max(y, wall)) for r, y in reversed(outer)]
    inner[0] = (outer[-1][0] - wall, height)
    return turned_solid([*outer, *inner])


def mug(p: Values) -> list[Part]:
    r, h = p["radius"], p["height"]
    parts = [_vessel(r, h, p["wall"], p["flare"], p["foot"])]
    reach, drop = p["handle"], h * p["handle_height"]
    middle = h * 0.52
    arc = np.linspace(-np.pi / 2, np.pi / 2, 10)
    edge = r * 0.93
    parts.append(tube([(edge + reach * np.cos(a), middle + drop / 2 * np.sin(a), 0) for a in arc], 0.008).painted(1))
    return parts


def bowl(p: Values) -> list[Part]:
    r, h = p["radius"], p["height"]
    parts = [_vessel(r, h, p["wall"], p["flare"], p["foot"])]
    parts.append(turned_solid([(r * p["foot"] * 0.9, -p["stand"]), (r * p["foot"] * 0.8, 0.004)]).painted(1))
    if p["lugs"] > 0.6:  # two small handles at the rim: near a mug
        for x in (-1, 1):
            rim = x * r * p["flare"]
            arc = np.linspace(0, np.pi, 7)
            parts.append(
                tube([(rim + x * 0.018 * np.sin(a), h * 0.9, 0.025 * np.cos(a)) for a in arc], 0.005).painted(1)
            )
    return parts


def bottle(p: Values) -> list[Part]:
    r, h = p["radius"], p["height"]
    neck, shoulder = r * p["neck"], h * p["shoulder"]
    profile = [
        (r * p["foot"], 0),
        (r, 0.03 * h),
        (r, shoulder),
        (neck * 1.2, shoulder + h * p["slope"]),
        (neck, h),
        (neck, h),
    ]
    cap = cylinder(neck * 1.15, h * p["cap"], (0, h + h * p["cap"] / 2, 0)).painted(2)
    label = turned_solid([(r * 1.01, shoulder * 0.25), (r * 1.01, shoulder * 0.75)]).painted(1)
    return [turned_solid(profile[:-1]), cap, label]


def vase(p: Values) -> list[Part]:
    r, h = p["radius"], p["height"]
    heights = np.linspace(0, 1, 12)
    bulge = p["foot"] + (1 - p["foot"]) * np.sin(np.pi * np.clip(heights / p["belly"] / 2, 0, 0.5))
    narrow = np.clip((heights - p["belly"]) / (1 - p["belly"]), 0, 1)
    radius = r * bulge * (1 - (1 - p["neck"]) * np.sin(np.pi / 2 * narrow))
    radius[-1] = radius[-2] * p["lip"]
    outer = list(zip(radius, heights * h, strict=True))
    inner = [(rad * 0.9, max(y, 0.02 * h)) for rad, y in reversed(outer)]
    inner[0] = (inner[0][0], h)
    return [turned_solid([*outer, *inner])]


def car(p: Values) -> list[Part]:
    length, w, h = p["length"], p["width"], p["body_height"]
    r = p["wheel"]
    parts = [box((w, h, length), (0, r + h / 2, 0), taper=0.96)]
    roof = p["roof_height"]
    cabin = box(
        (w * 0.9, roof, length * p["cabin_length"]), (0, r + h + roof / 2, p["cabin_shift"]), taper=p["cabin_taper"]
    )
    parts.append(cabin.painted(1))
    for x in (-1, 1):
        for z in (-1, 1):
            wheel = cylinder(r, 0.18).turned("z", 90).moved((x * (w / 2 - 0.05), r, z * length * p["axle"]))
            parts.append(wheel.painted(2))
    return parts


def airplane(p: Values) -> list[Part]:
    length, r = p["length"], p["radius"]
    steps = np.linspace(0, 1, 12)
    profile = [(r * np.sin(np.pi * min(max(s, 0.02), 0.98)) ** 0.45, (s - 0.5) * length) for s in steps]
    parts = [turned_solid(profile).turned("x", -90)]
    span, chord, sweep = p["span"], p["chord"], p["sweep"]
    for x in (1, -1):
        tip = x * span / 2
        wing = [(0, -chord / 2), (tip, sweep - chord / 5), (tip, sweep + chord / 5), (0, chord / 2)]
        parts.append(plate(wing if x > 0 else wing[::-1], 0.06).turned("x", 90).moved((0, -0.2 * r, 0)).painted(1))
    tail = p["tail"]
    back = length / 2 - tail / 2
    flat = [(-tail, -tail / 4), (tail, -tail / 4), (tail, tail / 4), (-tail, tail / 4)]
    parts.append(plate(flat, 0.05).turned("x", 90).moved((0, 0.1, back)).painted(1))
    parts.append(box((0.05, p["fin"], tail * 0.7), (0, r / 2 + p["fin"] / 2, back), taper=0.6).painted(2))
    for x in (-1, 1):
        engine = cylinder(p["engine"], 0.5).turned("x", 90).moved((x * span * 0.2, -0.35 * r - p["engine"], 0))
        parts.append(engine.painted(2))
    return parts


def guitar(p: Values) -> list[Part]:
    lower, upper, waist, h = p["lower"], p["upper"], p["waist"], p["body"]
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    half = np.where(np.sin(t) < 0, lower, upper)
    pinch = 1 - (1 - waist) * np.exp(-((np.sin(t) - 0.1) ** 2) / 0.08)
    outline = list(zip(half * np.cos(t) * pinch, h / 2 * np.sin(t), strict=True))
    neck = p["neck"]
    parts = [plate(outline, p["thickness"])]
    parts.append(box((0.055, neck, 0.03), (0, h / 2 + neck / 2 - 0.02, -p["thickness"] / 2)).painted(1))
    parts.append(
        box((0.09, p["head"], 0.025), (0, h / 2 + neck + p["head"] / 2 - 0.02, -p["thickness"] / 2)).painted(2)
    )
    hole = cylinder(0.05, 0.01).turned("x", 90).moved((0, 0.06, -p["thickness"] / 2))
    parts.append(hole.painted(2))
    parts.append(box((0.14, 0.02, 0.02), (0, -h * 0.25, -p["thickness"] / 2)).painted(2))
    return parts


def monitor(p: Values) -> list[Part]:
    w, h = p["width"], p["width"] * p["ratio"]
    middle = p["stand"] + h / 2
    screen = [
        box((w, h, p["thickness"]), (0, middle, 0)),
        box((w * 0.94, h * 0.9, 0.01), (0, middle, -p["thickness"] / 2)).painted(1),
    ]
    parts = [s.turned("x", p["tilt"], (0, middle, 0)) for s in screen]
    parts.append(
        box((0.05, p["stand"] + h / 3, 0.03), (0, (p["stand"] + h / 3) / 2, p["thickness"] / 2 + 0.02)).painted(2)
    )
    parts.append(box((w * p["foot"], 0.02, 0.2), (0, 0.01, 0.02), taper=0.9).painted(2))
    return parts


def laptop(p: Values) -> list[Part]:
    w, d, t = p["width"], p["depth"], p["thickness"]
    base = [box((w, t, d), (0, t / 2, 0)), box((w * 0.85, 0.004, d * p["keys"]), (0, t + 0.002, d * 0.15)).painted(2)]
    base.append(box((w * p["pad"], 0.004, d * 0.25), (0, t + 0.002, -d * 0.3)).painted(2))
    lid_height = d * p["lid"]
    lid = [box((w, lid_height, 0.012), (0, t + lid_height / 2, d / 2))]
    lid.append(box((w * 0.9, lid_height * 0.85, 0.004), (0, t + lid_height / 2, d / 2 - 0.008)).painted(1))
    return [*base, *[part.turned("x", p["opening"] - 90, (0, t, d / 2)) for part in lid]]


def bathtub(p: Values) -> list[Part]:
    w, d, h, t = p["width"], p["length"], p["height"], p["wall"]
    parts = [box((w, t, d), (0, t / 2 + p["feet"], 0))]
    for x in (-1, 1):
        parts.append(
            box((t, h, d), (x * (w - t) / 2, h / 2 + p["feet"], 0)).turned("z", -x * p["slope"], (x * w / 2, 0, 0))
        )
    for z in (-1, 1):
        parts.append(box((w, h, t), (0, h / 2 + p["feet"], z * (d - t) / 2)))
    parts += [
        ellipsoid((0.1, 2 * p["feet"], 0.1), (x * w * 0.4, p["feet"], z * d * 0.42)).painted(2)
        for x in (-1, 1)
        for z in (-1, 1)
    ]
    parts.append(
        tube(
            [(0, p["feet"] + h + y, d / 2 - t / 2 - z) for y, z in ((0, 0), (0.1, 0), (0.14, 0.04), (0.12, 0.1))], 0.02
        ).painted(1)
    )
    return parts


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
