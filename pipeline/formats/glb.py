"""A normalised mesh as the bytes of a GLB file, and back.

Factors and vertex colours in it are display values, as pictures have them, not the linear ones of the specification;
alpha stands as it is. Other programs show such a file brighter where it has no texture.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from pipeline.formats.gltf import read_gltf
from pipeline.formats.gltf_materials import WRAPS
from renderers.geometry import Material, Mesh
from renderers.shading import is_transparent

_SAMPLED = {wrap: code for code, wrap in WRAPS.items()}


def encode_mesh(mesh: Mesh) -> bytes:
    """GLB bytes of a mesh: one geometry a material, textures as PNG, float32 vertices, +Y up as it stands."""
    scene = trimesh.Scene()
    for index, material in enumerate(mesh.materials):
        chosen = np.flatnonzero(mesh.face_material == index)
        if len(chosen):
            scene.add_geometry(_geometry(mesh, chosen, material, index), geom_name=f"part{index:04d}")
    return scene.export(file_type="glb", tree_postprocessor=partial(_add_samplers, materials=mesh.materials))


def _geometry(mesh: Mesh, chosen: np.ndarray, material: Material, index: int) -> trimesh.Trimesh:
    """A trimesh geometry of some faces. A vertex that has several texture coordinates is repeated."""
    corners = mesh.faces[chosen].reshape(-1)
    if material.texture is not None and mesh.corner_uvs is not None:
        uv = np.ascontiguousarray(mesh.corner_uvs[chosen].reshape(-1, 2), np.float32)
        places, place = np.unique(uv.view(np.complex64)[:, 0], return_inverse=True)  # complex: a pair is one number
        pairs, inverse = np.unique(corners * len(places) + place, return_inverse=True)
        used, uvs = pairs // len(places), places[pairs % len(places)].view(np.float32).reshape(-1, 2)
    else:
        used, inverse = np.unique(corners, return_inverse=True)
        uvs = None
    image = None if material.texture is None or uvs is None else Image.fromarray(material.texture)
    pbr = trimesh.visual.material.PBRMaterial(
        name=f"material{index:04d}",
        baseColorTexture=image,
        baseColorFactor=np.rint(np.array(material.base_color) * 255).astype(np.uint8),
        alphaMode=_alpha_mode(material),
        alphaCutoff=None if material.alpha_cutoff is None else float(material.alpha_cutoff),
        metallicFactor=0.0,
    )
    visual = trimesh.visual.TextureVisuals(uv=uvs, material=pbr)
    if mesh.vertex_colors is not None:
        visual.vertex_attributes["color"] = mesh.vertex_colors[used]
    return trimesh.Trimesh(mesh.vertices[used], inverse.reshape(-1, 3), visual=visual, process=False, validate=False)


def _alpha_mode(material: Material) -> str | None:
    if material.alpha_cutoff is not None:
        return "MASK"
    return "BLEND" if is_transparent(material) else None


def _add_samplers(tree: dict[str, Any], materials: tuple[Material, ...]) -> None:
    """Gives textures the wraps of their materials: trimesh writes no samplers. tree: the JSON of the file."""
    for row in tree.get("materials", ()):
        wrap = materials[int(row["name"].removeprefix("material"))].wrap
        info = row["pbrMetallicRoughness"].get("baseColorTexture")
        if info is not None and wrap != ("repeat", "repeat"):
            tree["textures"][info["index"]]["sampler"] = len(tree.setdefault("samplers", []))
            tree["samplers"].append({"wrapS": _SAMPLED[wrap[0]], "wrapT": _SAMPLED[wrap[1]]})


def decode_mesh(data: bytes) -> Mesh:
    """The mesh of GLB bytes that `encode_mesh` made. Raises ValueError when they are damaged."""
    try:
        mesh = read_gltf(data, ".glb", None, display=True).mesh
    except ValueError as error:
        raise ValueError(f"damaged mesh.glb ({error})") from error
    if mesh is None:
        raise ValueError("damaged mesh.glb (it holds no faces)")
    return mesh
