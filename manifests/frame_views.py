"""View sets of real frames from an object's own sequence: how many frames, of which size, in which channels."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from manifests.file_views import ShortSide
from manifests.view_preset import ViewPreset


class FrameViews(ViewPreset):
    """Frames that the dataset holds of each object, read from --source.

    num_frames: one frame from each of so many equal stretches of the sequence; a shorter sequence gives all frames.
    image_size: the short side is resized to it (bicubic; depth nearest); 0: as it is. channels: `depth` adds the depth
    of the sensor or reconstruction to frames that have it, in world units, encoded between the nearest and farthest
    of an object's frames. crop: `mask` cuts each frame to the box of the object's mask, made larger on every side by
    `crop_margin` of the box's longer side and cut off at the picture's edge; frames without a mask are passed over.
    """

    draws: ClassVar[None] = None
    reads: ClassVar[Literal["frames"]] = "frames"
    title: str = ""
    backend: Literal["frames"]
    num_frames: Annotated[int, Field(ge=1, le=100)] = 20
    image_size: ShortSide = 256
    channels: list[Literal["rgb", "depth"]] = Field(default=["rgb"])
    rgb_format: Literal["jpg", "png"] = "jpg"
    crop: Literal["none", "mask"] = "none"
    crop_margin: Annotated[float, Field(ge=0, le=2)] = 0.1
    mapping: Literal["clip2point", "linear"] = "linear"
    upsample: Literal[0] = 0
    normalize: Literal["clip", "imagenet", "none"] = "clip"

    @property
    def num_views(self) -> int:
        """The most views that an object has."""
        return self.num_frames

    @field_validator("channels")
    @classmethod
    def _with_rgb(cls, channels: list[str]) -> list[str]:
        if "rgb" not in channels or len(set(channels)) != len(channels):
            raise ValueError('["rgb"] or ["rgb", "depth"]')
        return channels
