"""The target domain of the parametric dataset: scans, scenes, and the keys that set the gap."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from builders import tar_hashes

from manifests.config import digest, parse_changes
from manifests.dataset_info import load_table
from manifests.errors import Refused
from pipeline.datasets.synthetic.domain_gap import SCAN_LEVELS, SCENE_LEVELS, ScanOptions, SceneOptions
from pipeline.datasets.synthetic.generator import ParametricOptions, assets, observe, read
from pipeline.datasets.synthetic.primitives import box, ellipsoid
from pipeline.datasets.synthetic.range_scan import scan
from pipeline.datasets.synthetic.scenes import draw_scene, extent, surroundings
from pipeline.plan.build_recipe import read_recipe, stored_recipe
from pipeline.plan.plan import list_assets
from pipeline.sources.raw_shape import RawShape
from renderers.geometry import Mesh

SMALL_BUILD = ("parametric.objects=6", "num_points=128", "fps_prefix=32", "shard_size=4", "views.rgb12.image_size=16")
OTHER_SCAN = {
    "viewpoints": (4, 4),
    "spread_rad": (2.0, 2.5),
    "elevation_deg": (-20.0, -10.0),
    "distance": (6.0, 7.0),
    "rays": 3000,
    "range_noise": 0.1,
    "outlier_share": 0.5,
    "density_slope": 3.0,
    "crop_margin": 0.5,
    "floor_chance": 0.0,
    "floor_size": (0.5, 0.6),
    "clutter_mean": 0.0,
    "clutter_size": (0.5, 0.7),
}
OTHER_SCENE = {
    "saturation": (0.0, 0.1),
    "value": (0.9, 1.0),
    "hue_shift": 0.0,
    "value_shift": 0.0,
    "new_texture_chance": 0.0,
    **{name: OTHER_SCAN[name] for name in ("floor_chance", "floor_size", "clutter_mean", "clutter_size")},
}
CROWDED = {"floor_chance": 1.0, "clutter_mean": 2.0, "clutter_size": (0.2, 0.4)}


def solid(part) -> Mesh:
    return Mesh(part.vertices, part.faces)


def careful(**changes: object) -> ScanOptions:
    """A scan from one viewpoint without noise, outliers, thinning, floor or clutter, nothing cut away."""
    quiet = {name: row["none"] for name, row in SCAN_LEVELS.items()}
    return ScanOptions(**{**quiet, "viewpoints": (1, 1), "distance": (3.0, 3.0), "crop_margin": 9.0, **changes})


def scanned(mesh: Mesh, knobs: ScanOptions, seed: int = 0, whole: Mesh | None = None) -> np.ndarray:
    return scan(whole or mesh, mesh, extent(mesh), knobs, np.random.default_rng(seed))


def target(**changes: object) -> ParametricOptions:
    return ParametricOptions(domain="target", **changes)


def observed(options: ParametricOptions, class_name: str = "table", number: int = 0) -> RawShape:
    return observe(class_name, options.seed, number, options.scan, options.scene)


def mesh_bytes(mesh: Mesh) -> bytes:
    return mesh.vertices.tobytes() + b"".join(m.texture.tobytes() for m in mesh.materials)


def test_one_viewpoint_sees_one_side() -> None:
    sphere = solid(ellipsoid((2, 2, 2), (5, 1, 0)))
    for seed in range(4):
        points = scanned(sphere, careful(), seed) - [5, 1, 0]
        radius = np.linalg.norm(points, axis=1)
        assert 0.95 < radius.min() <= radius.max() < 1 + 1e-5  # on the solid of 20 x 10 facets
        towards = points.mean(axis=0) / np.linalg.norm(points.mean(axis=0))
        # seen from D = 3 sqrt(3), the rim of a unit sphere lies 1 / D = .19 before its middle
        assert 0 < (points @ towards).min() < 0.3  # facets of 18 degrees blur the rim
    opposite = scanned(sphere, careful(viewpoints=(2, 2), spread_rad=(3.1, 3.2), elevation_deg=(0, 0.1))) - [5, 1, 0]
    assert np.abs(opposite[:, [0, 2]].mean(axis=0)).max() < 0.05


def test_what_stands_before_an_object_hides_it() -> None:
    cube, wall = solid(box((1, 1, 1))), box((4, 4, 0.1), (0, 0, 1))
    shell = [wall, wall.turned("y", 90), wall.turned("y", 180), wall.turned("y", 270)]
    closed = Mesh(
        np.concatenate([cube.vertices, *(w.vertices for w in shell)]),
        np.concatenate([cube.faces, *(w.faces + 8 * (i + 1) for i, w in enumerate(shell))]),
    )
    points = scanned(cube, careful(elevation_deg=(0, 1)), whole=closed)
    assert np.abs(points[:, [0, 2]]).max(axis=1).min() > 0.94
    with pytest.raises(ValueError, match="meets nothing near the object"):
        scanned(cube, careful(elevation_deg=(0, 1), crop_margin=0.1), whole=closed)


@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_range_noise_has_the_asked_sigma_along_the_ray(sigma: float) -> None:
    cube = solid(box((2, 2, 2)))
    clean, noisy = scanned(cube, careful()), scanned(cube, careful(range_noise=sigma))
    np.testing.assert_allclose(np.abs(clean).max(axis=1), 1, atol=1e-5)
    off = np.linalg.norm(noisy - clean, axis=1) / np.sqrt(3)
    assert np.sqrt((off**2).mean()) == pytest.approx(sigma, rel=0.05)
    eye = _meeting_point(clean, noisy - clean)
    assert np.linalg.norm(eye) == pytest.approx(3 * np.sqrt(3), rel=1e-3)


def _meeting_point(points: np.ndarray, along: np.ndarray) -> np.ndarray:
    """The point (3,) that lines through points (N, 3) come nearest to, least squares."""
    unit = along / np.linalg.norm(along, axis=1)[:, None]
    across = np.eye(3) - unit[:, :, None] * unit[:, None, :]
    return np.linalg.solve(across.sum(axis=0), np.einsum("nij,nj->i", across, points))


def test_outliers_are_of_the_asked_share() -> None:
    cube = solid(box((2, 2, 2)))
    off = np.linalg.norm(scanned(cube, careful(outlier_share=0.1)) - scanned(cube, careful()), axis=1) / np.sqrt(3)
    assert (off > 1e-4).mean() == pytest.approx(0.1, abs=0.012)
    assert off.max() <= 1
    inside = scanned(cube, careful(outlier_share=0.1, crop_margin=0.1))
    assert np.abs(inside).max() <= 1 + 0.1 * np.sqrt(3)


@pytest.mark.parametrize("slope", [0.5, 1.5])
def test_density_slope_can_be_measured(slope: float) -> None:
    sphere = solid(ellipsoid((2, 2, 2)))
    every = careful(viewpoints=(6, 6), spread_rad=(1.0, 1.1))
    all_points = scanned(sphere, every)
    kept = scanned(sphere, every.model_copy(update={"density_slope": slope}))
    stayed = np.isin(all_points[:, 0], kept[:, 0])
    assert stayed.sum() == len(kept) < len(all_points)
    best = _log_linear_slope(all_points / np.sqrt(3), stayed)
    assert np.linalg.norm(best) == pytest.approx(slope, rel=0.12)


def _log_linear_slope(x: np.ndarray, stayed: np.ndarray) -> np.ndarray:
    """b (3,) of P(stays) = exp(a + b.x), by Newton steps on the Poisson likelihood."""
    design = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    b = np.array([np.log(stayed.mean()), 0, 0, 0])
    for _ in range(20):
        rate = np.exp(design @ b)
        b += np.linalg.solve((design * rate[:, None]).T @ design, design.T @ (stayed - rate))
    return b[1:]


def test_no_viewpoint_is_the_whole_surface() -> None:
    cube = solid(box((2, 2, 2)))
    points = scanned(cube, careful(viewpoints=(0, 0), rays=6000))
    assert points.shape == (6000, 3)
    side = np.abs(points).argmax(axis=1) * 2 + (points.max(axis=1) > 0.999)
    np.testing.assert_allclose(np.unique(side, return_counts=True)[1] / 6000, 1 / 6, atol=0.03)


def test_floor_is_seen_by_the_side_that_asks_for_it() -> None:
    for scans, pictures in ((1.0, 0.0), (0.0, 1.0)):
        options = target(
            scan={"floor_chance": scans, "clutter_mean": 0, "range_noise": 0, "outlier_share": 0},
            scene={"floor_chance": pictures, "clutter_mean": 0},
        )
        bare = target(scene={"floor_chance": 0, "clutter_mean": 0})
        for number in range(3):
            raw = observed(options, number=number)
            bottom = observed(bare, number=number).mesh.vertices[:, 1].min()
            below = (raw.points[:, 1] < bottom - 1e-4).mean()
            assert (below > 0.02) == bool(scans), below
            assert (raw.mesh.vertices[:, 1].min() < bottom - 1e-3) == bool(pictures)


def test_clutter_stands_beside_the_object_and_has_the_asked_mean() -> None:
    around = extent(solid(box((2, 1, 1), (0, 0.5, 0))))
    knobs = target(gap="hard").scene.model_copy(update={"floor_chance": 0.0, "clutter_mean": 0.8})
    rng, counts = np.random.default_rng(0), []
    for _ in range(800):
        parts = surroundings(draw_scene(rng), knobs, around)
        counts.append(len(parts))
        for part in parts:
            middle = (part.vertices.min(axis=0) + part.vertices.max(axis=0)) / 2
            assert (np.abs(middle - around.middle)[[0, 2]] > around.half[[0, 2]]).any()
            assert part.vertices[:, 1].min() == pytest.approx(-0.002 * around.radius)
    assert np.mean(counts) == pytest.approx(0.8, abs=0.1)


def test_the_yaw_is_random_and_one_for_cloud_and_pictures() -> None:
    options = target(
        gap="mild",
        stronger="points",
        scan={"viewpoints": [0, 0], "rays": 20000},
        scene={"floor_chance": 0, "clutter_mean": 0},
    )
    angles = []
    for number in range(40):
        raw = observed(options, "bed", number)
        low, high = raw.mesh.vertices.min(axis=0), raw.mesh.vertices.max(axis=0)
        np.testing.assert_allclose(raw.points.min(axis=0), low, atol=0.05)
        np.testing.assert_allclose(raw.points.max(axis=0), high, atol=0.05)
        flat = raw.points[:, [0, 2]] - raw.points[:, [0, 2]].mean(axis=0)
        long = np.linalg.eigh(flat.T @ flat)[1][:, 1]
        angles.append(np.arctan2(long[1], long[0]))
    assert abs(np.exp(2j * np.array(angles)).mean()) < 0.35  # a bed's axis has no direction, hence twice the angle


def test_the_same_seed_gives_the_same_bytes_and_another_others() -> None:
    first, again = observed(target()), observed(target())
    assert first.points.tobytes() == again.points.tobytes()
    assert mesh_bytes(first.mesh) == mesh_bytes(again.mesh)
    for other in (observed(target(seed=1)), observed(target(), number=1), observed(target(), "desk")):
        assert other.points.tobytes() != first.points.tobytes()
        assert mesh_bytes(other.mesh) != mesh_bytes(first.mesh)


@pytest.mark.parametrize("name", SCAN_LEVELS)
def test_every_scan_knob_changes_the_hash_and_the_cloud_alone(name: str) -> None:
    base, other = (target(gap="hard", scan={**CROWDED, **more}) for more in ({}, {name: OTHER_SCAN[name]}))
    assert _hash(base) != _hash(other)
    pairs = [(observed(base, number=n), observed(other, number=n)) for n in range(2)]
    assert any(a.points.tobytes() != b.points.tobytes() for a, b in pairs)
    assert all(mesh_bytes(a.mesh) == mesh_bytes(b.mesh) for a, b in pairs)


@pytest.mark.parametrize("name", SCENE_LEVELS)
def test_every_scene_knob_changes_the_hash_and_the_pictures_alone(name: str) -> None:
    base, other = (target(gap="hard", scene={**CROWDED, **more}) for more in ({}, {name: OTHER_SCENE[name]}))
    assert _hash(base) != _hash(other)
    pairs = [(observed(base, number=n), observed(other, number=n)) for n in range(2)]
    assert any(mesh_bytes(a.mesh) != mesh_bytes(b.mesh) for a, b in pairs)
    assert all(a.points.tobytes() == b.points.tobytes() for a, b in pairs)


def _hash(options: ParametricOptions) -> str:
    return stored_recipe({"dataset": "parametric", "parametric": options}, "recipe").shapes_hash()


def test_knobs_and_levels_are_of_the_same_names_and_described() -> None:
    for kind, levels, others in ((ScanOptions, SCAN_LEVELS, OTHER_SCAN), (SceneOptions, SCENE_LEVELS, OTHER_SCENE)):
        assert set(kind.model_fields) == set(levels) == set(others)
        assert all(field.description for field in kind.model_fields.values())
        assert all(set(row) == {"none", "mild", "medium", "hard"} for row in levels.values())


def test_the_gaps_are_those_of_the_first_version() -> None:
    """They were fixed before any training: results are compared by their names, `mild`, `medium` and `hard`."""
    gaps = {gap: target(gap=gap).model_dump(mode="json") for gap in ("mild", "medium", "hard")}
    assert digest(gaps).startswith("5a6b38e76954ecbf")


def test_the_stronger_side_is_one_level_milder() -> None:
    def column(levels: dict, level: str) -> dict:
        return {name: row[level] for name, row in levels.items()}

    for gap, stronger, scan_level, scene_level in (
        ("medium", "both", "medium", "medium"),
        ("hard", "image", "hard", "medium"),
        ("hard", "points", "medium", "hard"),
        ("mild", "points", "none", "mild"),
        ("mild", "image", "mild", "none"),
    ):
        options = target(gap=gap, stronger=stronger)
        assert options.scan.model_dump() == column(SCAN_LEVELS, scan_level)
        assert options.scene.model_dump() == column(SCENE_LEVELS, scene_level)
    assert len(observed(target(gap="mild", stronger="points")).points) == SCAN_LEVELS["rays"]["none"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["parametric.gap=wide"], "parametric.gap: Input should be 'mild', 'medium' or 'hard', got 'wide'"),
        (["parametric.stronger=text"], "parametric.stronger: Input should be 'both', 'image' or 'points', got 'text'"),
        (
            ["parametric.scan.range_nose=0.1"],
            "unknown key parametric.scan.range_nose; did you mean parametric.scan.range_noise?",
        ),
        (["parametric.scan.distance=[4, 3]"], "parametric.scan.distance: 4.0 to 3.0 is no range"),
        (["parametric.scene.floor_chance=2"], "parametric.scene.floor_chance: Input should be less than or equal to 1"),
        (["parametric.domain=source", "parametric.gap=hard"], "parametric: gap is a key of domain=target"),
        (["parametric.domain=source", "parametric.scan.rays=99"], "is a key of domain=target"),
    ],
)
def test_a_key_that_does_not_fit_is_refused_with_the_valid_names(changes: list[str], message: str) -> None:
    with pytest.raises(Refused) as error:
        read_recipe("parametric_target", parse_changes(changes))
    assert message in str(error.value)


def test_a_resolved_recipe_is_read_back_as_it_is() -> None:
    recipe = read_recipe(
        "parametric_target", parse_changes(["parametric.scan.rays=500", "seed=3", "parametric.seed=3"])
    )
    assert (recipe.seed, recipe.parametric.seed, recipe.parametric.scan.rays) == (3, 3, 500)
    again = stored_recipe(json.loads(json.dumps(recipe.model_dump(mode="json"))), "manifest")
    assert again.shapes_hash() == recipe.shapes_hash()


def test_the_shipped_recipes_hold_what_their_headers_say() -> None:
    for name, splits in (
        ("parametric_source", {"train": 100, "val": 5}),
        ("parametric_target", {"train": 100, "val": 17, "test": 33}),
    ):
        recipe = read_recipe(name, {})
        found = list_assets(recipe, load_table("parametric"), None)
        counts = Counter((asset.class_name, asset.split) for asset in found)
        assert counts == {(c, s): n for c in load_table("parametric").classes for s, n in splits.items()}


def test_an_asset_says_its_domain_and_reading_it_is_observing() -> None:
    options = target(objects=1)
    (asset,) = assets(None, load_table("parametric"), options)
    assert asset.source == "parametric-target:airplane:0:0"
    raw = read(asset, None, options)
    assert raw.points.tobytes() == observed(options, "airplane").points.tobytes()


def test_a_target_build_is_redrawn_without_stored_meshes(pipeline, tmp_path) -> None:
    out = tmp_path / "out"
    pipeline("build", "parametric_target", "--out", out, "--workers", 0, *SMALL_BUILD)
    before = tar_hashes(out)
    assert not (out / "meshes").exists()
    shutil.rmtree(out / "views")
    preset = ["rgb12", "--shards", out, "--workers", 0, "name=rgb12", "image_size=16"]
    recipe = read_recipe("parametric_target", {}).views["rgb12"]
    pipeline("views", *preset, *(f"{k}={json.dumps(v)}" for k, v in recipe.items() if k not in ("name", "image_size")))
    assert tar_hashes(out) == before
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]
