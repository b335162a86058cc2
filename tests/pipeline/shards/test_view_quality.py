"""Gates of view sets: blank pictures are Failures, with the two exceptions; warnings are counted by type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from builders import stored, write_off

from manifests.layout import views_tar
from manifests.presets import load_preset
from manifests.records import read_record, record_path
from manifests.samples import read_samples
from pipeline.__main__ import main
from pipeline.inspect.check import check
from pipeline.shards.view_quality import ViewQuality, judge, one_colour, projected_width, require_seen, warnings_of
from renderers import backend_table
from renderers.geometry import Material, Mesh
from renderers.view import View


def plate(normal: int, color: float = 0.5, side: float = 0.7) -> tuple[Mesh, np.ndarray]:
    """A square without thickness through the origin, across one axis, and points on it."""
    corners = np.insert(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side, normal, 0.0, axis=1)
    points = np.insert(np.random.default_rng(0).uniform(-side, side, (300, 2)), normal, 0.0, axis=1)
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), (Material((color,) * 3 + (1.0,)),)), points.astype(
        np.float32
    )


def judged(shape: tuple[Mesh, np.ndarray], **keys: object):
    _, preset = load_preset("rgb12", {"image_size": 64, **keys})
    mesh, points = shape
    return [judge(view, preset, points) for view in backend_table.draw(preset, mesh=mesh)], preset


def test_a_plate_seen_edge_on_is_a_warning() -> None:
    found, preset = judged(plate(0), azimuth_deg=[0, 90], elevation_deg=[0])
    assert [one.coverage > 0.05 for one in found] == [False, True]
    assert (found[0].blank is not None, found[1].blank) == (True, None)
    assert found[0].forgiven == "thinner than a pixel"
    require_seen(found, preset)
    assert warnings_of(found, preset) == {"blank view: thinner than a pixel": 1}
    found, preset = judged(plate(0), azimuth_deg=[0, 90], elevation_deg=[0], thin_px=0)
    with pytest.raises(ValueError, match="view 0 is blank: nothing of the object is in it"):
        require_seen(found, preset)


def test_blank_in_every_view_is_a_failure_also_when_each_is_forgiven() -> None:
    found, preset = judged(plate(0), azimuth_deg=[0, 180], elevation_deg=[0])
    assert all(one.forgiven for one in found)
    with pytest.raises(ValueError, match="every view is blank"):
        require_seen(found, preset)


def test_an_object_outside_the_picture_is_no_thin_object() -> None:
    mesh, points = plate(2, side=0.2)
    away = np.array([0, 1.5, 0])
    shape = (mesh.transformed(np.array([[1, 0, 0, 0], [0, 1, 0, 1.5], [0, 0, 1, 0], [0, 0, 0, 1.0]])), points + away)
    found, preset = judged((shape[0], shape[1].astype(np.float32)), azimuth_deg=[0, 60], elevation_deg=[0, 85.0])
    assert found[0].blank
    assert not found[0].forgiven
    assert not found[1].blank
    with pytest.raises(ValueError, match="view 0 is blank"):
        require_seen(found, preset)
    found, preset = judged(shape, azimuth_deg=[0, 60], elevation_deg=[0, 85.0], max_blank_views=1)
    require_seen(found, preset)
    assert warnings_of(found, preset)["blank view"] == 1


def test_white_on_white_is_a_warning_and_black_without_light_is_not_seen() -> None:
    white = {"ambient": 1.0, "diffuse": 0.0, "specular": 0.0}
    found, preset = judged(plate(2, 1.0), azimuth_deg=[0, 20], elevation_deg=[0], **white)
    assert [one.forgiven for one in found] == ["of the background's colour"] * 2
    assert [one.mask_iou for one in found] == [0, 0]
    with pytest.raises(ValueError, match="every view is blank; view 0: its picture is of one colour"):
        require_seen(found, preset)
    require_seen([found[0], judged(plate(2, 0.5))[0][0]], preset)
    close = {"azimuth_deg": [0, 90], "elevation_deg": [0], "ambient": 0.0, "diffuse": 0.0, "specular": 0.0}
    found, preset = judged(plate(2), fov_deg=20, **close)
    assert found[0].blank == "its picture is of one colour"
    assert found[0].coverage == 1
    assert not found[0].forgiven


def test_border_coverage_and_masks_are_measured() -> None:
    found, preset = judged(plate(2, side=0.9), azimuth_deg=[0], elevation_deg=[0], fov_deg=40)
    assert found[0].border == 1
    assert found[0].mask_iou == 1
    assert warnings_of(found, preset) == {"touches the border": 1}
    assert not warnings_of(found, preset.model_copy(update={"border_share": 1.0}))
    found, preset = judged(plate(2, side=0.02), azimuth_deg=[0], elevation_deg=[0], min_coverage=0.01)
    assert 0 < found[0].coverage < 0.01
    assert warnings_of(found, preset) == {"low coverage": 1}
    (view,) = backend_table.draw(preset.model_copy(update={"min_coverage": 0.0}), mesh=plate(2)[0])
    shifted = View(view.camera, rgb=np.roll(view.rgb, 10, axis=1), depth=view.depth)
    one = judge(shifted, preset, plate(2)[1])
    width = np.isfinite(view.depth).any(axis=0).sum()
    assert one.mask_iou == pytest.approx((width - 10) / (width + 10))
    assert warnings_of([one], preset) == {"masks of RGB and depth differ": 1}
    assert not warnings_of([one], preset.model_copy(update={"min_mask_iou": 0.4}))


def test_one_colour_allows_what_jpeg_leaves() -> None:
    flat = np.full((50, 70, 3), [250, 3, 90], np.uint8)
    assert one_colour(flat)
    flat[20, 21] += 2
    assert one_colour(flat)
    flat[20, 21, 1] += 1
    assert not one_colour(flat)
    assert one_colour(np.full((8, 8), 0.3, np.float32))
    assert not one_colour(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))


def test_projected_width_is_that_of_the_narrow_side() -> None:
    _, preset = load_preset("rgb12", {"image_size": 100, "azimuth_deg": [0], "elevation_deg": [0], "distance": 3.0})
    (camera,) = backend_table.preset_cameras(preset)
    angle = np.linspace(0, 2 * np.pi, 1000)
    ellipse = np.stack([np.cos(angle) - np.sin(angle) * 0.1, np.cos(angle) + np.sin(angle) * 0.1, 0 * angle], axis=1)
    expected = 2 * 0.1 * np.sqrt(2) / 3 * camera.K[0, 0]
    assert projected_width(ellipse, camera) == pytest.approx(expected, rel=1e-2)


def run(*arguments: object) -> int:
    """A command in this process; its exit code."""
    return main([*map(str, arguments)])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Two solids, a plate that some cameras see edge-on, and a speck: with points only, for speed."""
    folder = tmp_path_factory.mktemp("gates")
    for number in range(2):
        write_off(folder / "mine" / f"solid{number}.off", 1 + number)
    (folder / "mine" / "plate.off").write_text("OFF\n4 2 0\n0 -1 -1\n0 1 -1\n0 1 1\n0 -1 1\n3 0 1 2\n3 0 2 3\n")
    keys = ("num_points=256", "fps_prefix=64", "views=[]")
    assert run("build", "meshes", "--source", folder / "mine", "--out", folder / "out", "--workers", 0, *keys) == 0
    return folder / "out"


