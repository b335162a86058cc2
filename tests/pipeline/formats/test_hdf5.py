"""HDF5 files of rows: read a row at a time, and whatever a file lies about is a reason in one line."""

from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest
import releases
from releases import NUM_POINTS, cloud, write_h5

from manifests.errors import Refused
from pipeline.formats import hdf5

MAX_POINTS = 100_000


def reason(path, with_parts: bool = False) -> str:
    """Why a file is refused; the same reason, one line, must come when a row is read."""
    with pytest.raises(Refused) as caught:
        hdf5.read_labels(path.parent, path.name, MAX_POINTS, with_parts)
    with pytest.raises(ValueError) as again:
        hdf5.read_row(path.parent, path.name, 0, MAX_POINTS, with_parts)
    assert str(caught.value) == f"{path.name}: {again.value}"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i4", "<i8", "u2", ">u8"])
@pytest.mark.parametrize("column", [True, False])
def test_labels_of_any_whole_dtype(tmp_path, dtype: str, column: bool) -> None:
    path = write_h5(tmp_path / "a.h5", [3, 0, 39], dtype, column)
    labels = hdf5.read_labels(tmp_path, "a.h5", MAX_POINTS)
    assert labels.dtype == np.int64
    assert labels.tolist() == [3, 0, 39]
    np.testing.assert_array_equal(hdf5.read_row(tmp_path, path.name, 2, MAX_POINTS).points, cloud(2))


def test_a_row_is_read_without_the_file(tmp_path) -> None:
    data = np.zeros((2000, 500, 3), np.float32)  # 12 MB
    data[:] = np.arange(2000)[:, None, None]
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = data, np.zeros(2000, np.uint8)
    hdf5.read_row(tmp_path, "a.h5", 0, MAX_POINTS)
    before = _bytes_read()
    for row in (7, 1999, 7):
        assert (hdf5.read_row(tmp_path, "a.h5", row, MAX_POINTS).points == row).all()
    assert _bytes_read() - before < 100_000
    assert len([fd for fd in os.listdir("/proc/self/fd") if _target(fd) == str(path)]) == 1
    with pytest.raises(ValueError, match="no row 2000: the file has 2,000"):
        hdf5.read_row(tmp_path, "a.h5", 2000, MAX_POINTS)


def _bytes_read() -> int:
    with open("/proc/self/io") as file:
        return int(next(line for line in file if line.startswith("rchar")).split()[1])


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


