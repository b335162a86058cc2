"""glTF files that cannot be read, through the real command: each reason is in our words and names what is wrong."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable

import numpy as np
import pytest
from builders import REPOSITORY
from gltf_maker import BuiltFile, GltfMaker, box, build_files

from pipeline.formats.gltf_features import APPLIED, FEATURES, NO_PART, REFUSED, ROWS, WARNED

UV = np.zeros((36, 2), np.float32)


def changed(change: Callable[[GltfMaker], object]) -> bytes:
    """A box with TEXCOORD_0 and COLOR_0, changed."""
    made = GltfMaker()
    made.show(made.primitive(box(), range(36), None, TEXCOORD_0=UV, COLOR_0=np.ones((36, 3))))
    change(made)
    return made.glb()


def json_file(**values: object) -> bytes:
    return json.dumps({"asset": {"version": "2.0"}, **values}).encode()


def primitive(made: GltfMaker) -> dict:
    return made.values["meshes"][0]["primitives"][0]


def lines_only() -> bytes:
    made = GltfMaker()
    return made.show(made.primitive(box(), mode=3), made.primitive(box(), range(8), mode=1)).glb()


def repeated() -> bytes:
    """A tree whose leaves would draw 33 million faces."""
    made = GltfMaker()
    made.mesh(made.primitive(np.zeros((30000, 3))))
    made.values["nodes"] = [{"mesh": 0} for _ in range(3300)]
    return made.glb()


def bad_point(made: GltfMaker) -> None:
    made.body[4:8] = struct.pack("<f", float("nan"))


SHORT = base64.b64encode(bytes(24)).decode()
VIEW = {"bufferViews": [{"buffer": 0, "byteLength": 36}], "nodes": [{"mesh": 0}]}
ONE = {
    "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
    **VIEW,
}
REASONS: dict[str, tuple[bytes, str]] = {
    "version_1.gltf": (json.dumps({"asset": {"version": "1.0"}, "meshes": {}}).encode(), "glTF 1.0 is not read"),
    "version_1_bare.gltf": (b'{"meshes": {"a": {}}}', "glTF 1.0 is not read"),
    "version_1.glb": (b"glTF" + struct.pack("<IIII", 1, 24, 4, 0) + b"{}  ", "glTF 1.0 is not read"),
    "version_3.gltf": (json.dumps({"asset": {"version": "3.0"}}).encode(), "it needs a reader of glTF '3.0'; 2.0 is"),
    "least_2_1.gltf": (
        json.dumps({"asset": {"version": "2.1", "minVersion": "2.1"}}).encode(),
        r"it needs a reader of glTF '2.1'; 2.0 is read",
    ),
    "text.gltf": (b"hello", r"its JSON cannot be read \(line 1, column 1\)"),
    "latin.gltf": ('{"a": "ü"}'.encode("latin-1"), "its JSON cannot be read: it is no UTF-8"),
    "list.gltf": (b"[]", "its JSON is no object"),
    "short.gltf": (
        json_file(buffers=[{"uri": f"data:;base64,{SHORT}", "byteLength": 36}], **ONE),
        "buffer 0 announces 36 bytes, 24 are there",
    ),
    "short_file.gltf": (json_file(buffers=[{"uri": "short.bin", "byteLength": 36}], **ONE), "36 bytes, 9 are there"),
    "missing.gltf": (
        json_file(buffers=[{"uri": "my%20gone.bin", "byteLength": 36}], **ONE),
        "its buffer my%20gone.bin is not in the source folder",
    ),
    "no_base64.gltf": (json_file(buffers=[{"uri": "data:;base64,@@@@A", "byteLength": 36}], **ONE), "is no base64"),
    "no_uri.gltf": (json_file(buffers=[{"byteLength": 36}], **ONE), "buffer 0 has neither a uri nor a chunk"),
    "view.glb": (changed(lambda m: m.values["bufferViews"][0].update(byteOffset=999)), "buffer view 0 ends at byte 1"),
    "body.glb": (changed(lambda m: m.body.clear()), "a buffer view names number 0 of 0 buffers"),
    "required.glb": (
        changed(lambda m: m.values.update(extensionsRequired=["VENDOR_unknown"])),
        "it requires the extension VENDOR_unknown, which is not read",
    ),
    "splats.glb": (
        changed(lambda m: m.values.update(extensionsRequired=["KHR_gaussian_splatting"])),
        "it requires the extension KHR_gaussian_splatting, which is not read",
    ),
    "index.glb": (
        changed(lambda m: primitive(m).update(indices=m.accessor([0, 1, 36], "uint16"))),
        "a face names vertex 36 of 36",
    ),
    "restart.glb": (
        changed(lambda m: primitive(m).update(indices=m.accessor([0, 1, 65535], "uint16"))),
        "a face names vertex 65535 of 36",
    ),
    "counts.glb": (
        changed(lambda m: primitive(m)["attributes"].update(COLOR_0=m.accessor(np.ones((9, 3))))),
        "a primitive has 9 of COLOR_0 for 36 of POSITION",
    ),
    "nan.glb": (changed(bad_point), r"a vertex is not finite \(NaN or infinity\)"),
    "position.glb": (
        changed(lambda m: primitive(m)["attributes"].update(POSITION=m.accessor(UV))),
        "POSITION is of type VEC2, component 5126, not VEC3",
    ),
    "mode.glb": (changed(lambda m: primitive(m).update(mode=9)), "a primitive is of mode 9, which glTF does not know"),
    "material.glb": (changed(lambda m: primitive(m).update(material=3)), "a primitive names number 3 of 0 materials"),
    "attributes.glb": (changed(lambda m: primitive(m).update(attributes=[1])), "attributes that is no object"),
    "matrix.glb": (
        changed(lambda m: m.values["nodes"][0].update(matrix=[1, 2, 3])),
        "its JSON has a matrix that is no list of 16 numbers",
    ),
    "word.glb": (changed(lambda m: primitive(m).update(mode=[1])), "its JSON is not of the form that glTF 2.0"),
    "scene.glb": (changed(lambda m: m.values.update(scene=4)), "the file names number 4 of 1 scenes"),
    "skin.glb": (
        changed(
            lambda m: (
                m.add("skins", joints=[0]),
                m.values["nodes"][0].update(skin=0),
                primitive(m)["attributes"].update(
                    JOINTS_0=m.accessor(np.full((36, 4), 5), "uint8"), WEIGHTS_0=m.accessor(np.ones((36, 4)))
                ),
            )
        ),
        "a vertex names joint 5 of 1",
    ),
    "lines.glb": (lines_only(), r"the file holds lines only \(39 of them\)"),
    "scale_0.glb": (
        changed(lambda m: m.values["nodes"][0].update(scale=[0, 0, 0])),
        "all its faces are below nodes of scale 0",
    ),
    "hidden.glb": (
        changed(lambda m: m.values["nodes"][0].update(extensions={"KHR_node_visibility": {"visible": False}})),
        r"all its nodes with a mesh are hidden \(KHR_node_visibility\)",
    ),
    "empty_scene.glb": (
        changed(lambda m: m.values["scenes"].insert(0, {"nodes": []})),
        "its scene shows no node with a mesh; 1 meshes are outside of it",
    ),
    "no_node.gltf": (json_file(meshes=[{"primitives": []}]), "its scene shows no node with a mesh; 1 meshes are"),
    "bare.gltf": (json_file(), "the file holds neither faces nor points"),
    "repeated.glb": (repeated(), "its nodes draw 33,000,000 faces or points, of 10,000 in the file: too many"),
}  # fmt: skip
PYTHON = re.compile(
    r"\b[A-Z]\w*(Error|Exception)\b|NoneType|object has no|subscriptable|not enough values|buffer is too"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuiltFile]:
    files = {name: data for name, (data, _) in REASONS.items()} | {"short.bin": bytes(9)}
    return build_files(tmp_path_factory.mktemp("files"), files)


@pytest.mark.parametrize("name", REASONS)
def test_a_reason_is_in_our_words(built, name: str) -> None:
    assert re.search(REASONS[name][1], built[name].reason), built[name].reason
    assert not PYTHON.search(built[name].reason)


def test_a_reason_is_one_line_whatever_the_file_holds(tmp_path) -> None:
    made = GltfMaker()
    made.show(made.primitive(box()))
    made.values["accessors"][0]["type"] = "a\nb\r\nc"
    (file,) = build_files(tmp_path, {"a.glb": made.glb()}).values()
    assert file.reason == "POSITION is of type a b c, component 5126, not VEC3"


def test_what_a_file_uses_and_is_left_out_is_counted(tmp_path) -> None:
    """Once a material, primitive or node that uses it; what a file has and nothing uses is not counted."""
    made = GltfMaker()
    glow = {"emissiveFactor": [1, 1, 1], "normalTexture": {"index": 0}, "extensions": {"KHR_materials_clearcoat": {}}}
    used = [made.material([1, 0, 0, 1], **glow), made.material([1, 0, 0, 1], emissiveTexture={"index": 0}, **glow)]
    made.material([0, 0, 1, 1], occlusionTexture={"index": 0})
    dark = made.material([1, 0, 0, 1], emissiveTexture={"index": 0}, extensions={"VENDOR_paint": {}, "x\ny": {}})
    primitives = [made.primitive(box(), None, number) for number in (*used, used[0], dark)]
    primitives[0]["attributes"]["COLOR_1"] = made.accessor(np.ones((36, 3)))
    primitives[1]["extensions"] = {"CESIUM_primitive_outline": {"indices": 0}}
    made.show(*primitives, extensions={"KHR_lights_punctual": {"light": 0}})
    made.values |= {"extensionsRequired": ["KHR_materials_clearcoat", "KHR_lights_punctual"]}
    (file,) = build_files(tmp_path, {"a.glb": made.glb()}).values()
    assert file.warnings == {
        "CESIUM_primitive_outline passed over": 1,
        "COLOR_1 passed over": 1,
        "KHR_materials_clearcoat passed over": 2,
        "double faces": 36,  # of four boxes at one place
        "emissiveFactor passed over": 2,
        "emissiveTexture passed over": 1,
        "normalTexture passed over": 2,
        "unknown extension VENDOR_paint passed over": 1,
        "unknown extension of no proper name passed over": 1,
    }


CORE = """
accessor: bufferView byteOffset componentType normalized count type max min sparse
accessor sparse: count indices values
asset: copyright generator version minVersion
attribute: POSITION NORMAL TANGENT TEXCOORD_n COLOR_0 COLOR_1 JOINTS_n WEIGHTS_n
buffer: uri byteLength
bufferView: buffer byteOffset byteLength byteStride target
glTF: extensionsUsed extensionsRequired accessors animations asset buffers bufferViews cameras images materials meshes
glTF: nodes samplers scene scenes skins textures
image: uri mimeType bufferView
material: pbrMetallicRoughness normalTexture occlusionTexture emissiveTexture emissiveFactor alphaMode alphaCutoff
material: doubleSided
mesh: primitives weights
node: camera children skin matrix mesh rotation scale translation weights
pbrMetallicRoughness: baseColorFactor baseColorTexture metallicFactor roughnessFactor metallicRoughnessTexture
primitive: attributes indices material mode targets
sampler: magFilter minFilter wrapS wrapT
scene: nodes
skin: inverseBindMatrices skeleton joints
texture: sampler source
textureInfo: index texCoord
any: name extras
"""  # properties of the schema of glTF 2.0
EXTENSIONS = """
KHR_animation_pointer KHR_draco_mesh_compression KHR_gaussian_splatting KHR_interactivity KHR_lights_punctual
KHR_materials_anisotropy KHR_materials_clearcoat KHR_materials_diffuse_transmission KHR_materials_dispersion
KHR_materials_emissive_strength KHR_materials_ior KHR_materials_iridescence KHR_materials_sheen KHR_materials_specular
KHR_materials_transmission KHR_materials_unlit KHR_materials_variants KHR_materials_volume KHR_mesh_quantization
KHR_meshopt_compression KHR_node_hoverability KHR_node_selectability KHR_node_visibility KHR_texture_basisu
KHR_texture_transform KHR_xmp_json_ld KHR_materials_pbrSpecularGlossiness KHR_techniques_webgl KHR_xmp
KHR_accessor_float64 KHR_audio_graph KHR_collision_shapes KHR_materials_subsurface KHR_physics_rigid_bodies
KHR_texture_procedurals KHR_texture_video EXT_texture_procedurals_mx_1_39
EXT_lights_ies EXT_lights_image_based EXT_mesh_gpu_instancing EXT_mesh_manifold EXT_mesh_primitive_edge_visibility
EXT_mesh_primitive_restart EXT_meshopt_compression EXT_texture_astc EXT_texture_webp EXT_texture_avif EXT_mesh_features
EXT_structural_metadata EXT_instance_features EXT_feature_metadata
ADOBE_materials_clearcoat_specular ADOBE_materials_clearcoat_tint ADOBE_materials_thin_transparency AGI_articulations
AGI_stk_metadata CESIUM_primitive_outline FB_geometry_metadata GODOT_single_root GRIFFEL_bim_data MPEG_accessor_timed
MPEG_animation_timing MPEG_audio_spatial MPEG_buffer_circular MPEG_media MPEG_mesh_linking MPEG_scene_dynamic
MPEG_texture_video MPEG_viewport_recommended MSFT_lod MSFT_packing_normalRoughnessMetallic
MSFT_packing_occlusionRoughnessMetallic MSFT_texture_dds NV_materials_mdl VRM VRMC_vrm VRMC_materials_mtoon
"""  # of Khronos's registry: ratified, in progress, vendors', archived; and what is common beside it


def test_the_page_shows_the_table() -> None:
    page = (REPOSITORY / "docs/datasets.md").read_text()
    shown = re.findall(r"^\| (.+?) \| `(.+)` \| (applied|warned|refused|no part) \|(.*)\|$", page, re.MULTILINE)
    assert [(of, names.replace("`, `", " "), what, note.strip()) for of, names, what, note in shown] == list(ROWS)


def test_the_table_has_every_feature_of_the_specification() -> None:
    for line in CORE.strip().splitlines():
        of, names = line.split(": ")
        for name in names.split():
            assert f"{of} {name}" in FEATURES
    for name in EXTENSIONS.split():
        assert f"extension {name}" in FEATURES
    assert set(FEATURES.values()) == {APPLIED, WARNED, REFUSED, NO_PART}


@pytest.mark.parametrize("what", [APPLIED, WARNED, NO_PART, REFUSED])
def test_what_the_table_says_of_extensions_is_what_happens(tmp_path, what: str) -> None:
    """Each alone, required and carried by material, primitive and node."""
    names = [
        key.removeprefix("extension ") for key, value in FEATURES.items() if key[:9] == "extension" and value == what
    ]
    files = {}
    for name in names:
        for required in (True, False):
            made = GltfMaker()
            material = made.material([1, 0, 0, 1], extensions={name: {}})
            made.show(made.primitive(box(), None, material))
            made.values |= {"extensionsUsed": [name]} | ({"extensionsRequired": [name]} if required else {})
            files[f"{name}-{required}.glb"] = made.glb()
    found = build_files(tmp_path, files, "num_points=16", "fps_prefix=4", "views.rgb12.azimuth_deg=[0]")
    for file, built in found.items():
        name, required = file.removesuffix(".glb").split("-")
        if what == REFUSED and required == "True":
            assert built.reason == f"it requires the extension {name}, which is not read"
        else:
            assert built.reason == ""
            assert built.warnings == ({f"{name} passed over": 1} if what in (WARNED, REFUSED) else {})
