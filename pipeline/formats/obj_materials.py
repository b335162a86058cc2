"""Reads the materials of an OBJ.

Oddities are mended where that is safe. Every repair is a warning: one of the words below, counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.sources.pictures import decode_texture
from pipeline.sources.raw_shape import INVISIBLE, utf8
from pipeline.sources.side_files import SideFiles
from pipeline.sources.source_files import noted
from renderers.geometry import GREY, Material

MATERIAL_MISSING = "material not found"  # the .mtl is missing, or does not define a material that faces use: grey
TEXTURE_BROKEN = "texture broken"  # no picture, a cut one or a huge one: the material's own colour is drawn
TEXTURE_REDUCED = "texture reduced"  # its longer side was more than MAX_SIDE
TEXTURE_UNPLACED = "texture without coordinates"  # its faces have no vt: the material's own colour is drawn
TEXTURE_REPEATS = "texture repeats"  # coordinates outside [0, 1]
BAD_COORDINATES = "coordinates not finite"  # taken as 0
BLACK = "black under a texture"  # a texture times Kd 0 0 0: the texture alone is drawn
BLACK_COLORS = "black under vertex colours"  # the same of vertex colours

_ARGUMENTS = {"-mm": 2, "-o": 3, "-s": 3, "-t": 3}  # of texture options in .mtl files; all others take one
_CHANGING = ("-mm", "-t", "-texres", "-cc", "-imfchan")  # what changes colours or places, and is not drawn
_INVISIBLE_BELOW = 1 / 255
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class MtlMaterial:
    """A material of an .mtl. Texture coordinates times `scale` plus `offset` are where its texture is read (-s, -o).

    colorless: it names neither a colour nor a texture that is there.
    """

    material: Material
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    colorless: bool = False


def read_materials(libraries: list[bytes], names: list[bytes], files: SideFiles, stem: str) -> list[MtlMaterial | None]:
    """The materials that an OBJ names, None where one is not defined; without a name the only one of its libraries.

    libraries: what stands behind each mtllib. stem: the OBJ's name without suffix, under which a library is sought too.
    """
    if not names and not libraries:
        return []
    written = [name for line in libraries for name in _library_names(text_of(line), files)] or [f"{stem}.mtl"]
    paths = [files.find(name, MATERIAL_MISSING, instead=f"{stem}.mtl") for name in written]
    defined: dict[str, dict[str, str]] = {}
    for path in paths:
        defined |= {} if path is None else _parse_mtl(text_of(noted(path, path.read_bytes())), path.parent)
    chosen = [_named(defined, text_of(name)) for name in names] or [next(iter(defined.values()), None)][: len(defined)]
    if not names and len(defined) != 1:
        files.warnings[MATERIAL_MISSING] += None not in paths
        return []
    files.warnings[MATERIAL_MISSING] += chosen.count(None) * (None not in paths)
    textures: dict[tuple[str, ...], np.ndarray | None] = {}
    return _visible(
        [None if values is None else _mtl_material(values, files, textures) for values in chosen], files.warnings
    )


def _named(defined: dict[str, dict[str, str]], name: str) -> dict[str, str] | None:
    """A material by its name, else in any letter case, else without what looks like a comment behind it."""
    folded = {each.casefold(): each for each in defined}
    for written in (name.strip(), name.split(" #")[0].strip()):
        found = defined.get(written, defined.get(folded.get(written.casefold(), "")))
        if found is not None:
            return found
    return None


def text_of(data: bytes) -> str:
    """Text in UTF-8, UTF-16 or Latin-1."""
    data = utf8(data)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _library_names(line: str, files: SideFiles) -> list[str]:
    """The files of a mtllib line: one name, which may hold spaces and #, or several names."""
    plain = line.split(" #")[0].strip()
    for name in (line.strip(), plain):
        if os.path.isfile(files.folder / name):
            return [name]
    return re.findall(r"\S.*?\.mtl(?!\S)", plain, re.IGNORECASE) or [plain]


def _parse_mtl(text: str, folder: Path) -> dict[str, dict[str, str]]:
    """material -> keyword in lower case -> the rest of its line; the .mtl's folder under an empty keyword."""
    materials: dict[str, dict[str, str]] = {}
    values: dict[str, str] = {}
    for line in text.splitlines():
        keyword, _, rest = line.strip().replace("\t", " ").partition(" ")
        if keyword.lower() == "newmtl":
            values = materials[rest.strip()] = {"": str(folder)}
        elif keyword and not keyword.startswith("#"):
            values[keyword.lower()] = rest.strip()
    return materials


def _mtl_material(
    values: dict[str, str], files: SideFiles, textures: dict[tuple[str, ...], np.ndarray | None]
) -> MtlMaterial:
    """One material. textures: decoded pictures by their lines in the .mtl, shared by materials."""
    color = _numbers(values.get("kd", ""))[:3]
    color = color * 3 if len(color) == 1 else color
    texture = None
    maps = (values[""], values.get("map_kd", ""), values.get("map_d", ""))
    if maps[1] or maps[2]:
        if maps not in textures:
            textures[maps] = _texture(*maps, files)
        texture = textures[maps]
    if maps[1]:
        if texture is None and color == [0.0, 0.0, 0.0]:
            color = []
        elif texture is not None and color == [0.0, 0.0, 0.0]:
            files.warnings[BLACK] += 1
            color = [1.0, 1.0, 1.0]
    colorless = len(color) != 3
    if colorless:
        color = list(GREY[:3]) if texture is None or not maps[1] else [1.0, 1.0, 1.0]
    red, green, blue = (min(max(c, 0.0), 1.0) for c in color)
    options = _options(maps[1])[0]
    for option in options:
        if option in _CHANGING and texture is not None:
            files.warnings[f"texture option {option} passed over"] += 1
    scale, offset = ([*map(float, options.get(o, [])), *[default] * 2][:2] for o, default in (("-s", 1.0), ("-o", 0.0)))
    wrap = "clamp" if options.get("-clamp") == ["on"] else "repeat"
    material = Material((red, green, blue, _alpha(values, files.warnings)), texture, (wrap, wrap))
    return MtlMaterial(material, (scale[0], scale[1]), (offset[0], offset[1]), colorless and texture is None)