GOOD = {"data": np.ones((2, 8, 3), np.float32), "label": np.zeros(2, np.uint8), "pid": np.zeros((2, 8), np.uint8)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data": None}, "no dataset data; it has label, pid"),
        ({"label": None}, "no dataset label"),
        ({"pid": None}, "no dataset pid"),
        ({"data": np.ones((2, 8, 3), np.int32)}, "data of int32"),
        ({"data": np.ones((2, 8, 3), complex)}, "data of complex128"),
        ({"data": np.full((2, 8, 3), b"1.0")}, "data of |S3"),
        ({"data": np.ones((2, 8), np.float32)}, "data of float32 and shape (2, 8)"),
        ({"data": np.ones((2, 8, 3, 1), np.float32)}, "data of shape (2, 8, 3, 1)"),
        ({"data": np.ones((2, 3, 8), np.float32)}, "data of shape (2, 3, 8)"),
        ({"data": np.ones((2, 0, 3), np.float32)}, "data of shape (2, 0, 3)"),
        ({"data": np.float32(1)}, "data of float32 and shape ()"),
        ({"data": h5py.Empty("f4")}, "data of float32 and shape None"),
        ({"label": np.zeros(2, np.float32)}, "label of float32"),
        ({"label": np.zeros(3, np.uint8)}, "label of shape (3,) beside 2 rows"),
        ({"label": np.zeros((2, 2), np.uint8)}, "label of shape (2, 2)"),
        ({"pid": np.zeros((2, 9), np.uint8)}, "pid of shape (2, 9)"),
        ({"pid": np.zeros((2, 8), np.float32)}, "pid of float32"),
    ],
)
def test_wrong_keys_dtypes_and_shapes(tmp_path, changed: dict, words: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in {**GOOD, **changed}.items():
            if array is not None:
                file[name] = array
    assert words in reason(tmp_path / "a.h5", with_parts=True)


def test_links_and_storage_outside_the_file(tmp_path) -> None:
    write_h5(tmp_path / "secret.h5", [1, 2])
    (tmp_path / "secret.raw").write_bytes(bytes(2 * 8 * 3 * 4))
    layout = h5py.VirtualLayout((2, 8, 3), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "data", (2, 8, 3))
    makers = {
        "ExternalLink": lambda f: f.__setitem__("data", h5py.ExternalLink(str(tmp_path / "secret.h5"), "/data")),
        "SoftLink": lambda f: f.__setitem__("data", h5py.SoftLink("/data")),
        "kept in another": lambda f: f.create_dataset(
            "data", (2, 8, 3), "f4", external=[(str(tmp_path / "secret.raw"), 0, 192)]
        ),
        "kept in another file": lambda f: f.create_virtual_dataset("data", layout),
        "a group": lambda f: f.create_group("data").__setitem__("data", h5py.SoftLink("/data")),
    }
    for words, make in makers.items():
        path = tmp_path / f"{len(words)}.h5"
        with h5py.File(path, "w") as file:
            file["label"] = np.zeros(2, np.uint8)
            make(file)
        assert words in reason(path)


def test_sizes_that_lie_are_refused_before_anything_is_allocated(tmp_path) -> None:
    def declared(data: tuple, label: tuple = (2,), **options: object):
        path = tmp_path / f"{'-'.join(map(str, data))}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data, "f4", **options)
            file.create_dataset("label", data=np.zeros(label, np.uint8))
        return path

    assert "label of shape" in reason(declared((10**6, 2048, 3)))
    assert "declares 1,000,000,000,000 rows" in reason(declared((10**12, 8, 3)))
    assert "more than max_points=100,000" in reason(declared((2, 10**12, 3)))
    assert "0 are there: cut, or lying" in reason(declared((2, 90_000, 3)))
    assert "0 are there: cut, or lying" in reason(
        declared(
            (
                2,
                90_000,
                3,
            ),
            chunks=(1, 10, 3),
        )
    )
    path = declared((2, 60_000, 3), chunks=(2, 30_000, 3), compression="gzip")
    with h5py.File(path, "a") as file:
        file["data"][:] = 1
    assert hdf5.read_row(tmp_path, path.name, 0, MAX_POINTS).points.shape == (60_000, 3)
    path = declared((400, 80_000, 3), (400,), chunks=(400, 80_000, 3), compression="gzip")
    with h5py.File(path, "a") as file:
        file["data"][0, 0] = 1
    assert "too large to unpack" in reason(path)


@pytest.mark.parametrize("size", [0, 1, 8, 100, 2000, 0.5, 0.9, 0.999])
def test_a_cut_file(tmp_path, size: float) -> None:
    path = write_h5(tmp_path / "a.h5", [1, 2, 3])
    data = path.read_bytes()
    path.write_bytes(data[: size if isinstance(size, int) else int(size * len(data))])
    assert "not a readable HDF5 file" in reason(path)


def test_a_file_that_is_none(tmp_path) -> None:
    (tmp_path / "a.h5").write_bytes(b"PK\x03\x04 an error page in place of a download")
    assert "not a readable HDF5 file" in reason(tmp_path / "a.h5")
    os.mkfifo(tmp_path / "pipe.h5")
    assert "a pipe or device" in reason(tmp_path / "pipe.h5")


def test_bytes_turned_over_are_a_reason_or_a_cloud(tmp_path) -> None:
    """Any single damaged byte is a reason in one line or goes unseen (HDF5 has no checksum of most of them)."""
    path = write_h5(tmp_path / "good.h5", [1, 2])
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(0)
    outcomes: set[bool] = set()
    places = [*range(0, 3000, 41), *rng.integers(0, len(data), 60).tolist()]
    for number, place in enumerate(places):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        bad = tmp_path / f"{number}.h5"
        bad.write_bytes(damaged)
        try:
            hdf5.read_labels(tmp_path, bad.name, MAX_POINTS)
            hdf5.read_row(tmp_path, bad.name, 1, MAX_POINTS)
            told = "read"
        except (Refused, ValueError) as error:
            told = str(error)
        assert "\n" not in told
        outcomes.add(told == "read")
        bad.unlink()
    assert outcomes == {True, False}


def test_bad_rows_are_failures_and_the_others_objects(pipeline, tmp_path) -> None:
    points = np.stack([cloud(i) for i in range(4)])
    points[1, 5, 2], points[2, 0, 0], points[3] = np.nan, 1e38, 1.0
    pid = np.zeros((4, NUM_POINTS), np.int16)
    source, out = tmp_path / "hdf5_data", tmp_path / "out"
    write_h5(source / "ply_data_train0.h5", [0, 1, 2, 3], "i1", data=points, pid=pid)
    pipeline(
        *("build", "shapenetpart", "--source", source, "--out", out, "--workers", 1, "allow_partial=true"),
        *("max_failed_fraction=1", "views.depth10.image_size=32"),
    )
    found = json.loads(pipeline("check", out, "--json").stdout)
    assert found["samples"] == 1
    assert {f["id"][-1]: f"{f['stage']}: {f['reason']}" for f in found["failures"]} == {
        "1": "load: a point is not finite (NaN or infinity)",
        "2": "load: a coordinate of 1.0e+38 is no length",
        "3": "sample: the object has no extent: all its points are one",
    }


def test_damaged_rows_of_a_release_stop_nothing(pipeline, tmp_path) -> None:
    source = releases.modelnet40_h5(tmp_path)
    path = source / "ply_data_train0.h5"
    with h5py.File(path) as file:
        offset = file["data"].id.get_chunk_info_by_coord((0, 0, 0)).byte_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 400] = bytes(400)
    path.write_bytes(data)
    arguments = ("--workers", 0, "allow_partial=true", "max_failed_fraction=1", "views.depth10.image_size=32")
    pipeline("build", "modelnet40_d", "--source", source, "--out", tmp_path / "out", *arguments)
    found = json.loads(pipeline("check", tmp_path / "out", "--json").stdout)
    assert found["samples"] + len(found["failures"]) == 7
    assert found["failures"]
    assert all("cannot be read" in failure["reason"] for failure in found["failures"])