def record_of(out: Path, name: str):
    return read_record(record_path(views_tar(str(out), name, "all", 0)))


def test_failures_and_warnings_of_a_view_set(built) -> None:
    rig = ("image_size=32", "azimuth_deg=[0,45,90]", "elevation_deg=[0]", "min_coverage=0.2")
    views = ("views", "rgb12", "--shards", built, "--workers", 0, *rig)
    assert run(*views, "name=forgiving") == 0
    record = record_of(built, "forgiving")
    assert record.count == 3
    assert record.warnings["blank view: thinner than a pixel"] == 1
    assert record.gates["coverage_min"] == 0
    assert 0 < record.gates["coverage_mean"] < record.gates["coverage_max"] < 0.6
    assert record.gates["mask_iou_min"] == 1
    assert run(*views, "name=strict", "thin_px=0") == 1
    (failure,) = record_of(built, "strict").failures
    assert (failure.key, failure.stage) == ("plate_off", "render")
    assert failure.reason == "view 0 is blank: nothing of the object is in it"
    found = check(str(built))
    assert found.view_sets["strict"] == {"samples": 2, "failures": 1, "skipped": 0}
    assert found.warnings["blank view: thinner than a pixel"] == 1
    sums = {name: record_of(built, name).warnings for name in ("forgiving", "strict")}
    assert found.warnings["low coverage"] == sum(s["low coverage"] for s in sums.values()) > 0
    with open(views_tar(str(built), "forgiving", "all", 0), "rb") as file:
        warnings = {s.key: s.json["warnings"] for _, s in read_samples(file)}
    assert {"type": "blank view: thinner than a pixel", "count": 1} in warnings["plate_off"]


