"""Every kind of picture on one core: milliseconds a view, what bounds it, and the ratio to a baseline in the same run.

    python tests/bench/render.py

Baselines: PyTorch3D's rasterisers on the CPU, where it is installed, for RGB and depth10; the same stages written
densely in torch, as the methods' authors wrote them, for realistic10 and PointCLIP.
"""

from __future__ import annotations

import cProfile
import importlib.util
import pstats
from collections.abc import Callable
from functools import partial

from machine import describe_machine, one_core, repeat

one_core()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_raycast import small_spheres  # noqa: E402
from torch.nn.functional import conv2d, max_pool2d  # noqa: E402

from manifests.presets import AnyViews, load_preset  # noqa: E402
from manifests.samples import encode_picture  # noqa: E402
from pipeline.shards.object import keep_freed_memory  # noqa: E402
from renderers.backend_table import draw, preset_cameras  # noqa: E402
from renderers.geometry import Mesh  # noqa: E402

BARS = {"rgb12": 10.0, "depth10": 0.1, "realistic10": 4.0, "pointclip10": 0.15}  # ms a view, JPEG included for RGB


def cloud() -> np.ndarray:
    """1,024 points of a ball, float32 (1024, 3)."""
    points = np.random.default_rng(0).normal(size=(1024, 3)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1).max()


def with_jpeg(preset: AnyViews, mesh: Mesh) -> None:
    """RGB views of a mesh, encoded as a build stores them."""
    for view in draw(preset, mesh=mesh):
        encode_picture(view.rgb, "jpg")


def bound_by(call: Callable[[], object]) -> str:
    """The two functions in which most time passes, from a profile."""
    profile = cProfile.Profile()
    profile.runcall(lambda: [call() for _ in range(5)])
    rows = pstats.Stats(profile).stats
    total = sum(row[2] for row in rows.values())
    most = sorted(rows.items(), key=lambda item: -item[1][2])[:2]
    return ", ".join(f"{name} {100 * row[2] / total:.0f} %" for (_, _, name), row in most)