def test_as_many_points_as_allowed_are_read_and_one_more_is_not(tmp_path) -> None:
    write_h5(tmp_path / "a.h5", [1])
    assert hdf5.read_labels(tmp_path, "a.h5", NUM_POINTS).tolist() == [1]
    assert hdf5.read_row(tmp_path, "a.h5", 0, NUM_POINTS).points.shape == (NUM_POINTS, 3)
    with pytest.raises(Refused, match=r"2,048 points a row, more than max_points=2,047"):
        hdf5.read_labels(tmp_path, "a.h5", NUM_POINTS - 1)


def test_each_row_is_its_own(tmp_path) -> None:
    write_h5(tmp_path / "b.h5", [1, 2, 3])
    for row in (2, 0, 1):
        np.testing.assert_array_equal(hdf5.read_row(tmp_path, "b.h5", row, MAX_POINTS).points, cloud(row))


def test_no_compression_makes_so_much_of_so_little(tmp_path) -> None:
    """A few stored bytes and a shape of megabytes: what deflate cannot have packed is not unpacked."""
    with h5py.File(tmp_path / "c.h5", "w") as file:
        data = file.create_dataset("data", (20, 90_000, 3), "f4", chunks=(1, 10, 3), compression="gzip")
        data[0, :10] = 1
        file["label"] = np.zeros(20, np.uint8)
    assert "are there: cut, or lying" in reason(tmp_path / "c.h5")
