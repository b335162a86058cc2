"""Whole meshes, by both backends, against what PyTorch3D and CLIP2Point's released RGB path made of real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from manifests.presets import MeshViews, load_preset
from renderers.backend_table import draw, preset_cameras
from renderers.cameras import Camera
from renderers.geometry import Material, Mesh
from renderers.normals import vertex_normals
from renderers.view import View

FLIP = np.diag([-1.0, -1.0, 1.0])  # PyTorch3D looks along +z with x left and y up
CLEAN = ("mn10_chair_0890_dedup", "sn_airplane_1a04e3ea_dedup", "textured_sn_chair_1016f4de")
RAW = ("mn10_chair_0890", "sn_airplane_1a04e3ea")
WHITE = Material((1.0, 1.0, 1.0, 1.0))
Arrays = dict[str, np.ndarray]


@pytest.fixture
def arrays(golden: Path) -> Callable[[str], Arrays]:
    """name -> the arrays of one golden file."""

    def load(name: str) -> Arrays:
        with np.load(golden / "render" / f"{name}.npz", allow_pickle=False) as data:
            return dict(data)

    return load


@pytest.fixture(params=["raycast", "rasterize"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "rasterize":
        pytest.importorskip("pytorch3d", reason="PyTorch3D is not installed")
    return request.param


def released(backend: str, data: Arrays, **changes: object) -> MeshViews:
    """The release's shading from the cameras of a golden file, at the size of its pictures."""
    rotations = [(FLIP @ R.T).tolist() for R in data["R"].astype(float)]
    values = {"backend": backend, "image_size": 112, "rotations": rotations, "name": "golden", **changes}
    preset = load_preset("rgb10_release", values)[1]
    for camera, position in zip(preset_cameras(preset), data["cam_pos"], strict=True):
        np.testing.assert_allclose(camera.position, position, atol=2e-6)
    return preset


def mesh_of(data: Arrays) -> Mesh:
    if "uv_map" not in data:
        return Mesh(data["verts"], data["faces"])
    opaque = np.full((*data["uv_map"].shape[:2], 1), 255, np.uint8)
    picture = Material((1.0, 1.0, 1.0, 1.0), np.concatenate([data["uv_map"], opaque], axis=2))
    return Mesh(data["verts"], data["faces"], (picture,), corner_uvs=data["verts_uvs"][data["faces_uvs"]])


def light_of(data: Arrays) -> dict[str, object]:
    """Keys of a preset with a golden file's far light; its materials are white."""
    constants = {
        key: float((data[f"dirlight_{key}_color"] * data[f"dirmat_{key}_color"])[0])
        for key in ("ambient", "diffuse", "specular")
    }
    direction = [float(x) for x in data["dirlight_direction"]]
    return {**constants, "shininess": int(data["dirmat_shininess"]), "light_direction": direction}


def measures(view: View, zbuf: np.ndarray, rgb: np.ndarray | None = None) -> Iterator[tuple[str, float, float]]:
    """(what, value, limit) of the measures of conformance."""
    hit, expected = np.isfinite(view.depth), zbuf > 0
    both = hit & expected
    yield "1 - IoU", 1 - both.sum() / (hit | expected).sum(), 0.005
    yield "depth", np.abs(view.depth - zbuf)[both].max(), 1e-3
    if rgb is not None:
        yield "RGB", np.abs(view.rgb / 255.0 - np.clip(rgb, 0, 1))[both].mean(), 2 / 255


@pytest.mark.parametrize("name", CLEAN)
def test_release_shading_equals_pytorch3d(arrays, backend: str, name: str) -> None:
    data = arrays(f"pytorch3d_mesh_{name}")
    for number, view in enumerate(draw(released(backend, data, **light_of(data)), mesh=mesh_of(data))):
        for what, value, limit in measures(view, data["zbuf"][number], data["rgb_directional"][number]):
            assert value <= limit, (what, number)
        if "uv_map" not in data:  # without a texture nothing but the rounding to bytes is left
            clear = np.isfinite(view.depth) & (data["zbuf"][number] > 0) & ~data["ambig_edge"][number]
            assert np.abs(view.rgb / 255.0 - data["rgb_directional"][number])[clear].max() < 0.75 / 255


def test_textures_alone_equal_pytorch3d(arrays, backend: str) -> None:
    """Ambient light only. Half a texel is left: PyTorch3D puts the outermost texel centres on the picture's border."""
    data = arrays("pytorch3d_mesh_textured_sn_chair_1016f4de")
    preset = released(backend, data, ambient=1.0, diffuse=0.0, specular=0.0)
    for number, view in enumerate(draw(preset, mesh=mesh_of(data))):
        for what, value, limit in measures(view, data["zbuf"][number], data["rgb_ambient_only"][number]):
            assert value <= limit, (what, number)


