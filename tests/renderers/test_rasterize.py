"""Rasterising by PyTorch3D against the literal reference and the ray caster; skipped where it is not installed."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from shapes import CUBE, chair, cube, sphere, textured_plane, tilted_plane, twins

from manifests.errors import Refused
from manifests.presets import MeshViews, load_preset, preset_names
from renderers import reference
from renderers.backend_table import draw, require
from renderers.cameras import orthographic_K
from renderers.geometry import Material, Mesh, join
from renderers.view import View

MESHES = {"cube": cube, "sphere": sphere, "tilted plane": tilted_plane}


@pytest.fixture
def pytorch3d() -> None:
    pytest.importorskip("pytorch3d", reason="PyTorch3D is not installed")


def preset(backend: str = "rasterize", **changes: object) -> MeshViews:
    values = {"image_size": 28, "azimuth_deg": [0, 40, 200], "elevation_deg": [0, 25, -30], "name": "test", **changes}
    return load_preset("rgb12", {"backend": backend, **values})[1]


def both(mesh: Mesh, **changes: object) -> list[tuple[View, View]]:
    """(ray cast, rasterised) for each view."""
    shared = {k: v for k, v in changes.items() if k not in ("device", "views_at_once")}
    return list(zip(draw(preset("raycast", **shared), mesh=mesh), draw(preset(**changes), mesh=mesh), strict=True))


def assert_same(cast: View, drawn: View, *, odd: int = 4) -> None:
    """The same picture but for `odd` pixels whose centre is as good as on an edge."""
    hit, expected = np.isfinite(drawn.depth), np.isfinite(cast.depth)
    assert expected.any()
    assert (hit != expected).sum() <= odd
    common = hit & expected
    assert (np.abs(drawn.depth[common] - cast.depth[common]) > 2e-5).sum() <= odd
    assert (np.abs(drawn.rgb.astype(int) - cast.rgb).max(axis=2) > 1).sum() <= odd
    assert drawn.coverage == pytest.approx(cast.coverage, abs=2 * odd / hit.size)


@pytest.mark.usefixtures("pytorch3d")
@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("projection", ["perspective", "orthographic"])
def test_depth_equals_the_reference(name: str, projection: str) -> None:
    mesh, settings = MESHES[name](), preset(projection=projection)
    for view in draw(settings, mesh=mesh):
        expected, _ = reference.depth_of_mesh(mesh, view.camera)
        hit = np.isfinite(expected)
        assert 0.02 < hit.mean() < 0.9
        assert (np.isfinite(view.depth) != hit).sum() <= 2
        common = hit & np.isfinite(view.depth)
        np.testing.assert_allclose(view.depth[common], expected[common], atol=1e-5)


@pytest.mark.usefixtures("pytorch3d")
@pytest.mark.parametrize("name", MESHES)
def test_flat_shading_equals_the_reference(name: str) -> None:
    mesh, settings = MESHES[name](), preset(normals="flat", light_direction=[0.6, 0.7, 0.4])
    for view in draw(settings, mesh=mesh)[:2]:
        difference = np.abs(view.rgb / 255.0 - reference.flat_shaded(mesh, view.camera, settings)).max(axis=2)
        assert (difference > 0.6 / 255).sum() <= 6  # pixels whose centre lies on an edge


@pytest.mark.usefixtures("pytorch3d")
def test_a_diagonal_through_pixel_centres_has_no_holes() -> None:
    """The cube's front face is cut along the diagonal of the picture."""
    view = draw(preset(azimuth_deg=[0], elevation_deg=[0]), mesh=cube())[0]
    rows, columns = np.nonzero(np.isfinite(view.depth))
    assert np.isfinite(view.depth[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]).all()


KEYS = [
    {"normals": "smooth", "two_sided": False},
    {"normals": "crease", "light_direction": [1, 2, 3]},
    {"normals": "flat", "ambient": 0.2, "diffuse": 0.7, "specular": 0.4, "shininess": 8},
    {"supersample": 2},
    {"projection": "orthographic"},
    {"background": [0.2, 0.4, 0.6], "views_at_once": 2},
]


@pytest.mark.usefixtures("pytorch3d")
@pytest.mark.parametrize("changes", KEYS, ids=str)
@pytest.mark.parametrize("make", [cube, sphere, chair], ids=lambda make: make.__name__)
def test_every_key_means_what_it_means_to_the_ray_caster(make, changes: dict) -> None:
    for cast, drawn in both(make(), image_size=40, **changes):
        assert_same(cast, drawn, odd=8)


@pytest.mark.usefixtures("pytorch3d")
@pytest.mark.parametrize("wrap", ["repeat", "clamp"])
def test_textures_and_several_materials(wrap: str) -> None:
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((5, 9, 4), (16, 4, 4))]
    for picture in pictures:
        picture[..., 3] = 255
    near, far = textured_plane(pictures[0], 1.7), textured_plane(pictures[1], 2.0)
    turned = replace(far, vertices=far.vertices @ np.diag([-1.0, 1, 1]) + np.array([0.3, 0.2, -0.2]))
    for cast, drawn in both(join([near, turned, chair()]), image_size=64, texture_wrap=wrap):
        assert_same(cast, drawn, odd=10)


