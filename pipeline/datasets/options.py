"""Keys of a build recipe that only some datasets read."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from manifests.config import Settings

MAX_POINTS = 4_000_000


class DatasetOptions(Settings):
    """The keys that one dataset reads beside those of every recipe; this class: no key.

    IN_TABLE: whether they stand in a table of the dataset's name (`redwood.split_seed`) or beside the other keys.
    LIMITS: keys of such a table that change no byte, and so are in no hash.
    """

    IN_TABLE: ClassVar[bool] = False
    LIMITS: ClassVar[frozenset[str]] = frozenset()


class NamedSplit(DatasetOptions):
    """split: another division into splits than the dataset's own, by its name in the table's `split_counts`."""

    split: str = ""


class ListedSplit(DatasetOptions):
    """split_list: a file or folder that says which object is in which split. The path is in no hash."""

    split_list: str = ""


class CloudLimit(DatasetOptions):
    """max_points: the most that one object of a dataset of clouds may declare. A policy key, in no hash."""

    max_points: Annotated[int, Field(ge=1)] = MAX_POINTS


class NamedSplitOfClouds(NamedSplit, CloudLimit):
    """A dataset of clouds with several divisions."""
