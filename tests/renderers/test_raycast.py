"""Ray casting against the literal reference, against golden data, and its features one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from shapes import CUBE, CUBE_FACES, chair, cube, sphere, textured_plane, tilted_plane

from manifests.errors import Refused
from manifests.presets import MeshViews, load_preset
from renderers import reference
from renderers.backend_table import draw, preset_cameras
from renderers.cameras import orthographic_K, rig
from renderers.geometry import Material, Mesh, join
from renderers.normals import corner_normals, face_normals, unique_faces, unit, weld
from renderers.raycast import draw_mesh, first_hits
from renderers.sampling import bilinear
from renderers.shading import Texture, phong

MESHES = {"cube": cube, "sphere": sphere, "tilted plane": tilted_plane}


def preset(**changes: object) -> MeshViews:
    values = {"image_size": 28, "azimuth_deg": [0, 40, 200], "elevation_deg": [0, 25, -30], **changes}
    return load_preset("rgb12", values)[1]


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("projection", ["perspective", "orthographic"])
def test_depth_equals_the_reference(name: str, projection: str) -> None:
    mesh, settings = MESHES[name](), preset(projection=projection)
    for view in draw(settings, mesh=mesh):
        expected, _ = reference.depth_of_mesh(mesh, view.camera)
        hit = np.isfinite(expected)
        assert 0.02 < hit.mean() < 0.9
        assert (np.isfinite(view.depth) != hit).sum() <= 2  # a ray may graze an edge
        both = hit & np.isfinite(view.depth)
        np.testing.assert_allclose(view.depth[both], expected[both], atol=1e-5)
        assert view.coverage == pytest.approx(np.isfinite(view.depth).mean())


@pytest.mark.parametrize("light", [[], [0.6, 0.7, 0.4]])
@pytest.mark.parametrize("name", MESHES)
def test_flat_shading_equals_the_reference(name: str, light: list[float]) -> None:
    mesh, settings = MESHES[name](), preset(normals="flat", light_direction=light)
    for view in draw(settings, mesh=mesh)[:2]:
        expected = reference.flat_shaded(mesh, view.camera, settings)
        difference = np.abs(view.rgb / 255.0 - expected).max(axis=2)
        assert (difference > 0.6 / 255).sum() <= 6  # pixels whose centre lies on an edge
        assert np.median(view.rgb[np.isfinite(view.depth)]) < 250


def test_the_light_of_a_direction_by_hand() -> None:
    settings = preset(
        azimuth_deg=[0], elevation_deg=[0], normals="flat", light_direction=[0, 3, 4], ambient=0.2, diffuse=0.5,
        specular=0.25, shininess=2, image_size=29,
    )  # fmt: skip
    view = draw(settings, mesh=cube())[0]
    # the face towards the camera: n = v = (0, 0, 1), l = (0, .6, .8), so n.l = v.r = .8
    expected = (0.2 + 0.5 * 0.8) * 0.7 + 0.25 * 0.8**2
    np.testing.assert_allclose(view.rgb[14, 14] / 255, expected, atol=0.6 / 255)
    behind = draw(settings.model_copy(update={"light_direction": [0, 0, -1]}), mesh=cube())[0]
    np.testing.assert_allclose(behind.rgb[14, 14] / 255, 0.2 * 0.7, atol=0.6 / 255)


def test_a_light_without_a_direction_is_refused() -> None:
    for direction in ([0, 0, 0], [1, 2]):
        with pytest.raises(Refused, match="light_direction is three numbers"):
            preset(light_direction=direction)


def test_first_hits_are_lengths_of_the_direction() -> None:
    rays = np.array([[0, 0, 2, 0, 0, -1], [0, 0, 2, 0, 0, -3], [0, 0, 0, 1, 0, 0], [0, 2, 2, 0, 0, -1]], np.float32)
    np.testing.assert_allclose(first_hits(cube(), rays), [1.5, 0.5, 0.5, np.inf], atol=1e-6)


def test_twins_with_opposite_winding_change_nothing() -> None:
    single = sphere()
    shared = Mesh(single.vertices, np.concatenate([single.faces, single.faces[:, ::-1]]))
    own = Mesh(
        np.concatenate([single.vertices] * 2),
        np.concatenate([single.faces, single.faces[:, ::-1] + len(single.vertices)]),
    )
    for normals in ("crease", "smooth", "flat"):
        first = draw(preset(normals=normals), mesh=single)[1]
        for twin in (shared, own):
            view = draw(preset(normals=normals), mesh=twin)[1]
            np.testing.assert_array_equal(view.depth, first.depth)
            assert np.abs(view.rgb.astype(int) - first.rgb).max() <= 1


def test_crease_keeps_edges_and_smooths_curves() -> None:
    for make, crease, expected in ((cube, 40.0, "faces"), (sphere, 40.0, "radial")):
        mesh = make()
        vertex = weld(mesh.vertices)[mesh.faces]
        kept = unique_faces(vertex)
        corners = mesh.vertices[mesh.faces[kept]].astype(np.float32)
        normals = corner_normals(corners, vertex[kept], crease)
        if expected == "faces":
            assert (np.abs(normals).max(axis=2) > 0.999).all()
        else:
            radial = unit(corners.reshape(-1, 3)).reshape(normals.shape)
            proper = np.linalg.norm(face_normals(corners), axis=1) > 1e-6  # the poles' own faces have no area
            assert np.einsum("fck,fck->fc", normals, radial)[proper].min() > 0.98


def test_inside_of_an_open_box_is_lit_only_when_two_sided() -> None:
    open_box = Mesh(CUBE, np.array([f for f in CUBE_FACES if not (CUBE[f][:, 2] > 0).all()]))
    bright = draw(preset(azimuth_deg=[0], elevation_deg=[0]), mesh=open_box)[0]
    dark = draw(preset(azimuth_deg=[0], elevation_deg=[0], two_sided=False), mesh=open_box)[0]
    middle = np.s_[12:16, 12:16]
    assert dark.rgb[middle].max() == round(255 * 0.5 * 0.7)
    assert bright.rgb[middle].min() > dark.rgb[middle].max() + 40


def test_base_colours_vertex_colours_and_materials() -> None:
    half = len(CUBE_FACES) // 2
    red_blue = Mesh(
        CUBE,
        CUBE_FACES,
        (Material((1, 0, 0, 1)), Material((0, 0, 1, 1))),
        face_material=np.array([0] * half + [1] * half),
    )
    flat = {"ambient": 1.0, "diffuse": 0.0, "specular": 0.0}
    colors = {tuple(c) for view in draw(preset(**flat), mesh=red_blue) for c in view.rgb.reshape(-1, 3)}
    assert colors == {(255, 255, 255), (255, 0, 0), (0, 0, 255)}
    green = np.tile(np.array([0, 255, 0, 255], np.uint8), (8, 1))
    painted = Mesh(CUBE, CUBE_FACES, (Material((1, 1, 1, 1)),), vertex_colors=green)
    view = draw(preset(**flat), mesh=painted)[0]
    assert {tuple(c) for c in view.rgb[np.isfinite(view.depth)]} == {(0, 255, 0)}


def test_textures_are_upright_and_wrap() -> None:
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[..., 3] = 255
    picture[0, 0] = [255, 0, 0, 255]  # top left of the picture
    picture[1, 1] = [0, 0, 255, 255]  # bottom right
    flat = {"ambient": 1.0, "diffuse": 0.0, "specular": 0.0, "azimuth_deg": [0], "elevation_deg": [0], "image_size": 64}
    once = draw(preset(**flat, texture_wrap="clamp"), mesh=textured_plane(picture, 1.0))[0].rgb
    assert tuple(once[20, 20]) == (255, 0, 0)
    assert tuple(once[44, 44]) == (0, 0, 255)
    assert tuple(once[20, 44]) == (0, 0, 0)
    twice = draw(preset(**flat, texture_wrap="repeat"), mesh=textured_plane(picture, 2.0))[0].rgb
    clamped = draw(preset(**flat, texture_wrap="clamp"), mesh=textured_plane(picture, 2.0))[0].rgb
    assert twice[17, 17, 0] > 150  # the upper left quarter repeats the whole picture
    assert tuple(clamped[17, 47]) == (0, 0, 0)


def test_bilinear_reading_by_hand() -> None:
    picture = np.zeros((1, 2, 4), np.uint8)
    picture[0, 1] = 255
    texture = Texture(picture, ("clamp", "clamp"))
    u = np.array([0.25, 0.5, 0.75, 0.0, 1.0], np.float32)
    np.testing.assert_allclose(texture.read(u, np.full(5, 0.5, np.float32))[:, 0], [0, 0.5, 1, 0, 1], atol=1e-6)
    repeating = Texture(picture, ("repeat", "repeat"))
    np.testing.assert_allclose(repeating.read(np.array([0.0, 1.0], np.float32), np.zeros(2, np.float32))[:, 0], 0.5)


@pytest.mark.parametrize(
    ("wrap", "expected"), [("repeat", [0, 1, 0, 1]), ("clamp", [0, 0, 1, 1]), ("mirror", [1, 0, 1, 0])]
)
def test_each_wrap_beyond_the_edges(wrap: str, expected: list[int]) -> None:
    """Of a picture black on the left and white on the right, at u = -0.75, -0.25, 1.25, 1.75; v likewise."""
    places, middle = np.array([-0.75, -0.25, 1.25, 1.75]), np.full(4, 0.5)
    across = np.zeros((1, 2, 4), np.uint8)
    across[0, 1] = 255
    along_u = Texture(across, (wrap, "clamp")).read(places.astype(np.float32), middle.astype(np.float32))
    np.testing.assert_allclose(along_u[:, 0], expected, atol=1e-6)
    upwards = across.reshape(2, 1, 4)[::-1].copy()  # row 0 is the top
    along_v = Texture(upwards, ("clamp", wrap)).read(middle.astype(np.float32), places.astype(np.float32))
    np.testing.assert_allclose(along_v[:, 0], expected, atol=1e-6)
    for picture, kinds, uv in (
        (across, (wrap, "clamp"), (places, middle)),
        (upwards, ("clamp", wrap), (middle, places)),
    ):
        sampled = bilinear(picture, np.stack(uv, axis=1), kinds)[:, 0] / 255
        np.testing.assert_allclose(sampled, expected, atol=1e-6)


def test_alpha_below_the_cutoff_is_not_drawn_and_above_it_is_solid() -> None:
    plane = textured_plane(np.full((2, 2, 4), 255, np.uint8), 1.0)
    flat = {"ambient": 1.0, "diffuse": 0.0, "specular": 0.0, "azimuth_deg": [0], "elevation_deg": [0]}
    for alpha, cutoff, seen in ((0.5, 0.5, True), (0.49, 0.5, False), (0.1, 0.05, True), (1.0, 1.0, True)):
        material = Material((1, 0, 0, alpha), alpha_cutoff=cutoff)
        view = draw(preset(**flat), mesh=Mesh(plane.vertices, plane.faces, (material,)))[0]
        assert tuple(view.rgb[14, 14]) == ((255, 0, 0) if seen else (255, 255, 255))
        assert np.isfinite(view.depth[14, 14]) == seen


def test_alpha_shows_what_is_behind() -> None:
    front = textured_plane(np.full((2, 2, 4), 255, np.uint8), 1.0)
    glass = Mesh(
        np.concatenate([front.vertices + np.array([0, 0, 0.3]), front.vertices]),
        np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]),
        (Material((1, 0, 0, 0.25)), Material((0, 0, 1, 1.0))),
        face_material=np.array([0, 0, 1, 1]),
    )
    flat = {"ambient": 1.0, "diffuse": 0.0, "specular": 0.0, "azimuth_deg": [0], "elevation_deg": [0]}
    view = draw(preset(**flat), mesh=glass)[0]
    np.testing.assert_allclose(view.rgb[14, 14], [64, 0, 191], atol=1)
    assert view.depth[14, 14] == pytest.approx(2.2, abs=1e-3)  # the first surface with alpha of at least one half
    alone = Mesh(glass.vertices, glass.faces[:2], glass.materials)
    view = draw(preset(**flat), mesh=alone)[0]
    np.testing.assert_allclose(view.rgb[14, 14], [255, 191, 191], atol=1)
    assert not np.isfinite(view.depth).any()


def test_supersampling_averages_edges() -> None:
    plain, fine = draw(preset(), mesh=cube())[1], draw(preset(supersample=2), mesh=cube())[1]
    assert fine.rgb.shape == plain.rgb.shape
    assert fine.depth.shape == plain.depth.shape
    levels = {tuple(c) for c in fine.rgb.reshape(-1, 3)} - {tuple(c) for c in plain.rgb.reshape(-1, 3)}
    assert len(levels) > 5
    inside = np.isfinite(plain.depth)
    assert np.isfinite(fine.depth)[inside].all()


def test_drawing_twice_gives_the_same_bytes() -> None:
    first, second = draw(preset(), mesh=sphere()), draw(preset(), mesh=sphere())
    for a, b in zip(first, second, strict=True):
        assert a.rgb.tobytes() == b.rgb.tobytes()
        assert a.depth.tobytes() == b.depth.tobytes()


def test_a_mesh_without_area_is_refused() -> None:
    line = Mesh(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0.0]]), np.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="area"):
        draw(preset(), mesh=line)


@pytest.mark.parametrize("name", ["mn10_chair_0890_dedup", "sn_airplane_1a04e3ea_dedup"])
def test_depth_equals_pytorch3d(golden, name: str) -> None:
    data = np.load(golden / "render" / f"pytorch3d_mesh_{name}.npz")
    flip = np.diag([-1.0, -1.0, 1.0])
    rotations = np.stack([flip @ R.T for R in data["R"]])
    cameras = rig(rotations, distance=2, image_size=112, near=0.5, far=3.5, fov_deg=60)
    mesh = Mesh(data["verts"], data["faces"])
    for number, view in enumerate(draw_mesh(mesh, preset(image_size=112), cameras)):
        expected = data["zbuf"][number].reshape(112, 112)
        clear = ~data["ambig_edge"][number].reshape(112, 112)
        hit = expected > 0
        assert ((np.isfinite(view.depth) != hit) & clear).sum() == 0
        both = hit & np.isfinite(view.depth) & clear
        np.testing.assert_allclose(view.depth[both], expected[both], atol=2e-5)


def test_phong_equals_pytorch3d(golden) -> None:
    """Shading from the stored fragments, so that only the light is compared."""
    data = np.load(golden / "render" / "pytorch3d_mesh_mn10_chair_0890_dedup.npz")
    faces, normals, vertices = data["faces"], data["verts_normals"], data["verts"]
    for number in range(4):
        face = data["pix_to_face"][number].reshape(-1)
        hit = face >= 0
        weights = data["bary_coords"][number].reshape(-1, 3)[hit]
        corner = faces[face[hit] % len(faces)]
        normal = unit(np.einsum("nk,nkd->nd", weights, normals[corner]))
        point = np.einsum("nk,nkd->nd", weights, vertices[corner])
        to_camera = unit(data["cam_pos"][number] - point)
        constants = _constants(data)
        got = phong(
            normal,
            to_camera,
            constants.pop("light"),
            np.full((len(point), 3), float(data["vertex_colour"].reshape(-1)[0])),
            **constants,
        )
        expected = data["rgb_directional"][number].reshape(-1, 3)[hit]
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_texture_reading_equals_pytorch3d(golden) -> None:
    """The stress map is random and not square: a flip, a transposition or half a texel would show.

    PyTorch3D puts the first and last texel centres at u = 0 and 1; ours lie at (i + 0.5) / size, as in glTF and OpenGL,
    so coordinates are moved over before the comparison.
    """
    data = np.load(golden / "render" / "pytorch3d_mesh_textured_sn_chair_1016f4de.npz")
    picture = data["stress_map"]
    height, width = picture.shape[:2]
    rgba = np.concatenate([picture, np.full((height, width, 1), 255, np.uint8)], axis=2)
    texture = Texture(rgba, ("clamp", "clamp"))
    for number in range(len(data["pix_to_face"])):
        face = data["pix_to_face"][number].reshape(-1)
        hit = face >= 0
        weights = data["bary_coords"][number].reshape(-1, 3)[hit].astype(np.float64)
        corner = data["stress_verts_uvs"][data["faces_uvs"][face[hit] % len(data["faces_uvs"])]]
        u, v = np.clip(np.einsum("nk,nkd->nd", weights, corner), 0, 1).T
        moved_u = (u * (width - 1) + 0.5) / width
        moved_v = 1 - ((1 - v) * (height - 1) + 0.5) / height
        got = texture.read(moved_u.astype(np.float32), moved_v.astype(np.float32))[:, :3]
        expected = data["stress_rgb_ambient_only"][number].reshape(-1, 3)[hit]
        np.testing.assert_allclose(got, expected, atol=3e-5)


def _constants(data) -> dict:
    def value(name: str) -> float:
        return float(data[f"dirlight_{name}_color"].reshape(-1)[0] * data[f"dirmat_{name}_color"].reshape(-1)[0])

    light = data["dirlight_direction"].reshape(-1)[:3].astype(float)
    return {
        "ambient": value("ambient"),
        "diffuse": value("diffuse"),
        "specular": value("specular"),
        "shininess": int(data["dirmat_shininess"].reshape(-1)[0]),
        "light": light / np.linalg.norm(light),
    }


def test_cameras_of_a_preset_are_its_angles() -> None:
    cameras = preset_cameras(load_preset("rgb12")[1])
    assert len(cameras) == 12
    np.testing.assert_allclose(np.linalg.norm([c.position for c in cameras], axis=1), 2.2)
    np.testing.assert_allclose([c.position[1] for c in cameras], 1.1)


FLAT = {"ambient": 1.0, "diffuse": 0.0, "specular": 0.0, "azimuth_deg": [0], "elevation_deg": [0]}
WHITE = np.full((2, 2, 4), 255, np.uint8)


@pytest.mark.parametrize("projection", ["perspective", "orthographic"])
def test_a_mesh_that_reaches_behind_the_camera_is_drawn_where_it_is_seen(projection: str) -> None:
    """A floor below the camera that goes on behind it, as in a room: no part of the picture is left out."""
    corners = np.array([[-9, -0.4, -9], [9, -0.4, -9], [9, -0.4, 9], [-9, -0.4, 9]], float)
    floor = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))
    views = draw(preset(distance=1.0, projection=projection, elevation_deg=[10, 25, 5]), mesh=floor)
    for view in views:
        expected, _ = reference.depth_of_mesh(floor, view.camera)
        hit = np.isfinite(expected)
        assert hit.mean() > 0.2
        assert (np.isfinite(view.depth) != hit).sum() <= 2
        both = hit & np.isfinite(view.depth) & (expected < 5)
        np.testing.assert_allclose(view.depth[both], expected[both], rtol=1e-4)
        assert ((view.rgb < 255).any(axis=2) == np.isfinite(view.depth)).all()


@pytest.mark.parametrize("supersample", [1, 2])
def test_a_square_is_drawn_to_its_last_row_and_column(supersample: int) -> None:
    """0.7 of the half picture to each side of its middle: pixels 14 +- 9.8, whose centres are 4.5 to 23.5."""
    view = draw(preset(**FLAT, projection="orthographic", supersample=supersample), mesh=textured_plane(WHITE, 1))[0]
    shown = np.isfinite(view.depth)
    assert np.flatnonzero(shown.any(axis=0)).tolist() == list(range(4, 24))
    assert np.flatnonzero(shown.any(axis=1)).tolist() == list(range(4, 24))
    assert shown[4:24, 4:24].all()


def test_a_picture_that_is_not_square() -> None:
    """Wider than high, its axis aside: depth is the reference's, and colours lie where depth lies."""
    settings = preset(projection="orthographic")
    camera = preset_cameras(settings)[1]
    K = orthographic_K(28, 1.0)
    K[0, 2] = 29.0
    wide, tall = replace(camera, width=40, K=K), replace(camera, height=44, K=K[[1, 0, 2]][:, [1, 0, 2]])
    for view in draw_mesh(chair(), settings, [wide, tall]):
        expected, face = reference.depth_of_mesh(chair(), view.camera)
        hit = np.isfinite(expected)
        assert (np.isfinite(view.depth) != hit).sum() <= 2
        assert ((view.rgb < 255).any(axis=2) == np.isfinite(view.depth)).all()
        tints = np.array([m.base_color[:3] for m in chair().materials])[chair().face_material[face[hit]]]
        shades = view.rgb[hit] / np.maximum(view.rgb[hit].max(axis=1, keepdims=True), 1)
        highlight = 0.25  # of the light, which is white
        assert (np.abs(shades - tints / tints.max(axis=1, keepdims=True)).max(axis=1) < highlight).mean() > 0.97


