"""Makes views of stored objects from pictures that people already own: matched by name, checked, drawn on white.

`resolved` looks through the source once, before any work; workers then open the files of one object by their names.
Nothing outside the source folder is opened, symbolic links followed, but what lies in folders that a person named
(`source_files.following`).
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from manifests.config import parse_recipe
from manifests.errors import Refused
from manifests.file_views import FORMS, FileViews, fields_of, file_names, parse_name
from manifests.records import Asset
from manifests.samples import FORMAT, JSON, MAX_PIXELS, encode_json, encode_picture, view_member
from pipeline.shards.view_quality import one_colour
from pipeline.shards.writer import Members
from pipeline.sources.pictures import FORMATS
from pipeline.sources.source_files import refuse_links, stays_inside

_CORNER_TOLERANCE = 10  # of 255: a pixel this far from the corners' colour shows the object
_KEPT = {"PNG": "png", "JPEG": "jpg"}

Fields = tuple[tuple[str, str], ...]


def resolved(preset: FileViews, assets: list[Asset], root: Path) -> FileViews:
    """The preset with `match` and `view_numbers` as the source has them, so that its hash says which files are read.

    Raises Refused when no picture belongs to any object, when one would belong to two, or when the objects have
    other views than `num_views` says.
    """
    found = _pictures(preset.pattern, root)
    forms = FORMS if preset.match == "auto" else (preset.match,)
    owned = {form: _owned(preset.pattern, assets, form, found) for form in forms}
    form = max(forms, key=lambda f: len(owned[f]))
    if not owned[form]:
        raise Refused(_nothing_fits(preset, assets, forms, root, len(found)))
    counts = Counter(_all_fields(preset.pattern, assets, form))
    twice = next((fields for fields in sorted(owned[form]) if counts[fields] > 1), None)
    if twice:
        raise Refused(
            f"pattern={preset.pattern}: two objects are {dict(twice)}: add {{class}} or {{split}}, or set match"
        )
    there = sorted({number for fields in owned[form] for number in found[fields]})
    numbers = preset.view_numbers or _expected(preset.num_views, there)
    if preset.num_views and len(numbers) != preset.num_views:
        raise Refused(
            f"num_views={preset.num_views}, but the pictures' numbers are {_listed(there)}; or set view_numbers"
        )
    values = preset.model_dump() | {"match": form, "view_numbers": numbers, "num_views": len(numbers)}
    return parse_recipe(FileViews, values, "preset files")


def _expected(num_views: int, there: list[int]) -> list[int]:
    """The first `num_views` numbers from 0 or 1, where no other one is there; else what is there."""
    usual = list(range(min(there[0], 1), min(there[0], 1) + num_views))
    return usual if set(there) <= set(usual) else there


def _listed(numbers: list[int]) -> str:
    text = ", ".join(map(str, numbers[:6]))
    return f"{text} .. {numbers[-1]} ({len(numbers)})" if len(numbers) > 6 else text


def _pictures(pattern: str, root: Path) -> dict[Fields, set[int]]:
    """The view numbers below a folder by the other fields of their path. Raises Refused where links lead out of it."""
    found: dict[Fields, set[int]] = {}
    paths = []
    for path in _files(root):
        parsed = parse_name(pattern, path)
        if parsed is not None:
            paths.append(path)
            found.setdefault(_sorted(parsed[0]), set()).add(parsed[1])
    refuse_links(root, paths, "pictures")
    return found


def _files(root: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative to it. Linked folders are entered where they stay inside, once.

    Raises Refused where one leads out.
    """
    seen, linked = {os.path.realpath(root)}, []
    for folder, names, files in os.walk(root, followlinks=True):
        for name in list(names):
            real = os.path.realpath(os.path.join(folder, name))
            if real in seen or not stays_inside(real, root):
                names.remove(name)
                linked.append(os.path.relpath(os.path.join(folder, name), root))
            elif os.path.islink(os.path.join(folder, name)):
                seen.add(real)
        inside = Path(folder).relative_to(root)
        yield from ((inside / name).as_posix() for name in files)
    refuse_links(root, linked, "linked folders")


def _sorted(fields: dict[str, str]) -> Fields:
    return tuple(sorted(fields.items()))


def _fields(pattern: str, asset: Asset, form: str) -> Fields | None:
    """The fields that a pattern asks of an object, or None where it has not all of them."""
    fields = fields_of(asset.id, asset.key, asset.class_name, asset.split, form)
    wanted = [name for name in ("class", "split", "synset", "id") if f"{{{name}}}" in pattern]
    return _sorted({name: fields[name] for name in wanted}) if all(name in fields for name in wanted) else None


def _all_fields(pattern: str, assets: list[Asset], form: str) -> list[Fields]:
    return [fields for asset in assets if (fields := _fields(pattern, asset, form)) is not None]


def _owned(pattern: str, assets: list[Asset], form: str, found: dict[Fields, set[int]]) -> set[Fields]:
    """The fields of the objects that have pictures."""
    return {fields for fields in _all_fields(pattern, assets, form) if fields in found}


