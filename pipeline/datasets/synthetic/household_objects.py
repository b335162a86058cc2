"""How vessels, vehicles and devices are put together from parts, one function a class.

Lengths are in metres or so (objects are normalised later), angles in degrees. Paint 0 is the body, 1 the second
material, 2 the details.
"""

from __future__ import annotations

import numpy as np

from pipeline.datasets.synthetic.primitives import (
    Part,
    Values,
    box,
    cylinder,
    ellipsoid,
    plate,
    tube,
    turned_solid,
)


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