@pytest.mark.usefixtures("pytorch3d")
def test_vertex_colours() -> None:
    colors = np.random.default_rng(5).integers(0, 256, (8, 4), dtype=np.uint8)
    colors[:, 3] = 255
    for cast, drawn in both(replace(cube(), vertex_colors=colors), image_size=40):
        assert_same(cast, drawn, odd=8)


@pytest.mark.usefixtures("pytorch3d")
@pytest.mark.parametrize("projection", ["perspective", "orthographic"])
def test_what_lies_behind_transparent_surfaces(projection: str) -> None:
    window = textured_plane(np.full((2, 2, 4), 255, np.uint8), 1.0)
    panes = [
        replace(window, vertices=window.vertices + np.array([0.1 * i, 0.05 * i, 0.3 - 0.2 * i]), materials=(material,))
        for i, material in enumerate((Material((1, 0, 0, 0.25)), Material((0, 1, 0, 0.6)), Material((0, 0, 1, 1.0))))
    ]
    for cast, drawn in both(join(panes), azimuth_deg=[0, 20], elevation_deg=[5, 25], projection=projection):
        assert_same(cast, drawn)


@pytest.mark.usefixtures("pytorch3d")
def test_twins_are_drawn_once() -> None:
    single = draw(preset(), mesh=chair())
    for own in (False, True):
        for first, second in zip(single, draw(preset(), mesh=twins(chair(), own)), strict=True):
            np.testing.assert_array_equal(first.depth, second.depth)
            assert np.abs(first.rgb.astype(int) - second.rgb).max() <= 1


@pytest.mark.usefixtures("pytorch3d")
@pytest.mark.parametrize("projection", ["perspective", "orthographic"])
def test_faces_that_reach_behind_the_camera(projection: str) -> None:
    """A floor below the camera that goes on behind it."""
    corners = np.array([[-9, -0.4, -9], [9, -0.4, -9], [9, -0.4, 9], [-9, -0.4, 9]], float)
    floor = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))
    cast, drawn = both(floor, azimuth_deg=[0], elevation_deg=[10], distance=1.0, projection=projection)[0]
    hit, expected = np.isfinite(drawn.depth), np.isfinite(cast.depth)
    assert 0.2 < expected.mean() < 0.9
    assert (hit != expected).sum() <= 2
    common = hit & expected & (cast.depth < 5)
    np.testing.assert_allclose(drawn.depth[common], cast.depth[common], rtol=1e-4)


@pytest.mark.usefixtures("pytorch3d")
def test_the_size_of_a_batch_changes_no_byte() -> None:
    one, all_at_once = draw(preset(views_at_once=1), mesh=chair()), draw(preset(views_at_once=3), mesh=chair())
    for first, second in zip(one, all_at_once, strict=True):
        assert first.rgb.tobytes() == second.rgb.tobytes()
        assert first.depth.tobytes() == second.depth.tobytes()


@pytest.mark.usefixtures("pytorch3d")
def test_pictures_that_are_not_square() -> None:
    from renderers import rasterize, raycast
    from renderers.backend_table import preset_cameras

    settings = preset(projection="orthographic")
    camera = preset_cameras(settings)[1]
    K = orthographic_K(28, 1.0)
    K[0, 2] = 20.0
    wide = replace(camera, width=40, K=K)
    cast, drawn = raycast.draw_mesh(cube(), settings, [wide])[0], rasterize.draw_mesh(cube(), settings, [wide])[0]
    assert drawn.rgb.shape == (28, 40, 3)
    assert_same(cast, drawn)


@pytest.mark.usefixtures("pytorch3d")
def test_channels_and_meshes_without_area() -> None:
    assert draw(preset(channels=["depth"]), mesh=cube())[0].rgb is None
    assert draw(preset(channels=["rgb"]), mesh=cube())[0].depth is None
    with pytest.raises(ValueError, match="area"):
        draw(preset(), mesh=Mesh(CUBE, np.array([[0, 0, 1]])))


@pytest.mark.usefixtures("pytorch3d")
def test_a_missing_gpu_is_one_line() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for call in (lambda: require(preset(device="cuda")), lambda: draw(preset(device="cuda"), mesh=cube())):
        with pytest.raises(Refused, match="device=cuda") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("pytorch3d")
def test_on_a_gpu_the_same_picture() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    for first, second in zip(draw(preset(), mesh=chair()), draw(preset(device="cuda"), mesh=chair()), strict=True):
        assert_same(first, second)


def test_without_pytorch3d_one_line_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pytorch3d"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "renderers.rasterize", raising=False)
    monkeypatch.setitem(sys.modules, "pytorch3d", None)
    with pytest.raises(Refused, match=r"facebookresearch/pytorch3d/blob/main/INSTALL\.md") as caught:
        require(preset())
    assert str(caught.value).startswith("pytorch3d is missing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in preset_names() if isinstance(load_preset(n)[1], MeshViews)])
def test_every_mesh_preset_can_be_rasterised(name: str) -> None:
    changed, settings = load_preset(name, {"backend": "rasterize", "views_at_once": 2, "device": "cuda"})
    assert (settings.backend, settings.device, settings.views_at_once) == ("rasterize", "cuda", 2)
    assert changed.startswith(f"{name}-")
    with pytest.raises(Refused, match="unknown key device"):
        load_preset(name, {"device": "cuda"})
