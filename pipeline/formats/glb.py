"""A normalised mesh as the bytes of a GLB file, and back."""

from __future__ import annotations

import io
import re

import numpy as np
import trimesh
from PIL import Image

from renderers.geometry import Material, Mesh, from_trimesh
from renderers.shading import is_transparent


def encode_mesh(mesh: Mesh) -> bytes:
    """GLB bytes of a mesh: one geometry a material, textures as PNG, float32 vertices, +Y up as it stands."""
    scene = trimesh.Scene()
    for index, material in enumerate(mesh.materials):
        chosen = np.flatnonzero(mesh.face_material == index)
        if len(chosen):
            scene.add_geometry(_geometry(mesh, chosen, material, index), geom_name=f"part{index:04d}")
    return scene.export(file_type="glb")


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
        alphaMode="BLEND" if is_transparent(material) else None,
        metallicFactor=0.0,
    )
    visual = trimesh.visual.TextureVisuals(uv=uvs, material=pbr)
    if mesh.vertex_colors is not None:
        visual.vertex_attributes["color"] = mesh.vertex_colors[used]
    return trimesh.Trimesh(mesh.vertices[used], inverse.reshape(-1, 3), visual=visual, process=False, validate=False)


def decode_mesh(data: bytes) -> Mesh:
    """The mesh of GLB bytes that `encode_mesh` made. Raises ValueError when they are damaged."""
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"damaged mesh.glb ({type(error).__name__}: {error})") from error
    names = sorted(scene.geometry, key=lambda name: int(re.sub(r"\D", "", name) or 0))
    return from_trimesh([scene.geometry[name] for name in names])