def panes(*materials: Material, gap: float = 0.2) -> Mesh:
    """Squares behind each other, the first nearest to the camera at azimuth 0."""
    square = textured_plane(WHITE, 1.0)
    return join(
        [
            replace(square, vertices=square.vertices + np.array([0, 0, 0.3 - gap * number]), materials=(material,))
            for number, material in enumerate(materials)
        ]
    )


def middle_of(mesh: Mesh, **changes: object) -> tuple[list[int], float]:
    """Colour and depth of the middle pixel."""
    view = draw(preset(**{**FLAT, **changes}), mesh=mesh)[0]
    return view.rgb[14, 14].astype(int).tolist(), float(view.depth[14, 14])


def test_depth_is_of_the_first_surface_of_alpha_one_half() -> None:
    """Just one half is enough, the least bit less is not; a second one behind it changes nothing."""
    wall = Material((0, 0, 1, 1.0))
    for alpha, expected in ((0.5, 1.9), (0.5 - 1e-6, 2.1), (0.75, 1.9), (0.25, 2.1)):
        _, depth = middle_of(panes(Material((1, 0, 0, alpha)), wall))
        assert depth == pytest.approx(expected, abs=1e-3), alpha
    _, depth = middle_of(panes(Material((1, 0, 0, 0.6)), Material((0, 1, 0, 0.6)), wall))
    assert depth == pytest.approx(1.9, abs=1e-3)
    _, depth = middle_of(panes(Material((1, 0, 0, 0.2)), Material((0, 1, 0, 0.2)), wall))
    assert depth == pytest.approx(2.3, abs=1e-3)


