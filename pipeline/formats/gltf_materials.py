"""Makes our materials of glTF's: pictures, factors, alpha modes, samplers and what becomes of colours at vertices.

glTF's factors and vertex colours are linear, its pictures are sRGB; ours are all display (sRGB) values, which renderers
multiply as they stand. A factor goes exactly into the texture or the vertex colours. Vertex colours over a texture are
left to the renderer: its product of display values differs from the linear one by at most 8 of 255.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.formats.gltf_data import GltfData, number, numbers, part
from pipeline.formats.gltf_features import FEATURES, WARNED, count_left_out
from pipeline.formats.obj_materials import TEXTURE_BROKEN, TEXTURE_REDUCED
from pipeline.sources.pictures import decode_texture
from pipeline.sources.side_files import TEXTURE_MISSING
from renderers.geometry import GREY, Material

COLORS_CLIPPED = "colours outside 0 to 1"  # the specification says: clamped
WRAP_UNKNOWN = "wrap of no known kind"  # taken as repeat
WRAPS = {10497: "repeat", 33071: "clamp", 33648: "mirror"}
_NEAREST = 9728
_KTX2 = b"\xabKTX 20\xbb"
_GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"


def to_display(linear: np.ndarray) -> np.ndarray:
    """Linear values as sRGB ones, both in [0, 1] (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, np.minimum(1.055 * linear ** (1 / 2.4) - 0.055, 1))


def to_linear(display: np.ndarray) -> np.ndarray:
    """sRGB values as linear ones, both in [0, 1] (IEC 61966-2-1)."""
    return np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)


@dataclass(frozen=True)
class Look:
    """What a material says, whatever primitive has it.

    factor: RGBA float64 (4,), linear. stated: whether the file gives it. picture: uint8 (H, W, 4), sRGB, or None.
    uv_set: the n of its TEXCOORD_n, None without a texture. uv_matrix: float64 (2, 3) of texture coordinates (v down),
    or None. cutoff: the least alpha that is drawn (MASK), or None. opaque: whether alpha is ignored.
    """

    factor: np.ndarray
    stated: bool = True
    picture: np.ndarray | None = None
    uv_set: int | None = None
    uv_matrix: np.ndarray | None = None
    wrap: tuple[str, str] = ("repeat", "repeat")
    cutoff: float | None = None
    opaque: bool = True


