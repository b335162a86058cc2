"""renderers.draw: clouds and meshes as arrays, the same as a build stores; one line for what cannot be drawn."""

from __future__ import annotations

import doctest
import importlib
import io
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

import renderers
from manifests.errors import Refused
from manifests.presets import load_preset
from manifests.samples import MESH, Sample, decode_array, decode_picture, depth_of_codes, read_samples
from renderers.view import View
from training.data.decode import picture_of


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(600, 3)) * [1, 0.6, 0.3]
    return points / np.linalg.norm(points, axis=1).max()


def textured_box() -> trimesh.Trimesh:
    """A box with a texture of two colours; every face has its own part of it."""
    box = trimesh.creation.box((1, 0.7, 0.4))
    uv = (box.vertices[:, :2] - box.vertices[:, :2].min(axis=0)) / np.ptp(box.vertices[:, :2], axis=0)
    image = Image.fromarray(np.array([[[200, 30, 30], [30, 30, 200]]], np.uint8)).resize((64, 64))
    visual = trimesh.visual.TextureVisuals(uv=uv, material=trimesh.visual.material.SimpleMaterial(image=image))
    return trimesh.Trimesh(box.vertices, box.faces, visual=visual, process=False)


def test_a_cloud(cloud) -> None:
    views = renderers.draw(cloud, "depth10", image_size=64)
    assert views.rgb is None
    assert (views.depth.shape, views.depth.dtype) == ((10, 64, 64), np.float32)
    assert (views.pictures.shape, views.pictures.dtype) == ((10, 3, 64, 64), np.float32)
    assert len(views.cameras) == 10
    hit = np.isfinite(views.depth)
    assert (views.depth[~hit] == np.inf).all()
    assert hit.any(axis=(1, 2)).all()
    assert views.pictures.max() == 1  # clip2point: empty is white
    assert (views.pictures[:, 0][~hit] == 1).all()
    distance = np.linalg.norm(views.cameras[0].position)
    assert distance - 1.01 < views.depth[hit].min() < views.depth[hit].max() < distance + 1.01


def test_a_mesh_is_used_as_it_is() -> None:
    box = textured_box()
    views = renderers.draw(box, "rgb12", image_size=64)
    assert (views.rgb.shape, views.rgb.dtype) == ((12, 64, 64, 3), np.uint8)
    assert views.depth.shape == (12, 64, 64)
    np.testing.assert_array_equal(views.pictures, views.rgb.transpose(0, 3, 1, 2) / np.float32(255))
    other = renderers.draw(box.copy().apply_scale(0.5), "rgb12", image_size=64)
    assert np.isfinite(other.depth).mean() < 0.4 * np.isfinite(views.depth).mean()
    nearest = views.depth[0].min()
    assert nearest > np.linalg.norm(views.cameras[0].position) - np.linalg.norm(box.extents) / 2 - 1e-4


