"""The glTF reader against a literal one (tests/support/literal_gltf.py), on all sample files that this can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gltf_maker import GltfMaker, box
from literal_gltf import Literal, read_literally

from pipeline.formats.mesh import read_mesh
from renderers.geometry import GREY, Mesh
from renderers.sampling import surface_colors

NOT_LITERALLY = {  # what the literal reader does not know; test_gltf_files.py and test_gltf_materials.py have tests
    "basisu_required.glb",
    "draco-beside.glb",
    "mask_alpha_60.glb",
    "unknown_required_extension.glb",
}


def triangle_areas(corners: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2


def middle_colors(mesh: Mesh) -> np.ndarray:
    """RGB in [0, 1] at the middle of each face (F, 3)."""
    return surface_colors(mesh, np.arange(len(mesh.faces)), np.full((len(mesh.faces), 3), 1 / 3)) / 255


def farthest_apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far two sets of as many points (N, 3) are apart, in whatever order: the most along eight directions.

    (scipy's tree of points crashes where torch has set denormal numbers to 0.)
    """
    directions = np.random.default_rng(0).normal(size=(3, 8))
    directions /= np.linalg.norm(directions, axis=0)
    return float(np.abs(np.sort(ours @ directions, axis=0) - np.sort(theirs @ directions, axis=0)).max())


def compare(path: Path, root: Path, literal: Literal) -> None:
    raw = read_mesh(path, root)
    if raw.mesh is None:
        assert not literal.triangles
        assert raw.points.shape == np.array(literal.points).shape
        assert farthest_apart(raw.points, np.array(literal.points)) < 1e-6
        return
    ours, theirs = raw.mesh.vertices[raw.mesh.faces], np.array([one.corners for one in literal.triangles])
    assert ours.shape == theirs.shape
    areas, size = triangle_areas(theirs), np.abs(theirs).max()
    assert farthest_apart(ours.reshape(-1, 3), theirs.reshape(-1, 3)) < 2e-6 * size
    assert farthest_apart(ours.mean(axis=1), theirs.mean(axis=1)) < 2e-6 * size
    assert triangle_areas(ours).sum() == pytest.approx(areas.sum(), rel=1e-5)
    outward = np.cross(theirs[:, 1] - theirs[:, 0], theirs[:, 2] - theirs[:, 0]).sum(axis=0)
    np.testing.assert_allclose(
        np.cross(ours[:, 1] - ours[:, 0], ours[:, 2] - ours[:, 0]).sum(axis=0), outward, atol=1e-4 * areas.sum()
    )
    if all(material.base_color == GREY for material in raw.mesh.materials) and raw.mesh.vertex_colors is None:
        return  # no colour in the file
    mean = (middle_colors(raw.mesh) * triangle_areas(ours)[:, None]).sum(axis=0) / areas.sum()
    expected = (np.array([one.color for one in literal.triangles]) * areas[:, None]).sum(axis=0) / areas.sum()
    np.testing.assert_allclose(mean, expected, atol=3 / 255, err_msg="mean colour")


def test_every_sample_is_read_as_the_literal_reader_reads_it(shared: Path) -> None:
    root = shared / "samples"
    paths = [path for path in sorted(root.rglob("*.glb")) if path.name not in NOT_LITERALLY]
    assert len(paths) >= 37
    wrong = {}
    for path in paths:
        try:
            compare(path, root, read_literally(path.read_bytes()))
        except (AssertionError, ValueError) as error:
            wrong[path.relative_to(root).as_posix()] = str(error)
    assert not wrong


def test_a_made_scene_is_what_a_literal_reader_reads(tmp_path) -> None:
    rng = np.random.default_rng(0)
    made = GltfMaker()
    paint = [made.material([*rng.random(3), 1]) for _ in range(3)]
    strip = made.primitive(rng.random((9, 3)), rng.integers(0, 9, 20), paint[1], mode=5)
    short = made.accessor(rng.integers(-120, 120, (30, 3)), "int8", {"byteStride": 3}, normalized=True)
    meshes = [
        made.mesh(made.primitive(box(), None, paint[0]), made.primitive(short, rng.integers(0, 30, 60), paint[2])),
        made.mesh(made.primitive(rng.random((9, 3)), None, paint[0], mode=6)),
    ]
    assert strip["mode"] == 5
    places = {"TRANSLATION": made.accessor(rng.random((4, 3)))}
    made.values["nodes"] = [
        {"children": [1, 2], "rotation": [0.3, 0.1, -0.5, 0.8], "scale": [1, -2, 0.5], "camera": 0},
        {"mesh": meshes[0], "translation": [1, 2, 3], "children": [3]},
        {"mesh": meshes[1], "matrix": [*rng.random(3), 0, *rng.random(3), 0, *rng.random(3), 0, *rng.random(3), 1]},
        {
            "mesh": meshes[1],
            "extensions": {"EXT_mesh_gpu_instancing": {"attributes": places}},
            "rotation": [0, 0, 2, 1],
        },
    ]
    data = made.glb()
    (tmp_path / "a.glb").write_bytes(data)
    compare(tmp_path / "a.glb", tmp_path, read_literally(data))
