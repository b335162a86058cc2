"""Samples and tar members."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

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


def test_depth_codes_at_both_ends() -> None:
    """0 is empty, 1 the near end and 65535 the far end; the ends are inside, whatever rounds to them."""
    step = 2.5 / 65534
    depth = np.array([[np.inf, 0.75, 0.75 + step, 3.25 - step, 3.25]], np.float32)
    codes, outside = samples.depth_codes(depth, 0.75, 3.25)
    assert outside == 0
    assert codes.tolist() == [[0, 1, 2, 65534, 65535]]
    assert codes.dtype == np.uint16
    back = samples.depth_of_codes(codes, 0.75, 3.25)
    assert back[0, [1, 4]].tolist() == [0.75, 3.25]
    np.testing.assert_allclose(back, depth, rtol=1e-6)
    halves = np.array([[0.75 + 0.4 * step, 0.75 + 0.6 * step, 3.25 - 0.4 * step]], np.float64)
    assert samples.depth_codes(halves, 0.75, 3.25)[0].tolist() == [[1, 2, 65535]]
    assert samples.depth_codes(np.array([[0.7, 3.3, 1.0]]), 0.75, 3.25)[1] == 2


def test_every_grey_is_the_nearest_of_256() -> None:
    gray = np.linspace(0, 1, 5001, dtype=np.float32).reshape(3, -1)
    codes = samples.gray_codes(gray)
    assert codes.dtype == np.uint8
    assert (codes.min(), codes.max()) == (0, 255)
    np.testing.assert_allclose(codes / 255, gray, atol=0.5 / 255 + 1e-6)


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


def test_jpeg_is_of_the_quality_that_the_format_says() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with Image.open(io.BytesIO(samples.encode_picture(noise, "jpg"))) as image:
        assert image.quantization[0][0] == 2  # the table of quality 95; 3 at 90, 6 at 80
    assert np.abs(samples.decode_picture(samples.encode_picture(noise, "jpg")).astype(int) - noise).mean() < 4


def picture_of_claimed_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces so many pixels."""
    data = samples.encode_picture(np.zeros((8, 8), np.uint8), "png")
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_a_small_file_of_a_huge_picture_is_not_opened() -> None:
    """It would fill the memory of every reader."""
    for size in ((1 << 13, (1 << 12) + 1), (20_000, 4_000)):
        with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels"):
            samples.decode_picture(picture_of_claimed_size(*size))
    assert samples.decode_picture(picture_of_claimed_size(8, 8)).shape == (8, 8)


def npy_of(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_an_array_is_all_of_its_bytes_and_never_a_pickle() -> None:
    points = np.arange(12, dtype=np.float32).reshape(4, 3)
    data = samples.encode_array(points)
    np.testing.assert_array_equal(samples.decode_array(data), points)
    assert samples.encode_array(np.asfortranarray(points)) == data  # the same bytes, however it lay in memory
    assert samples.encode_array(np.concatenate([points, points], axis=1)[:, :3]) == data
    assert samples.npy_header(data) == ((4, 3), np.dtype(np.float32), len(data) - 48)
    for wrong in (data + b"x", data[:-1], data + data):
        with pytest.raises(ValueError, match="does not hold just that"):
            samples.decode_array(wrong)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3)})
    with pytest.raises(ValueError, match="more than its bytes hold"):
        samples.decode_array(file.getvalue())
    for foreign in (np.array([{}], object), np.array(["a"]), np.zeros(2, [("a", "f4")]), np.zeros(2, complex)):
        with pytest.raises(ValueError, match="pickles are never opened"):
            samples.decode_array(npy_of(foreign))
    with pytest.raises(ValueError, match="not a readable npy"):
        samples.decode_array(pickle.dumps(points))


def test_damaged_pictures_and_arrays_raise() -> None:
    with pytest.raises(ValueError, match="damaged"):
        samples.decode_picture(b"no picture")
    with pytest.raises(ValueError):
        samples.decode_array(b"no array")


def test_names() -> None:
    assert samples.view_member(3, "depth", "png") == "v03.depth.png"
    assert samples.split_view_member("v03.depth.png") == (3, "depth")
    assert samples.view_member(123, "rgb", "jpg") == "v123.rgb.jpg"
    assert samples.split_view_member("v12.rgb.jpg") == (12, "rgb")
    assert samples.split_view_member("v123.rgb.jpg") == (123, "rgb")
    for other in ("points.npy", "json", "v03.depth", "v03.a.b.png", "vx.rgb.jpg", "w03.rgb.jpg"):
        assert samples.split_view_member(other) is None
    assert samples.split_name("chair_1.v03.rgb.jpg") == ("chair_1", "v03.rgb.jpg")
    assert samples.tar_name("train", 7) == "train-00007.tar"
    assert samples.tar_name("train", 123456) == "train-123456.tar"


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