def test_glass_of_any_alpha_lets_light_through() -> None:
    """By base colour, by a texture with holes, by vertices; the background shows behind all of them."""
    wall = Material((0, 0, 1, 1.0))
    for alpha in (0.25, 0.75, 0.99):
        color, _ = middle_of(panes(Material((1, 0, 0, alpha)), wall))
        np.testing.assert_allclose(color, [255 * alpha, 0, 255 * (1 - alpha)], atol=1)
        color, _ = middle_of(panes(Material((1, 0, 0, alpha))), background=[0.0, 1.0, 0.2])
        np.testing.assert_allclose(color, [255 * alpha, 255 * (1 - alpha), 51 * (1 - alpha)], atol=1.5)
    leaf = np.full((4, 4, 4), 255, np.uint8)
    leaf[:, 2:, 3] = 0
    view = draw(preset(**FLAT), mesh=panes(Material((1, 0, 0, 1.0), leaf), wall))[0]
    assert view.rgb[14, 9].tolist() == [255, 0, 0]
    assert view.rgb[14, 18].tolist() == [0, 0, 255]
    np.testing.assert_allclose(view.depth[14, [9, 18]], [1.9, 2.1], atol=1e-3)
    square = textured_plane(WHITE, 1.0)
    clear = Mesh(square.vertices, square.faces, vertex_colors=np.tile(np.array([255, 0, 0, 51], np.uint8), (4, 1)))
    color, depth = middle_of(replace(clear, materials=(Material((1, 1, 1, 1.0)),)))
    np.testing.assert_allclose(color, [255, 204, 204], atol=1)
    assert depth == np.inf


