"""Reads mesh files of any kind into a `RawShape`, by the reader of their format.

Files of users are only ever read. Textures are looked for inside the source folder and nowhere else.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.formats.gltf import read_gltf
from pipeline.formats.header_checks import check_header
from pipeline.formats.obj import read_obj
from pipeline.formats.off import read_off
from pipeline.formats.ply import read_ply
from pipeline.formats.stl import read_stl
from pipeline.sources.raw_shape import RawShape, check_finite, with_places, without_strays
from pipeline.sources.side_files import SideFiles
from pipeline.sources.source_files import read_source
from renderers.geometry import Mesh
from renderers.normals import weld

MESH_SUFFIXES = (".off", ".obj", ".ply", ".stl", ".glb", ".gltf")
_LARGE = 100_000  # faces; a million of them as a soup take a worker half a gigabyte more


def read_faces(path: Path, root: Path) -> RawShape:
    """`read_mesh` of a dataset of meshes. Raises ValueError also when the file has no faces."""
    raw = read_mesh(path, root)
    if raw.mesh is None:
        raise ValueError("the file has no faces")
    return raw


def read_mesh(path: Path, root: Path, keep_strays: bool = False) -> RawShape:
    """Reads off, obj, ply, stl, glb or gltf by its suffix; textures must lie below `root`.

    keep_strays: keeps vertices that no face has, which are points where the file is read as a cloud.
    Raises ValueError with one line on what is wrong with the file.
    """
    data = read_source(root, path.relative_to(root).as_posix())
    suffix = path.suffix.lower()
    check_header(data, suffix)
    files = SideFiles.of(path, root)
    if suffix == ".off":
        raw = read_off(data)
    elif suffix == ".obj":
        raw = read_obj(data, files, path.stem)
    elif suffix == ".ply":
        raw = read_ply(data, files)
    elif suffix == ".stl":
        raw = read_stl(data)
    else:
        raw = read_gltf(data, suffix, files)
    raw = check_finite(with_places(raw if keep_strays else without_strays(raw)))
    return raw if raw.mesh is None or len(raw.mesh.faces) < _LARGE else _slimmed(raw, raw.mesh)


def _slimmed(raw: RawShape, mesh: Mesh) -> RawShape:
    """The same shape of a large mesh in less memory: of a soup of triangles (STL has no other kind) vertices at the
    same place become one."""
    gc.collect()
    if mesh.vertex_colors is not None or len(mesh.vertices) < len(mesh.faces):
        return raw
    kept, number = np.unique(weld(mesh.vertices), return_inverse=True)
    return replace(raw, mesh=replace(mesh, vertices=mesh.vertices[kept], faces=number[mesh.faces]))
