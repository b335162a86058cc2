"""Odd materials of OBJ files: drawn sensibly, every repair counted, nothing opened outside the model's folder."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.formats.glb import decode_mesh, encode_mesh
from pipeline.formats.mesh import read_mesh
from pipeline.sources.pictures import MAX_SIDE, decode_texture
from pipeline.sources.raw_shape import RawShape
from pipeline.sources.side_files import SideFiles

RED, GREEN = (200, 0, 0), (0, 200, 0)
CORNERS = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3\n"


def picture(path: Path, color: tuple[int, ...] = RED, size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(color) == 4 else "RGB", (size, size), color).save(path)
    return path


def read(
    folder: Path, mtl: str | bytes | None, faces: str = "usemtl a\n" + FACE, head: str = "mtllib m.mtl\n"
) -> RawShape:
    """The OBJ `m.obj` with its .mtl, read from a folder of its own."""
    folder.mkdir(exist_ok=True)
    if mtl is not None:
        (folder / "m.mtl").write_bytes(mtl.encode() if isinstance(mtl, str) else mtl)
    (folder / "m.obj").write_text(head + CORNERS + faces)
    return read_mesh(folder / "m.obj", folder)


def face_colors(raw: RawShape) -> list[tuple[float, ...]]:
    """Base colour (RGB) of each face's material, textures multiplied in; in the order of the materials."""
    found = []
    for material in raw.mesh.materials:
        color = np.array(material.base_color[:3])
        if material.texture is not None:
            color = color * material.texture[..., :3].reshape(-1, 3).mean(axis=0) / 255
        found.append(tuple(np.round(color, 2)))
    return found


def test_several_materials_each_keep_their_own(tmp_path) -> None:
    picture(tmp_path / "red.png")
    picture(tmp_path / "green.png", GREEN)
    mtl = "newmtl a\nKd 1 1 1\nmap_Kd red.png\nnewmtl b b\nKd 0.5 0.5 0.5\nmap_Kd green.png\nnewmtl c\nKd 0 0 1\n"
    raw = read(tmp_path, mtl, f"usemtl a\n{FACE}usemtl b b\n{FACE}usemtl c\n{FACE}usemtl a\n{FACE}")
    assert sorted(face_colors(raw)) == [(0, 0, 1), (0, 0.39, 0), (0.78, 0, 0)]
    assert Counter(raw.mesh.face_material.tolist()).most_common(1)[0][1] == 2
    assert raw.warnings == {}
    back = decode_mesh(encode_mesh(raw.mesh))
    assert [m.texture is not None for m in back.materials].count(True) == 2


