"""glTF's materials through the real command: what a file says of colour and alpha is what points and pictures show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from gltf_maker import BuiltFile, GltfMaker, box, build_files, build_folder, png

from pipeline.formats.gltf_materials import to_display, to_linear

UV = np.tile(np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]], np.float32), (12, 1))
RED, SOLID = (200, 40, 40, 255), [0.8, 0.1, 0.1, 1]
HALVES = np.zeros((4, 8, 4), np.uint8)  # left half red, right half blue
HALVES[:, :4], HALVES[:, 4:] = RED, (0, 0, 250, 255)
WEBP = png(RED, format="WEBP", lossless=True)
GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"


def textured(picture: bytes, uv: np.ndarray = UV, sampler: dict | None = None, **more: object) -> bytes:
    """A box with a picture. more: keys of the material; `info` of its textureInfo, `factor`, and attributes."""
    made = GltfMaker()
    info = {"index": made.texture(picture, sampler), **more.pop("info", {})}
    attributes = {key: more.pop(key) for key in list(more) if key.isupper()}
    material = made.material(more.pop("factor", None), info, **more)
    return made.show(made.primitive(box(), None, material, TEXCOORD_0=uv, **attributes)).glb()


def moved(picture: np.ndarray, place: float, values: dict) -> bytes:
    """All texture coordinates at one place, moved by KHR_texture_transform."""
    return textured(png(picture), np.full((36, 2), place), info={"extensions": {"KHR_texture_transform": values}})


def plain(factor: object = None, colors: object = None, kind: str = "float32", **material: object) -> bytes:
    """A box with a factor, vertex colours (one for all, or (36, n)) or both."""
    made = GltfMaker()
    attributes = {}
    if colors is not None:
        rows = np.broadcast_to(colors, (36, np.shape(colors)[-1]))
        attributes["COLOR_0"] = made.accessor(rows, kind, **({} if kind == "float32" else {"normalized": True}))
    number = made.material(factor, **material) if factor is not None or material else None
    return made.show(made.primitive(box(), None, number, **attributes)).glb()


def glossy(**values: object) -> bytes:
    made = GltfMaker()
    if "diffuseTexture" in values:
        values["diffuseTexture"] = {"index": made.texture(values["diffuseTexture"])}
    if "specularGlossinessTexture" in values:
        values["specularGlossinessTexture"] = {"index": made.texture(png((9, 9, 9)))}
    number = made.add("materials", extensions={GLOSSINESS: values})
    return made.show(made.primitive(box(), None, number, TEXCOORD_0=UV)).glb()


def shorts() -> bytes:
    """Texture coordinates in 16 bits, normalised."""
    made = GltfMaker()
    uv = made.accessor(np.full((36, 2), 0.8 * 65535), "uint16", normalized=True)
    return made.show(made.primitive(box(), None, made.material(None, made.texture(png(HALVES))), TEXCOORD_0=uv)).glb()


def second_coordinates(transform: dict | None = None) -> bytes:
    made = GltfMaker()
    more = {} if transform is None else {"extensions": {"KHR_texture_transform": transform}}
    info = {"index": made.texture(png(HALVES)), "texCoord": 1, **more}
    left, right = np.full((36, 2), 0.2), np.full((36, 2), 0.8)
    return made.show(made.primitive(box(), None, made.material(None, info), TEXCOORD_0=left, TEXCOORD_1=right)).glb()


def extended_texture(name: str, picture: bytes | None, fallback: bytes | None, factor: object = None) -> bytes:
    """A texture whose picture is an extension's, with or without one of its own beside it."""
    made = GltfMaker()
    source = made.add("images", bufferView=made.view(picture or b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(64)))
    own = {} if fallback is None else {"source": made.add("images", bufferView=made.view(fallback))}
    texture = made.add("textures", extensions={name: {"source": source}}, **own)
    made.values |= {"extensionsUsed": [name], "extensionsRequired": [name]}
    return made.show(made.primitive(box(), None, made.material(factor, texture), TEXCOORD_0=UV)).glb()


def two_masks() -> bytes:
    """A solid box, and one far away of which alpha hides all."""
    made = GltfMaker()
    number = made.material([1, 1, 1, 0.2], alphaMode="MASK")
    made.show(made.primitive(box(at=(9, 0, 0)), None, number))
    return made.show(made.primitive(box(), None, made.material(SOLID))).glb()


