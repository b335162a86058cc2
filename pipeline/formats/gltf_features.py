"""Says what becomes of each feature of glTF 2.0 and of its extensions: one table, and the checks that read it.

docs/datasets.md shows the same table. A row covers names of one kind of object; `extension` rows are extensions.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

APPLIED = "applied"  # read as the specification says
WARNED = "warned"  # it would change the look: left out, and counted as `NAME passed over`
REFUSED = "refused"  # a file that requires it is a Failure; where it is only used, it is warned of
NO_PART = "no part"  # it changes neither points nor pictures

ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("asset", "version minVersion", APPLIED, "2.x is read; glTF 1.0 is refused in one line"),
    ("asset", "copyright generator", NO_PART, "about the file"),
    ("glTF", "accessors asset bufferViews buffers images materials meshes nodes samplers skins textures", APPLIED, ""),
    ("glTF", "scene scenes", APPLIED, "no scenes: the root nodes are drawn; no scene: scenes[0]"),
    ("glTF", "extensionsRequired", APPLIED, "a name that is not in this table, or is refused by it, is a failure"),
    ("glTF", "extensionsUsed", NO_PART, "what objects of the file really carry counts"),
    ("glTF", "animations cameras", NO_PART, "the pose at rest is drawn, by the preset's cameras"),
    ("accessor", "bufferView byteOffset componentType count normalized sparse type", APPLIED, "no bufferView: zeros"),
    ("accessor", "max min", NO_PART, "bounds of the values, which are read themselves"),
    ("accessor sparse", "count indices values", APPLIED, ""),
    ("buffer", "byteLength uri", APPLIED, "files inside the source folder, data: URIs, the chunk of a GLB"),
    ("bufferView", "buffer byteLength byteOffset byteStride", APPLIED, ""),
    ("bufferView", "target", NO_PART, "a hint for graphics cards"),
    ("image", "bufferView uri", APPLIED, "PNG, JPEG, WebP, DDS, TIFF, BMP, GIF, TGA"),
    ("image", "mimeType", NO_PART, "the first bytes say what a picture is"),
    ("material", "alphaCutoff alphaMode pbrMetallicRoughness", APPLIED, "OPAQUE ignores alpha, MASK cuts, BLEND mixes"),
    (
        "material",
        "emissiveFactor emissiveTexture normalTexture occlusionTexture",
        WARNED,
        "base colour and light alone",
    ),
    ("material", "doubleSided", NO_PART, "presets light both sides"),
    ("pbrMetallicRoughness", "baseColorFactor baseColorTexture", APPLIED, "linear factor, sRGB texture"),
    ("pbrMetallicRoughness", "metallicRoughnessTexture", WARNED, "presets have one Phong light for all"),
    ("pbrMetallicRoughness", "metallicFactor roughnessFactor", NO_PART, "presets have one Phong light for all"),
    ("mesh", "primitives weights", APPLIED, "morph targets with their default weights"),
    ("node", "children matrix mesh rotation scale skin translation weights", APPLIED, "also below cameras and lights"),
    ("node", "camera", NO_PART, "presets have cameras of their own"),
    ("primitive", "attributes indices material mode targets", APPLIED, "lines, and points beside faces, are warned of"),
    ("attribute", "POSITION TEXCOORD_n COLOR_0 JOINTS_n WEIGHTS_n", APPLIED, "COLOR_0 is linear"),
    ("attribute", "COLOR_1", WARNED, "the specification multiplies by COLOR_0 alone"),
    ("attribute", "NORMAL TANGENT _APPLICATION", NO_PART, "presets make normals from the faces"),
    ("sampler", "wrapS wrapT", APPLIED, "repeat, clamp, mirror"),
    ("sampler", "magFilter", WARNED, "NEAREST is drawn bilinearly"),
    ("sampler", "minFilter", NO_PART, "pictures are not minified by mipmaps"),
    ("scene", "nodes", APPLIED, ""),
    ("skin", "inverseBindMatrices joints", APPLIED, "the pose that nodes and inverse bind matrices give"),
    ("skin", "skeleton", NO_PART, "a hint"),
    ("texture", "sampler source", APPLIED, ""),
    ("textureInfo", "index texCoord", APPLIED, ""),
    ("any", "extras name", NO_PART, "about the object"),
    ("extension", "KHR_draco_mesh_compression", APPLIED, "with DracoPy (extra build), else refused by name"),
    (
        "extension",
        "EXT_meshopt_compression KHR_meshopt_compression",
        APPLIED,
        "with meshopt (extra build), else refused",
    ),
    ("extension", "KHR_mesh_quantization KHR_accessor_float64", APPLIED, ""),
    ("extension", "EXT_mesh_gpu_instancing KHR_node_visibility", APPLIED, ""),
    ("extension", "KHR_texture_transform EXT_texture_webp MSFT_texture_dds", APPLIED, "of the base colour's texture"),
    ("extension", "KHR_materials_unlit", APPLIED, "the colour; the preset's light stays"),
    ("extension", "KHR_materials_pbrSpecularGlossiness", APPLIED, "the diffuse factor and texture"),
    (
        "extension",
        "MSFT_lod KHR_materials_variants EXT_mesh_primitive_restart",
        APPLIED,
        "what the file itself shows first",
    ),
    (
        "extension",
        "KHR_texture_basisu EXT_texture_astc EXT_texture_avif EXT_texture_video MPEG_texture_video",
        WARNED,
        "the picture of `source` where there is one, else the factor or grey",
    ),
    (
        "extension",
        "KHR_materials_anisotropy KHR_materials_clearcoat KHR_materials_diffuse_transmission KHR_materials_dispersion "
        "KHR_materials_emissive_strength KHR_materials_ior KHR_materials_iridescence KHR_materials_sheen "
        "KHR_materials_specular KHR_materials_subsurface KHR_materials_transmission KHR_materials_volume "
        "ADOBE_materials_clearcoat_specular ADOBE_materials_clearcoat_tint ADOBE_materials_thin_transparency "
        "NV_materials_mdl KHR_texture_procedurals EXT_texture_procedurals_mx_1_39 KHR_texture_video",
        WARNED,
        "base colour and light alone",
    ),
    (
        "extension",
        "CESIUM_primitive_outline EXT_mesh_primitive_edge_visibility",
        WARNED,
        "lines are not drawn",
    ),
    (
        "extension",
        "KHR_animation_pointer KHR_audio_graph KHR_audio_emitter KHR_collision_shapes KHR_implicit_shapes "
        "KHR_interactivity KHR_lights_punctual KHR_node_hoverability KHR_node_selectability KHR_physics_rigid_bodies "
        "KHR_xmp KHR_xmp_json_ld EXT_lights_ies EXT_lights_image_based EXT_mesh_manifold EXT_mesh_features "
        "EXT_instance_features EXT_structural_metadata EXT_feature_metadata AGI_articulations AGI_stk_metadata "
        "FB_geometry_metadata FB_ngon_encoding GODOT_single_root GRIFFEL_bim_data MPEG_animation_timing "
        "MPEG_audio_spatial MPEG_media MPEG_viewport_recommended MSFT_packing_normalRoughnessMetallic "
        "MSFT_packing_occlusionRoughnessMetallic VRM VRMC_vrm VRMC_springBone VRMC_node_constraint",
        NO_PART,
        "sound, physics, light, motion, metadata, or copies of textures that are not drawn",
    ),
    ("extension", "VRMC_materials_mtoon", WARNED, "the core material is drawn"),
    (
        "extension",
        "KHR_gaussian_splatting KHR_gaussian_splatting_compression_spz KHR_gaussian_splatting_compression_spz_2 "
        "KHR_techniques_webgl KHR_blend EXT_primitive_voxels MPEG_accessor_timed MPEG_buffer_circular "
        "MPEG_mesh_linking MPEG_scene_dynamic",
        REFUSED,
        "the shape or the colour is in it alone",
    ),
)
FEATURES = {f"{of} {name}": what for of, names, what, _ in ROWS for name in names.split()}
_NAME = re.compile(r"\w{1,60}", re.ASCII)
_MOST_NAMES = 20  # of unknown extensions, which a file may make up


def check_required(names: list[str]) -> None:
    """Raises ValueError when a file requires an extension that is not in the table, or that is refused."""
    for name in names:
        if FEATURES.get(f"extension {name}", REFUSED) == REFUSED:
            raise ValueError(f"it requires the extension {_plain(name)}, which is not read")


def count_left_out(of: str, values: dict[str, Any], warnings: Counter[str]) -> None:
    """Counts what an object of the file, of the kind `of`, carries that is left out and would change the look."""
    warnings.update(f"{key} passed over" for key in values if FEATURES.get(f"{of} {key}") == WARNED)
    carried = values.get("extensions")
    for name in carried if isinstance(carried, dict) else ():
        known = FEATURES.get(f"extension {name}")
        if known is None:
            kind = f"unknown extension {_plain(name)} passed over"
            names = sum(each.startswith("unknown extension ") for each in warnings)
            warnings[kind if kind in warnings or names < _MOST_NAMES else "more unknown extensions passed over"] += 1
        elif known in (WARNED, REFUSED):
            warnings[f"{name} passed over"] += 1


def _plain(name: str) -> str:
    return name if _NAME.fullmatch(name) else "of no proper name"
