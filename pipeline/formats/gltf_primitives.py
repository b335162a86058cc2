"""Reads one primitive of a glTF mesh: its attributes, morph targets added, and the triangles of its mode."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.formats.gltf_data import DRACO, GltfData, part, rows

POINTS, TRIANGLES, STRIP, FAN = 0, 4, 5, 6
COLORS_UNMARKED = "colours not marked as normalized"  # integers that can only mean shares of one
_KINDS = {
    "POSITION": ("VEC3",),
    "TEXCOORD": ("VEC2",),
    "COLOR": ("VEC4", "VEC3"),
    "JOINTS": ("VEC4",),
    "WEIGHTS": ("VEC4",),
}


@dataclass(frozen=True)
class GltfPart:
    """A primitive in the frame of its mesh.

    positions: real (V, 3). faces: int64 (F, 3). material: a place in `Materials.made`.
    uvs: float32 (F, 3, 2), v up, or None. colors: uint8 (V, 4) or None. joints, weights: (V, K), or None.
    is_points: whether its vertices are a cloud.
    """

    positions: np.ndarray
    faces: np.ndarray
    material: int
    uvs: np.ndarray | None = None
    colors: np.ndarray | None = None
    joints: np.ndarray | None = None
    weights: np.ndarray | None = None
    is_points: bool = False


class Primitive:
    """The attributes of one primitive, from accessors or from what Draco packed, with its morph targets added.

    packed: attributes by name and faces, where they are there in no other form than Draco's; else None.
    """

    def __init__(self, data: GltfData, primitive: dict[str, Any], weights: tuple, warnings: Counter[str]) -> None:
        self._data, self._row, self._warnings = data, primitive, warnings
        self._attributes = part(primitive, "attributes")
        self._targets = [
            (weight, target) for weight, target in zip(weights, rows(primitive, "targets"), strict=False) if weight != 0
        ]
        self.packed: tuple[dict[str, np.ndarray], np.ndarray] | None = None
        needed = [self._attributes["POSITION"], *(primitive[key] for key in ("indices",) if key in primitive)]
        bare = any(data.row("accessors", each, "a primitive").get("bufferView") is None for each in needed)
        if DRACO in part(primitive, "extensions") and bare:
            self.packed = data.unpack_draco(part(primitive, "extensions", DRACO))

    def _stored(self, name: str) -> np.ndarray:
        place = self._attributes[name]
        if self.packed is not None and name in self.packed[0]:
            found = self.packed[0][name]
            return found if found.dtype.kind == "f" else found.astype(self._data.dtype(place))
        return self._data.array(place, name, _KINDS[name.partition("_")[0]])

    def real(self, name: str, count: int | None = None) -> np.ndarray:
        """Real (V, components) of an attribute, its morph targets added. count: what V must be."""
        stored = self._stored(name)
        found = self._data.real(self._attributes[name], stored)
        if found.dtype.kind != "f" and name.startswith(("COLOR", "WEIGHTS")):
            found = stored / np.float32(np.iinfo(stored.dtype).max)
            self._warnings[COLORS_UNMARKED] += name.startswith("COLOR")
        if count is not None and len(found) != count:
            raise ValueError(f"a primitive has {len(found):,} of {name} for {count:,} of POSITION")
        for weight, target in self._targets:
            if name in target:
                kinds = _KINDS[name.partition("_")[0]]
                moves = self._data.real(target[name], self._data.array(target[name], f"a target's {name}", kinds))
                if moves.shape != found.shape:
                    raise ValueError(f"a morph target has {len(moves):,} of {name} for {len(found):,}")
                found = found + weight * moves.astype(np.float64)
        return found

    def order(self, count: int) -> np.ndarray:
        """int64 (N,): which vertices, one after the other. count: of the vertices."""
        if self.packed is not None:
            found = self.packed[1].reshape(-1).astype(np.int64)
        elif self._row.get("indices") is None:
            return np.arange(count)
        else:
            found = self._data.array(self._row["indices"], "indices", ("SCALAR",))[:, 0]
            if found.dtype.kind == "f":
                raise ValueError("indices are no whole numbers")
            found = found.astype(np.int64)
        if len(found) and (found.min() < 0 or found.max() >= count):
            raise ValueError(f"a face names vertex {found.max()} of {count}")
        return found

    def bones(self, count: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Joints and weights (V, 4 a set) of all sets, or None twice."""
        sets = sorted(n for n in self._attributes if n.startswith("JOINTS_") and f"WEIGHTS_{n[7:]}" in self._attributes)
        if not sets:
            return None, None
        joints = np.concatenate([self._stored(name) for name in sets], axis=1)
        weights = np.concatenate([self.real(f"WEIGHTS_{name[7:]}", count) for name in sets], axis=1)
        if joints.shape != weights.shape or joints.dtype.kind == "f":
            raise ValueError("a primitive has joints and weights that do not fit each other")
        return joints, weights


