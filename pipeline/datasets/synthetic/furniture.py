"""How furniture and a lamp are put together from parts, one function a class.

Lengths are in metres or so (objects are normalised later), angles in degrees. Paint 0 is the body, 1 the second
material, 2 the details.
"""

from __future__ import annotations

import numpy as np

from pipeline.datasets.synthetic.primitives import (
    Part,
    Values,
    bar,
    box,
    cylinder,
    ellipsoid,
    tube,
    turned_solid,
)


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
    for side in (-1, 1):
        parts.append(
            box((arm, h + p["arm_height"], d), (side * (w / 2 + arm / 2), (h + p["arm_height"]) / 2 + 0.05, 0))
        )
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
