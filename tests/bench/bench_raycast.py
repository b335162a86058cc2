"""RGB and depth of a textured mesh of 20,480 faces that covers about 30 % of the picture, one core.

    python tests/bench/bench_raycast.py

Baseline of the ratio: the rays alone (Open3D's cast), in the same run.
"""

from __future__ import annotations

from machine import describe_machine, one_core, repeat

one_core()

import numpy as np  # noqa: E402
import open3d as o3d  # noqa: E402

from manifests.presets import load_preset  # noqa: E402
from manifests.samples import depth_codes, encode_picture  # noqa: E402
from pipeline.shards.object import keep_freed_memory  # noqa: E402
from renderers import raycast  # noqa: E402
from renderers.backend_table import preset_cameras  # noqa: E402
from renderers.cameras import pixel_rays  # noqa: E402
from renderers.geometry import Material, Mesh  # noqa: E402
from renderers.shading import prepare  # noqa: E402


def small_spheres() -> Mesh:
    """64 textured spheres of 320 faces in a cube."""
    sphere = o3d.geometry.TriangleMesh.create_icosahedron()
    sphere = sphere.subdivide_midpoint(2)
    unit = np.asarray(sphere.vertices)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    faces = np.asarray(sphere.triangles)
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 4)] * 3), -1).reshape(-1, 3)
    vertices = np.concatenate([0.105 * unit + centre for centre in grid])
    triangles = np.concatenate([faces + i * len(unit) for i in range(len(grid))])
    corners = vertices[triangles]
    uv = np.stack([corners[..., 0] + 0.5, corners[..., 1] + 0.5], -1).astype(np.float32)
    picture = np.random.default_rng(0).integers(0, 255, (256, 256, 4), dtype=np.uint8)
    picture[..., 3] = 255
    return Mesh(vertices, triangles, (Material((1, 1, 1, 1), picture),), corner_uvs=uv)


def main() -> None:
    """Prints one line a stage."""
    keep_freed_memory()  # as a worker does
    mesh, (_, preset) = small_spheres(), load_preset("rgb12")
    cameras = preset_cameras(preset)
    views = raycast.draw_mesh(mesh, preset, cameras)
    coverage = np.mean([view.coverage for view in views])
    print(f"{describe_machine()}; {len(mesh.faces):,} faces, coverage {coverage:.2f}, {preset.image_size} px, 12 views")
    surface = prepare(mesh, preset)
    scene = raycast._scene(surface.vertices, np.arange(len(surface.vertices)).reshape(-1, 3))

    def rays_alone() -> None:
        for camera in cameras:
            rows, columns = raycast._window(surface.vertices, camera, 1)
            raycast._cast(scene, pixel_rays(camera, rows, columns, 1))

    def with_jpeg() -> None:
        for view in raycast.draw_mesh(mesh, preset, cameras):
            encode_picture(view.rgb, "jpg")

    def with_both() -> None:
        for view in raycast.draw_mesh(mesh, preset, cameras):
            encode_picture(view.rgb, "jpg")
            encode_picture(depth_codes(view.depth, preset.near, preset.far)[0], "png")

    base = repeat(rays_alone, 12)
    for name, call in (("rays alone", rays_alone), ("RGB + shading + JPEG", with_jpeg), ("and 16-bit PNG", with_both)):
        low, middle = base if call is rays_alone else repeat(call, 12)
        ratio = middle / base[1]
        print(f"{name:22} {low / 12:6.2f} ms a view at best, {middle / 12:6.2f} median, {ratio:.2f} x the rays")


if __name__ == "__main__":
    main()
