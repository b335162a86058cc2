"""STL files through the real command: binary and text, several solids, and what is wrong with others."""

from __future__ import annotations

import struct

import numpy as np
from gltf_maker import box, build_files

TRIANGLE = "facet normal 0 0 1\n outer loop\n  vertex 0 0 0\n  vertex 1 0 {z}\n  vertex 0 1 0\n endloop\nendfacet\n"


def binary(corners: np.ndarray, head: bytes = b"made", attribute: int = 0) -> bytes:
    """corners: (F, 3, 3)."""
    rows = b"".join(
        np.concatenate([np.zeros((1, 3)), each]).astype("<f4").tobytes() + struct.pack("<H", attribute)
        for each in corners
    )
    return head.ljust(80, b" ") + struct.pack("<I", len(corners)) + rows


def test_both_kinds_are_the_same_box(tmp_path) -> None:
    """Also a binary file that begins with `solid`, attributes, several solids, capitals and UTF-16."""
    corners = box().reshape(-1, 3, 3)
    halves = [
        "solid half\n"
        + "".join(
            "facet normal 0 0 0\nouter loop\n"
            + "".join(f"vertex {x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in face)
            + "endloop\nendfacet\n"
            for face in half
        )
        + "endsolid half\n"
        for half in (corners[:6], corners[6:])
    ]
    text = "".join(halves)
    files = {
        "binary.stl": binary(corners),
        "solid.stl": binary(corners, b"solid of a careless exporter"),
        "coloured.stl": binary(corners, attribute=0x8000 | 31),
        "longer.stl": binary(corners) + b"\0" * 7,
        "text.stl": text.encode(),
        "capitals.STL": text.upper().encode(),
        "windows.stl": text.replace("\n", "\r\n").encode("utf-16"),
    }
    for name, found in build_files(tmp_path, files).items():
        assert found.reason == "", name
        assert len(found.mesh.faces) == 12, name
        np.testing.assert_allclose(found.area, 6, rtol=1e-5, err_msg=name)
        assert found.warnings == {}, name


def test_what_is_wrong_is_said_in_our_words(tmp_path) -> None:
    good = binary(box().reshape(-1, 3, 3))
    reasons = {
        "cut.stl": (good[:-20], "its header announces 12 triangles, 11 are there: cut, or no STL file"),
        "short.stl": (b"not an STL file at all", "its header announces 0 triangles, 0 are there: cut, or no STL file"),
        "empty.stl": (b"solid nothing\nendsolid nothing\n", "holds neither faces nor points: its solids are empty"),
        "words.stl": (b"solid x\n" + TRIANGLE.format(z="zero").encode(), "something that is no number stands among"),
        "nan.stl": (b"solid x\n" + TRIANGLE.format(z="nan").encode(), "a vertex is not finite (NaN or infinity)"),
        "half.stl": (
            b"solid x\n" + TRIANGLE.format(z=0).partition("  vertex 0 1")[0].encode(),
            "2 vertices, which are no whole triangles: cut",
        ),
        "two.stl": (b"solid x\n" + TRIANGLE.format(z="").encode(), "3 vertices with 8 numbers in place of three each"),
    }
    found = build_files(tmp_path, {name: data for name, (data, _) in reasons.items()})
    for name, (_, reason) in reasons.items():
        assert reason in str(found[name].reason), (name, found[name].reason)