class Materials:
    """The materials of one file, each read once, and ours that were made of them (`made`).

    display: the file is one of our own, whose factors and vertex colours are display values and whose alpha stands.
    """

    def __init__(self, data: GltfData, warnings: Counter[str], display: bool) -> None:
        self.made: list[Material] = []
        self._data, self._warnings, self._display = data, warnings, display
        self._looks: dict[int | None, Look] = {None: Look(np.ones(4), stated=False)}
        self._pictures: dict[Any, np.ndarray | None] = {}
        self._numbers: dict[tuple, int] = {}

    def look(self, place: Any) -> Look:
        """The material of a primitive. Raises ValueError when it is not there."""
        if place is not None:
            row = self._data.row("materials", place, "a primitive")
            if place not in self._looks:
                self._looks[place] = self._read(row)
        return self._looks[place]

    def _read(self, row: dict[str, Any]) -> Look:
        glow = numbers(row, "emissiveFactor", 3)
        dark = ("emissiveFactor", "emissiveTexture") if glow is None or not glow.any() else ()
        count_left_out("material", {key: value for key, value in row.items() if key not in dark}, self._warnings)
        source, names = part(row, "pbrMetallicRoughness"), ("baseColorFactor", "baseColorTexture")
        count_left_out("pbrMetallicRoughness", source, self._warnings)
        if _GLOSSINESS in part(row, "extensions"):
            source, names = part(row, "extensions", _GLOSSINESS), ("diffuseFactor", "diffuseTexture")
        factor, mode, info = numbers(source, names[0], 4), row.get("alphaMode"), part(source, names[1])
        if factor is not None and self._display:
            factor = np.rint(factor * 255) / 255
        texture = self._texture(info) if info else {}
        return Look(
            factor=np.ones(4) if factor is None else np.clip(factor, 0, 1),
            stated=factor is not None or not info,
            cutoff=number(row, "alphaCutoff", 0.5) if mode == "MASK" else None,
            opaque=mode not in ("MASK", "BLEND") and not self._display,
            **texture,
        )

    def _texture(self, info: dict[str, Any]) -> dict[str, Any]:
        """What a textureInfo says, as arguments of `Look`."""
        count_left_out("textureInfo", info, self._warnings)
        texture = self._data.row("textures", info.get("index"), "a material")
        sampler: dict[str, Any] = {}
        if texture.get("sampler") is not None:
            sampler = self._data.row("samplers", texture["sampler"], "a texture")
        if sampler.get("magFilter") == _NEAREST:
            count_left_out("sampler", sampler, self._warnings)
        moved = part(info, "extensions", "KHR_texture_transform")
        uv_set = moved.get("texCoord", info.get("texCoord", 0))
        return {
            "picture": self._picture(texture),
            "uv_set": uv_set if isinstance(uv_set, int) else 0,
            "uv_matrix": _uv_matrix(moved) if moved else None,
            "wrap": (self._wrap(sampler, "wrapS"), self._wrap(sampler, "wrapT")),
        }

    def _wrap(self, sampler: dict[str, Any], key: str) -> str:
        kind = sampler.get(key, 10497)
        known = isinstance(kind, int) and kind in WRAPS
        self._warnings[WRAP_UNKNOWN] += not known
        return WRAPS[kind] if known else "repeat"

    def _picture(self, texture: dict[str, Any]) -> np.ndarray | None:
        """The first picture of a texture that can be read: of an extension that is applied, then its own."""
        sources = {name: part(texture, "extensions", name).get("source") for name in part(texture, "extensions")}
        unread: dict[str, dict] = {name: {} for name in sources if FEATURES.get(f"extension {name}") in (None, WARNED)}
        for place in (*(s for name, s in sources.items() if name not in unread), texture.get("source")):
            picture = None if place is None else self._image(place)
            if picture is not None:
                return picture
        if unread:
            count_left_out("texture", {"extensions": unread}, self._warnings)
        elif texture.get("source") is None and not any(sources.values()):
            self._warnings[TEXTURE_MISSING] += 1
        return None

    def _image(self, place: Any) -> np.ndarray | None:
        """RGBA of a picture, or None, counted."""
        row = self._data.row("images", place, "a texture")
        if place not in self._pictures:
            self._pictures[place] = self._decoded(row)
        return self._pictures[place]

    def _decoded(self, row: dict[str, Any]) -> np.ndarray | None:
        data: bytes | None = None
        try:
            if row.get("bufferView") is not None:
                data = bytes(self._data.view(row["bufferView"]))
            elif row.get("uri") is not None:
                data = self._data.side_file(row["uri"], TEXTURE_MISSING)
                if data is None:
                    return None  # counted where it was looked for
            if data is not None and data.startswith(_KTX2):
                count_left_out("texture", {"extensions": {"KHR_texture_basisu": {}}}, self._warnings)
                return None
            picture, reduced = decode_texture(data or b"")
        except ValueError:
            self._warnings[TEXTURE_BROKEN] += 1
            return None
        self._warnings[TEXTURE_REDUCED] += reduced
        return picture

    def vertex_colors(self, colors: np.ndarray, look: Look, textured: bool) -> np.ndarray:
        """uint8 (V, 4), display values, of COLOR_0: real (V, 3 or 4), linear. The factor goes in without a texture."""
        if not (colors.min(initial=0) >= 0 and colors.max(initial=0) <= 1.001):
            self._warnings[COLORS_CLIPPED] += 1
        rgba = np.ones((len(colors), 4), np.float32)
        rgba[:, : colors.shape[1]] = np.nan_to_num(colors)
        if not textured and not self._display:
            rgba[:, :3] *= look.factor[:3].astype(np.float32)
        if not self._display:
            rgba[:, :3] = to_display(rgba[:, :3])
        if look.opaque:
            rgba[:, 3] = 1
        return (np.clip(rgba, 0, 1) * 255 + 0.5).astype(np.uint8)

    def number(self, place: Any, textured: bool, colors: np.ndarray | None) -> int | None:
        """The place in `made` of our material for a primitive, or None where its cut-off hides all of it.

        textured: whether the primitive has the texture's coordinates. colors: uint8 (V, 4) at its vertices, or None.
        """
        look = self.look(place)
        alphas = np.array([255, 255]) if colors is None else np.array([colors[:, 3].min(), colors[:, 3].max()])
        if textured and look.picture is not None:
            alphas = alphas * [look.picture[..., 3].min(), look.picture[..., 3].max()] / 255
        cutoff, alpha = look.cutoff, 1.0 if look.opaque else float(look.factor[3])
        if cutoff is not None and not self._display:
            least, most = alphas / 255 * alpha
            if most < cutoff:
                return None
            # alpha is a texture's or the vertices': the factor's share goes into the cut-off
            cutoff, alpha = (None if least >= cutoff else cutoff / alpha), 1.0
        solid = look.opaque or (look.cutoff is not None and cutoff is None)
        key = (place, textured, colors is None, cutoff, solid)
        if key not in self._numbers:
            self._numbers[key] = len(self.made)
            self.made.append(self._made(place, look, textured, colors is not None, cutoff, alpha, solid))
        return self._numbers[key]

    def _made(
        self, place: Any, look: Look, textured: bool, colored: bool, cutoff: float | None, alpha: float, solid: bool
    ) -> Material:
        """Our material of one key of `_numbers`."""
        rgb, texture, wrap = np.ones(3), None, ("repeat", "repeat")
        if textured and look.picture is not None:
            texture, wrap = _dyed(look.picture, np.ones(3) if self._display else look.factor, solid), look.wrap
        elif not colored and not self._display:
            rgb = to_display(look.factor[:3]) if look.stated else np.array(GREY[:3])
        red, green, blue = map(float, look.factor[:3] if self._display else rgb)
        return Material((red, green, blue, alpha), texture, wrap, cutoff)


def _dyed(picture: np.ndarray, factor: np.ndarray, solid: bool) -> np.ndarray:
    """A picture times a linear factor, exactly; solid: with alpha 255."""
    if (factor[:3] == 1).all() and not (solid and (picture[..., 3] < 255).any()):
        return picture
    picture = picture.copy()
    for channel in range(3):
        if factor[channel] != 1:
            table = np.rint(255 * to_display(to_linear(np.arange(256) / 255) * factor[channel])).astype(np.uint8)
            picture[..., channel] = table[picture[..., channel]]
    if solid:
        picture[..., 3] = 255
    return picture


def _uv_matrix(moved: dict[str, Any]) -> np.ndarray:
    """float64 (2, 3) of a KHR_texture_transform: scale, then rotation, then offset, of coordinates with v down.

    Counter-clockwise is as seen in the picture, as viewers and the extension's sample have it; the listing in its text
    turns the other way (KhronosGroup/glTF issue 1563).
    """
    offset, scale, angle = numbers(moved, "offset", 2), numbers(moved, "scale", 2), number(moved, "rotation", 0.0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turn = turn if scale is None else turn * scale
    return np.concatenate([turn, (np.zeros(2) if offset is None else offset)[:, None]], axis=1)
