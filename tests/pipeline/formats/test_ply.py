"""PLY files as programs write them, through the real command: elements, colours, textures, warnings and reasons."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mesh_builds import StoredFile, build_files
from PIL import Image

from pipeline.formats.ply import read_ply
from pipeline.sources.side_files import SideFiles

CORNERS = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
FACES = [[0, 1, 2], [0, 2, 3]]
LETTERS = {"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"}
LETTERS |= {"int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q"}
LETTERS |= {"uint64": "Q", "float32": "f", "float64": "d"}
Element = tuple[str, list[str], list[list[Any]]]  # name, properties, rows; a list stands in a row as a list


def ply(*elements: Element, form: str = "ascii", head: str = "", newline: str = "\n") -> bytes:
    """A PLY file of elements."""
    lines = ["ply", f"format {form} 1.0", *head.splitlines()]
    body = b""
    order = ">" if "big" in form else "<"
    for name, properties, rows in elements:
        lines += [f"element {name} {len(rows)}", *(f"property {each}" for each in properties)]
        for row in rows:
            words: list[str] = []
            for each, value in zip(properties, row, strict=True):
                kinds = each.split()
                if kinds[0] == "list":
                    words += [str(len(value)), *map(str, value)]
                    body += struct.pack(order + LETTERS[kinds[1]], len(value)) if form != "ascii" else b""
                    body += struct.pack(order + LETTERS[kinds[2]] * len(value), *value) if form != "ascii" else b""
                else:
                    words.append(str(value))
                    body += struct.pack(order + LETTERS[kinds[0]], value) if form != "ascii" else b""
            body += (" ".join(words) + newline).encode() if form == "ascii" else b""
    return newline.join([*lines, "end_header", ""]).encode() + body


def vertices(*properties: str, values: list[Any] | None = None, kind: str = "float") -> Element:
    """The corners of the unit square, each with the same further values."""
    return "vertex", [*(f"{kind} {axis}" for axis in "xyz"), *properties], [[*c, *(values or [])] for c in CORNERS]


def faces(*properties: str, values: list[Any] | None = None, name: str = "vertex_indices") -> Element:
    return "face", [f"list uchar int {name}", *properties], [[face, *(values or [])] for face in FACES]


def colored(kind: str, *values: Any, names: str = "red green blue", form: str = "ascii") -> bytes:
    return ply(vertices(*(f"{kind} {n}" for n in names.split()), values=[*values]), faces(), form=form)


def png(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


UV = [(0, 0), (1, 0), (1, 1), (0, 1)]
PLACED: Element = ("vertex", [*(f"float {n}" for n in "xyzst")], [[*c, *u] for c, u in zip(CORNERS, UV, strict=True)])
WEDGE = [[0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 0, 1]]
WEDGES: Element = (
    "face",
    ["list uchar int vertex_indices", "list uchar float texcoord"],
    [[f, w] for f, w in zip(FACES, WEDGE, strict=True)],
)
TWO: Element = (
    "face",
    ["list uchar int vertex_indices", "list uchar float texcoord", "int texnumber"],
    [[f, w, i] for i, (f, w) in enumerate(zip(FACES, WEDGE, strict=True))],
)
TEXTURE = "comment TextureFile t.png"
BINARY = ("binary_little_endian", "binary_big_endian")
ORANGE = [255, 128, 0]
CAMERA: Element = ("camera", ["float view_px", "list uchar double k"], [[1.5, [1.0, 2.0]], [2.5, []]])
EDGES: Element = ("edge", ["int vertex1", "int vertex2"], [[0, 1], [1, 2]])
STRIP: Element = ("tristrips", ["list int int vertex_indices"], [[[0, 1, 3, 2]]])
RGB = ["uchar red", "uchar green", "uchar blue"]
ENDED: Element = ("tristrips", ["list int int vertex_indices"], [[[0, 1, 2, -1, 2, 3, 0, -1]]])
QUAD: Element = ("face", ["list uchar int vertex_index"], [[[0, 1, 2, 3]]])
MIXED: Element = ("face", ["int flags", "list uint8 uint32 vertex_index"], [[7, [0, 1]], [7, [0, 1, 2, 3]]])
# name -> (file, colour of all points or None, warnings)
RIGHT: dict[str, tuple[bytes, list[int] | None, dict[str, int]]] = {
    "ascii": (ply(vertices(), faces()), None, {}),
    "crlf": (ply(vertices(), faces(), newline="\r\n"), None, {}),
    "lone cr": (ply(vertices(), faces(), newline="\r"), None, {}),
    "longer lines": (
        re.sub(rb"(?m)^([-\d. ]+)$", rb"\1 7 8", ply(vertices(), faces())),
        None,
        {"numbers passed over": 2 * (len(CORNERS) + len(FACES))},
    ),
    "more lines": (ply(vertices(), faces()) + b"1 2 3\n", None, {"numbers passed over": 3}),
    "crlf at the end of a binary header": (
        ply(vertices(), faces(), form=BINARY[0]).replace(b"end_header\n", b"end_header\r\n"),
        None,
        {},
    ),
    "crlf binary": (ply(vertices(), faces(), form=BINARY[0], newline="\r\n"), None, {}),
    "cr binary": (ply(vertices(), faces(), form=BINARY[1], newline="\r"), None, {}),
    "comments": (ply(vertices(), faces(), head="comment end_header\nobj_info x 3\ncomment element a 9"), None, {}),
    "faces first": (ply(faces(), vertices()), None, {}),
    "faces first, binary": (ply(faces(), vertices(), form=BINARY[1]), None, {}),
    "unknown": (ply(CAMERA, vertices(), faces(), EDGES), None, {"elements passed over": 2, "lines passed over": 2}),
    "index name": (ply(vertices(), faces(name="vertex_index")), None, {}),
    "other index name": (ply(vertices(), faces(name="corners")), None, {}),
    "normals": (ply(vertices("float nx", "float ny", "float nz", values=[0, 0, 1]), faces()), None, {}),
    "intensity": (ply(vertices("uchar intensity", values=[9]), faces()), None, {"properties passed over": 1}),
    "grey": (ply(vertices("uchar gray", "float quality", values=[9, 1]), faces()), None, {"properties passed over": 2}),
    "material": (ply(vertices(), faces("int material_index", values=[0])), None, {"properties passed over": 1}),
    "quads": (ply(vertices(), QUAD, form=BINARY[0]), None, {}),
    "two corners": (
        ply(vertices(), ("face", QUAD[1], [*QUAD[2], [[0, 1]]])),
        None,
        {"faces with fewer than three corners": 1},
    ),
    "strip": (ply(vertices(), STRIP), None, {}),
    "ended strips": (ply(vertices(), ENDED, form=BINARY[1]), None, {}),
    "nan stray": (
        ply(("vertex", vertices()[1], [*vertices()[2], ["nan", 0, 0]]), faces()),
        None,
        {"points without a place": 1},
    ),
    "windows nan": (
        ply(("vertex", vertices()[1], [*vertices()[2], ["1.#IND", 0, 0]]), faces()),
        None,
        {"points without a place": 1},
    ),
    "uchar": (colored("uchar", 255, 128, 0), ORANGE, {}),
    "uchar, binary": (colored("uint8", 255, 128, 0, form=BINARY[1]), ORANGE, {}),
    "char": (colored("char", -1, -128, 0, form=BINARY[0]), ORANGE, {}),
    "float of 1": (colored("float", 1, 0.5, 0), ORANGE, {}),
    "double of 1": (colored("double", 1, 0.5, 0, form=BINARY[0]), ORANGE, {}),
    "float of 255": (colored("float", 255, 128, 0), ORANGE, {}),
    "float of 65535": (colored("float", 65535, 32768, 0, form=BINARY[1]), ORANGE, {}),
    "ushort of 65535": (colored("ushort", 65535, 32768, 0), ORANGE, {}),
    "ushort of 255": (colored("ushort", 255, 128, 0, form=BINARY[1]), ORANGE, {}),
    "int of 255": (colored("int", 255, 128, 0, form=BINARY[0]), ORANGE, {}),
    "whole numbers of 1": (colored("uchar", 1, 1, 0), [1, 1, 0], {}),
    "diffuse": (colored("uchar", 255, 128, 0, names="diffuse_red diffuse_green diffuse_blue"), ORANGE, {}),
    "letters": (colored("uchar", 255, 128, 0, names="r g b"), ORANGE, {}),
    "capitals": (colored("uchar", 255, 128, 0, names="Red Green Blue"), ORANGE, {}),
    "alpha": (colored("uchar", 255, 128, 0, 255, names="red green blue alpha"), ORANGE, {}),
    "alpha of another range": (colored("float", 255, 128, 0, 1, names="r g b a"), ORANGE, {}),
    "alpha of zero": (colored("uchar", 255, 128, 0, 0, names="r g b a"), ORANGE, {"alpha of zero": 1}),
    "nan colours": (colored("float", "nan", 0, 0), [178, 178, 178], {"colours not finite": 4}),
    "face colours": (ply(vertices(), faces("float red", "float green", "float blue", values=[1, 0.5, 0])), ORANGE, {}),
    "face colours of a quad": (ply(vertices(), ("face", [*QUAD[1], *RGB], [[[0, 1, 2, 3], *ORANGE]])), ORANGE, {}),
    "both colours": (
        ply(
            vertices(*RGB, values=ORANGE),
            faces(*RGB, values=[0, 0, 9]),
        ),
        ORANGE,
        {"face colours passed over": 2},
    ),
    "texture": (ply(PLACED, faces(), head=TEXTURE), ORANGE, {}),
    "texture, u and v": (
        ply(
            (PLACED[0], [p.replace(" s", " u").replace(" t", " v") for p in PLACED[1]], PLACED[2]),
            faces(),
            head=TEXTURE,
        ),
        ORANGE,
        {},
    ),
    "texture of faces": (ply(vertices(), WEDGES, head=TEXTURE), ORANGE, {}),
    "texture of faces, binary": (ply(vertices(), WEDGES, form=BINARY[1], head=TEXTURE), ORANGE, {}),
    "two textures": (ply(vertices(), TWO, head=TEXTURE + "\ncomment TextureFile other folder/t t.png"), ORANGE, {}),
    "texture and colours": (
        ply((PLACED[0], [*PLACED[1], *RGB], [[*r, 9, 9, 9] for r in PLACED[2]]), faces(), head=TEXTURE),
        ORANGE,
        {"vertex colours passed over": 4},
    ),
    "no texture, colours": (
        ply(
            (PLACED[0], [*PLACED[1], *RGB], [[*r, *ORANGE] for r in PLACED[2]]),
            faces(),
            head="comment TextureFile gone.png",
        ),
        ORANGE,
        {"texture not found": 1},
    ),
    "no coordinates": (ply(vertices(), faces(), head=TEXTURE), None, {"texture without coordinates": 1}),
    "bytes behind": (ply(vertices(), faces(), form=BINARY[0]) + b"more", None, {"bytes behind the end": 4}),
    **{
        f"{kind}s": (ply(vertices(kind=kind), faces(), form=form), None, {})
        for kind, form in zip(LETTERS, BINARY * 9, strict=False)
    },
}
FEW = ("vertex", ["float x", "float y", "float z"], [[0, 0, 0], [1, 0, 0], [1, 1, 0]])
WRONG: dict[str, tuple[bytes, str]] = {
    "cut ascii": (ply(vertices(), faces())[:-8], "2 of face announced, fewer are there: cut, or lying"),
    "cut binary": (ply(vertices(), faces(), form=BINARY[0])[:-8], "2 of face announced, fewer are there"),
    "cut ragged": (ply(vertices(), MIXED, form=BINARY[1])[:-5], "2 of face announced, fewer are there"),
    "words": (ply(vertices(), faces()).replace(b"end_header\n", b"end_header\nabc "), "something that is no number"),
    "index": (ply(FEW, faces()), "a face names vertex 3 of 3"),
    "negative index": (ply(vertices(), ("face", QUAD[1], [[[0, 1, -2]]])), "a face names vertex -2 of 4"),
    "half an index": (
        ply(vertices(), ("face", ["list uchar float i"], [[[0, 1, 1.5]]])),
        "a face index is no whole number",
    ),
    "negative length": (ply(vertices(), faces()).replace(b"\n3 0 1 2", b"\n-3 0 1 2"), "a PLY list of -3 values"),
    "nan": (ply(("vertex", FEW[1], [["nan", 0, 0], *vertices()[2]]), faces()), "a vertex is not finite"),
    "no z": (ply(("vertex", ["float x", "float y"], [[0, 0]]), faces()), "a vertex has x, y; x, y and z are needed"),
    "no vertex": (ply(faces()), "the file holds neither faces nor points"),
    "type": (ply(vertices(), faces()).replace(b"float x", b"quad x"), "a PLY header with the line 'property quad x'"),
    "length type": (ply(vertices(), faces()).replace(b"list uchar", b"list float"), "a PLY header with the line"),
    "early property": (
        ply(vertices(), faces()).replace(b"1.0\n", b"1.0\nproperty int a\n"),
        "a PLY header with the line",
    ),
    "format": (ply(vertices(), faces()).replace(b"ascii", b"utf8") + b" " * 99, "a PLY file of 'format utf8 1.0'"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredFile]:
    files: dict[str, str | bytes] = {f"{name}.ply": data for name, (data, *_) in {**RIGHT, **WRONG}.items()}
    files |= {"t.png": png((255, 128, 0)), "other folder/t t.png": png((255, 128, 0))}
    return {
        name.removesuffix(".ply"): found for name, found in build_files(tmp_path_factory.mktemp("ply"), files).items()
    }


@pytest.mark.parametrize("name", RIGHT)
def test_what_the_file_says_is_what_is_stored(built: dict[str, StoredFile], name: str) -> None:
    _, color, warnings = RIGHT[name]
    found = built[name]
    assert found.reason == ""
    assert found.area == pytest.approx(1, abs=1e-5)
    used = found.mesh.vertices[np.unique(found.mesh.faces)]
    assert (used.min(axis=0), used.max(axis=0)) == (
        pytest.approx(np.zeros(3), abs=1e-5),
        pytest.approx(np.array([1, 1, 0]), abs=1e-5),
    )
    assert (found.color, found.warnings) == (color, warnings)


@pytest.mark.parametrize("name", WRONG)
def test_a_reason_is_in_our_words(built: dict[str, StoredFile], name: str) -> None:
    assert built[name].reason.startswith(WRONG[name][1])


def test_lists_of_different_lengths_among_other_properties() -> None:
    """Little and big endian, and the same as text: vertices lie behind them, so that every length counts."""
    rows = [[1, [0, 1], 2, []], [3, [0, 1, 2, 3], 4, [5.5, 6.5]], [7, [2, 3, 0], 8, [9.0]]]
    kinds = ["short a", "list ushort uint vertex_indices", "int64 b", "list int double c"]
    for form in ("ascii", *BINARY):
        raw = read_ply(ply(("face", kinds, rows), vertices(), form=form), SideFiles(Path("."), Path(".")))
        assert raw.mesh.faces.tolist() == [[2, 3, 0], [0, 1, 2], [2, 3, 0]]
        np.testing.assert_array_equal(raw.mesh.vertices, CORNERS)
        assert raw.warnings == {"faces with fewer than three corners": 1, "properties passed over": 3}


def test_a_texture_stands_upright(tmp_path) -> None:
    """v is up: the first row of a picture is at v = 1."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = (255, 0, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    made = build_files(tmp_path, {"a.ply": ply(vertices(), WEDGES, head=TEXTURE), "t.png": file.getvalue()})["a.ply"]
    high, low = made.points[:, 1] > 0.6, (made.points[:, 1] < 0.4) & (made.points[:, 1] > 0.1)
    assert (made.colors[high & (made.points[:, 1] < 0.9)] == (255, 0, 0)).all()
    assert (made.colors[low] == 0).all()