def _nothing_fits(preset: FileViews, assets: list[Asset], forms: tuple[str, ...], root: Path, objects: int) -> str:
    """One line on what was looked for and what is there."""
    example = next((f for form in forms for f in _all_fields(preset.pattern, assets, form)), None)
    if example is None:
        return f"pattern={preset.pattern}: {assets[0].id} has not all of these fields"
    looked = file_names(preset.pattern, dict(example), (preset.view_numbers or [1])[0])[0]
    other = f"{objects:,} other objects' pictures fit it" if objects else "no file fits it"
    return f"no picture of these objects in --source {root}: pattern={preset.pattern} looks for {looked}; {other}"


def picture_members(asset: Asset, preset: FileViews, name: str, root: Path) -> Members:
    """Members of one object's pictures in the tar of view set `name`.

    Cameras are unknown: model, matrices, near and far are null. coverage: the share of pixels that are not
    transparent, or that differ from the colour of the corners. Raises ValueError naming the view and the file.
    """
    fields = fields_of(asset.id, asset.key, asset.class_name, asset.split, preset.match)
    members: Members = {}
    described, blank = [], []
    for view, number in enumerate(preset.view_numbers):
        path = _find(preset.pattern, fields, number, root)
        where = f"view {number} ({path.relative_to(root)})"
        try:
            picture, coverage, kept = _opened(path, preset)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises whatever its decoders trip over: the file is broken
            raise ValueError(
                f"{where} is broken: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            ) from error
        suffix, data = kept or _encoded(picture, path, preset)
        members[view_member(view, "rgb", suffix)] = data
        if one_colour(picture):
            blank.append(where)
        unknown = dict.fromkeys(("model", "camera_from_world", "K"))
        size = {"width": picture.shape[1], "height": picture.shape[0]}
        described.append(unknown | size | {"near": None, "far": None, "coverage": round(coverage, 6)})
    if blank and (len(blank) == len(described) or len(blank) > preset.max_blank_views):
        others = f" (and {len(blank) - 1} more)" if len(blank) > 1 else ""
        raise ValueError(f"{blank[0]} is blank: it is of one colour{others}")
    warnings = [{"type": "blank view", "count": len(blank)}] if blank else []
    values = {"format": FORMAT, "key": asset.key, "preset": name, "views": described, "warnings": warnings}
    return {JSON: encode_json(values), **members}


def _find(pattern: str, fields: dict[str, str], number: int, root: Path) -> Path:
    """The file of a view. Raises ValueError where it is missing, there are several, or it leads out of the source."""
    try:
        names = file_names(pattern, fields, number)
    except KeyError as error:
        raise ValueError(f"the object has no {{{error.args[0]}}}, which the pattern needs") from error
    there = [root / name for name in names if os.path.lexists(root / name)]
    if not there:
        raise ValueError(f"view {number} is missing: {names[0]}")
    for path in there:
        if not stays_inside(os.path.realpath(path), root):
            raise ValueError(f"view {number} leads out of the source: {path.relative_to(root)}")
        if not path.is_file():
            raise ValueError(f"view {number} is no file: {path.relative_to(root)}")
    if len({os.path.realpath(path).lower() for path in there}) > 1:
        raise ValueError(f"view {number} is there twice: {there[0].name} and {there[1].name}")
    return there[0]


def _opened(path: Path, preset: FileViews) -> tuple[np.ndarray, float, tuple[str, bytes] | None]:
    """(uint8 (H, W, 3), coverage, (suffix, bytes) where they are stored as they are) of a picture on white."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"a picture of {file.width} x {file.height} pixels")
        file.load()
        suffix = _KEPT.get(file.format or "")
        image = ImageOps.exif_transpose(file)
        turned = file.getexif().get(0x0112, 1) != 1
    coverage, opaque = None, image.mode in ("RGB", "L") and "transparency" not in image.info
    if not opaque:
        image, coverage = _on_white(image)
    short = min(image.size)
    resized = bool(preset.image_size) and short != preset.image_size
    if resized:
        scale = preset.image_size / short
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    picture = np.asarray(image.convert("RGB"))
    as_it_is = preset.rgb_format == "keep" and opaque and not resized and not turned
    if coverage is None:
        coverage = _away_from_corners(picture)
    return picture, coverage, (suffix, data) if as_it_is and suffix else None


def _on_white(image: Image.Image) -> tuple[Image.Image, float | None]:
    """RGB of a picture of any mode over white, and the share of pixels that are not transparent, None where all are."""
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(f"a picture of mode {image.mode} is no colour picture")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB"), None
    image = image.convert("RGBA")
    coverage = float((np.asarray(image.getchannel("A")) > 0).mean())
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), coverage


def _away_from_corners(picture: np.ndarray) -> float:
    corners = np.median(picture[[0, 0, -1, -1], [0, -1, 0, -1]].astype(np.int16), axis=0)
    return float((np.abs(picture - corners).max(axis=-1) > _CORNER_TOLERANCE).mean())


def _encoded(picture: np.ndarray, path: Path, preset: FileViews) -> tuple[str, bytes]:
    suffix = preset.rgb_format
    if suffix == "keep":
        suffix = "jpg" if path.suffix.lower() in (".jpg", ".jpeg") else "png"
    return suffix, encode_picture(picture, suffix)
