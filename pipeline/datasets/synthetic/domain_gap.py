"""How far the target domain of `parametric` lies from the source: physical knobs, and three named levels of them.

The levels were fixed before any training: `medium` is a careful hand-held scan and a repainted scene, `hard` a hasty
scan and a crowded scene, `mild` about half of medium. The level `none` is how the source itself is seen.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from manifests.config import Settings

Gap = Literal["mild", "medium", "hard"]
Level = Literal["none", "mild", "medium", "hard"]
Side = Literal["image", "points"]
LEVELS: tuple[Level, ...] = ("none", "mild", "medium", "hard")


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"{limits[0]} to {limits[1]} is no range: the lower end comes first")
    return limits


Share = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[float, Field(gt=0)]
Lengths = Annotated[tuple[Length, Length], AfterValidator(_rising)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_rising)]


class Surroundings(Settings):
    """What stands around the object. A radius is the distance from the middle of the object's box to its corner."""

    floor_chance: Annotated[Share, Field(description="chance that the object stands on a piece of floor")]
    floor_size: Annotated[Lengths, Field(description="side of the piece of floor, least and most, radii")]
    clutter_mean: Annotated[float, Field(ge=0, le=5, description="mean number of things beside the object, Poisson")]
    clutter_size: Annotated[Lengths, Field(description="width and height of such a thing, least and most, radii")]


class ScanOptions(Surroundings):
    """How the cloud is scanned. With no viewpoint it is the whole surface, evenly, and no other knob says anything."""

    viewpoints: Annotated[
        tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0, le=20)]],
        AfterValidator(_rising),
        Field(description="number of viewpoints, least and most"),
    ]
    spread_rad: Annotated[
        tuple[float, float],
        AfterValidator(_rising),
        Field(description="azimuth from a viewpoint to the next, least and most, radians"),
    ]
    elevation_deg: Annotated[
        tuple[Annotated[float, Field(gt=-90)], Annotated[float, Field(lt=90)]],
        AfterValidator(_rising),
        Field(description="height of the viewpoints over the horizon, least and most, degrees"),
    ]
    distance: Annotated[
        tuple[Annotated[float, Field(gt=1.2)], float],
        AfterValidator(_rising),
        Field(description="from the scanner to the middle of the object, least and most, radii"),
    ]
    rays: Annotated[int, Field(ge=16, le=1_000_000, description="rays of a viewpoint over the object's outline box")]
    range_noise: Annotated[float, Field(ge=0, description="standard deviation of a measured range, radii")]
    outlier_share: Annotated[Share, Field(description="share of ranges that are off by up to one radius, evenly")]
    density_slope: Annotated[
        float, Field(ge=0, le=5, description="s of the density exp(s g.x), x in radii, g a random unit vector")
    ]
    crop_margin: Annotated[
        float, Field(ge=0, description="how far beyond the object's box points are kept, on every side, radii")
    ]


class SceneOptions(Surroundings):
    """What the pictures show: paints and surroundings. Camera, light and background are keys of the view preset."""

    saturation: Annotated[Shares, Field(description="saturation of a paint's colours, least and most")]
    value: Annotated[Shares, Field(description="brightness (HSV value) of a paint's first colour, least and most")]
    hue_shift: Annotated[Share, Field(description="most that the second colour's hue differs, turns of the circle")]
    value_shift: Annotated[Share, Field(description="most that the second colour's value differs")]
    new_texture_chance: Annotated[Share, Field(description="chance of a texture that the source does not have")]


Levels = dict[str, dict[str, object]]  # knob -> level -> value
_FLOOR_AND_CLUTTER: Levels = {
    "floor_chance": {"none": 0.0, "mild": 0.25, "medium": 0.5, "hard": 0.8},
    "floor_size": {"none": (1.5, 2.5), "mild": (1.5, 2.5), "medium": (1.5, 2.5), "hard": (1.5, 3.5)},
    "clutter_mean": {"none": 0.0, "mild": 0.15, "medium": 0.3, "hard": 0.6},
    "clutter_size": {"none": (0.15, 0.4), "mild": (0.15, 0.4), "medium": (0.15, 0.4), "hard": (0.15, 0.5)},
}
SCAN_LEVELS: Levels = {
    "viewpoints": {"none": (0, 0), "mild": (3, 4), "medium": (2, 3), "hard": (1, 3)},
    "spread_rad": {"none": (0.4, 1.2), "mild": (0.8, 1.6), "medium": (0.4, 1.2), "hard": (0.4, 1.2)},
    "elevation_deg": {"none": (10.0, 45.0), "mild": (10.0, 45.0), "medium": (10.0, 45.0), "hard": (0.0, 60.0)},
    "distance": {"none": (2.5, 4.0), "mild": (2.5, 4.0), "medium": (2.5, 4.0), "hard": (2.0, 5.0)},
    "rays": {"none": 8000, "mild": 8000, "medium": 8000, "hard": 8000},
    "range_noise": {"none": 0.0, "mild": 0.005, "medium": 0.01, "hard": 0.02},
    "outlier_share": {"none": 0.0, "mild": 0.0, "medium": 0.0, "hard": 0.01},
    "density_slope": {"none": 0.0, "mild": 0.25, "medium": 0.5, "hard": 1.0},
    "crop_margin": {"none": 0.0, "mild": 0.05, "medium": 0.1, "hard": 0.2},
    **_FLOOR_AND_CLUTTER,
}
SCENE_LEVELS: Levels = {
    "saturation": {"none": (0.1, 0.8), "mild": (0.25, 0.9), "medium": (0.4, 1.0), "hard": (0.5, 1.0)},
    "value": {"none": (0.35, 0.9), "mild": (0.3, 0.9), "medium": (0.25, 0.85), "hard": (0.15, 1.0)},
    "hue_shift": {"none": 0.08, "mild": 0.15, "medium": 0.25, "hard": 0.5},
    "value_shift": {"none": 0.3, "mild": 0.35, "medium": 0.4, "hard": 0.6},
    "new_texture_chance": {"none": 0.0, "mild": 0.3, "medium": 0.6, "hard": 1.0},
    **_FLOOR_AND_CLUTTER,
}


def level_of(side: Side, gap: Gap, stronger: Literal["both", "image", "points"]) -> Level:
    """The level of one side of a gap: the stronger side is one level milder; below mild there is no gap."""
    return LEVELS[LEVELS.index(gap) - (stronger == side)]


def knobs(levels: Levels, level: Level) -> dict[str, object]:
    """One level's column of SCAN_LEVELS or SCENE_LEVELS."""
    return {name: row[level] for name, row in levels.items()}
