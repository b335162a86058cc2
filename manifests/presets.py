"""View presets: named, typed descriptions of one set of views, kept in views/*.toml.

A preset names a backend and everything that changes a byte of what the backend writes. Its hash is part of a view
set's identity, so a preset holds no policy (workers, time limits).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, model_validator

from manifests import plugins
from manifests.config import Value, digest, load_toml, merge, names_in, refuse_invalid, unknown_name
from manifests.errors import Refused
from manifests.file_views import FileViews
from manifests.frame_views import FrameViews
from manifests.view_preset import ViewPreset

FOLDER = Path(__file__).parent / "views"
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Color = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Rotation = Annotated[list[Annotated[list[float], Field(min_length=3, max_length=3)]], Field(min_length=3, max_length=3)]


class Gates(BaseModel):
    """When a view is a warning and when an object's views are a Failure.

    A view is blank when nothing of the object is in it or when its picture is of one colour. A blank view fails the
    object, with two exceptions that are warnings: an object that is thinner than `thin_px` pixels from there (a plate
    seen edge-on), and one that is there and has the background's colour. `max_blank_views`: so many further blank views
    are forgiven. An object all of whose views are blank always fails.

    Warnings, counted in views: coverage below `min_coverage` (share of pixels); more than `border_share` of the
    outermost pixels show the object; RGB other than the background and depth overlap by less than `min_mask_iou`
    (intersection over union; a white object on white lowers it too).
    """

    thin_px: Annotated[float, Field(ge=0)] = 1.0
    max_blank_views: Annotated[int, Field(ge=0)] = 0
    min_coverage: Share = 0.001
    border_share: Share = 0.01
    min_mask_iou: Share = 0.9


class _Views(Gates, ViewPreset):
    """What every preset holds.

    image_size: pixels a side. azimuth_deg, elevation_deg: camera direction (cos e sin a, sin e, cos e cos a), +Y up.
    rotations: world-to-camera (rows right, down, forward) in place of angles, as poles need. fov_deg: of a perspective.
    half_extent: of an orthographic window, world units. distance: of the cameras, world units; the object has radius 1.
    depth_range: depth is encoded between distance - depth_range and distance + depth_range. mapping: makes the picture
    that the tower sees of depth (manifests.picture_mapping). upsample: enlarges that picture to this side, bilinear
    with aligned corners (0: as it is). normalize: names mean and standard deviation.
    """

    title: str = ""
    image_size: Annotated[int, Field(ge=8, le=4096)] = 224
    azimuth_deg: list[float] = []
    elevation_deg: list[float] = []
    rotations: list[Rotation] = []
    projection: Literal["perspective", "orthographic"] = "perspective"
    fov_deg: Annotated[float, Field(gt=0, lt=180)] = 60.0
    half_extent: Positive = 1.0
    distance: Positive = 2.0
    depth_range: Positive = 1.25
    mapping: Literal["clip2point", "linear", "world", "none"] = "clip2point"
    upsample: Annotated[int, Field(ge=0, le=4096)] = 0
    normalize: Literal["clip", "imagenet", "none"] = "clip"
    reads: ClassVar[None] = None

    @model_validator(mode="after")
    def _one_rig(self) -> _Views:
        if bool(self.rotations) == bool(self.azimuth_deg):
            raise ValueError("give either azimuth_deg with elevation_deg or rotations")
        if len(self.elevation_deg) not in (1, len(self.azimuth_deg)) and self.azimuth_deg:
            raise ValueError(
                f"elevation_deg holds {len(self.elevation_deg)} values, azimuth_deg {len(self.azimuth_deg)}"
            )
        for i, rotation in enumerate(self.rotations):
            matrix = np.asarray(rotation)
            if not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-6) or np.linalg.det(matrix) < 0:
                raise ValueError(f"rotations[{i}] is not a rotation (rows right, down, forward; determinant +1)")
        if not self.rotations and any(abs(abs(e % 180) - 90) < 1e-6 for e in self.elevation_deg):
            raise ValueError("a view from straight above or below has no azimuth: write it as a rotation matrix")
        return self

    @model_validator(mode="after")
    def _depth_has_a_mapping(self) -> _Views:
        if self.mapping == "none" and "depth" in self.channels:
            raise ValueError("mapping=none makes no picture of depth: set mapping=clip2point, linear or world")
        return self

    @property
    def num_views(self) -> int:
        return len(self.rotations) or len(self.azimuth_deg)

    @property
    def near(self) -> float:
        """Depth of code 1, world units."""
        return max(self.distance - self.reach, 0.0)

    @property
    def far(self) -> float:
        """Depth of code 65535, world units."""
        return self.distance + self.reach

    @property
    def reach(self) -> float:
        """How far from the origin depth is encoded, world units."""
        return self.depth_range


class MeshViews(_Views):
    """RGB and depth of a mesh, drawn by ray casting.

    Light comes from the camera with PyTorch3D's default constants (ambient 0.5, diffuse 0.3, specular 0.2,
    shininess 64; CLIP2Point's released RGB path), or from `light_direction`: towards the light, in the world frame, of
    any length, the same for every view. `ground` puts a square under the object's lowest point, of half side
    `ground_extent` (world units), in RGB and depth; it counts as the object in coverage and is left out of warnings.

    normals: `crease` smooths over faces whose planes are within `crease_deg` of each other, whatever their winding and
    wherever a file stores a corner twice; `smooth` are PyTorch3D's, summed over all faces of a stored vertex by their
    winding; `flat` are the faces' own.
    """

    draws: ClassVar[Literal["mesh"]] = "mesh"
    backend: Literal["raycast"]
    channels: list[Literal["rgb", "depth"]] = Field(default=["rgb", "depth"], min_length=1)
    rgb_format: Literal["jpg", "png"] = "jpg"
    two_sided: bool = True
    normals: Literal["crease", "smooth", "flat"] = "crease"
    crease_deg: Annotated[float, Field(ge=0, le=180)] = 40.0
    texture_wrap: Literal["repeat", "clamp"] = "repeat"
    supersample: Literal[1, 2] = 1
    ambient: Annotated[float, Field(ge=0)] = 0.5
    diffuse: Annotated[float, Field(ge=0)] = 0.3
    specular: Annotated[float, Field(ge=0)] = 0.2
    shininess: Annotated[int, Field(ge=1)] = 64
    light_direction: list[Annotated[float, Field(allow_inf_nan=False)]] = []
    background: Color = [1.0, 1.0, 1.0]
    ground: bool = False
    ground_color: Color = [0.8, 0.8, 0.8]
    ground_extent: Positive = 1.5

    @model_validator(mode="after")
    def _a_direction(self) -> MeshViews:
        if self.light_direction and (len(self.light_direction) != 3 or not any(self.light_direction)):
            raise ValueError("light_direction is three numbers, not all zero, or empty for a light at the camera")
        return self

    @property
    def reach(self) -> float:
        """How far from the origin depth is encoded, world units: to the ground's corners where there is one."""
        return math.hypot(self.depth_range, math.sqrt(2) * self.ground_extent) if self.ground else self.depth_range


