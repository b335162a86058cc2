"""Small files that claim to be huge, or unpack into something huge: refused before memory is taken for it."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from redwood_release import depth_frame, rgb_frame

from manifests.dataset_info import load_table
from manifests.errors import Refused
from manifests.file_views import FileViews
from manifests.presets import load_preset
from manifests.records import Asset
from pipeline.datasets.co3d import _gray, decode_depth
from pipeline.datasets.objaverse import complete
from pipeline.datasets.redwood import RedwoodOptions, depth_metres
from pipeline.datasets.redwood import frames as scan_frames
from pipeline.formats.frame import Frame
from pipeline.formats.mesh import read_mesh
from pipeline.shards.views_from_files import picture_members, resolved
from pipeline.shards.views_from_frames import frame_members
from pipeline.sources.json_stream import JsonLimits, load_json, load_records
from pipeline.sources.pictures import decode_texture

ASSET = Asset("00001", "data/mesh/00001.ply", "train", "chair", "00001")
SIDE = 8200  # its square is more than 2**26, and less than what Pillow itself warns of


def claimed(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header says how large it is, and whose pixels are missing."""
    head = struct.pack(">4sIIBBBBB", b"IHDR", width, height, bits, colour, 0, 0, 0)
    chunks = (head, b"IDAT" + zlib.compress(b""), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def whole(side: int = SIDE) -> bytes:
    """A right PNG of one bit a pixel: a few kilobytes."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    return file.getvalue()


@pytest.fixture(scope="module")
def large() -> bytes:
    return whole()


def test_a_texture_of_too_many_pixels_is_not_drawn(tmp_path, large) -> None:
    with pytest.raises(ValueError, match=f"{SIDE} x {SIDE} pixels"):
        decode_texture(large)
    (tmp_path / "large.png").write_bytes(large)
    (tmp_path / "m.mtl").write_text("newmtl a\nKd 0 0 1\nmap_Kd large.png\n")
    faces = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl a\nf 1/1 2/2 3/3\n"
    (tmp_path / "m.obj").write_text(f"mtllib m.mtl\n{faces}")
    raw = read_mesh(tmp_path / "m.obj", tmp_path)
    assert raw.mesh.materials[0].texture is None
    assert raw.warnings == {"texture broken": 1}


def test_a_texture_in_a_glb_of_too_many_pixels_is_not_drawn(tmp_path, large) -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]])
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.new("1", (8, 8)))
    visual = trimesh.visual.TextureVisuals(uv=corners[:, :2], material=material)
    data = trimesh.Trimesh(corners, [[0, 1, 2]], visual=visual, process=False).export(file_type="glb")
    size, _ = struct.unpack_from("<II", data, 12)
    values, body = json.loads(data[20 : 20 + size]), data[28 + size :]
    view = values["bufferViews"][values["images"][0]["bufferView"]]
    view |= {"byteOffset": len(body), "byteLength": len(large)}
    body += large + bytes(-len(large) % 4)
    values["buffers"][0]["byteLength"] = len(body)
    text = json.dumps(values).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
    (tmp_path / "a.glb").write_bytes(b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks)
    raw = read_mesh(tmp_path / "a.glb", tmp_path)
    assert raw.mesh.materials[0].texture is None
    assert raw.warnings == {"texture broken": 1}


def test_no_texture_starts_another_program(tmp_path) -> None:
    """PostScript is what Pillow hands to Ghostscript."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "EPS")
    with pytest.raises(ValueError, match="UnidentifiedImageError"):
        decode_texture(file.getvalue())


def test_a_frame_of_too_many_pixels_is_passed_over() -> None:
    _, preset = load_preset("frames20")
    frame = Frame("a.png", rgb=lambda: claimed(SIDE, SIDE))
    with pytest.raises(ValueError, match=f"a.png: a picture of {SIDE} x {SIDE} pixels"):
        frame_members(ASSET, [frame], np.eye(4), preset, "frames20", 0)


def test_a_picture_of_ones_own_of_too_many_pixels_fails_its_object(tmp_path) -> None:
    (tmp_path / "00001_1.png").write_bytes(claimed(SIDE, SIDE))
    preset = resolved(FileViews(backend="files", pattern="{id}_{view}.png"), [ASSET], tmp_path)
    with pytest.raises(ValueError, match=f"a picture of {SIDE} x {SIDE} pixels"):
        picture_members(ASSET, preset, "mine", tmp_path)


def test_masks_and_depth_maps_of_too_many_pixels_are_broken(tmp_path) -> None:
    (tmp_path / "mask.png").write_bytes(claimed(SIDE, SIDE, 8, 0))
    with pytest.raises(ValueError, match=f"a mask of {SIDE} x {SIDE} pixels"):
        _gray(tmp_path, "mask.png")
    for decode in (depth_metres, lambda data: decode_depth(data, 1.0)):
        with pytest.raises(ValueError, match=f"{SIDE} x {SIDE} pixels"):
            decode(claimed(SIDE, SIDE, 16, 0))


def scan(root: Path) -> Path:
    """A new archive of one good pair of pictures."""
    (root / "data/rgbd").mkdir(parents=True, exist_ok=True)
    path = root / "data/rgbd/00001.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rgb/0000001-000000000000.jpg", rgb_frame(0))
        archive.writestr("depth/0000001-000000005000.png", depth_frame(0))
    return path


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(ValueError) as caught, scan_frames(ASSET, root, RedwoodOptions(**options)):
        pass
    return str(caught.value)