@pytest.mark.parametrize("name", RAW)
def test_raw_files_have_the_mask_and_the_depth(arrays, backend: str, name: str) -> None:
    """Every face is stored twice: which of the twins PyTorch3D shows, and with it the colour, is left to rounding."""
    data = arrays(f"pytorch3d_mesh_{name}")
    for number, view in enumerate(draw(released(backend, data), mesh=mesh_of(data))):
        for what, value, limit in measures(view, data["zbuf"][number]):
            assert value <= limit, (what, number)
        clear = ~data["ambig_edge"][number]
        hit, expected = np.isfinite(view.depth), data["zbuf"][number] > 0
        np.testing.assert_array_equal(hit[clear], expected[clear])
        both = hit & expected & clear
        np.testing.assert_allclose(view.depth[both], data["zbuf"][number][both], atol=2e-5)


@pytest.mark.parametrize("name", CLEAN)
def test_smooth_normals_are_those_of_pytorch3d(arrays, name: str) -> None:
    data = arrays(f"pytorch3d_mesh_{name}")
    got = vertex_normals(data["verts"][data["faces"]], data["faces"], len(data["verts"]))
    np.testing.assert_allclose(got, data["verts_normals"][data["faces"]], atol=1e-4)


def test_the_cameras_of_rgb10_release_are_those_of_the_release(arrays) -> None:
    data = arrays("clip2point_rgb_sn_chair_1016f4de")
    cameras = preset_cameras(load_preset("rgb10_release")[1])
    for camera, R, T in zip(cameras, data["R"], data["T"], strict=True):
        np.testing.assert_allclose(camera.camera_from_world[:3, :3], FLIP @ R.T, atol=1e-6)
        np.testing.assert_allclose(camera.camera_from_world[:3, 3], FLIP @ T, atol=1e-6)


def test_release_path_of_clip2point(arrays, backend: str) -> None:
    """Silhouette, depth and light of all ten views of the released RGB path.

    The release reads colours from a 4x4 atlas of each face that it makes before rendering; ours come from the picture.
    So the texel is taken from the golden atlas, and the light that falls on it from two drawings of ours, in white and
    in black, for the picture is light x texel + highlight.
    """
    data = arrays("clip2point_rgb_sn_chair_1016f4de")
    preset = released(backend, data)
    white = draw(preset, mesh=Mesh(data["verts"], data["faces"], (WHITE,)))
    black = draw(preset, mesh=Mesh(data["verts"], data["faces"], (Material((0.0, 0.0, 0.0, 1.0)),)))
    for number, camera in enumerate(preset_cameras(preset)):
        zbuf, texel = depth_and_texel(data, number, camera)
        highlight = black[number].rgb / 255.0
        lit = np.rint(255 * ((white[number].rgb / 255.0 - highlight) * texel + highlight)).astype(np.uint8)
        view = View(camera, rgb=lit, depth=white[number].depth)
        for what, value, limit in measures(view, zbuf, data["rgb"][number]):
            assert value <= limit, (what, number)


def depth_and_texel(data: Arrays, number: int, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Depth (S, S), -1 where empty, and the atlas's colour (S, S, 3) at the golden fragments of one view."""
    face, weights = data["pix_to_face"][number], data["bary_coords"][number]
    hit = face >= 0
    which, b = face[hit] % len(data["faces"]), weights[hit]
    depth, texel = np.full(face.shape, -1.0), np.zeros((*face.shape, 3))
    corners = data["verts"][data["faces"][which]]
    pose = camera.camera_from_world
    depth[hit] = np.einsum("nk,nkd->nd", b, corners) @ pose[2, :3] + pose[2, 3]
    cell = np.minimum((b[:, :2] * 4).astype(int), 3)
    below = (b[:, 0] + b[:, 1]) * 4 - cell.sum(axis=1) <= 1
    column, row = np.where(below[:, None], cell, 3 - cell).T
    texel[hit] = data["atlas"][which, row, column]
    return depth, texel


@pytest.mark.parametrize("name", CLEAN)
def test_fragments_equal_pytorch3d(arrays, name: str) -> None:
    """Face, weights and depth of every pixel, but those whose centre lies on an edge or on two faces."""
    pytest.importorskip("pytorch3d", reason="PyTorch3D is not installed")
    import torch

    from renderers import rasterize
    from renderers.shading import prepare

    data = arrays(f"pytorch3d_mesh_{name}")
    preset = released("rasterize", data)
    surface = prepare(mesh_of(data), preset)
    assert len(surface.corners) == len(data["faces"])
    found = rasterize._fragments(surface, preset, preset_cameras(preset), torch.device("cpu"))
    for number, (face, weights, depth) in enumerate(found):
        clear = ~data["ambig_edge"][number] & ~data["ambig_tie"][number]
        expected = data["pix_to_face"][number]
        expected = np.where(expected >= 0, expected % len(data["faces"]), -1)
        np.testing.assert_array_equal(face[..., 0][clear], expected[clear])
        both = clear & (expected >= 0)
        np.testing.assert_allclose(depth[..., 0][both], data["zbuf"][number][both], atol=3e-5)  # float32 slivers
        np.testing.assert_allclose(weights[..., 0, :][both], data["bary_coords"][number][both], atol=1e-3)