def _alpha(values: dict[str, str], warnings: Counter[str]) -> float:
    """Opacity. `Tr 1` alone is written by exporters that mean opaque."""
    opaque, transparent = _numbers(values.get("d", "")), _numbers(values.get("tr", ""))
    alpha = opaque[-1] if opaque else 1.0 - transparent[0] if transparent else 1.0
    if not opaque and alpha < _INVISIBLE_BELOW:
        warnings[INVISIBLE] += 1
        return 1.0
    return min(max(alpha, 0.0), 1.0)


def _numbers(text: str) -> list[float]:
    """The numbers of a line before a comment; [] where a word is not a number, as in `Kd spectral file.rfl`."""
    words = [word for word in text.partition("#")[0].split() if word != "-halo"]
    return [float(word) for word in words] if all(_NUMBER.fullmatch(word) for word in words) else []


def _visible(surfaces: list[MtlMaterial | None], warnings: Counter[str]) -> list[MtlMaterial | None]:
    """The materials, made opaque where otherwise nothing at all would be seen."""
    there = [each for each in surfaces if each is not None]
    if not there or any(each.material.base_color[3] >= _INVISIBLE_BELOW for each in there):
        return surfaces
    warnings[INVISIBLE] += len(there)
    return [
        each and replace(each, material=replace(each.material, base_color=(*each.material.base_color[:3], 1.0)))
        for each in surfaces
    ]


def _options(line: str) -> tuple[dict[str, list[str]], str]:
    """(options in lower case with their words, file) of a texture line; the file's name may hold spaces."""
    words = line.split(" ")
    found: dict[str, list[str]] = {}
    while words and (words[0] == "" or (words[0].startswith("-") and len(words) > 1)):
        option = words.pop(0).lower()
        if option:
            taken = found.setdefault(option, [])
            while words and len(taken) < _ARGUMENTS.get(option, 1) and len(words) > 1:
                if option in _ARGUMENTS and words[0] and not _NUMBER.fullmatch(words[0]):
                    break
                word = words.pop(0)
                taken += [word] if word else []
    return found, " ".join(words)


def _texture(folder: str, color_line: str, alpha_line: str, files: SideFiles) -> np.ndarray | None:
    """RGBA uint8 (H, W, 4) of a colour picture, with the alpha of another where that is named, or None.

    Of an alpha alone the colour is white. folder: the .mtl's, to which their paths are relative.
    """
    color_name, alpha_name = _options(color_line)[1], _options(alpha_line)[1]
    texture = read_picture(color_name, Path(folder), files) if color_line else None
    if texture is None and color_line:
        return None
    if alpha_line and alpha_name != color_name:
        alpha = read_picture(alpha_name, Path(folder), files)
        if alpha is not None:
            channel = alpha[..., 3] if (alpha[..., 3] < 255).any() else alpha[..., :3].mean(axis=2).astype(np.uint8)
            texture = np.full_like(alpha, 255) if texture is None else texture.copy()
            size = (texture.shape[1], texture.shape[0])
            texture[..., 3] = np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BILINEAR))
    if texture is not None and not texture[..., 3].any():
        files.warnings[INVISIBLE] += 1
        texture = np.concatenate([texture[..., :3], np.full_like(texture[..., 3:], 255)], axis=2)
    return texture


def read_picture(name: str, folder: Path, files: SideFiles) -> np.ndarray | None:
    """RGBA uint8 (H, W, 4) of a file, its longer side at most MAX_SIDE; None, counted, where it is missing.

    It is looked for in the .mtl's folder, then in the model's; a name that fits as it is goes before a mended one.
    """
    tries = []
    for beside in dict.fromkeys((Path(os.path.realpath(folder)), Path(os.path.realpath(files.folder)))):
        near = replace(files, folder=beside, warnings=Counter())
        for written in dict.fromkeys((name, name.split(" #")[0])):
            tries.append((near.find(written), near.warnings))
            near = replace(near, warnings=Counter())
    path, warnings = min(tries, key=lambda each: (each[0] is None, each[1].total()))
    files.warnings.update(warnings)
    if path is None:
        return None
    try:
        picture, reduced = decode_texture(noted(path, path.read_bytes()))
    except ValueError:
        files.warnings[TEXTURE_BROKEN] += 1
        return None
    files.warnings[TEXTURE_REDUCED] += reduced
    return picture


def mend_uvs(uv: np.ndarray | None, textured: bool, warnings: Counter[str]) -> np.ndarray | None:
    """Texture coordinates (N, 2) with what is not finite or beyond all reason as 0; counts what it does and sees."""
    if uv is None:
        warnings[TEXTURE_UNPLACED] += textured
        return None
    uv = np.asarray(uv, np.float64)
    bad = ~(np.abs(uv) < 1e6)
    warnings[BAD_COORDINATES] += int(bad.any())
    uv = np.where(bad, 0.0, uv)
    warnings[TEXTURE_REPEATS] += int(textured and len(uv) > 0 and (uv.min() < -1e-3 or uv.max() > 1 + 1e-3))
    return uv
