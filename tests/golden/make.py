"""Makes the golden pictures of this folder anew: python tests/golden/make.py

Shapes are written beside the pictures, so that a later change of a shape's maker leaves the pictures comparable. A
change of a picture is a change of what a preset means: look at the difference before committing it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from manifests.presets import DrawnViews, load_preset
from pipeline.datasets.synthetic.generator import generate
from renderers.backend_table import draw, preset_cameras
from renderers.geometry import Material, Mesh, join
from renderers.sampling import farthest_points, normalization, sample_surface

FOLDER = Path(__file__).resolve().parent
NUM_POINTS = 1024
SIZE = 64
VIEWS = 4  # so many of each preset's views, evenly spread

# picture -> (shape, preset, changes to it)
CASES: dict[str, tuple[str, str, dict[str, object]]] = {
    "chair.rgb12": ("chair", "rgb12", {}),
    "chair.rgb10_release": ("chair", "rgb10_release", {}),
    "chair.rgb20_far_light": ("chair", "rgb20", {"light_direction": [0.4, 1.0, 0.7], "supersample": 2}),
    "ball_and_glass.rgb12": ("ball_and_glass", "rgb12", {}),
    "ball_and_glass.rgb30_clamp": ("ball_and_glass", "rgb30", {"texture_wrap": "clamp", "normals": "flat"}),
    "ball_and_glass.rgbd12_orthographic": ("ball_and_glass", "rgbd12", {"projection": "orthographic"}),
    "airplane.rgb12_mvtn": ("airplane", "rgb12_mvtn", {}),
    "chair.depth10": ("chair", "depth10", {}),
    "chair.weighted10_r2": ("chair", "weighted10_r2", {}),
    "chair.depth10_release": ("chair", "depth10_release", {}),
    "chair.pointclip10": ("chair", "pointclip10", {}),
    "chair.simpleview6_rgb": ("chair", "simpleview6_rgb", {}),
    "airplane.realistic10": ("airplane", "realistic10", {}),
    "ball_and_glass.depth10": ("ball_and_glass", "depth10", {}),
    "ball_and_glass.depth6_release": ("ball_and_glass", "depth6_release", {}),
}


def ball(radius: float, rings: int) -> Mesh:
    """A sphere around the origin with smooth coordinates of a picture: u around +Y, v upwards."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings + 1), indexing="ij")
    points = np.stack([np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], axis=-1).reshape(-1, 3)
    uv = np.stack([3 * phi / np.pi, 2 - 2 * theta / np.pi], axis=-1).reshape(-1, 2).astype(np.float32)
    row, column = np.divmod(np.arange(2 * rings * rings), 2 * rings)
    corner = row * (2 * rings + 1) + column
    below = corner + 2 * rings + 1
    faces = np.concatenate([np.stack([corner, below, below + 1], 1), np.stack([corner, below + 1, corner + 1], 1)])
    return Mesh(radius * points, faces, (Material((1.0, 1.0, 1.0, 1.0), tiles()),), corner_uvs=uv[faces])


def tiles() -> np.ndarray:
    """uint8 (12, 20, 4): a gradient in red and blue, a darker lower left quarter; neither square nor symmetric."""
    row, column = np.mgrid[:12, :20]
    picture = np.stack([13 * column, 60 + 0 * row, 22 * row, 255 + 0 * row], axis=-1).astype(np.uint8)
    picture[6:, :10, 1] = 200
    return picture


def pane(centre: tuple[float, float, float], color: tuple[float, float, float, float]) -> Mesh:
    """A square of side 1 that faces +Z."""
    corners = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]]) + np.array(centre)
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), (Material(color),))


def shapes() -> dict[str, Mesh]:
    """The meshes by name, as their makers give them."""
    glass = [pane((0.3, 0.2, 0.75), (0.9, 0.2, 0.1, 0.3)), pane((-0.2, 0.0, -0.8), (0.1, 0.7, 0.3, 0.8))]
    return {
        "chair": generate("chair", 7, 0),
        "airplane": generate("airplane", 7, 1),
        "ball_and_glass": join([ball(0.6, 12), *glass]),
    }


def write_shape(name: str, mesh: Mesh) -> None:
    """shapes/<name>.npz: the mesh in the unit sphere, and points of its surface with their colours."""
    points, colors = sample_surface(mesh, 4 * NUM_POINTS, np.random.default_rng(11))
    mesh = mesh.transformed(normalization("sphere_mean_points", points, mesh.vertices))
    points, colors = sample_surface(mesh, 4 * NUM_POINTS, np.random.default_rng(11))
    order = farthest_points(points.astype(np.float32), NUM_POINTS)
    textures = {f"texture_{i}": m.texture for i, m in enumerate(mesh.materials) if m.texture is not None}
    np.savez_compressed(
        FOLDER / "shapes" / f"{name}.npz",
        vertices=mesh.vertices.astype(np.float32),
        faces=mesh.faces.astype(np.int32),
        face_material=mesh.face_material.astype(np.int32),
        base_color=np.array([m.base_color for m in mesh.materials]),
        corner_uvs=np.zeros((len(mesh.faces), 3, 2), np.float32) if mesh.corner_uvs is None else mesh.corner_uvs,
        points=points[order].astype(np.float32),
        colors=colors[order],
        **textures,
    )


def read_shape(name: str) -> tuple[Mesh, np.ndarray, np.ndarray]:
    """Mesh, points float32 (1024, 3) and their colours uint8 (1024, 3) of shapes/<name>.npz."""
    with np.load(FOLDER / "shapes" / f"{name}.npz", allow_pickle=False) as data:
        materials = tuple(
            Material(tuple(float(x) for x in color), data.get(f"texture_{i}"))
            for i, color in enumerate(data["base_color"])
        )
        mesh = Mesh(data["vertices"], data["faces"], materials, data["face_material"], data["corner_uvs"])
        return mesh, data["points"], data["colors"]


def draw_case(name: str) -> dict[str, np.ndarray]:
    """The arrays of one case, views first: camera_from_world, K, and rgb, depth or gray where the preset has them."""
    shape, preset_name, changes = CASES[name]
    preset = small(load_preset(preset_name, {"name": name, "image_size": SIZE, "upsample": 0, **changes})[1])
    mesh, points, colors = read_shape(shape)
    views = draw(preset, mesh=mesh, points=points, colors=colors)
    arrays = {
        "camera_from_world": np.stack([view.camera.camera_from_world for view in views]),
        "K": np.stack([view.camera.K for view in views]),
    }
    for channel in ("rgb", "depth", "gray"):
        if getattr(views[0], channel) is not None:
            arrays[channel] = np.stack([getattr(view, channel) for view in views])
    return arrays


def small(preset: DrawnViews) -> DrawnViews:
    """The preset with VIEWS of its cameras."""
    rotations = [camera.camera_from_world[:3, :3].tolist() for camera in preset_cameras(preset)]
    kept = [rotations[i * len(rotations) // VIEWS] for i in range(VIEWS)]
    return preset.model_copy(update={"rotations": kept, "azimuth_deg": [], "elevation_deg": []})


def main() -> None:
    """Writes shapes/ and pictures/, and prints a line a file."""
    for folder in ("shapes", "pictures"):
        (FOLDER / folder).mkdir(exist_ok=True)
    for name, mesh in shapes().items():
        write_shape(name, mesh)
    for name in CASES:
        path = FOLDER / "pictures" / f"{name}.npz"
        arrays = draw_case(name)
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size:,} bytes, {', '.join(f'{k} {a.shape}' for k, a in arrays.items())}")


if __name__ == "__main__":
    main()
