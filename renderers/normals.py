"""Normals of triangle soups as datasets hold them: faces twice with opposite winding, mixed winding, hard edges.

In 16 of 17 ShapeNet samples nearly every face has a twin with the same corners the other way round; plain vertex
normals of such a mesh cancel to rounding noise, and PyTorch3D then shows speckle. Here twins are drawn once, and a
neighbour counts with the sign that agrees with the face at hand.
"""

from __future__ import annotations

import numpy as np

MAX_VALENCE = 64  # of the faces around a vertex no more than these are averaged
_EXACT = 1 << 21  # vertices
_ROUNDING = 4e-7  # of a corner's distance from the line through the two others, where all are below 1


def weld(vertices: np.ndarray) -> np.ndarray:
    """For each vertex (V, 3) the index (V,) of the first with the same float32 position."""
    keys = np.ascontiguousarray(vertices.astype(np.float32) + np.float32(0.0))  # -0.0 becomes 0.0
    bits = keys.view(np.uint32).astype(np.uint64)
    order = np.lexsort((bits[:, 2], bits[:, 0] << np.uint64(32) | bits[:, 1]))
    starts = np.ones(len(order), bool)
    starts[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(starts)][np.cumsum(starts) - 1]
    return first


def unique_faces(faces: np.ndarray) -> np.ndarray:
    """Indices (K,) of the first face of every set of three welded vertices; one that repeats a vertex is left out."""
    low, high = faces.min(axis=1), faces.max(axis=1)
    middle = faces.sum(axis=1) - low - high
    proper = np.flatnonzero((low != middle) & (middle != high))
    low, middle, high = low[proper], middle[proper], high[proper]
    order = np.lexsort((proper, high, middle, low))
    same = np.zeros(len(order), bool)
    same[1:] = (np.diff(low[order]) == 0) & (np.diff(middle[order]) == 0) & (np.diff(high[order]) == 0)
    return np.sort(proper[order[~same]])


def undrawn_faces(vertices: np.ndarray, faces: np.ndarray) -> tuple[int, int]:
    """(faces without an area, faces with the same corners as one before them): those of which a picture shows nothing.

    vertices: (V, 3) within about 1 of the origin, as they are drawn. faces: (F, 3). Without an area is also what
    rounding to float32 may make a sliver of. Cheaper than to find which faces they are.
    """
    first = weld(vertices)
    one, two, three = (first.take(faces[:, corner]) for corner in range(3))
    low, high = np.minimum(one, two), np.maximum(one, two)
    low, middle, high = np.minimum(low, three), np.maximum(low, np.minimum(high, three)), np.maximum(high, three)
    flat = (low == middle) | (middle == high) | _are_slivers(vertices.astype(np.float32), faces)
    zero_area = int(np.count_nonzero(flat))
    if len(vertices) > _EXACT:  # three of them do not fit a number of 64 bits
        different = len(unique_faces(np.stack([low, middle, high], axis=1)[~flat]))
    else:
        names = np.sort(((low * len(vertices) + middle) * len(vertices) + high)[~flat])
        different = int(np.count_nonzero(np.diff(names))) + (len(names) > 0)
    return zero_area, len(faces) - zero_area - different


