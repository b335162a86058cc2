"""OBJ files as programs write them, through the real command: faces, colours, warnings and reasons."""

from __future__ import annotations

import io

import numpy as np
import pytest
from mesh_builds import StoredFile, build_files
from PIL import Image

from pipeline.formats.obj import read_obj
from pipeline.sources.side_files import SideFiles

V = ("0 0 0", "1 0 0", "1 1 0", "0 1 0")
SQUARE = "".join(f"v {v}\n" for v in V)
VT = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACES = "f 1 2 3\nf 1 3 4\n"
PLACED = "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"
ORANGE = "".join(f"v {v} 1 0.5 0\n" for v in V)
BYTES = "".join(f"v {v} 255 128 0\n" for v in V)
TWO = "newmtl a\nKd 1 0 0\nnewmtl b\nKd 0 0 1\n"
RED = "newmtl a\nKd 1 0 0\n"
LEFT_RED = np.array([[[255, 0, 0]] * 8 + [[0, 255, 0]] * 8] * 16, np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def textured(options: str = "", uv: str = VT) -> dict[str, str | bytes]:
    return {
        "m.obj": f"mtllib m.mtl\n{SQUARE}{uv}usemtl a\n{PLACED}",
        "m.mtl": f"newmtl a\nmap_Kd {options} t.png\n",
        "t.png": png(LEFT_RED),
    }


def with_mtl(mtl: str | bytes, obj: str, name: str = "m.mtl") -> dict[str, str | bytes]:
    return {"m.obj": obj, name: mtl}


COLORED = f"mtllib m.mtl\n{ORANGE}usemtl a\n{FACES}"
FORM = "f 1/1/1 2/2/1 3/3/1\nf 1//1 3//1 4//1\n"
GREY, ORANGE_RGB = None, [255, 128, 0]
# name -> (files, colour of all points or None where they have none, warnings)
RIGHT: dict[str, tuple[str | dict[str, str | bytes], list[int] | None, dict[str, int]]] = {
    "plain": (SQUARE + FACES, GREY, {}),
    "negative": (
        "v 0 0 0\nv 1 0 0\nv 1 1 0\nf -3 -2 -1\nv 0 1 0\nv 9 9 9\nf -5 -3 -2\n",
        GREY,
        {"vertices without a face": 1},
    ),
    "inline comments": (f"v 0 0 0 # a\nv 1 0 0#b\n{SQUARE[16:]}f 1 2 3 # tri\nf 1 3 4#x\n#f 1 2 3\n", GREY, {}),
    "indented": (SQUARE.replace("v ", " \tv\t") + FACES.replace("f ", "\t f  "), GREY, {}),
    "crlf": ((SQUARE + FACES).replace("\n", "\r\n"), GREY, {}),
    "lone cr": ((SQUARE + FACES).replace("\n", "\r"), GREY, {}),
    "continued": (SQUARE + "f 1 2 \\\n 3\nf 1 \\\n3\\\n 4\n", GREY, {}),
    "continued crlf": ((SQUARE + "f 1 2 \\\n 3 \\\n4\n").replace("\n", "\r\n"), GREY, {}),
    "backslash in a comment": (f"# C:\\models\\\n{SQUARE}g C:\\x\\\n{FACES}", GREY, {}),
    "capitals": ((SQUARE + FACES).upper(), GREY, {}),
    "old keyword": (SQUARE + FACES.replace("f ", "fo "), GREY, {}),
    "all forms": (SQUARE + VT + "vn 0 0 1\n" + FORM, GREY, {}),
    "open slashes": (SQUARE + "f 1/ 2/ 3/\nf 1// 3// 4//\n", GREY, {}),
    "groups": (f"o x\ng a b\ns off\nmg 1\nlod 2\n{SQUARE}s 1\n{FACES}end\n", GREY, {}),
    "statements": (f"{SQUARE}usemap x\nbanana\n{FACES}", GREY, {"statements passed over": 2}),
    "lines": (f"{SQUARE}{FACES}l 1 2\nl 2 3 4\np 1\n", GREY, {"lines passed over": 2, "points passed over": 1}),
    "two corners": (f"{SQUARE}{FACES}f 1 2\nf 3\n", GREY, {"faces with fewer than three corners": 2}),
    "curve": (
        f"{SQUARE}{FACES}cstype bezier\ndeg 3\ncurv 0 1 1 2 3 4\nend\n",
        GREY,
        {"curves and surfaces passed over": 1},
    ),
    "stray": (f"{SQUARE}v 90 0 0\n{FACES}", GREY, {"vertices without a face": 1}),
    "stray nan": (
        f"v 1.#IND -1.#QNAN 1.#INF\nv nan 0 0\n{SQUARE}f 3 4 5\nf 3 5 6\n",
        GREY,
        {"vertices without a face": 2},
    ),
    "weights": ("".join(f"v {v} 1\n" for v in V) + FACES, GREY, {}),
    "other weights": ("".join(f"v {v} 2\n" for v in V) + FACES, GREY, {"vertex weights passed over": 4}),
    "utf-16": ((SQUARE + FACES).encode("utf-16"), GREY, {}),
    "utf-16 big": (b"\xfe\xff" + (SQUARE + FACES).encode("utf-16-be"), GREY, {}),
    "utf-16 without mark": ((SQUARE + FACES).encode("utf-16-le"), GREY, {}),
    "utf-8 mark": (b"\xef\xbb\xbf" + (SQUARE + FACES).encode(), GREY, {}),
    "colours": (ORANGE + FACES, ORANGE_RGB, {}),
    "colours of bytes": (BYTES + FACES, ORANGE_RGB, {}),
    "colours with alpha": (ORANGE.replace("\n", " 1\n") + FACES, ORANGE_RGB, {}),
    "colours behind weights": ("".join(f"v {v} 1 1 0.5 0\n" for v in V) + FACES, ORANGE_RGB, {}),
    "colours and coordinates": (ORANGE + VT + PLACED, ORANGE_RGB, {}),
    "colours, no material": (f"{ORANGE}usemtl a\n{FACES}", ORANGE_RGB, {"material not found": 1}),
    "colours times white": (with_mtl("newmtl a\nKd 1 1 1\n", COLORED), ORANGE_RGB, {}),
    "colours times Kd": (with_mtl("newmtl a\nKd 0.5 1 1\n", COLORED), [128, 128, 0], {}),
    "colours without Kd": (with_mtl("newmtl a\nNs 10\n", COLORED), ORANGE_RGB, {}),
    "colours times black": (with_mtl("newmtl a\nKd 0 0 0\n", COLORED), ORANGE_RGB, {"black under vertex colours": 1}),
    "colours not finite": (
        ORANGE.replace("1 0.5 0", "nan nan nan") + FACES,
        [178, 178, 178],
        {"colours not finite": 4},
    ),
    "no usemtl": (with_mtl(RED, f"mtllib m.mtl\n{SQUARE}{FACES}"), [255, 0, 0], {}),
    "no usemtl of two": (with_mtl(TWO, f"mtllib m.mtl\n{SQUARE}{FACES}"), GREY, {"material not found": 1}),
    "no usemtl, no mtl": (f"mtllib gone.mtl\n{SQUARE}{FACES}", GREY, {"material not found": 1}),
    "no mtllib": (with_mtl(RED, f"{SQUARE}usemtl a\n{FACES}"), [255, 0, 0], {}),
    "spaces": (with_mtl(RED, f"mtllib my own.mtl\n{SQUARE}usemtl a\n{FACES}", "my own.mtl"), [255, 0, 0], {}),
    "quotes": (
        with_mtl(RED, f'mtllib "my own.mtl"\n{SQUARE}usemtl a\n{FACES}', "my own.mtl"),
        [255, 0, 0],
        {"path repaired": 1},
    ),
    "spaces, two": (
        {**with_mtl(TWO, f"mtllib x y.mtl m.mtl\n{SQUARE}usemtl a\n{FACES}"), "x y.mtl": "newmtl c\n"},
        [255, 0, 0],
        {},
    ),
    "comments behind names": (with_mtl(RED, f"mtllib m.mtl # x\n{SQUARE}usemtl a # x\n{FACES}"), [255, 0, 0], {}),
    "a number sign in names": (
        with_mtl("newmtl No #1\nKd 1 0 0 # red\n", f"mtllib m #1.mtl\n{SQUARE}usemtl No #1\n{FACES}", "m #1.mtl"),
        [255, 0, 0],
        {},
    ),
    "latin-1": (
        with_mtl("newmtl grün\nKd 1 0 0\n".encode("latin-1"), f"mtllib m.mtl\n{SQUARE}usemtl grün\n{FACES}"),
        [255, 0, 0],
        {},
    ),
    "utf-16 mtl": (with_mtl(RED.encode("utf-16"), f"mtllib m.mtl\n{SQUARE}usemtl a\n{FACES}"), [255, 0, 0], {}),
    "beside the mtl": (
        {"m.obj": f"mtllib sub/m.mtl\n{SQUARE}{VT}{PLACED}", "sub/m.mtl": "newmtl a\nmap_Kd x/t.png\n"}
        | {"sub/x/t.png": png(LEFT_RED[:, :8]), "x/t.png": png(LEFT_RED[:, 8:])},
        [255, 0, 0],
        {},
    ),
    "beside the model": (
        {"m.obj": f"mtllib sub/m.mtl\n{SQUARE}{VT}{PLACED}", "sub/m.mtl": "newmtl a\nmap_Kd x/t.png\n"}
        | {"x/t.png": png(LEFT_RED[:, :8]), "sub/t.png": png(LEFT_RED[:, 8:])},
        [255, 0, 0],
        {},
    ),
    "up from the mtl": (
        {"m.obj": f"mtllib sub/m.mtl\n{SQUARE}{VT}{PLACED}", "sub/m.mtl": "newmtl a\nmap_Kd ../t.png\n"}
        | {"t.png": png(LEFT_RED[:, :8])},
        [255, 0, 0],
        {},
    ),
    "offset": (textured("-s 0.2 1 1 -o 0.1 0"), [255, 0, 0], {}),
    "offset of the other half": (textured("-s 0.2 -o 0.7"), [0, 255, 0], {}),
    "clamp": (
        textured("-clamp on", VT.replace("vt 0", "vt 5").replace("vt 1", "vt 6")),
        [0, 255, 0],
        {"texture repeats": 1},
    ),
    "gain": (
        textured("-mm 0.1 2", VT.replace("vt 0", "vt 0.1").replace("vt 1", "vt 0.2")),
        [255, 0, 0],
        {"texture option -mm passed over": 1},
    ),
    "negative coordinates": (
        {
            **textured(),
            "m.obj": f"mtllib m.mtl\nusemtl a\n{SQUARE}vt .1 0\nvt .2 0\nvt .2 1\nf 1/-3 2/-2 3/-1\n"
            "vt .1 1\nf 1/-4 3/-2 4/-1\nvt .9 0\n",
        },
        [255, 0, 0],
        {},
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredFile]:
    """All files of this module in one build, by their names here."""
    files: dict[str, str | bytes] = {}
    for name, (held, *_) in {**RIGHT, **WRONG, **CLOUDS}.items():
        for path, data in (held if isinstance(held, dict) else {"m.obj": held}).items():
            files[f"{name}/{path}"] = data
    found = build_files(tmp_path_factory.mktemp("obj"), files)
    return {name.removesuffix("/m.obj"): value for name, value in found.items()}


@pytest.mark.parametrize("name", RIGHT)
def test_what_the_file_says_is_what_is_stored(built: dict[str, StoredFile], name: str) -> None:
    _, color, warnings = RIGHT[name]
    found = built[name]
    assert found.reason == ""
    assert found.area == pytest.approx(1, abs=1e-5)
    assert (found.mesh.vertices.min(axis=0), found.mesh.vertices.max(axis=0)) == (
        pytest.approx(np.array([0, 0, 0]), abs=1e-5),
        pytest.approx(np.array([1, 1, 0]), abs=1e-5),
    )
    assert (found.color, found.warnings) == (color, warnings)


WRONG: dict[str, tuple[str, str]] = {
    "out of range": (f"{SQUARE}\nf 1 2 3\n\nf 1 3 7\n", "line 8: a face names vertex 7 of 4"),
    "behind the first": (f"{SQUARE}f 1 2 -9\n", "line 5: a face names vertex -9 of 4"),
    "not yet there": ("v 0 0 0\nf -3 -2 -1\nv 1 0 0\nv 0 1 0\n", "line 2: a face names vertex -3 of 3"),
    "zero": (f"{SQUARE}f 0 1 2\n", "line 5: a face names vertex 0 of 4"),
    "no vertex": (f"{SQUARE}f /1 /2 /3\n", "line 5: '/1' is no corner of a face"),
    "half an index": (f"{SQUARE}f 1 2 3.5\n", "line 5: '3.5' is no corner of a face"),
    "four slashes": (f"{SQUARE}f 1/1/1/1 2 3\n", "line 5: '1/1/1/1' is no corner of a face"),
    "words": (f"{SQUARE}# x \\\nv a b c\n{FACES}", "line 6: 'a' is no number"),
    "decimal comma": ("v 0,5 0 0\n" + SQUARE + FACES, "line 1: '0,5' is no number"),
    "after a continuation": (f"{SQUARE}f 1 \\\n2 3\nv x 0 0\n", "line 7: 'x' is no number"),
    "two coordinates": (f"{SQUARE}v 1 2\n{FACES}", "line 5: a vertex with fewer than three coordinates"),
    "nan": ("v nan 0 0\n" + SQUARE + FACES, "a vertex is not finite (NaN or infinity)"),
    "curves": (f"{SQUARE}cstype bspline\nsurf 0 1 0 1 1 2 3 4\nend\n", "the file holds curves or surfaces only"),
    "nothing": ("# only a comment\n", "the file holds neither faces nor points"),
    "binary": ("\0\1\2\3" * 99, "not a text file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reason_names_the_line(built: dict[str, StoredFile], name: str) -> None:
    assert built[name].reason.startswith(WRONG[name][1])


CLOUDS: dict[str, tuple[str, list[int] | None, dict[str, int]]] = {
    "cloud": (SQUARE, None, {}),
    "coloured cloud": (BYTES, ORANGE_RGB, {}),
    "cloud with points": (SQUARE + "p 1 2 3 4\n", None, {}),
    "cloud with lines": (SQUARE + "l 1 2\n", None, {"lines passed over": 1}),
    "cloud with nan": (SQUARE + "v nan 0 0\n", None, {"points without a place": 1}),
}


@pytest.mark.parametrize("name", CLOUDS)
def test_a_file_without_faces_is_a_cloud(built: dict[str, StoredFile], name: str) -> None:
    _, color, warnings = CLOUDS[name]
    found = built[name]
    assert (found.reason, found.mesh, len(found.points)) == ("", None, 4)
    assert (found.color, found.warnings) == (color, warnings)


def test_a_picture_shows_the_colour(built: dict[str, StoredFile]) -> None:
    """Red, green and blue of light that falls on an orange square."""
    red, green, blue = built["colours times white"].seen
    assert red > green > blue + 50
    red, green, blue = built["offset of the other half"].seen
    assert green > red + 50 > blue


def test_faces_with_and_without_coordinates_of_one_material(tmp_path) -> None:
    files = textured()
    files["m.obj"] = f"mtllib m.mtl\nusemtl a\n{SQUARE}{VT}f 1/1 2/2 3/3\nf 1 3 4\nf 1/9 3/1 4/1\n"
    files["m.mtl"] = "newmtl a\nKd 0 0 1\nmap_Kd t.png\n"
    found = build_files(tmp_path, files)["m.obj"]
    assert found.warnings == {"texture without coordinates": 1, "double faces": 1}
    assert sorted((m.texture is not None, m.base_color[:3]) for m in found.mesh.materials) == [
        (False, (0, 0, 1)),
        (True, (0, 0, 1)),
    ]
    assert np.bincount(found.mesh.face_material).tolist() == [1, 2]


def test_opacity_by_number_and_by_picture(tmp_path) -> None:
    obj = f"mtllib m.mtl\nusemtl a\n{SQUARE}{VT}{PLACED}"
    alpha = png(np.full((4, 4), 64, np.uint8))
    for line, expected in (("d 0.25", 64), ("Tr 0.75", 64), ("map_d alpha.png", 64)):
        files = {"m.obj": obj, "m.mtl": f"newmtl a\nKd 1 0 0\n{line}\n", "alpha.png": alpha}
        for name, data in files.items():
            (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
        (material,) = read_obj(obj.encode(), SideFiles(tmp_path, tmp_path), "m").mesh.materials
        drawn = material.base_color[3] * (255 if material.texture is None else int(material.texture[0, 0, 3]))
        assert (material.base_color[:3], round(drawn)) == ((1, 0, 0), expected), line


def test_the_order_of_earlier_versions(tmp_path) -> None:
    """Bytes of a build stay: the last material first, and of quads the first halves before the second."""

    def faces(text: str) -> list[list[int]]:
        return read_obj((SQUARE + text).encode(), SideFiles(tmp_path, tmp_path), "m").mesh.faces.tolist()

    assert faces("f 1 2 3 4\nf 4 3 2 1\n") == [[0, 1, 2], [3, 2, 1], [2, 3, 0], [1, 0, 3]]
    assert faces("f 1 2 3 4\nf 1 2 3\n") == [[0, 1, 2], [2, 3, 0], [0, 1, 2]]
    assert faces("usemtl a\nf 1 2 3\nusemtl b\nf 2 3 4\nusemtl a\nf 1 3 4\n") == [[0, 1, 2], [3, 4, 5], [3, 5, 6]]


def test_many_materials_take_no_longer_than_one(tmp_path) -> None:
    """Faces are sorted once; a pass over all of them for each material took minutes."""
    text = "".join(f"usemtl m{i % 3000}\nf 1 2 3\n" for i in range(60_000))
    raw = read_obj((SQUARE + text).encode(), SideFiles(tmp_path, tmp_path), "m")
    assert (len(raw.mesh.materials), len(raw.mesh.faces)) == (3000, 60_000)
