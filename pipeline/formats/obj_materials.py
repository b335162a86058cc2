"""Reads the materials of an OBJ.

Oddities are mended where that is safe. Every repair is a warning: one of the words below, counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter

import numpy as np
from PIL import Image

from pipeline.formats.pictures import decode_texture
from pipeline.formats.side_files import SideFiles
from pipeline.formats.source_files import noted
from renderers.geometry import GREY, Material

MATERIAL_MISSING = "material not found"  # the .mtl is missing, or does not define a material that faces use: grey
TEXTURE_BROKEN = "texture broken"  # no picture, a cut one or a huge one: the material's own colour is drawn
TEXTURE_REDUCED = "texture reduced"  # its longer side was more than MAX_SIDE
TEXTURE_UNPLACED = "texture without coordinates"  # its faces have no vt: the material's own colour is drawn
TEXTURE_REPEATS = "texture repeats"  # coordinates outside [0, 1]
BAD_COORDINATES = "coordinates not finite"  # taken as 0
INVISIBLE = "alpha of zero"  # drawn opaque
BLACK = "black under a texture"  # a texture times Kd 0 0 0: the texture alone is drawn

_ARGUMENTS = {"-mm": 2, "-o": 3, "-s": 3, "-t": 3}  # of texture options in .mtl files; all others take one
_INVISIBLE_BELOW = 1 / 255
_USEMTL = re.compile(rb"(?m)^[ \t]*usemtl[ \t]+([^\r\n]+)")
_MTLLIB = re.compile(rb"(?m)^[ \t]*mtllib[ \t]+([^\r\n]+)")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def read_materials(obj: bytes, files: SideFiles, stem: str) -> tuple[bytes, dict[str, Material]]:
    """An OBJ with its materials renamed to m0, m1, ..., and those of them that are defined, by the new name.

    obj: the file's bytes. stem: its name without suffix, where the .mtl of a renamed model is looked for.
    """
    used = {name: f"m{number}" for number, name in enumerate(dict.fromkeys(_USEMTL.findall(obj)))}
    if not used:
        return obj, {}
    renamed = _USEMTL.sub(lambda found: b"usemtl " + used[found[1]].encode(), obj)
    defined: dict[str, dict[str, str]] = {}
    libraries = [part for line in _MTLLIB.findall(obj) for part in _library_names(_text(line), files)] or [
        f"{stem}.mtl"
    ]
    paths = [files.find(name, MATERIAL_MISSING, instead=f"{stem}.mtl") for name in libraries]
    for path in paths:
        defined |= {} if path is None else _parse_mtl(_text(noted(path, path.read_bytes())))
    folded = {name.casefold(): name for name in defined}
    textures: dict[tuple[str, str], np.ndarray | None] = {}
    materials = {}
    for written, new_name in used.items():
        name = _text(written).strip()
        values = defined.get(name, defined.get(folded.get(name.casefold(), "")))
        if values is not None:
            materials[new_name] = _material(values, files, textures)
        elif None not in paths:
            files.warnings[MATERIAL_MISSING] += 1
    return renamed, _visible(materials, files.warnings)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _library_names(line: str, files: SideFiles) -> list[str]:
    """The files of a mtllib line: one name, which may hold spaces, or several names."""
    line = line.strip()
    parts = line.split()
    several = len(parts) > 1 and all(part.lower().endswith(".mtl") for part in parts)
    return parts if several and not os.path.isfile(files.folder / line) else [line]


def _parse_mtl(text: str) -> dict[str, dict[str, str]]:
    """material -> keyword in lower case -> the rest of its line."""
    materials: dict[str, dict[str, str]] = {}
    values: dict[str, str] = {}
    for line in text.splitlines():
        keyword, _, rest = line.strip().replace("\t", " ").partition(" ")
        if keyword.lower() == "newmtl":
            values = materials[rest.strip()] = {}
        elif keyword and not keyword.startswith("#"):
            values[keyword.lower()] = rest.strip()
    return materials


def _material(values: dict[str, str], files: SideFiles, textures: dict[tuple[str, str], np.ndarray | None]) -> Material:
    """One material. textures: decoded pictures by their lines in the .mtl, shared by materials."""
    color = _numbers(values.get("kd", ""))[:3]
    color = color * 3 if len(color) == 1 else color
    texture = None
    maps = (values.get("map_kd", ""), values.get("map_d", ""))
    if maps[0]:
        if maps not in textures:
            textures[maps] = _texture(*maps, files)
        texture = textures[maps]
        if texture is None and color == [0.0, 0.0, 0.0]:
            color = []
        elif texture is not None and color == [0.0, 0.0, 0.0]:
            files.warnings[BLACK] += 1
            color = [1.0, 1.0, 1.0]
    if len(color) != 3:
        color = list(GREY[:3]) if texture is None else [1.0, 1.0, 1.0]
    red, green, blue = (min(max(c, 0.0), 1.0) for c in color)
    return Material((red, green, blue, _alpha(values, files.warnings)), texture)


def _alpha(values: dict[str, str], warnings: Counter[str]) -> float:
    """Opacity. `Tr 1` alone is written by exporters that mean opaque."""
    opaque, transparent = _numbers(values.get("d", "")), _numbers(values.get("tr", ""))
    alpha = opaque[-1] if opaque else 1.0 - transparent[0] if transparent else 1.0
    if not opaque and alpha < _INVISIBLE_BELOW:
        warnings[INVISIBLE] += 1
        return 1.0
    return min(max(alpha, 0.0), 1.0)


def _numbers(text: str) -> list[float]:
    """The numbers of a line; [] where a word is not a number, as in `Kd spectral file.rfl`."""
    words = [word for word in text.split() if word != "-halo"]
    return [float(word) for word in words] if all(_NUMBER.fullmatch(word) for word in words) else []


def _visible(materials: dict[str, Material], warnings: Counter[str]) -> dict[str, Material]:
    """The materials, made opaque where otherwise nothing at all would be seen."""
    if not materials or any(m.base_color[3] >= _INVISIBLE_BELOW for m in materials.values()):
        return materials
    warnings[INVISIBLE] += len(materials)
    return {name: Material((*m.base_color[:3], 1.0), m.texture) for name, m in materials.items()}


def _file_name(line: str) -> str:
    """The file of a texture line, without its options; the name may hold spaces."""
    words = line.split(" ")
    while words and (words[0] == "" or (words[0].startswith("-") and len(words) > 1)):
        option = words.pop(0).lower()
        if option:
            taken = 0
            while words and taken < _ARGUMENTS.get(option, 1) and len(words) > 1:
                if option in _ARGUMENTS and words[0] and not _NUMBER.fullmatch(words[0]):
                    break
                taken += words.pop(0) != ""
    return " ".join(words)


def _texture(color_line: str, alpha_line: str, files: SideFiles) -> np.ndarray | None:
    """RGBA uint8 (H, W, 4) of a colour picture, with the alpha of another where that is named, or None."""
    texture = _picture(_file_name(color_line), files)
    if texture is None:
        return None
    if alpha_line and _file_name(alpha_line) != _file_name(color_line):
        alpha = _picture(_file_name(alpha_line), files)
        if alpha is not None:
            channel = alpha[..., 3] if (alpha[..., 3] < 255).any() else alpha[..., :3].mean(axis=2).astype(np.uint8)
            size = (texture.shape[1], texture.shape[0])
            texture = texture.copy()
            texture[..., 3] = np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BILINEAR))
    if not texture[..., 3].any():
        files.warnings[INVISIBLE] += 1
        texture = np.concatenate([texture[..., :3], np.full_like(texture[..., 3:], 255)], axis=2)
    return texture


def _picture(name: str, files: SideFiles) -> np.ndarray | None:
    """RGBA uint8 (H, W, 4) of a file, its longer side at most MAX_SIDE; None, counted, where it is missing."""
    path = files.find(name)
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