TURN = {
    "rotation": np.pi / 2,
    "offset": [0, 1],
    "scale": [0.5, 0.5],
}  # the extension's example: the lower left quadrant
QUADRANTS = np.zeros((8, 8, 4), np.uint8)
QUADRANTS[:4, :4], QUADRANTS[:4, 4:], QUADRANTS[4:, :4], QUADRANTS[4:, 4:] = (
    RED,
    (0, 250, 0, 255),
    (0, 0, 250, 255),
    255,
)
FILES: dict[str, tuple[bytes, list[int]]] = {  # name -> file, the colour that its points have
    "factor": (plain(SOLID), [231, 89, 89]),  # .8 and .1, linear
    "default": (plain(name="x"), [255, 255, 255]),
    "colour": (plain(None, [0.214, 1, 0]), [127, 255, 0]),
    "colour_material": (plain(None, [1.0, 0, 0], name="x"), [255, 0, 0]),
    "colour_factor": (plain([1, 0, 0.5, 1], [1.0, 1, 0.5]), [255, 0, 137]),  # .25, linear
    "colour_u16": (plain(None, [65535, 32768, 0, 65535], "uint16"), [255, 188, 0]),
    "colour_u8": (plain(None, [255, 128, 0], "uint8"), [255, 188, 0]),
    "colour_above": (plain(None, [7.0, 0.214, -1]), [255, 127, 0]),
    "texture": (textured(png(RED)), [200, 40, 40]),
    "texture_factor": (textured(png((200, 200, 200)), factor=[0.5, 1, 0, 1]), [146, 200, 0]),
    "texture_colour": (textured(png((255, 255, 0)), COLOR_0=np.tile([1.0, 0.0, 1.0], (36, 1))), [255, 0, 0]),
    "unlit": (plain(SOLID, extensions={"KHR_materials_unlit": {}}), [231, 89, 89]),
    "glossy_both": (glossy(diffuseTexture=png(RED), specularGlossinessTexture=1), [200, 40, 40]),
    "glossy_texture": (glossy(diffuseTexture=png(RED)), [200, 40, 40]),
    "glossy_factor": (glossy(diffuseFactor=SOLID, specularFactor=[0.2] * 3), [231, 89, 89]),
    "texcoord_1": (second_coordinates(), [0, 0, 250]),
    "transform": (moved(HALVES, 0.2, {"offset": [0.5, 0], "scale": [0.5, 1]}), [0, 0, 250]),
    "rotated": (moved(QUADRANTS, 0.5, TURN), [0, 0, 250]),
    "transform_texcoord": (second_coordinates({"texCoord": 0}), [200, 40, 40]),
    "mirrored_down": (textured(png(HALVES.transpose(1, 0, 2)), np.full((36, 2), 1.2), {"wrapT": 33648}), [0, 0, 250]),
    "shorts": (shorts(), [0, 0, 250]),
    "clamped": (textured(png(HALVES), np.full((36, 2), 5.2), {"wrapS": 33071, "wrapT": 33071}), [0, 0, 250]),
    "mirrored": (textured(png(HALVES), np.full((36, 2), 1.2), {"wrapS": 33648}), [0, 0, 250]),
    "repeated": (textured(png(HALVES), np.full((36, 2), 1.2), {"wrapS": 10497}), [200, 40, 40]),
    "palette": (textured(png(HALVES[:, :4, :3], mode="P")), [200, 40, 40]),
    "grey": (textured(png((90,), mode="L")), [90, 90, 90]),
    "glossy_palette": (glossy(diffuseTexture=png(HALVES[:, :4, :3], mode="P")), [200, 40, 40]),
    "opaque_0": (textured(png((200, 40, 40, 0))), [200, 40, 40]),
    "opaque_60": (textured(png((200, 40, 40, 60))), [200, 40, 40]),
    "opaque_factor_0": (plain([0.8, 0.1, 0.1, 0]), [231, 89, 89]),
    "opaque_colour_0": (plain(None, [0.8, 0.1, 0.1, 0]), [231, 89, 89]),
    "mask_200": (textured(png((200, 40, 40, 200)), alphaMode="MASK"), [200, 40, 40]),
    "mask_exactly": (plain([0.8, 0.1, 0.1, 0.7], alphaMode="MASK", alphaCutoff=0.7), [231, 89, 89]),
    "mask_cutoff_0": (textured(png((200, 40, 40, 0)), alphaMode="MASK", alphaCutoff=0), [200, 40, 40]),
    "webp": (extended_texture("EXT_texture_webp", WEBP, png((0, 0, 9))), [200, 40, 40]),
    "dds": (extended_texture("MSFT_texture_dds", png(RED, format="DDS"), None), [200, 40, 40]),
    "basisu_factor": (extended_texture("KHR_texture_basisu", None, None, SOLID), [231, 89, 89]),
    "basisu_fallback": (extended_texture("KHR_texture_basisu", None, png(RED)), [200, 40, 40]),
    "two_masks": (two_masks(), [231, 89, 89]),
}  # fmt: skip
HIDDEN = {
    "mask_60": textured(png((200, 40, 40, 60)), alphaMode="MASK"),
    "mask_factor": textured(png((200, 40, 40, 200)), alphaMode="MASK", factor=[1, 1, 1, 0.6]),  # .47
    "mask_cutoff": textured(png((200, 40, 40, 255)), alphaMode="MASK", alphaCutoff=1.01),
}
BLEND = textured(png((200, 40, 40, 200)), alphaMode="BLEND")
HOLES = np.full((4, 8, 4), RED, np.uint8)
HOLES[:, 4:, 3] = 100


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BuiltFile]:
    files = {name: data for name, (data, _) in FILES.items()} | HIDDEN | {"blend": BLEND, "none": plain()}
    files |= {"basisu": extended_texture("KHR_texture_basisu", None, None), "broken": textured(b"no picture")}
    files["holes"] = textured(png(HOLES), np.tile([[0.05, 0], [0.45, 0], [0.45, 1]], (12, 1)), alphaMode="MASK")
    files["holed"] = textured(png(HOLES), np.tile([[0.55, 0], [0.95, 0], [0.95, 1]], (12, 1)), alphaMode="MASK")
    named = {f"{name}.glb": data for name, data in files.items()}
    found = build_files(tmp_path_factory.mktemp("materials"), named, "normalize=bbox_unit_cube")
    return lambda name: found[f"{name}.glb"]


