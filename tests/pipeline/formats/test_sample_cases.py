"""Files after public bug reports: OBJ, PLY and OFF that were read wrongly are stored as they should be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from mesh_builds import StoredFile, build_folder

ORANGE = [255, 128, 0]
# file -> (area of what is drawn, colour of all points where they have one)
RIGHT: dict[str, tuple[float, list[int] | None]] = {
    "02-negative-indices/cls/neg-groups.obj": (1.5, None),
    "18-obj-vertex-colours-with-usemtl/cls/04-vcolor-and-mtl/model.obj": (1, ORANGE),
    "19-colour-range/cls/02-rgb-float255.ply": (1, ORANGE),
    "19-colour-range/cls/03-vcolor-255/model.obj": (1, ORANGE),
    "19-colour-range/cls/05-rgb-ushort.ply": (1, ORANGE),
    "23-diffuse-red/cls/03-diffuse_red.ply": (1, ORANGE),
    "23-diffuse-red/cls/04-r-g-b.ply": (1, ORANGE),
    "24-off-face-colours/cls/41-facecolor.off": (1, ORANGE),
    "24-off-face-colours/cls/44-off-with-vertexcolors.off": (1, ORANGE),
    "24-off-face-colours/cls/47-facecolor-float.off": (1, ORANGE),
    "more/concave_polygon.obj": (7, None),
    "more/concave_polygon.ply": (7, None),
    "more/continuation.obj": (2, None),
    "more/mtl_in_subfolder/a.obj": (6, [200, 40, 40]),
    "more/nan_word.obj": (0.5, None),
    "more/relative_indices.obj": (12, None),
    "more/textured_white.ply": (6, [255, 255, 255]),
    "more/tristrips.ply": (1.1124, None),
    "more/unreferenced_vertex.obj": (6, None),
    "more/utf16.obj": (6, None),
}
TEXTURED = (  # by the one picture, which stands upright
    "05-textured-ply-dark/cls/12-texfile-texcoord.ply",
    "05-textured-ply-dark/cls/13-texture_u.ply",
    "20-no-usemtl/cls/01-no-usemtl/model.obj",
    "21-obj-inline-comment/cls/47-inline-comment-f/model.obj",
)


@pytest.fixture(scope="module")
def built(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredFile]:
    cases = shared / "samples" / "cases"
    if not cases.is_dir():
        pytest.skip("no cases among the samples")
    folder = tmp_path_factory.mktemp("cases")
    others = shutil.ignore_patterns("*.glb", "*.gltf", "*.pt", "*.txt", "*.csv", "*.npy", "*.pcd")
    shutil.copytree(cases, folder / "in", ignore=others, copy_function=shutil.copyfile)
    return build_folder(folder / "in", folder / "out")


@pytest.mark.parametrize("name", RIGHT)
def test_a_case_is_right(built: dict[str, StoredFile], name: str) -> None:
    area, color = RIGHT[name]
    assert built[name].reason == ""
    assert built[name].area == pytest.approx(area, abs=1e-3)
    assert built[name].color == color


@pytest.mark.parametrize("name", TEXTURED)
def test_a_textured_case_shows_its_picture(built: dict[str, StoredFile], name: str) -> None:
    """Every point of the square from (-.5, -.5) to (.5, .5) has the colour of the picture at its place, v up."""
    found = built[name]
    texture = next(m.texture for m in found.mesh.materials if m.texture is not None)
    assert all(m.base_color[:3] == (1, 1, 1) for m in found.mesh.materials)
    size = len(texture)
    inside = (abs(found.points[:, :2]) < 0.48).all(axis=1)
    column, row = (
        ((found.points[inside, 0] + 0.5) * size).astype(int),
        ((0.5 - found.points[inside, 1]) * size).astype(int),
    )
    near = abs(texture[row, column, :3].astype(int) - found.colors[inside]).max(axis=1)
    assert (near <= 40).mean() > 0.9  # the rest lies where the picture changes


def test_clouds_keep_their_colours(built: dict[str, StoredFile], shared: Path) -> None:
    for name in ("19-colour-range/cls/58-rgbfloat255.ply", "23-diffuse-red/cls/54-diffuse.ply"):
        rows = np.loadtxt((shared / "samples/cases" / name).read_text().partition("end_header\n")[2].splitlines())
        nearest = np.linalg.norm(built[name].points[:, None] - rows[None, :, :3], axis=2).argmin(axis=1)
        np.testing.assert_array_equal(built[name].colors, rows[nearest, 3:6])
    assert built["29-nan-rows/cls/52-nan.ply"].warnings == {"points without a place": 4}