def test_a_gray_preset_has_a_picture_only(cloud) -> None:
    views = renderers.draw(cloud, "realistic10")
    assert (views.rgb, views.depth) == (None, None)
    assert views.pictures.shape[:2] == (10, 3)
    assert 0 <= views.pictures.min() < views.pictures.max() <= 1


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A build of one cloud file and one mesh file with two view sets."""
    from pipeline.__main__ import main

    folder = tmp_path_factory.mktemp("drawn")
    (folder / "mine").mkdir()
    textured_box().export(folder / "mine" / "box.glb")
    keys = ("num_points=512", "fps_prefix=512", "views.rgb12.image_size=64", "views.rgb12.name=rgb12")
    keys += ("views.depth10.image_size=64", "views.depth10.name=depth10")
    arguments = ["build", "meshes", "--source", str(folder / "mine"), "--out", str(folder / "out"), "--workers", "0"]
    assert main([*arguments, *keys]) == 0
    return folder / "out"


def one_sample(path: Path) -> Sample:
    with open(path, "rb") as file:
        return next(sample for _, sample in read_samples(file))


def test_points_equal_what_a_build_stores(stored) -> None:
    points = decode_array(one_sample(stored / "shapes/all-00000.tar").members["points.npy"])
    kept = one_sample(stored / "views/depth10/all-00000.tar")
    views = renderers.draw(points, "depth10", image_size=64)
    _, preset = load_preset("depth10", {"image_size": 64})
    for number, camera in enumerate(kept.json["views"]):
        codes = decode_picture(kept.members[f"v{number:02d}.depth.png"])
        np.testing.assert_allclose(views.depth[number], depth_of_codes(codes, camera["near"], camera["far"]), atol=4e-5)
        np.testing.assert_array_equal(views.cameras[number].camera_from_world, camera["camera_from_world"])
        seen = picture_of(kept, number, "depth", preset).transpose(2, 0, 1)
        assert np.abs(views.pictures[number] * 255 - seen).max() < 0.51 + 0.02  # 8-bit rounding and 16-bit depth


def test_a_mesh_equals_what_a_build_stores(stored) -> None:
    glb = one_sample(stored / "meshes/all-00000.tar").members[MESH]
    (mesh,) = trimesh.load_scene(io.BytesIO(glb), file_type="glb", process=False).geometry.values()
    kept = one_sample(stored / "views/rgb12/all-00000.tar")
    views = renderers.draw(mesh, "rgb12", image_size=64)
    _, preset = load_preset("rgb12", {"image_size": 64})
    for number, camera in enumerate(kept.json["views"]):
        codes = decode_picture(kept.members[f"v{number:02d}.depth.png"])
        np.testing.assert_allclose(views.depth[number], depth_of_codes(codes, camera["near"], camera["far"]), atol=4e-5)
        seen = picture_of(kept, number, "rgb", preset).transpose(2, 0, 1).astype(float)
        assert np.abs(views.pictures[number] * 255 - seen).mean() < 1.5  # JPEG


def test_what_cannot_be_drawn_is_said(cloud) -> None:
    box = textured_box()
    with pytest.raises(ValueError, match=r"draws a mesh: give a trimesh.Trimesh, not ndarray"):
        renderers.draw(cloud, "rgb12")
    with pytest.raises(ValueError, match=r"draws points: give an \(N, 3\) array"):
        renderers.draw(box, "depth10")
    for wrong in (cloud[:, :2], cloud[None], cloud[:0], np.zeros(3)):
        with pytest.raises(ValueError, match=r"points must be \(N, 3\)"):
            renderers.draw(wrong, "depth10")
    for value in (np.nan, np.inf, 1e60):
        broken = cloud.copy()
        broken[5, 1] = value
        with pytest.raises(ValueError, match="not finite"), np.errstate(over="ignore"):
            renderers.draw(broken, "depth10")
    broken_box = trimesh.Trimesh(np.where(np.arange(24).reshape(8, 3) == 4, np.nan, 1.0), [[0, 1, 2]], process=False)
    with pytest.raises(ValueError, match="not finite"):
        renderers.draw(broken_box, "rgb12")
    with pytest.raises(Refused, match=r"did you mean depth10\?"):
        renderers.draw(cloud, "dept10")
    with pytest.raises(Refused, match=r"unknown key image_sise; did you mean image_size\?"):
        renderers.draw(cloud, "depth10", image_sise=64)
    with pytest.raises(ValueError, match="colours of points"):
        renderers.draw(cloud, "simpleview6_rgb")
    with pytest.raises(ValueError, match="nothing is drawn"):
        renderers.draw(cloud, "mvcnn12")
    with pytest.raises(AttributeError):
        _ = renderers.drew


def test_ground_is_under_the_object_in_rgb_and_depth() -> None:
    box = textured_box()
    plain = renderers.draw(box, "rgb12", image_size=64)
    views = renderers.draw(box, "rgb12", image_size=64, ground=True, ground_color=[0.0, 1.0, 0.0])
    camera, lowest = views.cameras[0], box.vertices[:, 1].min()
    rows, columns = np.nonzero(np.isfinite(views.depth[0]) & np.isinf(plain.depth[0]))
    assert len(rows) > 200
    depth = views.depth[0][rows, columns].astype(float)
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
    inside = np.linalg.inv(camera.K) @ pixels * depth
    world = np.linalg.inv(camera.camera_from_world) @ np.concatenate([inside, np.ones((1, len(rows)))])
    np.testing.assert_allclose(world[1], lowest, atol=1e-4)
    assert np.abs(world[[0, 2]]).max() <= 1.5 + 1e-4
    color = views.rgb[0][rows, columns].astype(int)
    assert (color[:, 1] > color[:, 0]).all()
    hit = np.isfinite(plain.depth[0])
    np.testing.assert_allclose(views.depth[0][hit], plain.depth[0][hit], atol=1e-5)
    assert camera.far >= views.depth[np.isfinite(views.depth)].max()


def test_the_ground_is_as_large_as_the_preset_says() -> None:
    box = textured_box()
    plain = renderers.draw(box, "rgb12", image_size=64)
    views = renderers.draw(box, "rgb12", image_size=64, ground=True, ground_extent=0.8)
    reached = 0.0
    for view, camera in enumerate(views.cameras):
        rows, columns = np.nonzero(np.isfinite(views.depth[view]) & np.isinf(plain.depth[view]))
        pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
        inside = np.linalg.inv(camera.K) @ pixels * views.depth[view][rows, columns]
        world = np.linalg.inv(camera.camera_from_world) @ np.concatenate([inside, np.ones((1, len(rows)))])
        reached = max(reached, np.abs(world[[0, 2]]).max())
    assert 0.75 < reached <= 0.8 + 1e-4


def test_a_view_is_a_picture_of_its_cameras_size_and_type() -> None:
    """Else depth in float64 or colours as fractions would be stored as garbage."""
    camera = renderers.draw(np.eye(3), "depth10", image_size=8).cameras[0]
    wide = replace(camera, width=12)
    rgb, depth = np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.float32)
    assert View(wide, rgb=rgb, depth=depth, gray=depth).rgb is rgb
    for wrong in (
        {"rgb": rgb.swapaxes(0, 1)},
        {"rgb": rgb.astype(np.float32)},
        {"rgb": rgb[..., 0]},
        {"depth": depth.T},
        {"depth": depth.astype(np.float64)},
        {"depth": depth[..., None]},
        {"gray": depth.T},
        {"gray": depth.astype(np.uint8)},
        {"rgb": rgb, "depth": depth[:4]},
    ):
        with pytest.raises(ValueError, match="must be"):
            View(wide, **wrong)
    with pytest.raises(ValueError, match="at least one picture"):
        View(wide)


def test_a_shape_outside_the_pictures_is_told_and_fit_makes_it_right(cloud) -> None:
    """A scene as files hold it: in millimetres and off the origin. Its points, too."""
    scene = trimesh.Scene(textured_box())
    scene.apply_transform(np.diag([40.0, 40.0, 40.0, 1.0]))
    places = np.asarray(scene.dump()[0].sample(600, seed=0))
    for shape, preset in ((scene, "rgb12"), (places, "depth10"), (places + 3, "depth10_release")):
        with pytest.warns(UserWarning, match=r"\d+% of the shape is outside the picture of view \d+: .*renderers\.fit"):
            renderers.draw(shape, preset, image_size=32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            views = renderers.draw(renderers.fit(shape), preset, image_size=32)
        assert np.isfinite(views.depth).mean() > 0.1
    with warnings.catch_warnings():  # presets that cut a sphere of radius 1 do so as released
        warnings.simplefilter("error")
        renderers.draw(renderers.fit(trimesh.creation.icosphere(2)), "rgb30", image_size=32)
        renderers.draw(cloud, "pointclip10", image_size=32)


def test_fit_is_what_a_build_does(stored) -> None:
    glb = one_sample(stored / "meshes/all-00000.tar").members[MESH]
    (built,) = trimesh.load_scene(io.BytesIO(glb), file_type="glb", process=False).geometry.values()
    fitted = renderers.fit(textured_box().apply_scale(9).apply_translation([5, 6, 7]))
    assert len(fitted.materials) == 1
    assert fitted.materials[0].texture is not None
    np.testing.assert_allclose(fitted.vertices.min(axis=0), built.vertices.min(axis=0), atol=0.05)  # other samples
    np.testing.assert_allclose(fitted.vertices.max(axis=0), built.vertices.max(axis=0), atol=0.05)
    points = np.random.default_rng(0).normal(size=(50, 3)) * 7 + 3
    fitted_points = renderers.fit(points)
    np.testing.assert_allclose(fitted_points.mean(axis=0), 0, atol=1e-6)
    assert np.linalg.norm(fitted_points, axis=1).max() == pytest.approx(1)
    with pytest.raises(ValueError, match="no extent"):
        renderers.fit(np.ones((4, 3)))


@pytest.mark.parametrize("name", renderers.__all__)
def test_every_public_name_has_an_example_that_works(name) -> None:
    found = getattr(renderers, name)
    module = importlib.import_module(found.__module__)
    (test,) = doctest.DocTestFinder(recurse=False).find(found, name, module, globs={})
    assert test.examples
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


def test_what_is_drawn_shows_itself_in_one_line(cloud) -> None:
    views = renderers.draw(cloud, "depth10", image_size=32)
    assert repr(views) == "Views(10 views of 32 x 32: depth)"
    assert repr(renderers.draw(cloud, "realistic10", image_size=32)).endswith(": gray)")
    assert repr(views.cameras[0]).startswith("Camera(perspective, 32 x 32, at (")
    assert repr(View(views.cameras[0], depth=views.depth[0])) == "View(32 x 32: depth)"
    mesh = renderers.fit(textured_box())
    assert repr(mesh) == "Mesh(8 vertices, 12 faces, 1 material, 1 texture)"
    assert repr(mesh.materials[0]) == "Material(0.4, 0.4, 0.4, 1, texture 64 x 64)"


def test_a_refusal_is_one_traceback(cloud) -> None:
    for keys, preset in (({"image_sise": 64}, "depth10"), ({"image_size": "big"}, "depth10"), ({}, "dept10")):
        with pytest.raises(Refused) as refused:
            renderers.draw(cloud, preset, **keys)
        assert "".join(traceback.format_exception(refused.value)).count("Traceback") == 1
    with pytest.raises(ValueError) as wrong:
        renderers.draw("a name", "depth10")
    assert "".join(traceback.format_exception(wrong.value)).count("Traceback") == 1