@pytest.mark.parametrize("name", FILES)
def test_points_have_the_colour_that_the_file_says(built, name: str) -> None:
    file = built(name)
    assert (file.reason, file.view_reasons) == ("", {})
    np.testing.assert_allclose(file.color, FILES[name][1], atol=1)
    lit, color = file.pictures["rgb/v00.rgb.png"][16, 16].astype(float), np.array(FILES[name][1])
    shade = lit.max() / color.max()  # of the light, the same for all colours
    assert 0.4 < shade <= 1
    np.testing.assert_allclose(lit, color * shade, atol=16)  # the highlight is white


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("opaque", "mask"))])
def test_what_is_not_see_through_hides_what_is_behind(built, name: str) -> None:
    """The same pictures, whatever alpha the file has."""
    file, other = built(name), built("texture" if FILES[name][1] == [200, 40, 40] else "factor")
    np.testing.assert_array_equal(file.pictures["rgb/v00.rgb.png"], other.pictures["rgb/v00.rgb.png"])
    np.testing.assert_array_equal(file.pictures["rgb/v00.depth.png"], other.pictures["rgb/v00.depth.png"])


@pytest.mark.parametrize("name", HIDDEN)
def test_a_mask_that_hides_everything_is_a_failure_that_says_so(built, name: str) -> None:
    assert built(name).reason == "alphaMode MASK hides all of it: its alpha is below alphaCutoff"


def test_what_a_mask_hides_surely_is_no_part_of_the_surface(built) -> None:
    file = built("two_masks")
    assert file.warnings == {"faces hidden by alphaCutoff": 12}
    assert np.abs(file.source_points).max() <= 0.5 + 1e-6


def test_a_mask_with_holes_is_stored_and_drawn(built) -> None:
    """The cut-off goes through mesh.glb to the pictures: what a texture's alpha hides there is not drawn."""
    file, holed = built("holes"), built("holed")
    assert [m.alpha_cutoff for m in file.mesh.materials] == [0.5]
    np.testing.assert_array_equal(file.pictures["rgb/v00.rgb.png"], built("texture").pictures["rgb/v00.rgb.png"])
    assert set(holed.view_reasons) == {"rgb"} or (holed.pictures["rgb/v00.rgb.png"] > 250).all()


