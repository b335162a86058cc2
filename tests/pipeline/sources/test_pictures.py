"""Textures of all kinds of pictures through the real command: their values are kept, or the texture is broken."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from mesh_builds import StoredFile, build_files
from pictures import png, tiff
from PIL import Image

from pipeline.sources.pictures import decode_texture


def of(*values: float, kind: str = "u2") -> np.ndarray:
    """A picture of 4 x 4 pixels with these channels; a grey one where there is one."""
    picture = np.tile(np.array(values, kind), (4, 4, 1))
    return picture


def grey(value: float, kind: str = "u2") -> np.ndarray:
    return of(value, kind=kind)[..., 0]


def saved(mode: str, color: object, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (16, 16), color).save(file, format, **options)
    return file.getvalue()


def palette(transparent: bool) -> bytes:
    chunks = {"PLTE": bytes([1, 2, 3, 200, 40, 40]), **({"tRNS": bytes([255, 100])} if transparent else {})}
    return png(grey(1), 8, 3, **chunks)


def inverted_cmyk() -> bytes:
    """A JPEG as Adobe writes it: its marker says that the values are turned round."""
    data = saved("CMYK", (0, 255, 255, 0), "JPEG", quality=100)
    assert b"Adobe" in data
    return data


CLEAR = struct.pack(">H", 30000)
# name -> (bytes, RGBA of every pixel within 1)
KEPT: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "grey16.png": (png(grey(30000), 16, 0), (117, 117, 117, 255)),
    "dark16.png": (png(grey(300), 16, 0), (1, 1, 1, 255)),
    "rgb16.png": (png(of(51400, 10280, 10280), 16, 2), (200, 40, 40, 255)),
    "greya16.png": (png(of(30000, 40000), 16, 4), (117, 117, 117, 156)),
    "rgba16.png": (png(of(51400, 10280, 10280, 40000), 16, 6), (200, 40, 40, 156)),
    "grey16clear.png": (png(grey(30000), 16, 0, tRNS=CLEAR), (117, 117, 117, 0)),
    "rgb16clear.png": (png(of(30000, 30000, 30000), 16, 2, tRNS=CLEAR * 3), (117, 117, 117, 0)),
    "grey1.png": (png(grey(1), 1, 0), (255, 255, 255, 255)),
    "grey2.png": (png(grey(1), 2, 0), (85, 85, 85, 255)),
    "grey4.png": (png(grey(1), 4, 0), (17, 17, 17, 255)),
    "grey4clear.png": (png(grey(1), 4, 0, tRNS=b"\0\1"), (17, 17, 17, 0)),
    "palette.png": (palette(False), (200, 40, 40, 255)),
    "palette_clear.png": (palette(True), (200, 40, 40, 100)),
    "palette.gif": (saved("RGB", (200, 40, 40), "GIF"), (200, 40, 40, 255)),
    "greya.png": (saved("LA", (80, 100), "PNG"), (80, 80, 80, 100)),
    "bit.png": (saved("1", 1, "PNG"), (255, 255, 255, 255)),
    "grey.jpg": (saved("L", 100, "JPEG"), (100, 100, 100, 255)),
    "cmyk.jpg": (inverted_cmyk(), (254, 0, 0, 255)),
    "cmyk.tif": (tiff(of(0, 255, 255, 0, kind="u1"), 5), (255, 0, 0, 255)),
    "cmyk16.tif": (tiff(of(0, 65535, 65535, 0), 5), (255, 0, 0, 255)),
    "grey16.tif": (tiff(of(30000), 1), (117, 117, 117, 255)),
    "white_is_zero16.tif": (tiff(of(30000), 0), (138, 138, 138, 255)),
    "rgb16.tif": (tiff(of(51400, 10280, 10280), 2), (200, 40, 40, 255)),
    "rgba16.tif": (tiff(of(51400, 10280, 10280, 40000), 2, extra=2), (200, 40, 40, 156)),
    "multiplied.tif": (tiff(of(100, 20, 20, 128, kind="u1"), 2, extra=1), (199, 39, 39, 128)),
    "planes.tif": (tiff(of(200, 40, 40, kind="u1"), 2, planes=True), (200, 40, 40, 255)),
    "float.tif": (tiff(of(0.5, kind="f4"), 1), (128, 128, 128, 255)),
    "float255.tif": (tiff(of(128, kind="f4"), 1), (128, 128, 128, 255)),
    "float65535.tif": (tiff(of(30000, kind="f4"), 1), (117, 117, 117, 255)),
    "grey16.pgm": (b"P5 2 1 65535\n" + struct.pack(">2H", 30000, 30000), (117, 117, 117, 255)),
    "rgb16.ppm": (b"P6 1 1 65535\n" + struct.pack(">3H", 51400, 10280, 10280), (200, 40, 40, 255)),
}  # fmt: skip
BROKEN: dict[str, bytes] = {
    "planes16.tif": tiff(of(51400, 10280, 10280), 2, planes=True),  # Pillow mistakes their bytes for others
    "whole32.tif": tiff(of(30000, kind="u4"), 1),
    "signed16.tif": tiff(of(-3, kind="i2"), 1),
    "negative.tif": tiff(of(-0.5, kind="f4"), 1),
    "nan.tif": tiff(of(float("nan"), kind="f4"), 1),
    "lab.tif": tiff(of(100, 20, 30, kind="u1"), 8),
    "float_rgb.tif": tiff(of(0.5, 0.2, 0.1, kind="f4"), 2),
}
OBJ = "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nusemtl a\nf 1/1 2/2 3/3 4/4\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredFile]:
    files: dict[str, str | bytes] = {}
    for name, data in {**{name: data for name, (data, _) in KEPT.items()}, **BROKEN}.items():
        files |= {f"{name}/m.obj": OBJ, f"{name}/m.mtl": f"newmtl a\nmap_Kd {name}\n", f"{name}/{name}": data}
    return build_files(tmp_path_factory.mktemp("pictures"), files)


@pytest.mark.parametrize("name", KEPT)
def test_values_are_kept(built: dict[str, StoredFile], name: str) -> None:
    data, color = KEPT[name]
    texture, smaller = decode_texture(data)
    assert (texture.dtype, smaller) == (np.uint8, False)
    assert np.abs(texture.astype(int) - color).max() <= 1
    found = built[f"{name}/m.obj"]
    assert found.color == pytest.approx(color[:3], abs=1)
    assert found.warnings == ({} if color[3] else {"alpha of zero": 1})


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_kept_is_a_broken_texture(built: dict[str, StoredFile], name: str) -> None:
    found = built[f"{name}/m.obj"]
    assert (found.color, found.warnings) == (None, {"texture broken": 1})