class RasterizedViews(MeshViews):
    """RGB and depth of a mesh, drawn by PyTorch3D: the keys of ray casting, where to draw and how much at once.

    device: `cpu` or `cuda`. views_at_once: how many views one call of the rasteriser draws; its memory grows with it.
    """

    backend: Literal["rasterize"]  # type: ignore[assignment]
    device: Literal["cpu", "cuda"] = "cpu"
    views_at_once: Annotated[int, Field(ge=1, le=1024)] = 4

    @property
    def needs_gpu(self) -> bool:
        """Whether PyTorch3D draws on a GPU."""
        return self.device == "cuda"


class PointViews(_Views):
    """Depth of the first `points` points of the stored cloud (a farthest-point sample; CLIP2Point section 3.2).

    merge: `minimum` (eq. 10) or `weighted` (eq. 8), each over a square of side `dilation`; `disc`: the released
    renderer, nearest point within `disc_radius` (half image = 1) of a pixel's centre.
    """

    draws: ClassVar[Literal["points"]] = "points"
    background: ClassVar[Color] = [1.0, 1.0, 1.0]
    backend: Literal["depth"]
    points: Annotated[int, Field(ge=1)] = 1024
    merge: Literal["minimum", "weighted", "disc"] = "minimum"
    dilation: Annotated[int, Field(ge=1, le=16)] = 2
    disc_radius: Positive = 0.02

    @model_validator(mode="after")
    def _projection_of_merge(self) -> PointViews:
        if self.merge == "disc" and self.projection != "orthographic":
            raise ValueError("merge=disc is the released renderer, which is orthographic: set projection=orthographic")
        if self.merge != "disc" and self.projection != "perspective":
            raise ValueError("eq. 8-10 project in perspective: set projection=perspective or merge=disc")
        return self

    @property
    def released_discs(self) -> tuple[float, float] | None:
        """As of every preset."""
        return (self.disc_radius, self.half_extent) if self.merge == "disc" and self.mapping == "clip2point" else None

    @property
    def channels(self) -> list[str]:
        """The pictures of each view."""
        return ["depth"]