def test_wraps_are_stored(built) -> None:
    assert [built(n).mesh.materials[0].wrap for n in ("clamped", "mirrored", "repeated")] == [
        ("clamp", "clamp"),
        ("mirror", "repeat"),
        ("repeat", "repeat"),
    ]


def test_what_mixes_is_seen_through(built) -> None:
    file = built("blend")
    assert file.reason == ""
    assert file.color == [200, 40, 40]
    solid = built("texture").pictures["rgb/v00.rgb.png"]
    assert solid[16, 16, 1] + 10 < file.pictures["rgb/v00.rgb.png"][16, 16, 1] < 200


@pytest.mark.parametrize("name", ["none", "basisu", "broken"])
def test_what_has_no_material_or_has_lost_its_texture_is_grey_and_has_no_colour(built, name: str) -> None:
    assert (built(name).reason, built(name).colors) == ("", None)
    assert built(name).mesh.materials[0].base_color[:3] == pytest.approx((0.7, 0.7, 0.7), abs=1 / 255)


@pytest.mark.parametrize(
    ("name", "warnings"),
    [
        ("basisu", {"KHR_texture_basisu passed over": 1}),
        ("basisu_fallback", {}),
        ("broken", {"texture broken": 1}),
        ("webp", {}),
        ("colour_above", {"colours outside 0 to 1": 1}),
        ("glossy_both", {}),
        ("repeated", {"texture repeats": 1}),
        ("texture_factor", {}),
    ],
)
def test_what_is_left_out_is_counted(built, name: str, warnings: dict[str, int]) -> None:
    assert built(name).warnings == warnings


CASES = {  # of the shared folder: the colour of its points and the area, None where they do not matter
    **dict.fromkeys(("vertex_colour_with_material", "vertex_colour_with_texture"), ([255, 0, 0], 6)),
    **dict.fromkeys(("vertex_colour_times_factor", "vertex_colour_u16"), ([255, 0, 0], 6)),
    **dict.fromkeys(
        ("opaque_with_alpha_0", "opaque_with_alpha_60", "mask_alpha_200", "palette_png"), ([200, 40, 40], 6)
    ),
    **dict.fromkeys(
        ("specgloss_texture_only", "specgloss_both_textures", "specgloss_texture_spec02"), ([200, 40, 40], 6)
    ),
    **dict.fromkeys(("factor_alpha_opaque", "specgloss_factor_only"), ([231, 89, 89], 6)),
    "linear_vertex_colour": ([127, 127, 127], 6),
    "texcoord1": ([255, 255, 0], 6),
    "blend_alpha_60": ([200, 40, 40], 6),
    "instancing_required": (None, 18),
    **dict.fromkeys(("fan_and_box", "strip_and_box"), (None, 10)),
    **dict.fromkeys(
        ("morph_target_sparse", "quantized", "no_scene", "basisu_required", "unreferenced_vertex"), (None, 6)
    ),
    "default_scene_1": (None, 1),
}


def test_the_shared_cases_are_right(shared, tmp_path) -> None:
    source = shared / "samples" / "cases" / "more"
    if not source.is_dir():
        pytest.skip("no cases")
    found = build_folder(source, tmp_path / "out", "num_points=64", "views.rgb12.azimuth_deg=[30]")
    for name, (color, area) in CASES.items():
        file = found[f"{name}.glb"]
        assert (file.reason, file.area) == ("", pytest.approx(area, rel=1e-3)), name
        if color is not None:
            np.testing.assert_allclose(file.color, color, atol=1, err_msg=name)
    assert "alphaMode MASK" in found["mask_alpha_60.glb"].reason
    assert "VENDOR_unknown" in found["unknown_required_extension.glb"].reason
    assert "glTF 1.0" in found["version1.gltf"].reason


def test_the_transfer_is_that_of_sRGB() -> None:
    shades = np.arange(256) / 255
    np.testing.assert_array_equal(np.rint(255 * to_display(to_linear(shades))), np.arange(256))
    np.testing.assert_allclose(to_display(np.array([0, 0.0031308, 0.214, 1])), [0, 0.04045, 0.5, 1], atol=1e-3)
    linear = np.rint(255 * to_display(to_linear(shades)[:, None] * to_linear(shades)))
    assert np.abs(linear - 255 * shades[:, None] * shades).max() <= 8.5  # what gltf_materials.py says of its product
