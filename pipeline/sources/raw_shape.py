"""What one source file holds, in its own frame: a mesh, a cloud, colours, part labels (`RawShape`).

Beside it is what the readers of meshes share: numbers of a text, colours of any range, and checks.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from renderers.geometry import GREY, Material, Mesh

BAD_COLORS = "colours not finite"  # taken as grey
NO_PLACE = "points without a place"
STRAYS = "vertices without a face"
INVISIBLE = "alpha of zero"  # drawn opaque
WINDOWS_NAN = re.compile(rb"[-+]?\d\.#(?:QNAN|SNAN|IND|INF)\w*", re.IGNORECASE)
_BOUND = 1e18  # beyond this, areas overflow in float64 when multiplied up


@dataclass(frozen=True)
class RawShape:
    """What one file held, in its own frame.

    mesh: or None for a file of points. points: float64 (N, 3) in the mesh's frame, or None where the cloud is to be
    sampled from the mesh; where there are both, the points are the cloud and the mesh is what pictures are drawn of.
    colors: uint8 (N, 3) of the points, or None. parts: uint8 (N,) part labels of the points, or None. upright: float64
    (4, 4), a rotation of this object's own that comes before the dataset's axes, or None. warnings: type -> count.
    """

    mesh: Mesh | None = None
    points: np.ndarray | None = None
    colors: np.ndarray | None = None
    parts: np.ndarray | None = None
    upright: np.ndarray | None = None
    warnings: dict[str, int] = field(default_factory=dict)


def utf8(data: bytes) -> bytes:
    """A text in UTF-8 without a byte order mark. Raises ValueError where it is no text."""
    for mark, encoding in ((b"\xff\xfe\0\0", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding, "replace").encode()
    start = data[:256]
    if b"\0" in start:
        odd, even = start[1::2].count(0), start[::2].count(0)
        if max(odd, even) < 0.4 * len(start) or min(odd, even) > 0.1 * len(start):
            raise ValueError("not a text file")
        return data.decode("utf-16-le" if odd > even else "utf-16-be", "replace").encode()
    return data.removeprefix(b"\xef\xbb\xbf")


def plain_nan(text: bytes) -> bytes:
    """The same text with what C on Windows writes for a number that is not finite (1.#IND) as nan."""
    return WINDOWS_NAN.sub(b" nan ", text) if b".#" in text else text


def read_numbers(text: bytes, dtype: type = np.float64) -> np.ndarray:
    """The numbers (N,) between the blanks of a text. Raises ValueError on anything else."""
    if not text or text.isspace():
        return np.zeros(0, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, dtype=dtype, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise ValueError("something that is no number stands among the numbers") from error


def display_colors(values: np.ndarray, found: Counter[str]) -> np.ndarray:
    """uint8 (N, 4) RGBA of colours (N, 3) or (N, 4) in any usual range; RGB and alpha are judged each by its own.

    Floats are 0..1, else 0..255, else 0..65,535 by the largest of them; whole numbers are 0..255, else 0..65,535.
    Colours that are not finite become grey, an alpha of zero everywhere becomes opaque; both are counted.
    """
    lost = ~np.isfinite(values).all(axis=1)
    if lost.any():
        found[BAD_COLORS] += int(lost.sum())
        values = np.where(lost[:, None], np.nan, values)
    parts = [_in_bytes(values[:, :3])]
    parts.append(_in_bytes(values[:, 3:]) if values.shape[1] > 3 else np.full((len(values), 1), 255, np.uint8))
    if len(values) and not parts[1].any():
        found[INVISIBLE] += 1
        parts[1] = np.full_like(parts[1], 255)
    colors = np.concatenate(parts, axis=1)
    colors[lost] = np.rint(np.array(GREY) * 255)
    return colors


def _in_bytes(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "iu" and values.dtype.itemsize == 1:
        return values.astype(np.uint8)
    largest = float(np.nan_to_num(values, nan=0.0, posinf=0.0).max(initial=0))
    if values.dtype.kind == "f" and largest <= 1.01:
        values = np.clip(values, 0, 1) * 255
    elif largest > 255:
        values = values / 257
    return np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8)


def without_lost(
    vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray | None, found: Counter[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Vertices, faces and colours of vertices without those vertices that are not finite; they are counted.

    Raises ValueError when a face has one of them.
    """
    lost = ~placed(vertices)
    if not lost.any():
        return vertices, faces, colors
    if lost[faces].any():
        raise ValueError("a vertex is not finite (NaN or infinity)")
    found[NO_PLACE] += int(lost.sum())
    return vertices[~lost], (np.cumsum(~lost) - 1)[faces], None if colors is None else colors[~lost]


def face_colored(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> Mesh:
    """A mesh of faces (F, 3) that have colours uint8 (F, 4): every corner is a vertex of its own."""
    corners = np.arange(3 * len(faces)).reshape(-1, 3)
    white = (Material((1.0, 1.0, 1.0, 1.0)),)
    return Mesh(vertices[faces].reshape(-1, 3), corners, white, vertex_colors=np.repeat(colors, 3, axis=0))


def counted(found: Counter[str]) -> dict[str, int]:
    """Warnings by type, sorted, without those of which there are none."""
    return {kind: count for kind, count in sorted(found.items()) if count}


def check_finite(raw: RawShape) -> RawShape:
    """The same shape. Raises ValueError when it has no point, or one that is not finite or out of all bounds."""
    points = raw.mesh.vertices if raw.mesh is not None else raw.points
    if points is None or not len(points):
        raise ValueError("the file holds no points")
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite (NaN or infinity)")
    if np.abs(points).max() > _BOUND:
        raise ValueError(f"a coordinate of {np.abs(points).max():.1e} is no length")
    return raw


def placed(points: np.ndarray) -> np.ndarray:
    """bool (N,), which of points (N, 3) are finite."""
    return np.asarray(np.isfinite(points).all(axis=1))


def with_places(raw: RawShape) -> RawShape:
    """The same cloud without rows that have no place, as range cameras write where they saw nothing; they are counted.

    Raises ValueError when no row is left.
    """
    if raw.mesh is not None or raw.points is None or not len(raw.points):
        return raw
    kept = placed(raw.points)
    if kept.all():
        return raw
    if not kept.any():
        raise ValueError(f"none of its {len(kept):,} points has a place: all are NaN or infinite")
    return replace(
        raw,
        points=raw.points[kept],
        colors=None if raw.colors is None else raw.colors[kept],
        parts=None if raw.parts is None else raw.parts[kept],
        warnings={**raw.warnings, NO_PLACE: int(np.count_nonzero(~kept))},
    )


def without_strays(raw: RawShape) -> RawShape:
    """The same mesh without vertices that no face has, so that centre and scale are of its surface; they are counted.

    The other vertices and all faces keep their order.
    """
    if raw.mesh is None:
        return raw
    used = np.zeros(len(raw.mesh.vertices), bool)
    used[raw.mesh.faces.reshape(-1)] = True
    strays = len(used) - int(np.count_nonzero(used))
    if not strays:
        return raw
    colors, number = raw.mesh.vertex_colors, np.cumsum(used) - 1
    mesh = replace(
        raw.mesh,
        vertices=raw.mesh.vertices[used],
        faces=number[raw.mesh.faces],
        vertex_colors=None if colors is None else colors[used],
    )
    return replace(raw, mesh=mesh, warnings={**raw.warnings, STRAYS: strays})
