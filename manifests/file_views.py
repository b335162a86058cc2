"""Pictures that people already own as a view set: which file is which view of which object."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from manifests.view_preset import ViewPreset

FIELDS = ("class", "split", "synset", "id", "view", "ext")
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff")
FORMS = ("id", "key", "stem", "model")
_PLACE = re.compile(r"\{([a-z]+)(?::0(\d)d)?\}")


def _a_size(size: int) -> int:
    if 0 < size < 8:
        raise ValueError("0 (as they are) or at least 8 pixels")
    return size


ShortSide = Annotated[int, Field(ge=0, le=4096), AfterValidator(_a_size)]


class FileViews(ViewPreset):
    """Pictures of files, found below --source by `pattern`.

    pattern: a path with {id} and {view}, and {class}, {split}, {synset} or {ext} (png, jpg, ...) where the path tells
    them; {view:03d} is a number of at least three digits. match: what {id} is: the dataset's own `id`, our `key`, the
    `stem` (last part of the id, without a suffix) or the `model` (the part of `<synset>-<model>` or
    `<synset>/<model>/...` after {synset}); auto: the one that finds the most objects.
    view_numbers: the numbers in {view}, in the order of the views; empty: the first `num_views` from 0 or 1, or (also
    num_views=0) all that any object has. image_size: the short side is resized to it (bicubic); 0: as it is.
    rgb_format: keep stores an opaque RGB or grey PNG or JPEG as its own bytes, and encodes others as jpg (JPEG) or png.
    max_blank_views: how many pictures of one colour an object may have; more, or nothing else, is a Failure.
    """

    draws: ClassVar[None] = None
    reads: ClassVar[Literal["files"]] = "files"
    mapping: ClassVar[Literal["none"]] = "none"  # it has no depth
    title: str = ""
    backend: Literal["files"]
    pattern: str
    match: Literal["auto", "id", "key", "stem", "model"] = "auto"
    num_views: Annotated[int, Field(ge=0, le=1000)] = 0
    view_numbers: list[Annotated[int, Field(ge=0)]] = Field(default=[])
    image_size: ShortSide = 0
    rgb_format: Literal["keep", "jpg", "png"] = "keep"
    max_blank_views: Annotated[int, Field(ge=0)] = 0
    upsample: Literal[0] = 0
    normalize: Literal["clip", "imagenet", "none"] = "clip"

    @property
    def channels(self) -> list[str]:
        """The pictures of each view."""
        return ["rgb"]

    @field_validator("view_numbers")
    @classmethod
    def _all_different(cls, numbers: list[int]) -> list[int]:
        if len(set(numbers)) != len(numbers):
            raise ValueError("a view's number comes twice")
        return numbers

    @field_validator("pattern")
    @classmethod
    def _a_pattern(cls, pattern: str) -> str:
        places = [place for place, _ in _PLACE.findall(pattern)]
        if unknown := sorted(set(places) - set(FIELDS)):
            raise ValueError(f"no field {{{unknown[0]}}}; there are {', '.join(f'{{{f}}}' for f in FIELDS)}")
        if re.search(r"[{}]", _PLACE.sub("", pattern)):
            raise ValueError("a { or } without a field; fields are written {id}, {view} or {view:03d}")
        for needed in ("id", "view"):
            if needed not in places:
                raise ValueError(f"it has no {{{needed}}}")
        if pattern.startswith("/") or "\\" in pattern or any(p in ("", ".", "..") for p in pattern.split("/")):
            raise ValueError("a path below --source, without .. and with / between its parts")
        return pattern


def file_names(pattern: str, fields: dict[str, str], view: int) -> list[str]:
    """The paths, one for each extension, at which a view may lie. Raises KeyError for a field that is not known."""

    def fill(place: re.Match[str]) -> str:
        if place[1] == "view":
            return f"{view:0{place[2] or 1}d}"
        return place[0] if place[1] == "ext" else fields[place[1]]

    filled = _PLACE.sub(fill, pattern)
    if "{ext}" not in pattern:
        return [filled]
    return [filled.replace("{ext}", e) for name in EXTENSIONS for e in (name, name.upper())]


def parse_name(pattern: str, path: str) -> tuple[dict[str, str], int] | None:
    """The fields and the view's number of a path below the source, or None where it does not fit the pattern."""
    found = _expression(pattern).fullmatch(path)
    if found is None:
        return None
    fields = found.groupdict()
    return {name: value for name, value in fields.items() if name not in ("view", "ext")}, int(fields["view"])


@lru_cache
def _expression(pattern: str) -> re.Pattern[str]:
    """A regular expression with a group for each field; a field's second place repeats its first."""
    text, end, seen = "", 0, set()
    for place in _PLACE.finditer(pattern):
        name, digits = place[1], int(place[2] or 1)
        inside = {
            "view": rf"\d{{{digits}}}|[1-9]\d{{{digits},}}",
            "ext": "|".join(EXTENSIONS) + "|" + "|".join(EXTENSIONS).upper(),
        }.get(name, "[^/]+")
        text += re.escape(pattern[end : place.start()]) + (f"(?P={name})" if name in seen else f"(?P<{name}>{inside})")
        seen.add(name)
        end = place.end()
    return re.compile(text + re.escape(pattern[end:]))


def names_of(id: str, key: str) -> dict[str, str]:
    """What {id} of an object may be, by the name of the form; `synset` beside them where the id has one."""
    last = id.rsplit("/", 1)[-1]
    names = {"id": id, "key": key, "stem": re.sub(r"\.[A-Za-z]{3,4}$", "", last)}
    parts = re.match(r"([^/-]+)[/-]([^/]+)", id)
    if parts:
        names |= {"synset": parts[1], "model": re.sub(r"\.[A-Za-z]{3,4}$", "", parts[2])}
    return names


def fields_of(id: str, key: str, class_name: str | None, split: str, form: str) -> dict[str, str]:
    """The fields of one object; those that it does not have are left out."""
    names = names_of(id, key)
    fields = {"class": class_name, "split": split, "synset": names.get("synset"), "id": names.get(form)}
    return {name: value for name, value in fields.items() if value is not None}
