"""The tables of a recipe of part segmentation, and the key `task=parts` that asks for it.

A table here has fewer keys than the one that other methods read: a class variable takes the place of a key that part
segmentation does not read, so that it is refused.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manifests.config import Settings, Value, merge
from manifests.errors import Refused
from training.settings.backbone_rows import BACKBONE_SETTINGS
from training.settings.data import PictureAugmentSettings, Share
from training.settings.model import DEFAULT_BACKBONE, InitSettings
from training.settings.part_backbones import PartBackboneSettings

METHOD = "parts"
TASKS = ("classes", METHOD)


class PartSettings(Settings):
    """smoothing: share of the target that the other parts get, evenly (0.2: CrossPoint, DGCNN; 0: PointNet++). dropout:
    of the head that labels points."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


class PartAugmentSettings(PictureAugmentSettings):
    """How clouds with part labels are augmented; the defaults are CrossPoint's.

    cloud_scale: clouds are scaled by U(1/s, s). cloud_shift: and moved by U(-t, t) along each axis, in radii.
    cloud_order: the points as `stored`, `shuffled`, or `resampled` with replacement (PointNet++). A point keeps its
    label in all.
    """

    image_crop: ClassVar[float] = 1.0  # type: ignore[misc]  # no picture is read
    image_magnitude: ClassVar[int] = 0  # type: ignore[misc]
    image_flip: ClassVar[float] = 0.0  # type: ignore[misc]
    image_jitter: ClassVar[float] = 0.0  # type: ignore[misc]
    cloud_scale: Annotated[float, Field(ge=1)] = 1.0
    cloud_shift: Share = 0.0
    cloud_order: Literal["stored", "shuffled", "resampled"] = "shuffled"


class PartInitSettings(InitSettings):
    """Weights to begin with. points: the point tower's, of a run of ours or a file of the released code; layers whose
    names and shapes agree are taken whole, the others begin at random. take: as in other methods."""

    all: ClassVar[str] = ""  # type: ignore[misc]
    image: ClassVar[str] = ""  # type: ignore[misc]
    other_space: ClassVar[str] = "refuse"  # type: ignore[misc,assignment]
    other_neighbours: ClassVar[str] = "keep"  # type: ignore[misc,assignment]
    classifier: ClassVar[str] = "text"  # type: ignore[misc,assignment]


def part_backbones() -> dict[str, str]:
    """Backbone of whole objects -> the one that labels their points."""
    names = [name for name, kind in BACKBONE_SETTINGS.items() if issubclass(kind, PartBackboneSettings)]
    return {name.removesuffix(f"_{METHOD}"): name for name in names}


def with_task(
    values: dict[str, Value], changes: dict[str, Value], where: str
) -> tuple[dict[str, Value], dict[str, Value]]:
    """A recipe file's values and their changes, with `task=parts` in other words: `method=parts`, and in place of a
    backbone of whole objects the one that labels their points. `task=classes` is what every other method does.

    Raises Refused for another task, or where task and method do not go together.
    """
    merged = merge(values, changes)
    rest = [{name: value for name, value in each.items() if name != "task"} for each in (values, changes)]
    task, method = merged.get("task", "classes"), merged.get("method")
    if task not in TASKS:
        raise Refused(f"{where}: task={task} is none of {', '.join(TASKS)}")
    if task != METHOD:
        if "task" in merged and method == METHOD:
            raise Refused(f"{where}: task={task} and method={METHOD} do not go together")
        return rest[0], rest[1]
    points = merged.get("points")
    plain = points.get("backbone", DEFAULT_BACKBONE) if isinstance(points, dict) else DEFAULT_BACKBONE
    return rest[0], merge(rest[1], {"method": METHOD, "points": {"backbone": part_backbones().get(plain, plain)}})
