"""Reading files, normalising, and GLB bytes that come back as they went."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from builders import write_off
from PIL import Image

from manifests.records import Asset
from pipeline.formats.glb import decode_mesh, encode_mesh
from pipeline.formats.mesh import read_mesh
from pipeline.shards.shape import make_shape
from pipeline.sources.raw_shape import RawShape
from renderers.geometry import Material, Mesh
from renderers.sampling import farthest_points

ASSET = Asset("x", "x.off", "train", "thing", "x")
OPTIONS = {"axes": ("x", "y", "z"), "seed": 0, "num_points": 300, "fps_prefix": 50, "normalize": "sphere_mean_points"}


def textured() -> Mesh:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (8, 8, 4), dtype=np.uint8)
    picture[..., 3] = 255
    vertices = rng.normal(size=(6, 3))
    faces = np.array([[0, 1, 2], [2, 3, 4], [3, 4, 5], [0, 4, 5]])
    return Mesh(
        vertices,
        faces,
        (Material((1, 1, 1, 1), picture), Material((0.2, 0.4, 0.6, 1))),
        face_material=np.array([0, 1, 0, 1]),
        corner_uvs=rng.random((4, 3, 2)).astype(np.float32),
    )


def test_glb_keeps_faces_materials_textures_and_uvs() -> None:
    mesh = textured()
    data = encode_mesh(mesh)
    back = decode_mesh(data)
    assert encode_mesh(mesh) == data
    order = np.argsort(mesh.face_material, kind="stable")
    np.testing.assert_allclose(back.vertices[back.faces], mesh.vertices[mesh.faces][order], atol=1e-6)
    assert back.face_material.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(back.materials[0].texture, mesh.materials[0].texture)
    np.testing.assert_allclose(back.materials[1].base_color, (0.2, 0.4, 0.6, 1), atol=1 / 255)
    np.testing.assert_allclose(back.corner_uvs[:2], mesh.corner_uvs[[0, 2]], atol=1e-6)


def test_vertex_colours_and_transparency_survive() -> None:
    colors = np.array([[255, 0, 0, 255], [0, 255, 0, 128], [0, 0, 255, 255]], np.uint8)
    mesh = Mesh(np.eye(3), np.array([[0, 1, 2]]), (Material((1, 1, 1, 0.5)),), vertex_colors=colors)
    back = decode_mesh(encode_mesh(mesh))
    np.testing.assert_array_equal(back.vertex_colors[back.faces[0]], colors)
    assert back.materials[0].base_color[3] == pytest.approx(0.5, abs=1 / 255)


def test_masks_and_wraps_survive_and_change_no_other_file() -> None:
    """Materials that differ in nothing else stay apart."""
    picture = textured().materials[0].texture
    kinds = (("repeat", "repeat"), ("clamp", "mirror"), ("mirror", "clamp"))
    materials = tuple(Material((1, 1, 1, 1), picture, wrap, cutoff) for wrap in kinds for cutoff in (None, 0.123))
    mesh = Mesh(
        textured().vertices, np.tile(textured().faces, (2, 1))[:6], materials, np.arange(6), np.zeros((6, 3, 2), "f4")
    )
    back = decode_mesh(encode_mesh(mesh))
    assert [(m.wrap, m.alpha_cutoff) for m in back.materials] == [(m.wrap, m.alpha_cutoff) for m in materials]
    assert back.face_material.tolist() == list(range(6))
    assert b"sampler" not in encode_mesh(textured())
    assert b"MASK" not in encode_mesh(textured())


def test_points_are_normalised_and_begin_with_farthest_points() -> None:
    shape = make_shape(ASSET, RawShape(mesh=textured()), **OPTIONS)
    assert shape.points.shape == (300, 3)
    np.testing.assert_allclose(shape.points.mean(axis=0), 0, atol=1e-6)
    assert np.linalg.norm(shape.points, axis=1).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(farthest_points(shape.points, 50), np.arange(50))
    assert shape.colors is not None
    again = make_shape(ASSET, RawShape(mesh=textured()), **OPTIONS)
    assert again.points.tobytes() == shape.points.tobytes()
    other = make_shape(Asset("y", "y", "train", None, "y"), RawShape(mesh=textured()), **OPTIONS)
    assert other.points.tobytes() != shape.points.tobytes()


def test_points_and_mesh_share_one_frame() -> None:
    mesh = textured()
    shape = make_shape(ASSET, RawShape(mesh=mesh), **{**OPTIONS, "axes": ("y", "z", "x")})
    moved = mesh.vertices @ shape.world_from_source[:3, :3].T + shape.world_from_source[:3, 3]
    np.testing.assert_allclose(shape.mesh.vertices, moved, atol=1e-12)
    turned = shape.world_from_source[:3, :3] / np.cbrt(np.linalg.det(shape.world_from_source[:3, :3]))
    np.testing.assert_allclose(turned @ [1, 2, 3], [2, 3, 1], atol=1e-12)


def test_a_cloud_keeps_what_it_has() -> None:
    points = np.random.default_rng(0).normal(size=(40, 3))
    few = make_shape(ASSET, RawShape(points=points, colors=np.arange(120, dtype=np.uint8).reshape(40, 3)), **OPTIONS)
    assert (len(few.points), few.mesh) == (40, None)
    assert {tuple(c) for c in few.colors} == {tuple(c) for c in np.arange(120, dtype=np.uint8).reshape(40, 3)}
    many = make_shape(ASSET, RawShape(points=np.repeat(points, 20, axis=0)), **OPTIONS)
    assert len(many.points) == 300


def test_given_points_are_the_cloud_and_the_mesh_moves_with_them() -> None:
    mesh = textured()
    points = np.random.default_rng(0).normal(size=(60, 3)) + 5
    for normalize in ("sphere_mean_points", "bbox_unit_cube"):
        both = make_shape(ASSET, RawShape(mesh=mesh, points=points), **{**OPTIONS, "normalize": normalize})
        alone = make_shape(ASSET, RawShape(points=points), **{**OPTIONS, "normalize": normalize})
        np.testing.assert_array_equal(both.points, alone.points)
        np.testing.assert_array_equal(both.world_from_source, alone.world_from_source)
        np.testing.assert_array_equal(both.mesh.vertices, mesh.transformed(both.world_from_source).vertices)
        assert both.colors is None


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl", ".glb", ".PLY", ".Off"])
def test_every_format_in_any_letter_case(tmp_path, suffix: str) -> None:
    path = tmp_path / f"ball{suffix}"
    ball = trimesh.creation.icosphere(2)
    path.write_bytes(_bytes(ball.export(file_type=suffix[1:].lower())))
    raw = read_mesh(path, tmp_path)
    assert len(raw.mesh.faces) == len(ball.faces)


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


def test_a_cloud_of_points_is_no_mesh(tmp_path) -> None:
    path = tmp_path / "cloud.ply"
    path.write_bytes(trimesh.PointCloud(np.random.default_rng(0).normal(size=(30, 3))).export(file_type="ply"))
    raw = read_mesh(path, tmp_path)
    assert raw.mesh is None
    assert raw.points.shape == (30, 3)
    assert read_mesh(write_off(tmp_path / "points.off", faces=False), tmp_path).mesh is None


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.off", b"", "empty"),
        ("a.obj", b"not a mesh at all", "neither faces nor points"),
        ("a.glb", b"glTF but cut", "not a readable glb"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 9\n", "ply"),
        ("a.off", b"OFF\n3 1 0\nnan 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "not finite"),
        ("a.off", b"OFF\n3 1 0\n1e300 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "no length"),
    ],
)
def test_bad_files_say_why(tmp_path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_mesh(tmp_path / name, tmp_path)


def test_a_folder_in_place_of_a_file(tmp_path) -> None:
    (tmp_path / "a.off").mkdir()
    with pytest.raises(ValueError, match="folder"):
        read_mesh(tmp_path / "a.off", tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_mesh(tmp_path / "gone.off", tmp_path)


def write_obj(folder, texture: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.mtl").write_text(f"newmtl a\nKd 1 1 1\nmap_Kd {texture}\n")
    (folder / "m.obj").write_text(
        "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl a\nf 1/1 2/2 3/3\n"
    )


def test_textures_are_found_inside_the_source_and_nowhere_else(tmp_path) -> None:
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    green = Image.new("RGB", (4, 4), (0, 200, 0))
    green.save(root / "images" / "T.png")
    green.save(tmp_path / "secret.png")
    (root / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    for texture, found, warning in (
        ("../images/T.png", True, None),
        ("..\\images\\T.png", True, "path repaired"),
        ("../images/t.PNG", True, "path repaired"),
        ("../IMAGES/T.png", True, "path repaired"),
        ("C:\\Users\\me\\T.png", True, "path repaired"),
        ("/home/me/T.png", True, "path repaired"),
        ('"../images/T.png"', True, "path repaired"),
        ("-s 1 1 1 -clamp on ../images/T.png", True, None),
        ("../images/gone.png", False, "texture not found"),
        ("../../secret.png", False, "path outside the folder"),
        ("../images/../../secret.png", False, "path outside the folder"),
        ("..\\..\\secret.png", False, "path outside the folder"),
        ("../images/link.png", False, "path outside the folder"),
        (str(tmp_path / "secret.png"), False, "path outside the folder"),
    ):
        write_obj(root / "models", texture)
        raw = read_mesh(root / "models" / "m.obj", root)
        assert (raw.mesh.materials[0].texture is not None) == found, texture
        assert raw.warnings == ({warning: 1} if warning else {}), texture


def test_a_missing_material_is_grey_and_counted(tmp_path) -> None:
    write_obj(tmp_path, "x.png")
    (tmp_path / "m.mtl").unlink()
    raw = read_mesh(tmp_path / "m.obj", tmp_path)
    assert raw.mesh.materials[0].base_color == (0.7, 0.7, 0.7, 1.0)
    assert raw.warnings == {"material not found": 1}


def test_colours_and_parts_stay_with_their_points() -> None:
    """A random choice of a large cloud, then farthest points first: what belongs to a point moves with it."""
    rng = np.random.default_rng(0)
    for count in (200, 900):
        points = rng.normal(size=(count, 3))
        colors = (np.arange(count)[:, None] % [251, 241, 239]).astype(np.uint8)
        parts = (np.arange(count) % 50).astype(np.uint8)
        shape = make_shape(ASSET, RawShape(points=points, colors=colors, parts=parts), **OPTIONS)
        assert len(shape.points) == min(count, 300)
        source = (shape.points - shape.world_from_source[:3, 3]) / shape.world_from_source[0, 0]
        owner = np.linalg.norm(source[:, None] - points[None], axis=2).argmin(axis=1)
        assert len(set(owner)) == len(owner)
        assert owner.tolist() != sorted(owner)
        np.testing.assert_array_equal(shape.colors, colors[owner])
        np.testing.assert_array_equal(shape.parts, parts[owner])


def test_every_seed_and_object_is_sampled_in_its_own_way() -> None:
    def sampled(key: str, seed: int, raw: RawShape) -> bytes:
        asset = Asset(key, key, "train", None, key)
        return make_shape(asset, raw, **{**OPTIONS, "seed": seed}).points.tobytes()

    cloud = RawShape(points=np.random.default_rng(0).normal(size=(900, 3)))
    for raw in (RawShape(mesh=textured()), cloud):
        assert len({sampled(key, seed, raw) for key in ("a", "b") for seed in (0, 1)}) == 4


def test_an_objects_own_turn_comes_before_the_axes_of_its_dataset() -> None:
    quarter = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])  # about +Z: x becomes y
    cloud = RawShape(points=np.random.default_rng(0).normal(size=(90, 3)), upright=quarter)
    world = make_shape(ASSET, cloud, **{**OPTIONS, "axes": ("y", "z", "x")}).world_from_source[:3, :3]
    turned = world / np.cbrt(np.linalg.det(world)) @ [1, 2, 3]
    np.testing.assert_allclose(turned, [1, 3, -2], atol=1e-12)  # (1, 2, 3) -> (-2, 1, 3) -> (1, 3, -2)


def test_colours_of_a_cloud_in_a_file_are_kept(tmp_path) -> None:
    points = np.random.default_rng(0).normal(size=(30, 3))
    colors = np.random.default_rng(1).integers(0, 255, (30, 4), dtype=np.uint8)
    (tmp_path / "a.ply").write_bytes(trimesh.PointCloud(points, colors=colors).export(file_type="ply"))
    np.testing.assert_array_equal(read_mesh(tmp_path / "a.ply", tmp_path).colors, colors[:, :3])