def triangles(order: np.ndarray, mode: int) -> np.ndarray:
    """int64 (F, 3) of a list, strip or fan (glTF 2.0, 3.7.2.1). What only stitches a strip together is left out."""
    if mode == TRIANGLES:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == FAN:
        found = np.stack([np.full(len(order) - 2, order[0]), order[1:-1], order[2:]], axis=1)
    else:
        found = np.stack([order[:-2], order[1:-1], order[2:]], axis=1)
        found[1::2] = found[1::2, [0, 2, 1]]
    same = (found[:, 0] == found[:, 1]) | (found[:, 1] == found[:, 2]) | (found[:, 0] == found[:, 2])
    return found[~same]


def moved(each: GltfPart, matrices: np.ndarray) -> GltfPart:
    """The part once for each of some matrices (N, 4, 4). One that mirrors turns the faces: outside stays outside."""
    if len(matrices) == 1 and (matrices[0] == np.eye(4)).all():
        return each
    count = len(each.positions)
    with np.errstate(over="ignore", invalid="ignore"):
        positions = (
            each.positions.astype(np.float64) @ matrices[:, :3, :3].transpose(0, 2, 1) + matrices[:, None, :3, 3]
        )
    faces = np.concatenate([each.faces + start for start in range(0, len(matrices) * count, max(count, 1))])
    inside_out = np.repeat(np.linalg.det(matrices[:, :3, :3]) < 0, len(each.faces))
    faces[inside_out] = faces[inside_out, ::-1]
    return replace(
        each,
        positions=positions.reshape(-1, 3),
        faces=faces,
        uvs=_turned(None if each.uvs is None else np.tile(each.uvs, (len(matrices), 1, 1)), inside_out),
        colors=None if each.colors is None else np.tile(each.colors, (len(matrices), 1)),
    )


def posed(each: GltfPart, matrices: np.ndarray) -> GltfPart:
    """A part that a skin moves, in the world's frame: by its joints alone, not by its node (glTF 2.0, 3.7.3.3).

    matrices: float64 (J, 4, 4), of its joints.
    """
    weights = np.array(each.weights, np.float64)
    weights[weights.sum(axis=1) == 0, 0] = 1  # as viewers do: the first joint holds what none holds
    joint = np.where(weights != 0, np.asarray(each.joints).astype(np.int64), 0)
    if joint.max(initial=0) >= len(matrices):
        raise ValueError(f"a vertex names joint {joint.max()} of {len(matrices)}")
    weights /= weights.sum(axis=1, keepdims=True)
    positions, outside = np.zeros((len(weights), 3)), np.zeros(len(weights))
    points, signs = each.positions.astype(np.float64), np.sign(np.linalg.det(matrices[:, :3, :3]))
    for column in range(joint.shape[1]):
        matrix, weight = matrices[joint[:, column]], weights[:, column]
        positions += weight[:, None] * (np.einsum("vij,vj->vi", matrix[:, :3, :3], points) + matrix[:, :3, 3])
        outside += weight * signs[joint[:, column]]
    inside_out = (outside < 0)[each.faces[:, 0]]
    faces = np.where(inside_out[:, None], each.faces[:, ::-1], each.faces)
    return replace(each, positions=positions, faces=faces, uvs=_turned(each.uvs, inside_out))


def _turned(uvs: np.ndarray | None, chosen: Any) -> np.ndarray | None:
    """Texture coordinates with the corners of some faces in the opposite order."""
    if uvs is None:
        return None
    uvs = uvs.copy()
    uvs[chosen] = uvs[chosen][:, ::-1]
    return uvs