@pytest.mark.parametrize(
    ("mtl", "color", "warnings"),
    [
        (None, (0.7, 0.7, 0.7), {"material not found": 1}),
        ("newmtl other\nKd 1 0 0\n", (0.7, 0.7, 0.7), {"material not found": 1}),
        ("newmtl A\nKd 1 0 0\n", (1, 0, 0), {}),
        ("newmtl a\nmap_Kd red.png\n", (0.78, 0, 0), {}),
        ("newmtl a\nKd 0 0 0\nmap_Kd red.png\n", (0.78, 0, 0), {"black under a texture": 1}),
        ("newmtl a\nKd 0.5\n", (0.5, 0.5, 0.5), {}),
        ("newmtl a\nKd 9 0 -1\n", (1, 0, 0), {}),
        ("newmtl a\nKd red green blue\n", (0.7, 0.7, 0.7), {}),
        ("newmtl a\nKd 0 0 1\nmap_Kd gone.png\n", (0, 0, 1), {"texture not found": 1}),
        ("newmtl a\nKd 0 0 0\nmap_Kd gone.png\n", (0.7, 0.7, 0.7), {"texture not found": 1}),
        ("newmtl a\nKd 0 0 1\nmap_Kd broken.png\n", (0, 0, 1), {"texture broken": 1}),
        ("newmtl a\nKd 0 0 1\nmap_Kd cut.png\n", (0, 0, 1), {"texture broken": 1}),
        ("newmtl a\nKd 0 0 1\nmap_Kd bomb.png\n", (0, 0, 1), {"texture broken": 1}),
        ("newmtl a\nmap_Kd with space.png\n", (0.78, 0, 0), {}),
        ("newmtl a\nmap_Kd -o 0 0 -s 2 2 1 -bm 1 with space.png\n", (0.78, 0, 0), {}),
        ("newmtl a\r\nKd 0 1 0\r\nmap_Kd red.png\r\n", (0, 0, 0), {}),
        ("newmtl a\nmap_Kd f\u00e4rbe.png\n".encode("latin-1"), (0.78, 0, 0), {}),
        ("newmtl a\nKd 1 0 0\n".encode("utf-8-sig"), (1, 0, 0), {}),
    ],
)
def test_every_oddity_has_a_colour_and_a_warning(tmp_path, mtl, color, warnings: dict[str, int]) -> None:
    for name in ("red.png", "with space.png", "f\u00e4rbe.png"):
        picture(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    raw = read(tmp_path, mtl)
    assert face_colors(raw) == [color]
    assert raw.warnings == warnings


@pytest.mark.parametrize(
    ("lines", "alpha", "warnings"),
    [
        ("d 0.5", 0.5, {}),
        ("Tr 0.75", 0.25, {}),
        ("d 0.5\nTr 0.1", 0.5, {}),
        ("d -halo 0.5", 0.5, {}),
        ("Tr 1", 1.0, {"alpha of zero": 1}),
        ("d 0", 1.0, {"alpha of zero": 1}),
    ],
)
def test_opacity_is_read_and_nothing_is_wholly_invisible(tmp_path, lines: str, alpha: float, warnings: dict) -> None:
    raw = read(tmp_path, f"newmtl a\nKd 1 0 0\n{lines}\n")
    assert raw.mesh.materials[0].base_color == (1, 0, 0, alpha)
    assert raw.warnings == warnings
    both = read(tmp_path, "newmtl a\nKd 1 0 0\nd 0\nnewmtl b\nKd 1 0 0\n", f"usemtl a\n{FACE}usemtl b\n{FACE}")
    assert sorted(m.base_color[3] for m in both.mesh.materials) == [0, 1]


def test_alpha_of_textures(tmp_path) -> None:
    picture(tmp_path / "half.png", (*RED, 128))
    picture(tmp_path / "none.png", (*RED, 0))
    picture(tmp_path / "red.png", size=8)
    picture(tmp_path / "mask.png", (64, 64, 64))

    def texture(mtl: str) -> tuple[set[int], dict[str, int]]:
        raw = read(tmp_path, f"newmtl a\n{mtl}\n")
        assert (raw.mesh.materials[0].texture[..., :3] == RED).all()
        return set(raw.mesh.materials[0].texture[..., 3].ravel().tolist()), raw.warnings

    assert texture("map_Kd half.png") == ({128}, {})
    assert texture("map_Kd half.png\nmap_d half.png") == ({128}, {})
    assert texture("map_Kd none.png") == ({255}, {"alpha of zero": 1})
    assert texture("map_Kd red.png\nmap_d mask.png") == ({64}, {})
    assert texture("map_Kd red.png\nmap_d gone.png") == ({255}, {"texture not found": 1})


@pytest.mark.parametrize(
    ("coordinates", "warnings"),
    [
        ("vt 0 0\nvt 1 0\nvt 0 1\n", {}),
        ("vt -3 0\nvt 7.5 0\nvt 0 1\n", {"texture repeats": 1}),
        ("vt nan 0\nvt 1 0\nvt 0 1\n", {"coordinates not finite": 1}),
        ("vt 1e30 0\nvt 1 0\nvt 0 1\n", {"coordinates not finite": 1}),
    ],
)
def test_texture_coordinates_outside_the_picture(tmp_path, coordinates: str, warnings: dict[str, int]) -> None:
    picture(tmp_path / "red.png")
    (tmp_path / "m.mtl").write_text("newmtl a\nmap_Kd red.png\n")
    vertices = CORNERS.partition("vt")[0]
    (tmp_path / "m.obj").write_text(f"mtllib m.mtl\n{vertices}{coordinates}usemtl a\n{FACE}")
    raw = read_mesh(tmp_path / "m.obj", tmp_path)
    assert raw.warnings == warnings
    assert np.isfinite(raw.mesh.corner_uvs).all()
    assert raw.mesh.materials[0].texture is not None


def test_a_texture_without_coordinates_leaves_the_materials_colour(tmp_path) -> None:
    picture(tmp_path / "red.png")
    mtl = "newmtl a\nKd 0 0 1\nmap_Kd red.png\nnewmtl b\nmap_Kd red.png\n"
    raw = read(tmp_path, mtl, f"usemtl a\nf 1 3 2\nusemtl b\n{FACE}")
    assert sorted(face_colors(raw)) == [(0, 0, 1), (0.78, 0, 0)]
    assert raw.warnings == {"texture without coordinates": 1}


def test_the_material_file_is_found_by_the_objects_name_or_in_several_parts(tmp_path) -> None:
    mtl = "newmtl a\nKd 1 0 0\n"
    assert face_colors(read(tmp_path / "renamed", mtl, head="mtllib before.mtl\n")) == [(1, 0, 0)]
    assert read(tmp_path / "renamed", mtl, head="mtllib before.mtl\n").warnings == {"path repaired": 1}
    assert read(tmp_path / "unnamed", mtl, head="").warnings == {}
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "n.mtl").write_text("newmtl b\nKd 0 1 0\n")
    faces = f"usemtl a\n{FACE}usemtl b\n{FACE}"
    for head in ("mtllib m.mtl n.mtl\n", "mtllib m.mtl\nmtllib n.mtl\n"):
        two = read(tmp_path / "two", mtl, faces, head)
        assert (sorted(face_colors(two)), two.warnings) == ([(0, 1, 0), (1, 0, 0)], {})
    assert read(tmp_path / "plain", None, FACE, head="").warnings == {}