def _are_slivers(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """bool (F,), which faces' corners are on one line, up to what float32 leaves of places below 1.

    Axis by axis: of a million faces that is three times as fast as `face_normals` of their corners.
    """
    edges = []
    for axis in range(3):
        column = np.ascontiguousarray(vertices[:, axis])
        start, one, two = (column.take(faces[:, corner]) for corner in range(3))
        edges.append((one - start, two - start))
    (ax, bx), (ay, by), (az, bz) = edges
    area = (ay * bz - az * by) ** 2 + (az * bx - ax * bz) ** 2 + (ax * by - ay * bx) ** 2
    longest = np.maximum(ax**2 + ay**2 + az**2, bx**2 + by**2 + bz**2)
    return area <= np.float32(_ROUNDING**2) * longest


def face_normals(corners: np.ndarray) -> np.ndarray:
    """Normals (F, 3) of corners (F, 3, 3), as long as twice the face's area."""
    ax, ay, az = (corners[:, 1] - corners[:, 0]).T
    bx, by, bz = (corners[:, 2] - corners[:, 0]).T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, 3) at length 1; zero stays zero."""
    length = np.sqrt(np.einsum("nk,nk->n", vectors, vectors))
    return vectors / np.maximum(length, np.finfo(vectors.dtype).tiny)[:, None]


def corner_normals(corners: np.ndarray, vertex: np.ndarray, crease_deg: float) -> np.ndarray:
    """float32 unit normals (F, 3, 3) of the corners of faces.

    corners: float32 (F, 3, 3). vertex: welded vertex indices (F, 3). A corner's normal is the area-weighted sum over
    the faces at its vertex whose plane is within `crease_deg` of its own, each with the sign that agrees; 90 degrees
    and more smooth everything, 0 gives flat faces.
    """
    normals = face_normals(corners).astype(np.float32)
    own = np.repeat(normals, 3, axis=0)
    if crease_deg <= 0:
        return unit(own).reshape(-1, 3, 3)
    order = np.argsort(vertex.reshape(-1), kind="stable")
    at, area = vertex.reshape(-1)[order], own[order]
    total = _sum_of_neighbours(at, area, unit(area), np.float32(np.cos(np.deg2rad(min(crease_deg, 90.0))) - 1e-6))
    result = np.empty_like(total)
    result[order] = unit(total)
    lost = np.einsum("nk,nk->n", result, result) < 0.5  # opposite neighbours that cancel: keep the face's own
    if lost.any():
        result[lost] = unit(own[lost])
    return result.reshape(-1, 3, 3)


def vertex_normals(corners: np.ndarray, vertex: np.ndarray, num_vertices: int) -> np.ndarray:
    """float32 normals (F, 3, 3) of the corners of faces, one a vertex, as PyTorch3D makes them.

    corners: (F, 3, 3). vertex: indices (F, 3) below num_vertices, not welded. The sum over all faces at the vertex,
    each as long as its area and with the sign of its winding, so that faces of mixed winding cancel; length 1, less
    where the sum is shorter than 1e-6.
    """
    normals = np.repeat(face_normals(corners.astype(np.float64)), 3, axis=0)
    at = vertex.reshape(-1)
    total = np.stack([np.bincount(at, weights=normals[:, axis], minlength=num_vertices) for axis in range(3)], axis=1)
    total = total / np.maximum(np.linalg.norm(total, axis=1), 1e-6)[:, None]
    return total[vertex].astype(np.float32)


def _sum_of_neighbours(at: np.ndarray, area: np.ndarray, direction: np.ndarray, limit: np.float32) -> np.ndarray:
    """For corners sorted by vertex `at` (N,): the sum (N, 3) of area normals at the vertex within the crease, signed.

    Corner i meets corner i + 1, i + 2, ... of its vertex: whole arrays slide past each other while many pairs are left
    (fast), single pairs are picked out when few are.
    """
    total = area.copy()
    left = np.arange(len(at))
    for step in range(1, MAX_VALENCE):
        left = left[left + step < len(at)]
        left = left[at[left] == at[left + step]]
        if not len(left):
            break
        if len(left) > len(at) // 4:
            cosine = np.einsum("nk,nk->n", direction[:-step], direction[step:])
            sign = np.sign(cosine)
            sign *= (np.abs(cosine) >= limit) & (at[:-step] == at[step:])
            total[:-step] += sign[:, None] * area[step:]
            total[step:] += sign[:, None] * area[:-step]
        else:
            cosine = np.einsum("nk,nk->n", direction[left], direction[left + step])
            near = np.abs(cosine) >= limit
            first, sign = left[near], np.sign(cosine[near])[:, None]
            total[first] += sign * area[first + step]
            total[first + step] += sign * area[first]
    return total