def glass(path: Path, alpha: float) -> None:
    """A red box whose material lets light through."""
    box = trimesh.creation.box()
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[1.0, 0.0, 0.0, alpha], alphaMode="BLEND")
    box.visual = trimesh.visual.TextureVisuals(material=material)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(trimesh.Scene(box).export(file_type="glb"))


@pytest.mark.parametrize("supersample", [1, 2])
def test_what_rgb_shows_is_not_lost_because_depth_is_empty(tmp_path, supersample: int) -> None:
    for alpha in (0.0, 0.24, 0.8):
        glass(tmp_path / "mine" / f"alpha{alpha * 100:.0f}.glb", alpha)
    keys = ("num_points=256", "fps_prefix=64", "max_failed_fraction=1", "views.rgb12.name=both")
    keys += ("views.rgb12.image_size=32", f"views.rgb12.supersample={supersample}")
    assert run("build", "meshes", "--source", tmp_path / "mine", "--out", tmp_path / "out", "--workers", 0, *keys) == 0
    (failure,) = record_of(tmp_path / "out", "both").failures
    assert failure.key == "alpha0_glb"
    assert failure.reason.startswith("every view is blank; view 0: the object is transparent there: its alpha is 0 or")
    thin, solid = (stored(tmp_path / "out", "both")[key] for key in ("alpha24_glb", "alpha80_glb"))
    seen = [[view["coverage"] for view in sample.json["views"]] for sample in (thin, solid)]
    assert seen[0] == pytest.approx(seen[1], abs=0.05)  # their points, and so their centres, are not the same
    assert min(seen[0]) > 0.2
    assert all(view["mask_iou"] == 1 for sample in (thin, solid) for view in sample.json["views"])
    through = {"type": "transparent: shown by RGB and not by depth", "count": 12}
    assert through in thin.json["warnings"]
    assert through not in solid.json["warnings"]
    only = ("--shards", tmp_path / "out", "--workers", 0, "image_size=32")
    assert run("views", "rgb12", *only, "name=rgb", 'channels=["rgb"]', "max_blank_views=0") == 1
    assert [failure.key for failure in record_of(tmp_path / "out", "rgb").failures] == ["alpha0_glb"]
    assert run("views", "rgb12", *only, "name=depth", 'channels=["depth"]') == 1
    reasons = {failure.key: failure.reason for failure in record_of(tmp_path / "out", "depth").failures}
    assert set(reasons) == {"alpha0_glb", "alpha24_glb"}
    assert "alpha is below one half, and depth shows solid faces only" in reasons["alpha24_glb"]


def test_pictures_of_one_colour_fail_every_object(built, capsys) -> None:
    dark = ("ambient=0", "diffuse=0", "specular=0", "background=[0,0,0]", "image_size=32", "name=dark")
    assert run("views", "rgb12", "--shards", built, "--workers", 0, *dark) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "no object was made" in message
    assert "its picture is of one colour" in message
    assert record_of(built, "dark").count == 0