def test_faint_surfaces_behind_dark_glass_are_seen() -> None:
    """A tenth of the light, then a hundredth: more than half a step of a byte."""
    dark, red = Material((0, 0, 0, 0.9)), Material((1, 0, 0, 0.9))
    color, _ = middle_of(panes(dark, red, Material((0, 1, 0, 1.0))))
    np.testing.assert_allclose(color, [0.09 * 255, 0.01 * 255, 0], atol=1)


def test_eight_surfaces_behind_each_other_are_seen() -> None:
    """Seven panes and a wall, whose depth is not off by the gaps between them."""
    mesh = panes(*[Material((1, 0, 0, 0.1))] * 7, Material((0, 0, 1, 1.0)), gap=0.1)
    color, depth = middle_of(mesh)
    np.testing.assert_allclose(color, [255 * (1 - 0.9**7), 0, 255 * 0.9**7], atol=1)
    assert depth == pytest.approx(2.2 - 0.3 + 0.7, abs=1e-4)


def test_a_surface_close_behind_a_transparent_one_is_that_one() -> None:
    """A pane and its twin, a little apart by rounding, are not twice as dark."""
    pane = Material((1, 0, 0, 0.5))
    for gap, seen in ((5e-5, 0.5), (5e-3, 0.75)):
        color, _ = middle_of(panes(pane, pane, gap=gap))
        np.testing.assert_allclose(color, [255, 255 * (1 - seen), 255 * (1 - seen)], atol=1)