def test_nothing_above_the_models_folder_is_opened(tmp_path, monkeypatch) -> None:
    model = tmp_path / "model"
    secret = picture(tmp_path / "secret.png", GREEN)
    (tmp_path / "secret.mtl").write_text(f"newmtl a\nKd 0 1 0\nmap_Kd {secret}\n")
    model.mkdir()
    (model / "linked").symlink_to(tmp_path)
    opened = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.resolve()) or read_bytes(path))
    for name in (
        str(secret),
        "../secret.png",
        "..\\secret.png",
        "linked/secret.png",
        "x/../../secret.png",
        "~/secret.png",
    ):
        raw = read(model, f"newmtl a\nKd 0 0 1\nmap_Kd {name}\n")
        assert (face_colors(raw), raw.warnings) == ([(0, 0, 1)], {"path outside the folder": 1}), name
    for name in (str(tmp_path / "secret.mtl"), "../secret.mtl", "linked/secret.mtl"):
        (model / "m.mtl").unlink(missing_ok=True)
        raw = read(model, None, head=f"mtllib {name}\n")
        assert (face_colors(raw), raw.warnings) == ([(0.7, 0.7, 0.7)], {"path outside the folder": 1}), name
    assert opened
    assert all(path.is_relative_to(model.resolve()) for path in opened), opened


def test_odd_names_are_not_found_and_do_not_raise(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    for name in ("pipe.png", "folder.png", "round.png", "x" * 5000, "a/" * 500 + "b.png", ".", "..", "/", "a\0b", ""):
        files = SideFiles(tmp_path, tmp_path)
        assert files.find(name) is None, name
        assert sum(files.warnings.values()) == 1


def test_a_large_texture_is_made_smaller(tmp_path) -> None:
    for size, reduced in (((MAX_SIDE, 2), False), ((MAX_SIDE * 2, 4), True)):
        for kind in ("PNG", "JPEG"):
            file = io.BytesIO()
            Image.new("RGB", size, GREEN).save(file, kind)
            texture, smaller = decode_texture(file.getvalue())
            assert texture.shape == (2, MAX_SIDE, 4)
            assert smaller == reduced
            assert abs(texture[0, 0].astype(int) - [*GREEN, 255]).max() <= 2