def test_several_sets_with_other_keys_stand_beside_one_another(built) -> None:
    """Size, rig, dilation, light, ground and normals are keys; old sets keep their bytes."""
    small = ("--shards", built, "--workers", 0, "image_size=32")
    assert run("views", "rgb12", *small, "name=plain") == 0
    before = (built / "views/plain/all-00000.tar").read_bytes()
    for preset, name, *keys in (
        ("rgb12", "grounded", "ground=true", "ground_color=[0,0,1]"),
        ("rgb12", "lit", "light_direction=[0,1,0]", "normals=flat"),
        ("rgb12", "ring", "azimuth_deg=[0,120,240]", "elevation_deg=[10]", "fov_deg=50"),
        ("depth10", "wide", "dilation=4"),
        ("depth10", "narrow", "dilation=1"),
    ):
        assert run("views", preset, *small, f"name={name}", *keys) == 0
    assert (built / "views/plain/all-00000.tar").read_bytes() == before
    coverage = {n: record_of(built, n).gates["coverage_mean"] for n in ("plain", "grounded", "wide", "narrow")}
    assert coverage["grounded"] > 1.5 * coverage["plain"]
    assert coverage["wide"] > 2 * coverage["narrow"]
    assert "depth outside near..far" not in record_of(built, "grounded").warnings
    assert "touches the border" not in record_of(built, "grounded").warnings
    found = check(str(built))
    assert found.problems == []
    assert {"plain", "grounded", "lit", "ring", "wide", "narrow"} <= set(found.view_sets)


def test_a_view_exactly_at_a_bound_is_no_warning() -> None:
    """`min_coverage`, `border_share` and `min_mask_iou` are the least and the most that pass."""
    (found,), preset = judged(plate(2, side=0.9), azimuth_deg=[0], elevation_deg=[0], fov_deg=60)
    assert 0 < found.coverage < 1
    (view,) = backend_table.draw(preset, mesh=plate(2, side=0.9)[0])
    moved = View(view.camera, rgb=np.roll(view.rgb, 3, axis=1), depth=np.roll(view.depth, -9, axis=0))
    one = judge(moved, preset, plate(2)[1])
    assert 0 < one.mask_iou < 1
    assert 0 < one.border < 1
    bounds = {"min_coverage": one.coverage, "border_share": one.border, "min_mask_iou": one.mask_iou}
    at = preset.model_copy(update=bounds)
    assert warnings_of([one], at) == {}
    for name, kind in (
        ("min_coverage", "low coverage"),
        ("border_share", "touches the border"),
        ("min_mask_iou", "masks of RGB and depth differ"),
    ):
        step = -1e-9 if name == "border_share" else 1e-9
        assert warnings_of([one], at.model_copy(update={name: bounds[name] + step})) == {kind: 1}


def test_an_object_as_wide_as_the_bound_is_not_thin() -> None:
    (found, _), preset = judged(plate(0), azimuth_deg=[0, 90], elevation_deg=[0])
    assert found.forgiven
    aside = plate(2, side=0.05)[1] + np.array([0, 5, 0], np.float32)  # above the picture
    camera = backend_table.preset_cameras(preset)[0]
    width = projected_width(aside, camera)
    assert width > 1
    empty = View(camera, depth=np.full((64, 64), np.inf, np.float32))
    for thin_px, forgiven in ((width, None), (width + 1e-6, "thinner than a pixel")):
        assert judge(empty, preset.model_copy(update={"thin_px": thin_px}), aside).forgiven == forgiven


def test_an_empty_view_has_masks_that_agree() -> None:
    """It is told as blank; `mask_iou_min` of a build is about views that show something."""
    found, _ = judged(plate(0), azimuth_deg=[0, 90], elevation_deg=[0])
    assert (found[0].coverage, found[0].mask_iou) == (0, 1)


def test_as_many_blank_views_as_allowed_pass_and_one_more_fails() -> None:
    (good,), preset = judged(plate(2), azimuth_deg=[0], elevation_deg=[0])
    blank = ViewQuality(0.0, 1.0, 0.0, "nothing of the object is in it", None)
    forgiven = ViewQuality(0.0, 1.0, 0.0, "nothing of the object is in it", "thinner than a pixel")
    for allowed in (0, 2):
        keys = preset.model_copy(update={"max_blank_views": allowed})
        require_seen([good, forgiven, *[blank] * allowed], keys)
        with pytest.raises(ValueError, match=r"view 2 is blank"):
            require_seen([good, forgiven, *[blank] * (allowed + 1)], keys)
