"""Samples and tar members."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st

from manifests import samples


def write_tar(members: list[tuple[str, dict[str, bytes]]]) -> bytes:
    file = io.BytesIO()
    writer = wds.TarWriter(file, encoder=False, mtime=0, user="", group="")
    for key, values in members:
        writer.write({"__key__": key, **values})
    writer.close()
    return file.getvalue()


def test_samples_come_back_with_their_offsets() -> None:
    data = write_tar([(f"k{i}", {"json": b"{}", "v00.rgb.jpg": bytes(700 * i)}) for i in range(4)])
    found = list(samples.read_samples(io.BytesIO(data)))
    assert [s.key for _, s in found] == ["k0", "k1", "k2", "k3"]
    offset = found[2][0]
    again = list(samples.read_samples(io.BytesIO(data[offset:])))
    assert [s.key for _, s in again] == ["k2", "k3"]
    assert again[0][1].members["v00.rgb.jpg"] == bytes(1400)


@pytest.mark.parametrize("keep", [0.3, 0.55, 0.9])
def test_a_cut_tar_raises_or_is_short(keep: float) -> None:
    data = write_tar([(f"k{i}", {"json": b"{}", "x.npy": bytes(3000)}) for i in range(6)])
    last = [offset for offset, _ in samples.read_samples(io.BytesIO(data))][-1]
    cut = data[: int(last * keep)]
    try:
        found = list(samples.read_samples(io.BytesIO(cut)))
    except ValueError:
        return
    assert len(found) < 6


def test_foreign_members_are_refused() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("folder/name.json"), io.BytesIO())
    with pytest.raises(ValueError, match="not a member of ours"):
        list(samples.read_samples(io.BytesIO(file.getvalue())))


@given(st.lists(st.floats(0.75, 3.25, width=32), min_size=1, max_size=20))
def test_depth_codes_are_exact_to_half_a_step(values: list[float]) -> None:
    depth = np.array([[*values, np.inf]], np.float32)
    codes, outside = samples.depth_codes(depth, 0.75, 3.25)
    back = samples.depth_of_codes(codes, 0.75, 3.25)
    assert outside == 0
    assert codes[0, -1] == 0
    assert np.isinf(back[0, -1])
    np.testing.assert_allclose(back[0, :-1], depth[0, :-1], atol=2.5 / 65534 / 2 + 1e-6)


def test_depth_outside_the_range_is_clipped_and_counted() -> None:
    codes, outside = samples.depth_codes(np.array([[0.1, 1.0, 9.0]], np.float32), 0.75, 3.25)
    assert outside == 2
    assert codes[0, 0] == 1
    assert codes[0, 2] == 65535


@pytest.mark.parametrize(
    "array", [np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000, np.eye(4, dtype=np.uint8) * 200]
)
def test_png_is_exact(array: np.ndarray) -> None:
    back = samples.decode_picture(samples.encode_picture(array, "png"))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_jpeg_is_near_and_whole_colour() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, 8:] = [255, 0, 0]
    back = samples.decode_picture(samples.encode_picture(red, "jpg")).astype(int)
    assert np.abs(back - red).max() < 12  # 4:2:0 would smear the edge by far more


def test_damaged_pictures_and_arrays_raise() -> None:
    with pytest.raises(ValueError, match="damaged"):
        samples.decode_picture(b"no picture")
    with pytest.raises(ValueError):
        samples.decode_array(b"no array")


def test_names() -> None:
    assert samples.view_member(3, "depth", "png") == "v03.depth.png"
    assert samples.split_view_member("v03.depth.png") == (3, "depth")
    assert samples.split_view_member("points.npy") is None
    assert samples.split_and_shard("my-split-00017.tar") == ("my-split", 17)


def tar_of(infos: list[tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(info.name.encode() * 9) if info.isreg() else None)
    return file.getvalue()


def info_of(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, 9 * len(name.encode()) if kind == tarfile.REGTYPE else 0
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_those_of_tarfile(format: int) -> None:
    """Also with extended headers: a name too long for its field, a time in fractions of a second."""
    names = ["a.json", "a.v00.rgb.jpg", "b.json"]
    if format == tarfile.PAX_FORMAT:
        names += [f"{'k' * 120}.json", f"{'é' * 90}.json"]
    data = tar_of([info_of(name, mtime=1.5 if format == tarfile.PAX_FORMAT else 1) for name in names], format)
    found = [(offset, sample.key, sample.members) for offset, sample in samples.read_samples(io.BytesIO(data))]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        first = {name.partition(".")[0]: tar.getmember(name).offset for name in names if name.endswith("json")}
    assert {key: offset for offset, key, _ in found} == first
    assert {f"{key}.{suffix}": data for _, key, members in found for suffix, data in members.items()} == {
        name: name.encode() * 9 for name in names
    }


def test_only_wanted_members_are_read_and_the_others_passed_over() -> None:
    data = write_tar([(f"k{i}", {"json": b"{}", "a.npy": bytes(700), "b.npy": bytes(i)}) for i in range(3)])
    asked = []

    def wanted(sample: samples.Sample, suffix: str) -> bool:
        asked.append((sample.key, suffix, tuple(sample.members)))
        return suffix != "a.npy"

    found = [sample.members for _, sample in samples.read_samples(io.BytesIO(data), wanted)]
    assert found == [{"json": b"{}", "b.npy": bytes(i)} for i in range(3)]
    assert asked[:3] == [("k0", "a.npy", ()), ("k0", "b.npy", ()), ("k0", "json", ("b.npy",))]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tar_of([info_of("a.json"), info_of("b.json", tarfile.DIRTYPE)]), "b.json.* is no file"),
        (tar_of([info_of("a.json"), info_of("b.json", tarfile.SYMTYPE, linkname="a.json")]), "b.json is no file"),
        (tar_of([info_of("a.json"), info_of("a.json")]), "a.json comes twice"),
        (tar_of([info_of("json")]), "not a member of ours"),
        (tar_of([info_of("a.json"), info_of("b.json")]).replace(b"b.json\0", b"c.json\0"), "bad checksum"),
        (tar_of([info_of("a.json")])[:1024], "cut"),
        (tar_of([info_of("a.json")])[:700], "cut"),
        (tar_of([info_of("a.json"), info_of("b.json")])[:1100], "cut"),
        (b"", "cut"),
    ],
)
def test_damaged_and_foreign_tars_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(samples.read_samples(io.BytesIO(data)))
