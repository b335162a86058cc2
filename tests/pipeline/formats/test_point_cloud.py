"""Clouds of every kind of file: what is read of them, and what is said of broken ones."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import trimesh

from pipeline.formats.point_cloud import read_cloud

POINTS = np.array([[0, 0, 0], [1, 0, 0.5], [0, 2, -1], [3, 1, 0.25]])
RGB = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]])
BOTH = np.concatenate([POINTS, RGB], axis=1)


def rows(table: np.ndarray, separator: str = " ") -> bytes:
    return "\n".join(separator.join(f"{x:g}" for x in row) for row in table).encode()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype.kind == "O")
    return file.getvalue()


def pcd(kind: str, points: np.ndarray = POINTS, announced: int | None = None) -> bytes:
    packed = (RGB[:, 0] << 16 | RGB[:, 1] << 8 | RGB[:, 2]).astype(np.uint32)
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH 4\nHEIGHT 1\n"
        f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points) if announced is None else announced}\nDATA {kind}\n"
    ).encode()
    if kind == "ascii":
        return header + "\n".join(f"{x} {y} {z} {c}" for (x, y, z), c in zip(points, packed, strict=True)).encode()
    return header + b"".join(struct.pack("<fffI", *p, c) for p, c in zip(points, packed, strict=True))


def ply_of_a_mesh() -> bytes:
    return trimesh.creation.box().export(file_type="ply")


GOOD = {
    "a.txt": rows(POINTS),
    "a.XYZ": b"# a comment\n" + rows(BOTH),
    "a.csv": b"x,y,z,r,g,b\n" + rows(BOTH, ","),
    "a.pts": b"4\n" + rows(np.insert(BOTH, 3, [-1, -2, 3, 4], axis=1)),
    "a.npy": npy(POINTS.astype(np.float32)),
    "b.npy": npy(np.concatenate([POINTS, RGB / 255], axis=1)),
    "c.npy": npy(np.asfortranarray(POINTS)),
    "a.pcd": pcd("ascii"),
    "b.pcd": pcd("binary"),
    "a.ply": trimesh.PointCloud(POINTS, colors=np.c_[RGB, [255] * 4]).export(file_type="ply"),
}
COLOURED = {"a.XYZ", "a.csv", "a.pts", "b.npy", "a.pcd", "b.pcd", "a.ply"}


@pytest.mark.parametrize("name", GOOD)
def test_points_and_colours_are_read(tmp_path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD[name])
    raw = read_cloud(tmp_path, name)
    np.testing.assert_allclose(raw.points, POINTS, atol=1e-6)
    assert raw.mesh is None
    if name in COLOURED:
        np.testing.assert_array_equal(raw.colors, RGB)
        assert raw.colors.dtype == np.uint8
    else:
        assert raw.colors is None
    assert raw.warnings == ({"columns passed over": 1} if name == "a.pts" else {})


def test_normals_are_no_colours(tmp_path) -> None:
    normals = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0]])
    (tmp_path / "a.txt").write_bytes(rows(np.concatenate([POINTS, normals], axis=1), ","))
    (tmp_path / "b.txt").write_bytes(rows(np.concatenate([POINTS, -normals], axis=1)))
    for name in ("a.txt", "b.txt"):
        raw = read_cloud(tmp_path, name)
        assert raw.colors is None
        assert raw.warnings == {"columns passed over": 3}


def test_a_mesh_gives_its_vertices_and_a_warning(tmp_path) -> None:
    (tmp_path / "a.ply").write_bytes(ply_of_a_mesh())
    raw = read_cloud(tmp_path, "a.ply")
    assert raw.points.shape == (8, 3)
    assert raw.warnings == {"faces passed over": 1}


def test_points_that_a_range_camera_did_not_see_are_left_out_and_counted(tmp_path) -> None:
    points = POINTS.copy()
    points[1] = np.nan
    for kind in ("ascii", "binary"):
        (tmp_path / "a.pcd").write_bytes(pcd(kind, points))
        raw = read_cloud(tmp_path, "a.pcd")
        np.testing.assert_allclose(raw.points, POINTS[[0, 2, 3]], atol=1e-6)
        np.testing.assert_array_equal(raw.colors, RGB[[0, 2, 3]])
        assert raw.warnings == {"points without a place": 1}


def lying_npy(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(48)


BROKEN = {
    "empty.txt": (b" \n", "empty"),
    "words.txt": (b"x y z\none two three\n", "no number"),
    "two.txt": (b"1 2\n3 4\n", "2 columns"),
    "ragged.txt": (b"1 2 3\n4 5\n", "rows of 3 numbers expected, 5"),
    "title.txt": (b"x y z\n", "no row"),
    "binary.txt": (bytes(100) + b"\x01", "not a text file"),
    "nan.txt": (b"nan 2 3\nnan 0 0\n", "none of its 2 points has a place"),
    "huge.txt": (b"1 2 3\n1e38 0 0\n", "no length"),
    "pickle.npy": (npy(np.array([{"a": 1}], dtype=object)), "pickles are never opened"),
    "complex.npy": (npy(np.ones((3, 3), np.complex64)), "numbers are needed"),
    "flat.npy": (npy(np.ones(9)), r"shape \(9,\)"),
    "narrow.npy": (npy(np.ones((9, 2))), "2 columns"),
    "lying.npy": (lying_npy("(4000000000, 3)"), "more than its bytes hold"),
    "negative.npy": (lying_npy("(-2, -3)"), "more than its bytes hold"),
    "cut.npy": (npy(np.ones((9, 3)))[:90], "not a readable npy|more than"),
    "noise.npy": (b"\x93NUMPY\x01\x00\xff\xffgarbage", "not a readable npy"),
    "lying.pcd": (pcd("binary", announced=4_000_000_000), "more than its bytes hold"),
    "lying_text.pcd": (pcd("ascii", announced=7), "announces 7 points, 4 are there"),
    "packed.pcd": (
        pcd("binary").replace(b"DATA binary", b"DATA binary_compressed"),
        "binary_compressed is not readable",
    ),
    "plane.pcd": (pcd("ascii").replace(b"FIELDS x y z", b"FIELDS x y w"), "x, y and z are needed"),
    "fields.pcd": (pcd("ascii").replace(b"SIZE 4 4 4 4", b"SIZE 4 4 4 3"), "describe its fields"),
    "none.pcd": (b"VERSION .7\n", "without DATA"),
    "lying.ply": (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 4000000000\nproperty float x\nproperty float y\n"
        b"property float z\nend_header\n" + bytes(36),
        "48,000,000,000 bytes, 37 are there: cut, or lying",
    ),
    "a.las": (b"LASF", "no cloud; read are"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_clouds_say_why(tmp_path, name: str) -> None:
    data, words = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        read_cloud(tmp_path, name)
    assert "\n" not in str(caught.value)


def test_colours_packed_into_the_bits_of_floats(tmp_path) -> None:
    """As PCL's own tools write `rgb`: its type is F and its value no number of any meaning."""
    (tmp_path / "a.pcd").write_bytes(pcd("binary").replace(b"TYPE F F F U", b"TYPE F F F F"))
    np.testing.assert_array_equal(read_cloud(tmp_path, "a.pcd").colors, RGB)


def test_columns_beyond_255_are_no_colours(tmp_path) -> None:
    for largest, coloured in ((255, True), (256, False)):
        table = BOTH.copy()
        table[1, 4] = largest
        (tmp_path / "a.txt").write_bytes(rows(table))
        raw = read_cloud(tmp_path, "a.txt")
        assert (raw.colors is not None) == coloured
        assert raw.warnings == ({} if coloured else {"columns passed over": 3})