def test_an_archive_that_unpacks_without_a_limit_is_not_read(tmp_path) -> None:
    """Deflate expands a thousandfold at most, and a member's own size is held against picture_mb."""
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(scan(tmp_path), "a") as archive:
            archive.writestr("rgb/0000002-000000033367.jpg", bytes(1 << 20), method)
        assert "is packed by a method that is not read" in refusal(tmp_path)
    with zipfile.ZipFile(scan(tmp_path), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rgb/0000002-000000033367.jpg", bytes((1 << 20) + 1))
    assert "has more than picture_mb=1" in refusal(tmp_path, picture_mb=1)
    with scan_frames(ASSET, tmp_path, RedwoodOptions(picture_mb=2)) as found:
        assert len(found) == 2


def test_an_archive_of_more_members_than_allowed_is_not_read(tmp_path) -> None:
    scan(tmp_path)
    assert "2 members, more than zip_members=1" in refusal(tmp_path, zip_members=1)
    with scan_frames(ASSET, tmp_path, RedwoodOptions(zip_members=2)) as found:
        assert len(found) == 1


def test_an_archive_that_leads_out_of_itself_is_not_read(tmp_path) -> None:
    for name in ("../rgb/0000002-000000033367.jpg", "rgb/../../a.jpg", "/rgb/a.jpg", "C:/rgb/a.jpg", "rgb\\..\\a.jpg"):
        with zipfile.ZipFile(scan(tmp_path), "a") as archive:
            archive.writestr(zipfile.ZipInfo(name), b"x")
        assert "names a path outside itself" in refusal(tmp_path), name


def gz(path: Path, *parts: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)
    return path


def peak_of(call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_annotations_are_unpacked_up_to_their_limit(tmp_path) -> None:
    limits, record = JsonLimits(megabytes=2, depth=3), b'{"sequence_name": "a", "n": [[1]]}'
    at_the_bound = gz(tmp_path / "a.jgz", b"[", record, b" " * ((2 << 20) - len(record) - 2), b"]")
    assert len(list(load_records(at_the_bound, limits))) == 1
    above = gz(tmp_path / "b.jgz", b"[", record, b" " * ((2 << 20) - len(record) - 1), b"]")
    with pytest.raises(ValueError, match="has more than annotations_mb=2"):
        list(load_records(above, limits))
    bomb = gz(tmp_path / "c.jgz", b"[", *[b" " * (1 << 20)] * 200)

    def unpack() -> None:
        with pytest.raises(ValueError, match="has more than annotations_mb=2"):
            list(load_records(bomb, limits))

    assert peak_of(unpack) < 20e6


def test_nesting_is_read_up_to_its_limit(tmp_path) -> None:
    for depth, allowed in ((4, True), (5, False)):  # three lists inside the outermost one
        (tmp_path / "a.json").write_text("[" * depth + "]" * depth)
        if allowed:
            load_json(tmp_path / "a.json", JsonLimits(megabytes=1, depth=3))
        else:
            with pytest.raises(ValueError, match="nested deeper than json_depth=3"):
                load_json(tmp_path / "a.json", JsonLimits(megabytes=1, depth=3))


def test_an_endless_record_is_given_up(tmp_path) -> None:
    path = gz(tmp_path / "a.jgz", b'[{"sequence_name": "', *[b"x" * (1 << 20)] * 40)
    with pytest.raises(ValueError, match="holds a record of more than 16 MB"):
        list(load_records(path, JsonLimits(megabytes=2048, depth=8)))


def test_a_table_of_categories_is_not_unpacked_whole(tmp_path) -> None:
    gz(tmp_path / "lvis-annotations.json.gz", *[b" " * (1 << 20)] * 300)

    def unpack() -> None:
        with pytest.raises(Refused, match="more than 67,108,864 bytes"):
            complete(load_table("objaverse_lvis"), tmp_path)

    assert peak_of(unpack) < 250e6