def test_strips_turn_every_second_triangle_round() -> None:
    strip = (
        "tristrips",
        ["list uchar int vertex_indices"],
        [[[0, 1, 3, 2, 2, 0, 0, 1, 2]], [[0, 1]], [[]], [[1, 2, 3]]],
    )
    raw = read_ply(ply(vertices(), strip, faces()), SideFiles(Path("."), Path(".")))
    assert raw.mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 3], [1, 2, 3], [0, 1, 2], [1, 2, 3]]


def test_clouds_keep_colours_and_lose_what_has_no_place(tmp_path) -> None:
    rows = [[*c, 255, 128, 0] for c in CORNERS] + [["nan", 0, 0, 1, 2, 3], [0, "inf", 0, 1, 2, 3]]
    names = [
        *(f"float {axis}" for axis in "xyz"),
        *(f"ushort {n}" for n in ("diffuse_red", "diffuse_green", "diffuse_blue")),
    ]
    cloud = ply(("vertex", names, rows), EDGES)
    for recipe in ("meshes", "points"):
        found = build_files(tmp_path / recipe, {"a.ply": cloud}, recipe)["a.ply"]
        assert (found.mesh, len(found.points), found.color) == (None, 4, ORANGE)
        assert found.warnings == {"points without a place": 2, "lines passed over": 2}