def dense_realistic(points: np.ndarray, preset: AnyViews) -> torch.Tensor:
    """PointCLIP V2's stages with torch on whole grids, all views at once: scatter, pool, blur, largest over depth."""
    turns = np.stack([camera.camera_from_world[:3, :3] for camera in preset_cameras(preset)])
    view = torch.einsum("vij,nj->vni", torch.from_numpy(turns).float(), torch.from_numpy(points))
    low, high = view.amin(1, keepdim=True), view.amax(1, keepdim=True)
    q = (view - (low + high) / 2) / (high - low).amax(2, keepdim=True) * 2
    size, inner = preset.image_size, preset.depth_cells - 2
    place = torch.ceil((q[..., :2] * preset.object_share + 1) / 2 * size).clamp(1, size - 2).long()
    depth = ((1 - q[..., 2]) / 2 + preset.depth_bias) / (1 + preset.depth_bias) * inner
    flat = (torch.ceil(depth).long() * size + place[..., 1]) * size + place[..., 0]
    grid = torch.zeros(len(q), preset.depth_cells * size * size)
    grid.scatter_reduce_(1, flat, depth.clamp(1, inner), "amax")
    grid = grid.reshape(-1, 1, size, size)
    pooled = max_pool2d(grid, preset.pool, stride=1, padding=preset.pool_padding)
    distance = torch.arange(preset.blur) - (preset.blur - 1) / 2
    weights = torch.exp(-(distance**2) / (2 * preset.blur_sigma**2))
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    smooth = conv2d(pooled, kernel[None, None], padding=preset.blur // 2)
    nearest = smooth.reshape(len(q), preset.depth_cells, *smooth.shape[-2:]).amax(1)
    return 1 - nearest / nearest.amax((1, 2), keepdim=True)


def dense_pointclip(points: np.ndarray, preset: AnyViews) -> torch.Tensor:
    """PointCLIP's weighted mean with torch, all views at once: two sums scattered over whole pictures."""
    cameras = preset_cameras(preset)
    pose = torch.from_numpy(np.stack([camera.camera_from_world for camera in cameras])).float()
    x, y, z = (torch.einsum("vij,nj->vni", pose[:, :3, :3], torch.from_numpy(points)) + pose[:, None, :3, 3]).unbind(2)
    size, focal = preset.image_size, float(cameras[0].K[0, 0])
    column = torch.ceil(focal * x / z + size / 2 - 0.5).clamp(0, size - 1).long()
    row = torch.ceil(focal * y / z + size / 2 - 0.5).clamp(0, size - 1).long()
    flat, weight = row * size + column, 1 / (z + 1e-12)
    sums, weights = (torch.zeros(len(cameras), size * size) for _ in range(2))
    sums.scatter_add_(1, flat, z * weight)
    weights.scatter_add_(1, flat, weight)
    return sums / (weights + 1e-12)


def rasterised_points(points: np.ndarray, views: int) -> Callable[[], object]:
    """PyTorch3D's point rasteriser, released settings: radius 0.02, 224 px, one point a pixel, no bins."""
    from pytorch3d.ops import eyes
    from pytorch3d.renderer import FoVOrthographicCameras, PointsRasterizationSettings, PointsRasterizer
    from pytorch3d.structures import Pointclouds

    turned = eyes(3, views)
    cameras = FoVOrthographicCameras(R=turned, T=torch.tensor([[0.0, 0.0, 1.5]]).expand(views, 3), znear=0.01)
    settings = PointsRasterizationSettings(image_size=224, radius=0.02, points_per_pixel=1, bin_size=0)
    clouds = Pointclouds([torch.from_numpy(points)] * views)
    return partial(PointsRasterizer(cameras, settings), clouds)


def main() -> None:
    """Prints one line a preset."""
    keep_freed_memory()  # as a worker does
    torch.set_num_threads(1)
    mesh, points = small_spheres(), cloud()
    pytorch3d = importlib.util.find_spec("pytorch3d") is not None
    print(f"{describe_machine()}; {len(mesh.faces):,} faces, 1,024 points{'' if pytorch3d else '; no PyTorch3D here'}")
    for name, bar in BARS.items():
        _, preset = load_preset(name)
        call = partial(with_jpeg, preset, mesh) if name == "rgb12" else partial(draw, preset, points=points)
        low, middle = repeat(call, 20)
        views = preset.num_views
        line = f"{name:12} {low / views:7.3f} ms a view at best, {middle / views:7.3f} median (bar {bar:g})"
        for what, other, count in baselines(name, preset, mesh, points, pytorch3d):
            slow = repeat(other, 1 if name == "rgb12" else 10)[1]
            line += f"; {slow / count / (middle / views):,.1f} x the speed of {what} ({slow / count:,.2f} ms)"
        print(f"{line}; bound by {bound_by(call)}")


def baselines(
    name: str, preset: AnyViews, mesh: Mesh, points: np.ndarray, pytorch3d: bool
) -> list[tuple[str, Callable[[], object], int]]:
    """(what it is, a call, how many views it draws) of the baselines of one preset."""
    views = preset.num_views
    if name == "realistic10":
        return [("dense torch", lambda: dense_realistic(points, preset), views)]
    if name == "pointclip10":
        return [("dense torch", lambda: dense_pointclip(points, preset), views)]
    if not pytorch3d:
        return []
    if name == "depth10":
        return [("PyTorch3D's point rasteriser", rasterised_points(points, views), views)]
    _, one = load_preset("rgb12", {"backend": "rasterize", "azimuth_deg": [0.0], "channels": ["rgb"]})
    return [("PyTorch3D's mesh rasteriser", partial(with_jpeg, one, mesh), 1)]


if __name__ == "__main__":
    main()
