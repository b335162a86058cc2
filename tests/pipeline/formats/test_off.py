"""The OFF reader: every dialect that is out there, and every way to be broken."""

from __future__ import annotations

import numpy as np
import pytest
from mesh_builds import StoredFile, build_files

from pipeline.formats.off import read_off


def parse_off(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    mesh = read_off(data).mesh
    return mesh.vertices, mesh.faces, mesh.vertex_colors


BODY = "0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"


@pytest.mark.parametrize(
    "text",
    [
        "OFF\n3 1 0\n" + BODY,
        "OFF3 1 0\n" + BODY,
        "OFF 3 1 0\n" + BODY,
        "OFF\n# a comment\n\n3 1 0\n# another\n" + BODY,
        "\ufeffOFF\r\n3 1 0\r\n" + BODY.replace("\n", "\r\n"),
        "OFF\n3\t1\t0\n" + BODY.replace(" ", "   "),
        "OFF\n3 1\n" + BODY,
        "OFF\n3 1 0\n0 0 0 1 0 0\n0 1\n0 3 0\n1 2\n",
        "COFF\n3 1 0\n0 0 0 255 0 0 255\n1 0 0 255 0 0 255\n0 1 0 255 0 0 255\n3 0 1 2\n",
        "NOFF\n3 1 0\n0 0 0 0 0 1\n1 0 0 0 0 1\n0 1 0 0 0 1\n3 0 1 2\n",
    ],
)
def test_dialects(text: str) -> None:
    vertices, faces, colors = parse_off(text.encode())
    np.testing.assert_array_equal(vertices, [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert faces.tolist() == [[0, 1, 2]]
    assert (colors is not None) == text.startswith("COFF")
    if colors is not None:
        assert colors.tolist() == [[255, 0, 0, 255]] * 3


def test_polygons_become_fans() -> None:
    _, faces, _ = parse_off(b"OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n")
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("ply\nformat ascii 1.0\n", "not an OFF file"),
        ("OFF\n", "counts"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n", "cut, or lying"),
        ("OFF\n99999999 1 0\n" + BODY, "cut, or lying"),
        ("OFF\n3 2 0\n" + BODY, "announced"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "vertex 7 of 3"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "vertex 3 of 3"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n", "vertex -1 of 3"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n4 0 1 2 3\n", "vertex 3 of 3"),
        ("OFF\n3 1 0\n0 0 zero\n1 0 0\n0 1 0\n3 0 1 2\n", "no number"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n5 0 1 2\n", "5 corners"),
        ("OFF BINARY\n", "binary"),
    ],
)
def test_broken_files_say_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_off(text.encode())


def test_run_together_header_gives_the_same_mesh(shared) -> None:
    name = "bathtub/train/bathtub_0001.off"
    apart = parse_off((shared / "samples/ModelNet10" / name).read_bytes())
    together = parse_off((shared / "samples/ModelNet40" / name).read_bytes())
    np.testing.assert_array_equal(apart[0], together[0])
    np.testing.assert_array_equal(apart[1], together[1])
    assert len(apart[1]) == 3546


def test_colours_of_either_range_beside_normals_or_not() -> None:
    for scale in (1, 255):
        corners = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
        colors = [(1, 0, 0), (0, 1, 0.5), (1, 1, 1)]
        for kind, normal in (("COFF", ""), ("CNOFF", "0 0 1 ")):
            rows = [
                f"{x} {y} {z} {normal}" + " ".join(f"{scale * part:g}" for part in color)
                for (x, y, z), color in zip(corners, colors, strict=True)
            ]
            _, _, found = parse_off("\n".join([kind, "3 1 0", *rows, "3 0 1 2", ""]).encode())
            assert found.tolist() == [[255, 0, 0, 255], [0, 255, 128, 255], [255, 255, 255, 255]], (kind, scale)


V = ("0 0 0", "1 0 0", "1 1 0", "0 1 0")


def square(behind: str = "", *faces: str, kind: str = "OFF") -> str:
    """The unit square, with the same numbers behind each vertex."""
    faces = faces or ("3 0 1 2", "3 0 2 3")
    return "\n".join([kind, f"4 {len(faces)} 0", *(f"{v} {behind}" for v in V), *faces, ""])


ORANGE = [255, 128, 0]
RIGHT: dict[str, tuple[str, list[int] | None, dict[str, int]]] = {
    "plain": (square(), None, {}),
    "quad": (square("", "4 0 1 2 3"), None, {}),
    "run together": (square().replace("OFF\n", "OFF"), None, {}),
    "a face over lines": (square("", "3 0", "1", "2 3 0 2", "3").replace("4 4 0", "4 2 0"), None, {}),
    "one line": (square().replace("\n", " ").replace("4 2 0 ", "4 2 0\n"), None, {}),
    "lone cr": (square("", "4 0 1 2 3").replace("\n", "\r"), None, {}),
    "comments": (square("# a", "# c\n4 0 1 2 3 # b"), None, {}),
    "utf-16": (square(), None, {}),
    "two corners": (square("", "2 0 1", "1 3", "4 0 1 2 3"), None, {"faces with fewer than three corners": 2}),
    "COFF of bytes": (square("255 128 0 255", kind="COFF"), ORANGE, {}),
    "COFF of floats": (square("1 .5 0 1", kind="COFF"), ORANGE, {}),
    "COFF without alpha": (square("1 .5 0", kind="COFF"), ORANGE, {}),
    "COFF, alpha of another range": (square("255 128 0 1", kind="COFF"), ORANGE, {}),
    "COFF in one line": (square("1 .5 0 1", kind="COFF").replace("\n", " ").replace("2 0 0", "2 0\n0"), ORANGE, {}),
    "colours in OFF": (square("255 128 0"), ORANGE, {}),
    "colours with alpha in OFF": (square("255 128 0 255"), ORANGE, {}),
    "normals in OFF": (square("0 0 1"), None, {"numbers passed over": 12}),
    "NOFF": (square("0 0 1", kind="NOFF"), None, {}),
    "CNOFF": (square("0 0 1 1 .5 0 1", kind="CNOFF"), ORANGE, {}),
    "STOFF": (square("0 1", kind="STOFF"), None, {}),
    "STCNOFF": (square("0 0 1 1 .5 0 1 .2 .3", kind="STCNOFF"), ORANGE, {}),
    "faces of bytes": (square("", "3 0 1 2 255 128 0", "3 0 2 3 255 128 0 255"), ORANGE, {}),
    "faces of floats": (square("", "3 0 1 2 1.0 .5 0 1", "3 0 2 3 1.0 .5 0 1"), ORANGE, {}),
    "a quad of bytes": (square("", "4 0 1 2 3 255 128 0"), ORANGE, {}),
    "faces of an index": (square("", "3 0 1 2 7", "3 0 2 3 9"), None, {"colour indices passed over": 2}),
    "a colour at the end of lines": (square("", "3 0\n1 2 255 128 0", "3 0 2 3 255 128 0"), ORANGE, {}),
    "both": (square("255 128 0", "3 0 1 2 0 0 9", "3 0 2 3 0 0 9"), ORANGE, {"face colours passed over": 2}),
    "numbers behind": (square() + "7 8 9\n", None, {"numbers passed over": 3}),
    "nan": ("OFF\n5 1 0\n" + "\n".join(V) + "\nnan 1.#IND 0\n4 0 1 2 3\n", None, {"points without a place": 1}),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredFile]:
    files = {
        f"{name}.off": text.encode("utf-16" if name == "utf-16" else "utf-8") for name, (text, *_) in RIGHT.items()
    }
    return build_files(tmp_path_factory.mktemp("off"), files)


@pytest.mark.parametrize("name", RIGHT)
def test_what_the_file_says_is_what_is_stored(built: dict[str, StoredFile], name: str) -> None:
    _, color, warnings = RIGHT[name]
    found = built[f"{name}.off"]
    assert found.reason == ""
    assert found.area == pytest.approx(1, abs=1e-5)
    assert (found.color, found.warnings) == (color, warnings)


def test_faces_without_alpha_are_opaque_and_those_without_a_colour_grey() -> None:
    for text in (square("", "3 0 1 2 1 0 0", "3 0 2 3 1 0 0 1"), square("", "3 0 1 2 255 0 0", "3 0 2 3 255 0 0 255")):
        assert (read_off(text.encode()).mesh.vertex_colors == (255, 0, 0, 255)).all()
    mesh = read_off(square("", "3 0 1 2 255 0 0", "3 0 2 3").encode()).mesh
    assert mesh.vertex_colors[mesh.faces][:, :, :3].tolist() == [[[255, 0, 0]] * 3, [[178, 178, 178]] * 3]
