"""Meshes of our own with known geometry, all within the unit sphere."""

from __future__ import annotations

import numpy as np

from renderers.geometry import Material, Mesh, join

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float) * 0.5
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
CUBE_FACES = np.array([[q[i] for i in t] for q in QUADS for t in ((0, 1, 2), (0, 2, 3))])


def cube() -> Mesh:
    return Mesh(CUBE, CUBE_FACES)


def sphere(rings: int = 10) -> Mesh:
    """Radius 0.8, as rings of latitude; the faces at the poles that have no area are kept."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings + 1), indexing="ij")
    points = np.stack([np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], -1).reshape(-1, 3)
    columns = 2 * rings + 1
    faces = []
    for i in range(rings):
        for j in range(2 * rings):
            a, b = i * columns + j, (i + 1) * columns + j
            faces += [[a, b, b + 1], [a, b + 1, a + 1]]
    return Mesh(0.8 * points, np.array(faces))


def tilted_plane() -> Mesh:
    corners = np.array([[-0.6, -0.5, 0.2], [0.6, -0.5, -0.2], [0.6, 0.5, -0.4], [-0.6, 0.5, 0.0]])
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))


def textured_plane(picture: np.ndarray, repeat: float) -> Mesh:
    """A square in the plane z = 0 with a picture uint8 (H, W, 4), repeated so many times in each axis."""
    corners = np.array([[-0.7, -0.7, 0], [0.7, -0.7, 0], [0.7, 0.7, 0], [-0.7, 0.7, 0]], float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = np.array([[0, 0], [repeat, 0], [repeat, repeat], [0, repeat]], np.float32)
    return Mesh(corners, faces, (Material((1, 1, 1, 1), picture),), corner_uvs=uv[faces])


def box(low: tuple[float, float, float], high: tuple[float, float, float], material: Material) -> Mesh:
    """An axis-aligned box between two corners."""
    bounds = np.array([low, high])
    return Mesh(bounds[(np.sign(CUBE) > 0).astype(int), [0, 1, 2]], CUBE_FACES, (material,))


def chair() -> Mesh:
    """Seat, back and four legs, in three colours; its front looks along -Z."""
    wood, cloth, steel = (Material((*c, 1.0)) for c in ((0.6, 0.4, 0.2), (0.2, 0.3, 0.7), (0.8, 0.8, 0.8)))
    legs = [box((x, -0.7, z), (x + 0.08, -0.05, z + 0.08), steel) for x in (-0.4, 0.32) for z in (-0.4, 0.32)]
    return join(
        [box((-0.4, -0.05, -0.4), (0.4, 0.05, 0.4), wood), box((-0.4, 0.05, 0.32), (0.4, 0.75, 0.4), cloth), *legs]
    )


def twins(mesh: Mesh, own_vertices: bool) -> Mesh:
    """Every face of a mesh twice, the second time the other way round, as most datasets store them.

    own_vertices: the twins have vertices of their own (ModelNet) instead of sharing them (ShapeNet).
    """
    back = Mesh(mesh.vertices, mesh.faces[:, ::-1], mesh.materials, mesh.face_material)
    if own_vertices:
        return join([mesh, back])
    material = np.concatenate([mesh.face_material] * 2)
    return Mesh(mesh.vertices, np.concatenate([mesh.faces, back.faces]), mesh.materials, material)