def test_base_colour_texture_and_vertex_colours_are_multiplied() -> None:
    picture = np.full((2, 2, 4), [200, 100, 50, 255], np.uint8)
    square = replace(textured_plane(picture, 1.0), materials=(Material((0.5, 1.0, 1.0, 1.0), picture),))
    assert middle_of(square)[0] == [100, 100, 50]
    painted = replace(square, vertex_colors=np.tile(np.array([255, 51, 255, 255], np.uint8), (4, 1)))
    assert middle_of(painted)[0] == [100, 20, 50]
    plain = Mesh(square.vertices, square.faces, (Material((0.5, 1.0, 0.2, 1.0)),), vertex_colors=painted.vertex_colors)
    assert middle_of(plain)[0] == [128, 51, 51]


def test_every_part_wears_its_own_texture() -> None:
    """Three parts beside each other, one of them without a picture."""
    colors = ([200, 40, 40, 255], [40, 200, 40, 255])
    parts = [textured_plane(np.full((2, 2, 4), color, np.uint8), 1.0) for color in colors]
    parts.append(Mesh(parts[0].vertices, parts[0].faces, (Material((0.2, 0.2, 1.0, 1.0)),)))
    moved = [replace(p, vertices=p.vertices * 0.3 + np.array([0.6 * (i - 1), 0, 0])) for i, p in enumerate(parts)]
    rgb = draw(preset(**FLAT, projection="orthographic"), mesh=join(moved))[0].rgb
    assert [rgb[14, column].tolist() for column in (6, 14, 22)] == [[200, 40, 40], [40, 200, 40], [51, 51, 255]]


