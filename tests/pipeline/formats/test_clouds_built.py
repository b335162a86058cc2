"""Clouds of users through `build points`: which columns are places and colours, what is left out, what is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from builders import stored

from manifests.samples import COLORS, POINTS, decode_array
from pipeline.__main__ import main
from pipeline.formats.point_cloud import read_cloud
from pipeline.inspect.check import check

RNG = np.random.default_rng(0)
N = 60
XYZ = np.round(RNG.uniform(-1, 1, (N, 3)), 4)
RGB = RNG.integers(0, 256, (N, 3))
NORMALS = np.round(XYZ / np.linalg.norm(XYZ, axis=1, keepdims=True), 6)
INDEX = np.arange(N)[:, None]
INTENSITY = np.full((N, 1), 37)
ORANGE = np.tile([255, 128, 0], (N, 1))
ROW = struct.Struct("<fff4xf12x")


@dataclass
class Built:
    """One object of a build: its points in the file's own frame and their colours, both in the order of x."""

    points: np.ndarray
    colors: np.ndarray | None
    warnings: dict[str, int]


def build(tmp_path: Path, files: dict[str, bytes]) -> tuple[dict[str, Built], dict[str, str]]:
    """(file -> object, file -> reason of its failure) of a folder of files."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    keys = ("views=[]", "num_points=4096", "fps_prefix=4", "max_failed_fraction=1")
    assert main(["build", "points", "--source", str(source), "--out", str(out), "--workers", "0", *keys]) in (0, 1)
    objects = {}
    for sample in stored(out).values():
        values = sample.json
        points = np.c_[decode_array(sample.members[POINTS]), np.ones(values["num_points"])]
        points = (points @ np.linalg.inv(values["world_from_source"]).T)[:, :3]
        order = np.argsort(points[:, 0])
        colors = decode_array(sample.members[COLORS])[order] if COLORS in sample.members else None
        warnings = {each["type"]: each["count"] for each in values["warnings"]}
        objects[values["id"]] = Built(points[order], colors, warnings)
    failures = {failure.id: failure.reason for failure in check(str(out)).failures}
    assert {*objects, *failures} == set(files)
    return objects, failures


def require(built: Built, colors: np.ndarray | None, over: int = 0, **others: int) -> None:
    """The points are XYZ with these colours, and so many columns were passed over."""
    order = np.argsort(XYZ[:, 0])
    np.testing.assert_allclose(built.points, XYZ[order], atol=1e-5)
    if colors is None:
        assert built.colors is None
    else:
        assert built.colors is not None
        np.testing.assert_array_equal(built.colors, colors[order])
    assert built.warnings == ({"columns passed over": over} if over else {}) | others


def text(*columns: np.ndarray, separator: str = " ", head: str = "") -> bytes:
    table = np.concatenate(columns, axis=1)
    return (head + "\n".join(separator.join(f"{x:.9g}" for x in row) for row in table) + "\n").encode()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype.hasobject)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def pcd(fields: str, size: str, type: str, count: str, body: bytes, kind: str = "binary", points: int = N) -> bytes:
    head = f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {size}\nTYPE {type}\nCOUNT {count}\nWIDTH {points}\n"
    return (head + f"HEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {points}\nDATA {kind}\n").encode() + body


PARAVIEW = '"RGB:0","RGB:1","RGB:2","Points:0","Points:1","Points:2"\n'
NAMED = {  # file -> (its bytes, its colours, columns passed over)
    "index.csv": (text(INDEX, XYZ, separator=",", head=",x,y,z\n"), None, 1),
    "id.csv": (text(INDEX, XYZ, RGB, separator=";", head='"id";"x";"y";"z";"Red";"Green";"Blue"\n'), RGB, 1),
    "turned.csv": (text(RGB, XYZ[:, ::-1], separator=",", head="r,g,b,Z,Y,X\n"), RGB, 0),
    "cloudcompare.asc": (text(XYZ, RGB, INTENSITY, head=f"//X Y Z R G B Intensity\n{N}\n"), RGB, 1),
    "floats.txt": (text(XYZ, RGB / 255, separator=",", head="//X,Y,Z,Rf,Gf,Bf\n"), RGB, 0),
    "normals.csv": (text(NORMALS, XYZ, separator=",", head="nx,ny,nz,x,y,z\n"), None, 3),
    "savetxt.txt": (text(INTENSITY, XYZ, separator="\t", head="# made by hand\n# i x y z\n"), None, 1),
    "units.csv": (text(XYZ, ORANGE + 0.25, separator=", ", head="X (m), Y (m), Z (m), red, green, blue\n"), ORANGE, 0),
    "coord.txt": (text(XYZ, INDEX, separator="\t", head="x_coord\ty_coord\tz_coord\tlabel\n"), None, 1),
    "paraview.csv": (
        text(RGB, XYZ, separator=",", head='"RGB:0","RGB:1","RGB:2","Points:0","Points:1","Points:2"\n'),
        RGB,
        0,
    ),
    "diffuse.csv": (text(XYZ, RGB * 257, separator=",", head="x,y,z,diffuse_red,diffuse_green,diffuse_blue\n"), RGB, 0),
    "utf16.csv": (text(XYZ, separator=",", head="x,y,z\n").decode().encode("utf-16"), None, 0),
    "bom.csv": (b"\xef\xbb\xbf" + text(INDEX, XYZ, separator=",", head="n,x,y,z\n"), None, 1),
    "trailing.csv": (text(XYZ, separator=",", head="x,y,z,\n").replace(b"\n", b",\n").replace(b",,", b","), None, 0),
}


def test_names_of_columns_decide(tmp_path: Path) -> None:
    objects, failures = build(tmp_path, {name: data for name, (data, _, _) in NAMED.items()})
    assert failures == {}
    for name, (_, colors, over) in NAMED.items():
        require(objects[name], colors, over)


UNNAMED = {
    "intensity.txt": (text(XYZ, INTENSITY, RGB), RGB, 1),
    "intensity01.xyz": (text(XYZ, RNG.random((N, 1)), RGB), RGB, 1),
    "one_colour.txt": (text(XYZ, RNG.integers(0, 200, (N, 1)), ORANGE), ORANGE, 1),
    "negative.pts": (text(XYZ, -INTENSITY, RGB, head=f"{N}\n"), RGB, 1),
    "grey.pts": (text(XYZ, RNG.integers(0, 256, (N, 1)), RGB, head=f"{N}\n"), RGB, 1),
    "alpha.txt": (text(XYZ, RGB, np.full((N, 1), 255)), RGB, 1),
    "label.txt": (text(XYZ, RGB, RNG.integers(0, 4, (N, 1))), RGB, 1),
    "normals_last.txt": (text(XYZ, RGB, NORMALS), RGB, 3),
    "normals_first.txt": (text(XYZ, NORMALS, RGB), RGB, 3),
    "normals.txt": (text(XYZ, NORMALS), None, 3),
    "normals_and_i.txt": (text(XYZ, NORMALS, INTENSITY), None, 4),
    "intensity_normals.txt": (text(XYZ, INTENSITY, RGB, NORMALS), RGB, 4),
    "unit.csv": (text(XYZ, RGB / 255, separator=","), RGB, 0),
    "decimals.txt": (text(XYZ, RGB).replace(b" 1 ", b" 1.0 "), RGB, 0),
    "scalar.txt": (text(XYZ, INTENSITY), None, 1),
}


def test_values_decide_where_columns_have_no_names(tmp_path: Path) -> None:
    objects, failures = build(tmp_path, {name: data for name, (data, _, _) in UNNAMED.items()})
    assert failures == {}
    for name, (_, colors, over) in UNNAMED.items():
        require(objects[name], colors, over)


def test_what_values_do_not_tell_is_a_warning(tmp_path: Path) -> None:
    guessed = {"colours told by their values alone": 1}
    files = {
        "grey.txt": text(XYZ, RNG.integers(0, 256, (N, 1)), RGB),
        "mean.txt": text(XYZ, np.minimum(RGB + 0.25, 255)),
    }
    objects, _ = build(tmp_path, files)
    require(objects["grey.txt"], RGB, 1, **guessed)
    require(objects["mean.txt"], RGB, 0, **guessed)


LOST = ["nan nan nan", "NaN 0 0", "0 -nan(ind) 0", "0 0 inf", "1.#QNAN 0 0", "-Infinity 1 2"]


def lost(rows: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [rows[:7], np.full((2, rows.shape[1]), np.nan), rows[7:], np.full((1, rows.shape[1]), np.inf)]
    )


def test_points_without_a_place_are_left_out_and_counted_in_every_format(tmp_path: Path) -> None:
    both = lost(np.concatenate([XYZ, RGB], axis=1))
    named = np.zeros(len(both), [(name, "<f4") for name in ("x", "y", "z", "red", "green", "blue")])
    for number, name in enumerate(named.dtype.names or ()):
        named[name] = both[:, number]
    head = f"ply\nformat ascii 1.0\nelement vertex {len(both)}\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    body = np.ascontiguousarray(both[:, :3], "<f4").tobytes()
    files = {
        "a.txt": text(XYZ) + "\n".join(LOST).encode(),
        "a.csv": text(XYZ, separator=",", head="x,y,z\n") + b"1,,2\n,1,2\n1,2,\nNA,1,2\nnull,NaN,0\n,,\n",
        "a.npy": npy(both),
        "fields.npy": npy(named),
        "a.npz": npz(points=both[:, :3], colors=np.nan_to_num(both[:, 3:]).clip(0, 255)),
        "a.pcd": pcd("x y z", "4 4 4", "F F F", "1 1 1", body, points=len(both)),
        "ascii.pcd": pcd("x y z", "4 4 4", "F F F", "1 1 1", text(both[:, :3]), "ascii", len(both)),
        "a.ply": text(both[:, :3], head=head),
    }
    objects, failures = build(tmp_path, files)
    assert failures == {}
    for name, built in objects.items():
        colored = RGB if name in ("a.npy", "fields.npy", "a.npz") else None
        require(built, colored, **{"points without a place": 6 if name in ("a.txt", "a.csv") else 3})


def test_a_cloud_without_any_place_says_so(tmp_path: Path) -> None:
    nothing = np.full((5, 3), np.nan)
    files = {"a.txt": text(nothing), "a.npy": npy(nothing), "a.npz": npz(points=nothing)}
    objects, failures = build(tmp_path, files)
    assert objects == {}
    assert set(failures.values()) == {"none of its 5 points has a place: all are NaN or infinite"}


FIELDS = [("X", "f4"), ("Y", "f8"), ("Z", ">f4"), ("i", "u1")]
ARRAYS = {
    "half.npy": (npy((XYZ * 8).round().astype(np.float16) / 8), None),
    "whole.npy": (npy(np.array([[0, 0, 0], [5, 0, 1], [9, 7, 2]], np.int16)), None),
    "big_endian.npy": (npy(XYZ.astype(">f8")), XYZ),
    "batch.npy": (npy(XYZ[None]), XYZ),
    "fields.npy": (
        npy(np.array([(*p, 3) for p in XYZ.tolist()], [("X", "f4"), ("Y", "f8"), ("Z", ">f4"), ("i", "u1")])),
        XYZ,
    ),
    "xyz.npy": (npy(np.array([(p,) for p in XYZ.tolist()], [("xyz", "f8", 3)])), XYZ),
    "points.npz": (npz(vertices=XYZ * 2, points=XYZ, normals=NORMALS), XYZ),
    "pos.npz": (npz(labels=INDEX[:, 0], POS=XYZ), XYZ),
    "alone.npz": (npz(scan=XYZ, label=np.int64(3), normals=NORMALS), XYZ),
}


def test_arrays_of_every_kind(tmp_path: Path) -> None:
    objects, failures = build(tmp_path, {name: data for name, (data, _) in ARRAYS.items()})
    assert failures == {}
    for name, (_, points) in ARRAYS.items():
        if points is not None:
            np.testing.assert_allclose(objects[name].points, points[np.argsort(points[:, 0])], atol=1e-5)
    np.testing.assert_allclose(objects["whole.npy"].points, [[0, 0, 0], [5, 0, 1], [9, 7, 2]], atol=1e-5)
    assert objects["points.npz"].warnings == {"arrays passed over": 2}
    assert objects["fields.npy"].warnings == {"columns passed over": 1}


def packed_lzf(data: bytes) -> bytes:
    """LZF of data: as it is, but for runs of one byte, which are named by the byte before them."""
    out, place = bytearray(), 0
    while place < len(data):
        run = 1
        while place + run < len(data) and run < 260 and data[place + run] == data[place]:
            run += 1
        if run > 4:
            length = run - 1 - 2
            out += bytes([0, data[place]]) + (bytes([length << 5, 0]) if length < 7 else bytes([7 << 5, length - 7, 0]))
        else:
            run = 1
            out += bytes([0, data[place]])
        place += run
    return bytes(out)


def test_fields_of_pcd(tmp_path: Path) -> None:
    xyz = XYZ.astype("<f4")
    words = (RGB[:, 0] << 16 | RGB[:, 1] << 8 | RGB[:, 2]).astype("<u4")
    soa = xyz.T.tobytes() + bytes(20 * N) + words.tobytes()
    packed = packed_lzf(soa)
    padded = b"".join(ROW.pack(*p, i) for i, p in enumerate(xyz.tolist()))
    interleaved = np.concatenate([xyz.view("<u4"), words[:, None]], axis=1).tobytes()
    colored = np.zeros(N, [("p", "<f4", 3), ("c", "u1", 3)])
    colored["p"], colored["c"] = xyz, RGB
    as_text = b"\n".join(b"%f %f %f %d 1 2 3" % (*p, w) for p, w in zip(XYZ.tolist(), words.tolist(), strict=True))
    files = {
        "padding.pcd": pcd("x y z _ intensity _", "4 4 4 1 4 1", "F F F U F U", "1 1 1 4 1 12", padded),
        "rgb.pcd": pcd("x y z rgb", "4 4 4 4", "F F F F", "1 1 1 1", interleaved),
        "rgba.pcd": pcd("x y z rgba", "4 4 4 4", "F F F U", "1 1 1 1", interleaved),
        "channels.pcd": pcd("x y z r g b", "4 4 4 1 1 1", "F F F U U U", "1 1 1 1 1 1", colored.tobytes()),
        "ascii.pcd": pcd("x y z rgb fpfh", "4 4 4 4 4", "F F F I F", "1 1 1 1 3", as_text, "ascii"),
        "number.pcd": pcd("x y z rgb fpfh", "4 4 4 4 4", "F F F F F", "1 1 1 1 3", as_text, "ascii"),
        "twice.pcd": pcd("x y z x", "4 4 4 4", "F F F F", "1 1 1 1", interleaved),
        "packed.pcd": pcd(
            "x y z fpfh rgb",
            "4 4 4 4 4",
            "F F F F U",
            "1 1 1 5 1",
            struct.pack("<II", len(packed), len(soa)) + packed,
            "binary_compressed",
        ),
    }
    objects, failures = build(tmp_path, files)
    assert failures == {}
    require(objects["padding.pcd"], None, 1)
    for name in ("rgb.pcd", "rgba.pcd", "channels.pcd"):
        require(objects[name], RGB)
    for name in ("ascii.pcd", "number.pcd"):
        require(objects[name], RGB, 3)
    require(objects["twice.pcd"], None, 1)
    require(objects["packed.pcd"], RGB, 5)


def locked() -> bytes:
    """An npz whose entry says that it is encrypted."""
    data = bytearray(npz(points=XYZ))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("points.npy", "w") as member:
        member.write(npy(np.zeros((1, 3)))[:128].replace(b"(1, 3)", b"(9000000, 3)")[:128])
        for _ in range(270):
            member.write(bytes(1 << 20))
    return file.getvalue()


REFUSED = {  # file -> (its bytes, what the reason says)
    "names.csv": (text(XYZ, separator=",", head="a,b,c\n"), "its columns are named a, b, c; x, y and z are needed"),
    "no_z.csv": (text(XYZ, separator=",", head="x,y,label\n"), "named x, y, label; x, y and z are needed"),
    "fewer.csv": (text(XYZ, RGB, separator=",", head="x,y,z\n"), "3 names (x, y, z) over 6 columns"),
    "comma.txt": (b"1,5 2,5 3,5\n0,5 1,5 2,5\n", "decimal commas ('1,5 2,5 3,5')"),
    "comma.csv": (b"1,5;2,5;3,5\n0,5;1,5;2,5\n", "decimal commas"),
    "comma_tab.txt": (b"x\ty\tz\n1,5\t2\t3,5\n0,5\t1\t2,5\n", "decimal commas"),
    "comma_later.txt": (b"1 2 3\n1,5 2 3\n", "'1,5' in row 2 is no number"),
    "comma_quoted.csv": (b'"1,5","2,5","3,5"\n"0,5","1","2"\n', "decimal commas"),
    "thousands.txt": (b"1,234.5 2 3\n4 5 6\n", "commas inside of numbers or between some of them ('1,234.5 2 3')"),
    "hex.txt": (b"x y z\n0x1A 0x2 0x3\n1 2 3\n", "'0x1A' in row 1 is no number"),
    "words.csv": (b"x,y,z,class\n1,2,3,chair\n4,5,6,chair\n", "'chair' in row 1 is no number"),
    "wide.txt": (text(XYZ.T), "3 rows of 60 columns: points are rows of x, y and z"),
    "wide.csv": (text(RNG.random((4, 3000)), separator=","), "4 rows of 3,000 columns"),
    "wide.npy": (npy(RNG.random((3, 1500))), "an array of shape (3, 1500)"),
    "wide60.npy": (npy(XYZ.T), "3 rows of 60 columns"),
    "ragged.txt": (b"1 2 3\n4 5\n6 7 8 9\n", "(a row has 2)"),
    "cut.pts": (text(XYZ, head="61\n"), "its first line announces 61 points, 60 are there"),
    "objects.npy": (npy(np.array([[1, 2, "x"]], object)), "pickles are never opened"),
    "object_field.npy": (npy(np.array([(1, 2)], [("x", "f4"), ("y", object)])), "pickles are never opened"),
    "flat.npy": (npy(np.ones(9)), "an array of shape (9,)"),
    "cube.npy": (npy(np.ones((2, 9, 3))), "an array of shape (2, 9, 3)"),
    "several.npz": (npz(a=XYZ, b=XYZ), "a (60, 3), b (60, 3): several may be the cloud; name it points"),
    "none.npz": (npz(a=INDEX), "an npz file of a (60, 1): none of them is (N, 3)"),
    "flat.npz": (npz(points=np.ones(9)), "an array of shape (9,)"),
    "pickle.npz": (npz(points=np.array([{}], object)), "pickles are never opened"),
    "cut.npz": (npz(points=XYZ)[:300], "not a readable npz file"),
    "locked.npz": (locked(), "not a readable npz file"),
    "bomb.npz": (bomb(), "bytes, more than 268,435,456"),
    "damaged.pcd": (
        pcd("x y z", "4 4 4", "F F F", "1 1 1", struct.pack("<II", 40, 12 * N) + b"\xff" * 40, "binary_compressed"),
        "binary_compressed is not readable",
    ),
    "bomb.pcd": (
        pcd("x y z", "4 4 4", "F F F", "1 1 1", struct.pack("<II", 4, 120000) + bytes(4), "binary_compressed", 10000),
        "binary_compressed is not readable",
    ),
    "empty.pcd": (pcd("x y z", "4 4 4", "F F F", "1 1 1", b"", points=0), "the file holds no points"),
}


def test_what_is_refused_says_what_was_seen(tmp_path: Path) -> None:
    objects, failures = build(tmp_path, {name: data for name, (data, _) in REFUSED.items()})
    assert list(objects) == []
    for name, (_, words) in REFUSED.items():
        assert words in failures[name], (name, failures[name])
        assert "Error" not in failures[name]


def test_files_that_look_like_shapes_and_are_not_read_are_counted(tmp_path: Path, capsys) -> None:
    files = {"a.xyz": text(XYZ), "b.LAS": b"LASF", "c.las": b"LASF", "d.xyz.gz": b"x", "e.obj": b"v 0 0 0\n"}
    (tmp_path / "source/deep").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "source/deep" / name).write_bytes(data)
    (tmp_path / "source/notes.md").write_text("no shape")
    command = ["points", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main(["build", *command, "views=[]", "--dry-run"]) == 0
    line = "4 files passed over: 2 .las, 1 .obj, 1 .xyz.gz"
    assert line in capsys.readouterr().err
    assert main(["build", *command, "views=[]", "fps_prefix=4"]) == 0
    assert line in capsys.readouterr().err
    assert main(["check", str(tmp_path / "out")]) == 0
    assert line in capsys.readouterr().out
    for path in (tmp_path / "source/deep").glob("*.[xo]*"):
        path.rename(path.with_suffix(".fbx"))
    assert (
        main(["build", "meshes", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "o"), "views=[]"]) == 2
    )
    assert "; 5 files passed over: 3 .fbx, 2 .las" in capsys.readouterr().err


def test_real_files_that_were_read_wrongly(shared: Path, tmp_path: Path) -> None:
    cases = shared / "samples/cases"
    if not cases.is_dir():
        pytest.skip(f"no cases at {cases}")
    paths = [path for number in (25, 27, 29, 30) for path in cases.glob(f"{number}-*/cls/*")]
    objects, failures = build(tmp_path, {path.name: path.read_bytes() for path in paths})
    assert failures == {}
    over = {"06-xyz-i-rgb.txt": 1, "23-index-first.csv": 1, "72-pad.pcd": 1}
    lost = {"12-nan-rows.txt", "41-nan.npy", "52-nan.ply", "74-nan-ascii.pcd"}
    assert set(objects) == {*over, *lost}
    first = {name: built.points[0] for name, built in objects.items()}
    for name, built in objects.items():
        np.testing.assert_allclose(first[name], first["72-pad.pcd"], atol=1e-5)
        assert len(built.points) == 1500
        assert built.warnings.get("columns passed over", 0) == over.get(name, 0)
        assert (built.warnings.get("points without a place", 0) > 0) == (name in lost)
    rows = np.loadtxt(next(path for path in paths if path.name == "06-xyz-i-rgb.txt"))
    np.testing.assert_array_equal(objects["06-xyz-i-rgb.txt"].colors, rows[np.argsort(rows[:, 0]), 4:])


@pytest.mark.timeout(30)
def test_megabytes_of_blanks_are_read_at_once(tmp_path: Path) -> None:
    """Before a comment that never comes, too: a worker would hang on such a file until its limit."""
    blanks = b" " * 2_000_000
    (tmp_path / "a.txt").write_bytes(b"# a cloud\n0 0 0" + blanks + b"\n1 0 0\n" + blanks + b"0 1 0\n" + blanks)
    assert len(read_cloud(tmp_path, "a.txt").points) == 3
