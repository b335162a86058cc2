"""Cuts polygons of any size into triangles: as a fan where that is right, by clipping ears where it is not.

The readers of OBJ, OFF and PLY use it. Source of ear clipping: Meisters, Polygons have ears (1975); all ears of a
polygon that do not touch one another are clipped at once.
"""

from __future__ import annotations

import numpy as np

from renderers.normals import face_normals

TOO_FEW_CORNERS = "faces with fewer than three corners"
_FLAT = 1e-7  # of a polygon's area: what a fan may lie outside of it
_THIN = 1e-13  # of the square around a polygon: no more than rounding
_PAIRS = 1 << 22  # of ears and corners that are compared at once
_PART = 1 << 18  # triangles whose normals are held at once


def triangulate(vertices: np.ndarray, corners: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(triangles int64 (T, 3) of places in `corners`, the polygon (T,) that each is of), polygon by polygon.

    vertices: (V, 3). corners: (C,) vertex of each corner, polygon after polygon. counts: (P,) corners of each polygon;
    fewer than three give no triangle. A polygon whose fan from its first corner stays inside it is cut as that fan:
    0 1 2, 0 2 3, ...; the triangles of any other have its area, and leave out corners on a straight line.
    """
    if (counts == 3).all():
        return np.arange(len(corners)).reshape(-1, 3), np.arange(len(counts))
    each = np.maximum(counts - 2, 0)
    owner = np.repeat(np.arange(len(counts)), each)
    step = np.arange(len(owner)) - (np.cumsum(each) - each)[owner] + 1
    first = (np.cumsum(counts) - counts)[owner]
    triangles = np.stack([first, first + step, first + step + 1], axis=1)
    concave = _concave(vertices, corners, triangles, owner, counts)
    if not len(concave):
        return triangles, owner
    start = np.cumsum(counts) - counts
    cut = [_clipped(vertices[corners[start[one] : start[one] + counts[one]]]) + start[one] for one in concave]
    fan = ~np.isin(owner, concave)
    owner = np.concatenate([owner[fan], np.repeat(concave, [len(each) for each in cut])])
    order = np.argsort(owner, kind="stable")
    return np.concatenate([triangles[fan], *cut])[order], owner[order]


def spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each row, `counts` of them, one row after the other."""
    return np.arange(int(counts.sum())) + np.repeat(starts - np.cumsum(counts) + counts, counts)


def quads_apart(triangles: np.ndarray, owner: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `triangulate` gives with triangles first, then the first and then the second halves of quads, then others.

    Builds of earlier versions, whose bytes stay, have OBJ and PLY files in this order.
    """
    half = np.zeros(len(owner), np.int64)
    half[1:] = (counts[owner[1:]] == 4) & (owner[1:] == owner[:-1])
    order = np.lexsort((owner, half, np.clip(counts[owner], 3, 5)))
    return triangles[order], owner[order]


def turn_quads(triangles: np.ndarray, owner: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The triangles with the second half 0 2 3 of a quad as 2 3 0, for the same reason as `quads_apart`."""
    second = np.flatnonzero((counts[owner[1:]] == 4) & (owner[1:] == owner[:-1])) + 1
    turned = triangles.copy()
    turned[second] = np.roll(triangles[second], -1, axis=1)
    return turned


def _concave(
    vertices: np.ndarray, corners: np.ndarray, triangles: np.ndarray, owner: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """The polygons of which a triangle of the fan lies outside: it is turned against Newell's normal."""
    large = np.flatnonzero(counts[owner] > 3)
    found = []
    for begin in range(0, len(large), _PART):
        part = large[begin : begin + _PART]
        part = large[np.searchsorted(owner[large], owner[part[0]]) : np.searchsorted(owner[large], owner[part[-1]] + 1)]
        with np.errstate(invalid="ignore", over="ignore"):
            normals = face_normals(vertices[corners[triangles[part]]])
            _, number = np.unique(owner[part], return_inverse=True)
            whole = np.stack([np.bincount(number, weights=normals[:, axis]) for axis in range(3)], axis=1)
            along = np.einsum("nk,nk->n", normals, whole[number])
            outside = along < -_FLAT * np.einsum("nk,nk->n", whole, whole)[number]
        found.append(owner[part[outside]])
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _clipped(points: np.ndarray) -> np.ndarray:
    """Triangles (T, 3) of places in a polygon's corners (N, 3)."""
    fan = points - points[0]
    normal = np.cross(fan[1:-1], fan[2:]).sum(axis=0)
    axis = int(np.abs(normal).argmax())
    flat = points[:, [(axis + 1) % 3, (axis + 2) % 3]]
    flat = (flat - flat.min(axis=0)) / max(float(np.ptp(flat, axis=0).max()), np.finfo(float).tiny)
    if normal[axis] < 0:
        flat[:, 0] *= -1
    left, found = np.arange(len(points)), []
    fresh = np.ones(len(points), bool)  # corners whose neighbours are others since they were compared with all
    while len(left) > 2:
        turn = _turns(flat[left])
        clear, touched = _ears(flat[left], turn, fresh[left])
        if not len(clear) and not fresh[left].all():
            fresh[:] = True
            continue
        straight = np.flatnonzero(np.abs(turn) <= _THIN)
        if not len(clear) and len(straight):
            left = np.delete(left, straight[0])
            continue
        ears = clear if len(clear) else touched
        if not len(ears):  # it crosses itself: no cut is right
            found.append(left[_fan(len(left))])
            break
        found.append(np.stack([left[ears - 1], left[ears], left[(ears + 1) % len(left)]], axis=1))
        fresh[left] = False
        fresh[found[-1][:, [0, 2]]] = True
        left = np.delete(left, ears)
    return np.concatenate(found) if found else _fan(len(points))  # of a line all cuts are right


def _fan(size: int) -> np.ndarray:
    step = np.arange(1, size - 1)
    return np.stack([0 * step, step, step + 1], axis=1)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _turns(flat: np.ndarray) -> np.ndarray:
    """How far a polygon (N, 2), counter-clockwise, turns left at each corner."""
    return _cross(flat - np.roll(flat, 1, axis=0), np.roll(flat, -1, axis=0) - flat)


def _ears(flat: np.ndarray, turn: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners whose triangles with their neighbours hold no other corner, and those that at most touch one; in either
    no two side by side. chosen: bool (N,), the corners that are asked for."""
    tips, hollow = np.flatnonzero(chosen & (turn > _THIN)), np.flatnonzero(turn <= _THIN)
    hollow = hollow[np.argsort(flat[hollow, 0], kind="stable")]
    a, b, c = flat[tips - 1], flat[tips], flat[(tips + 1) % len(flat)]
    low = np.searchsorted(flat[hollow, 0], np.minimum(np.minimum(a, b), c)[:, 0], "left")
    high = np.searchsorted(flat[hollow, 0], np.maximum(np.maximum(a, b), c)[:, 0], "right")
    blocked = np.zeros((2, len(tips)), bool)  # by a corner in the triangle or at its edge; in it or at the cut
    begin = 0
    while begin < len(tips):
        end = begin + max(1, int(np.searchsorted(np.cumsum((high - low)[begin:]), _PAIRS)))
        many = (high - low)[begin:end]
        tip = np.repeat(np.arange(begin, begin + len(many)), many)
        place = np.arange(len(tip)) - np.repeat(np.cumsum(many) - many - low[begin:end], many)
        p, pa, pb, pc = flat[hollow[place]], a[tip], b[tip], c[tip]
        first, second, cut = _cross(pb - pa, p - pa), _cross(pc - pb, p - pb), _cross(pa - pc, p - pc)
        other = (p != pa).any(axis=1) & (p != pc).any(axis=1) & (cut >= -_THIN)
        blocked[0, tip[other & (first >= -_THIN) & (second >= -_THIN)]] = True
        blocked[1, tip[other & (first > _THIN) & (second > _THIN)]] = True
        begin = end
    return _apart(tips[~blocked[0]], len(flat)), _apart(tips[~blocked[1]], len(flat))


def _apart(corners: np.ndarray, size: int) -> np.ndarray:
    """Of rising corners of a polygon of this size those that have no neighbour before them in what is returned."""
    kept: list[int] = []
    for corner in corners.tolist():
        if not kept or (corner - kept[-1] > 1 and not (corner == size - 1 and kept[0] == 0)):
            kept.append(corner)
    return np.array(kept, np.int64)