@pytest.mark.parametrize("where", ["first", "last", "both"])
def test_a_face_without_an_area_changes_no_picture(where: str) -> None:
    """Three corners on one line, in a colour of its own: the other faces keep their colours, textures and normals."""
    line = Mesh(
        np.array([[0, 0, 0], [0.1, 0.1, 0.1], [0.2, 0.2, 0.2]]), np.array([[0, 1, 2]]), (Material((1, 0, 1, 1)),)
    )
    picture = np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    picture[..., 3] = 255
    parts = [chair(), textured_plane(picture, 2.0)]
    whole = [line] * (where in ("first", "both")) + parts + [line] * (where in ("last", "both"))
    for normals in ("crease", "smooth", "flat"):
        settings = preset(normals=normals)
        for plain, view in zip(draw(settings, mesh=join(parts)), draw(settings, mesh=join(whole)), strict=True):
            np.testing.assert_array_equal(view.depth, plain.depth)
            np.testing.assert_array_equal(view.rgb, plain.rgb)


@pytest.mark.parametrize("projection", ["perspective", "orthographic"])
def test_the_light_stands_at_the_camera(projection: str) -> None:
    """A square that faces it has all the diffuse light and the highlight; one that is aslant has the cosine of it."""
    settings = {"ambient": 0.2, "diffuse": 0.5, "specular": 0.25, "shininess": 4, "projection": projection}
    square = Mesh(textured_plane(WHITE, 1.0).vertices, np.array([[0, 1, 2], [0, 2, 3]]))
    color, _ = middle_of(square, **settings, image_size=29)
    np.testing.assert_allclose(color, (0.7 * 0.7 + 0.25) * 255, atol=0.6)
    color, _ = middle_of(square, **settings, image_size=29, azimuth_deg=[60])
    np.testing.assert_allclose(color, (0.2 + 0.5 * 0.5) * 0.7 * 255, atol=0.6)  # v.r = 2 cos^2 60 - 1 < 0: none


def test_smooth_normals_are_those_of_the_files_own_vertices() -> None:
    """PyTorch3D's: a cube whose faces share no vertex is flat, one whose faces do is not."""
    settings = preset(
        normals="smooth", azimuth_deg=[30], elevation_deg=[30], light_direction=[0.3, 0.8, 0.5], specular=0
    )
    apart = Mesh(CUBE[CUBE_FACES].reshape(-1, 3), np.arange(36).reshape(-1, 3))
    shared, own = (draw(settings, mesh=mesh)[0] for mesh in (cube(), apart))
    shades = [len(np.unique(view.rgb[np.isfinite(view.depth)], axis=0)) for view in (shared, own)]
    assert shades[0] > 20
    assert shades[1] <= 4