class PointclipViews(_Views):
    """The first `points` points as PointCLIP and SimpleView draw them.

    A point at u pixels from the picture's corner lands on pixels ceil(u - footprint / 2 + i), i = 0 .. footprint - 1,
    in both axes. channels: `depth`, the mean weighted by 1 / depth over a pixel's points, or `rgb`, the colour of its
    nearest point before `background`, of objects whose points have colours. mirror: columns run from right to left.
    """

    draws: ClassVar[Literal["points"]] = "points"
    backend: Literal["pointclip"]
    points: Annotated[int, Field(ge=1)] = 1024
    channels: list[Literal["depth", "rgb"]] = Field(default=["depth"], min_length=1)
    footprint: Annotated[int, Field(ge=1, le=16)] = 1
    mirror: bool = True
    background: Color = [0.0, 0.0, 0.0]

    @model_validator(mode="after")
    def _as_released(self) -> PointclipViews:
        if self.projection != "perspective":
            raise ValueError("PointCLIP projects in perspective: set projection=perspective")
        if self.footprint > 1 and self.footprint % 2:
            raise ValueError(f"footprint={self.footprint}: PointCLIP's squares have side 1 or an even one")
        return self


class RealisticViews(_Views):
    """The first `points` points by PointCLIP V2's realistic projection, a grey picture without depth.

    The longest side of the cloud, turned to the camera, fills `object_share` of a grid of image_size x image_size x
    depth_cells; depth_bias keeps the farthest points off zero. Each slice is max-pooled over squares of side `pool`
    (padded by pool_padding), smoothed by a Gaussian of side `blur` and `blur_sigma` cells; the largest over depth is
    drawn.
    """

    draws: ClassVar[Literal["points"]] = "points"
    background: ClassVar[Color] = [1.0, 1.0, 1.0]
    backend: Literal["realistic"]
    points: Annotated[int, Field(ge=1)] = 1024
    depth_cells: Annotated[int, Field(ge=3, le=256)] = 8
    object_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    depth_bias: Annotated[float, Field(ge=0)] = 0.2
    pool: Annotated[int, Field(ge=1, le=31)] = 7
    pool_padding: Annotated[int, Field(ge=0, le=15)] = 2
    blur: Annotated[int, Field(ge=1, le=31)] = 3
    blur_sigma: Positive = 3.0

    @model_validator(mode="after")
    def _a_picture(self) -> RealisticViews:
        if self.projection != "orthographic":
            raise ValueError("the realistic projection is orthographic: set projection=orthographic")
        if not self.blur % 2:
            raise ValueError(f"blur={self.blur}: a kernel has an odd side")
        if self.pool_padding > self.pool // 2:
            raise ValueError(f"pool_padding={self.pool_padding} is more than half of pool={self.pool}")
        return self

    @property
    def channels(self) -> list[str]:
        """The pictures of each view."""
        return ["gray"]


DrawnViews = MeshViews | RasterizedViews | PointViews | PointclipViews | RealisticViews
AnyViews = DrawnViews | FileViews | FrameViews
Preset = Annotated[AnyViews, Field(discriminator="backend")]
_ADAPTER: TypeAdapter[AnyViews] = TypeAdapter(Preset)


def preset_names() -> list[str]:
    """Names of the shipped presets and of those of loaded plugins, sorted."""
    shipped = names_in(FOLDER)
    return sorted({*shipped, *plugins.offered("PRESETS", shipped)})


def _preset_values(name: str) -> dict[str, Value]:
    """The keys of a preset of `preset_names`."""
    own = plugins.offered("PRESETS")
    return own[name][2] if name in own else load_toml(FOLDER / f"{name}.toml")


def parse_preset(values: dict[str, Value], where: str) -> AnyViews:
    """A typed preset from plain values. Raises Refused naming `where`, the key and the nearest valid one."""
    with refuse_invalid(where, list(get_args(AnyViews))):
        return _ADAPTER.validate_python(values)


def load_preset(name: str, changes: dict[str, Value] | None = None) -> tuple[str, AnyViews]:
    """A named preset with changes applied, and the name of its view set.

    An unchanged preset keeps its name; a changed one is `<name>-<6 hex of its hash>` unless `changes` holds `name`.
    Raises Refused when there is no such preset or a value does not fit.
    """
    changes = dict(changes or {})
    given = changes.pop("name", None)
    if name not in preset_names():
        raise unknown_name("view preset", name, preset_names(), "python -m pipeline presets lists them")
    shipped = _preset_values(name)
    preset = parse_preset(merge(shipped, changes), f"preset {name}")
    if given is not None:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}", str(given)):  # it becomes a folder in OUT/views
            raise Refused(
                f"preset {name}: name={str(given)[:60]!r}: up to 80 letters, digits, _, - and . after the first"
            )
        return str(given), preset
    changed = preset != parse_preset(shipped, f"preset {name}")
    return (f"{name}-{preset_hash(preset)[:6]}" if changed else name), preset


def preset_hash(preset: AnyViews) -> str:
    """sha256 of everything in a preset but its title."""
    return digest(preset.model_dump(exclude={"title"}))