MEMBERS = {"json": b"{}", "points.npy": bytes(range(256)) * 3, "v00.rgb.jpg": b"x" * 512, "v01.rgb.jpg": b"y" * 513}


def ours(keys: str = "ab") -> tuple[bytes, list[int]]:
    """A tar of samples that differ, and the offset of each."""
    data = tar_holding([(f"{key}.{suffix}", key.encode() + value) for key in keys for suffix, value in MEMBERS.items()])
    return data, [offset for offset, _ in samples.read_samples(io.BytesIO(data))]


def tar_holding(files: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, value in files:
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    return file.getvalue()


def columns(key: str) -> list[tuple[str, int, int | None]]:
    """(suffix, size, crc32) of a sample's members, as a record has them."""
    held = {suffix: key.encode() + value for suffix, value in MEMBERS.items()}
    return [(suffix, len(value), zlib.crc32(value)) for suffix, value in held.items()]


@pytest.mark.parametrize("wanted", [set(MEMBERS), {"v01.rgb.jpg"}, {"json", "v00.rgb.jpg"}, set()])
def test_members_are_read_from_their_places(wanted: set[str]) -> None:
    data, offsets = ours()
    for key, offset in zip("ab", offsets, strict=True):
        sample = samples.read_sample(io.BytesIO(data), key, offset, columns(key), lambda _, suffix: suffix in wanted)
        assert sample == samples.Sample(key, {s: key.encode() + v for s, v in MEMBERS.items() if s in wanted})


@pytest.mark.parametrize("suffix", MEMBERS)
def test_a_flipped_byte_of_a_member_is_noticed(suffix: str) -> None:
    """Each member is read by itself, so the tar's sha256 tells nothing."""
    data, (_, offset) = ours()
    place = data.index(MEMBERS[suffix][-20:], offset)
    flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    with pytest.raises(ValueError, match=f"{suffix} is not what was written"):
        samples.read_sample(io.BytesIO(flipped), "b", offset, columns("b"))
    unknown = [(name, size, None) for name, size, _ in columns("b")]  # a record of an older build
    assert samples.read_sample(io.BytesIO(flipped), "b", offset, unknown).members.keys() == MEMBERS.keys()


def test_another_object_in_a_members_place_is_noticed() -> None:
    """The record of another tar, or an offset that is wrong: pictures and labels would be mixed up."""
    data, (first, second) = ours()
    plain = {key: [(suffix, size, None) for suffix, size, _ in columns(key)] for key in "ab"}
    for key, offset in (("a", second), ("b", first), ("b", second + 512)):
        with pytest.raises(ValueError, match=r"where its record says|bad checksum"):
            samples.read_sample(io.BytesIO(data), key, offset, plain[key])
    shorter = [(suffix, size - (suffix == "points.npy"), None) for suffix, size, _ in plain["a"]]
    with pytest.raises(ValueError, match="where its record says"):
        samples.read_sample(io.BytesIO(data), "a", first, shorter)
    with pytest.raises(ValueError, match="cut"):
        samples.read_sample(io.BytesIO(data[: second + 600]), "b", second, plain["b"])


def test_a_name_that_leads_out_of_the_tar_is_not_ours() -> None:
    for name in ("../a.json", "/a.json", "folder/a.json", ".json", "a"):
        with pytest.raises(ValueError, match="not a member of ours"):
            list(samples.read_samples(io.BytesIO(tar_holding([(name, b"x")]))))


def test_a_flipped_header_is_noticed() -> None:
    data, _ = ours()
    for place in (0, 100, 130, 156, 300):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(ValueError, match=r"damaged tar|not a member"):
            list(samples.read_samples(io.BytesIO(flipped)))


def test_a_json_that_is_no_object_is_told() -> None:
    assert samples.Sample("a", {"json": samples.encode_json({"é": 1})}).json == {"é": 1}
    for wrong in (b"[]", b"1", b"{", b"[" * 100_000):
        with pytest.raises(ValueError):
            _ = samples.Sample("a", {"json": wrong}).json
    with pytest.raises(KeyError):
        _ = samples.Sample("a", {}).json
