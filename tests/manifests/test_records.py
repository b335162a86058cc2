"""Records, keys, tables and the store."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import records, remote, store
from manifests.dataset_info import DatasetTable, axes_matrix, default_prompt_name, load_table, table_names
from manifests.errors import Refused


@given(st.lists(st.text(max_size=120), unique=True, max_size=12))
def test_keys_are_plain_short_and_different(ids: list[str]) -> None:
    keys = records.make_keys(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in keys)
    assert len({key.lower() for key in keys}) == len(keys)
    assert records.make_keys(ids[::-1]) == keys[::-1]


def test_plain_ids_keep_their_name() -> None:
    assert records.make_keys(["chair_0890", "a/b.off", "a_b.off"])[0] == "chair_0890"
    clash = records.make_keys(["a/b", "a_b"])
    assert clash[0] != clash[1]
    assert clash[0].startswith("a_b-")
    with pytest.raises(ValueError, match="twice"):
        records.make_keys(["x", "x"])


def test_keys_that_differ_in_letter_case_alone_are_made_different() -> None:
    """On a disk that drops letter case, one of two files of such names overwrites the other."""
    ids = ["Chair_1", "chair_1", "CHAIR_1", "chair_2"]
    keys = records.make_keys(ids)
    for id, key in zip(ids[:3], keys, strict=False):
        assert key == f"{id}-{hashlib.sha256(id.encode()).hexdigest()[:8]}"
    assert keys[3] == "chair_2"
    assert records.make_keys(["Table_1", "chair_1"]) == ["Table_1", "chair_1"]  # capitals alone are no clash
    assert len({key.lower() for key in keys}) == 4


def test_a_key_of_eighty_bytes_stays_and_a_longer_one_is_cut() -> None:
    whole, longer = "k" * 80, "k" * 81
    assert records.make_keys([whole, longer])[0] == whole
    found = records.make_keys([longer, f"{longer}x"])
    assert [len(key) for key in found] == [80, 80]
    assert found[0] == f"{'k' * 71}-{hashlib.sha256(longer.encode()).hexdigest()[:8]}"
    assert found[0] != found[1]


def test_the_same_id_of_two_sources_is_two_objects() -> None:
    keys = records.make_keys(["a", "a", "b"], ["train.h5", "test.h5", "test.h5"])
    assert len(set(keys)) == 3
    assert keys[2] == "b"
    assert records.make_keys(["a", "a"], ["test.h5", "train.h5"]) == [keys[1], keys[0]]
    with pytest.raises(ValueError, match="the id a comes twice"):
        records.make_keys(["a", "a"], ["train.h5", "train.h5"])


ASSET = records.Asset("a/b.off", "data/a/b.off", "train", "night_stand", "a_b")


@pytest.mark.parametrize("field", ["id", "source", "split", "class_name", "key"])
def test_the_list_of_assets_notices_every_change(field: str) -> None:
    """A source that renamed, moved or relabelled an object is not the one that a build was begun from."""
    other = records.Asset("c", "c", "train", None, "c")
    expected = records.asset_list_hash([ASSET, other])
    assert records.asset_list_hash([replace(ASSET, **{field: "x"}), other]) != expected
    assert records.asset_list_hash([other, ASSET]) != expected
    assert records.asset_list_hash([ASSET]) != expected


def test_the_list_of_assets_comes_back() -> None:
    assets = [ASSET, records.Asset('q"\\é\u2028', "s", "test", None, "q")]
    data = b"".join(map(records.asset_line, assets))
    assert records.parse_assets(data) == assets
    assert json.loads(data.split(b"\n")[0]) == ["train", "a_b", "a/b.off", "night_stand", "data/a/b.off"]
    with pytest.raises(ValueError, match="line 2: "):
        records.parse_assets(data.replace(b'["test", "q"', b'["test", "not a key"'))


def test_a_record_comes_back(tmp_path) -> None:
    record = records.Record(
        1, 2, 10, "ab", "cd", ("x", "y"), (0, 512), (records.Failure("z", "z.off", "load", "timeout: 2 s"),)
    )
    path = str(tmp_path / "train-00000.json")
    records.write_json(path, record.to_json())
    back = records.read_record(path)
    assert back == record
    assert back.failures[0].kind == "timeout"
    assert records.Failure("z", "z", "load", "cut").kind == "data"
    (tmp_path / "train-00000.json").write_text("{")
    with pytest.raises(ValueError, match="damaged JSON"):
        records.read_record(path)
    (tmp_path / "train-00000.json").write_text("[]")
    with pytest.raises(ValueError, match=r"train-00000.json: not a JSON object"):
        records.read_record(path)
    assert records.record_path("s3://b/out/shapes/train-00017.tar") == "s3://b/out/shapes/train-00017.json"


RECORD = {
    "format": 1,
    "count": 2,
    "bytes": 3072,
    "sha256": "ab",
    "hash": "cd",
    "keys": ["x", "y"],
    "offsets": [0, 1536],
    "sizes": {"json": [2, 2]},
    "checks": {"json": [1, None]},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offsets": [0]}, "offsets has 1 values for 2 keys"),
        ({"offsets": [0, 1, 2]}, "offsets has 3 values for 2 keys"),
        ({"sizes": {"json": [2]}}, "json has 1 values for 2 keys"),
        ({"checks": {"points.npy": [2, 2, 2]}}, "points.npy has 3 values for 2 keys"),
        ({"offsets": [0, -1]}, "offsets.1: "),
        ({"sizes": {"json": [2, -2]}}, "sizes.json.1: "),
        ({"keys": ["x", "../y"]}, "keys.1: "),
        ({"keys": ["x", "y" * 81]}, "keys.1: "),
        ({"sha256": "../x"}, "sha256: "),
        ({"sahpe": 1}, "sahpe: "),
    ],
)
def test_a_record_that_is_none_says_where(change: dict, words: str) -> None:
    """Readers take offsets, sizes and names of files from it."""
    assert records.Record.from_json(RECORD).keys == ("x", "y")
    with pytest.raises(ValueError, match="not a record: ") as caught:
        records.Record.from_json({**RECORD, **change})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def fail_while_writing(path: str) -> None:
    with store.writing(path) as file:
        file.write(b"half")
        raise RuntimeError


def test_files_appear_whole_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "file"
    with pytest.raises(RuntimeError):
        fail_while_writing(str(path))
    assert list(tmp_path.iterdir()) == []
    store.write_bytes(str(path), b"whole")
    assert path.read_bytes() == b"whole"


def test_an_object_store_is_written_and_listed() -> None:
    store.write_bytes("memory://bucket/a/b.json", b"{}")
    assert store.read_bytes("memory://bucket/a/b.json") == b"{}"
    assert store.read_bytes("memory://bucket/a/c.json") is None
    assert store.list_names("memory://bucket/a") == ["b.json"]
    with pytest.raises(RuntimeError):
        fail_while_writing("memory://bucket/a/d.json")
    assert not store.exists("memory://bucket/a/d.json")
    store.remove("memory://bucket/a/b.json")
    assert store.list_names("memory://bucket/a") == []
    fsspec.filesystem("memory").store.clear()


def test_a_store_without_its_library_is_one_line() -> None:
    with pytest.raises(Refused, match="nosuch"):
        remote.filesystem("nosuch://x/y")


def test_leftovers_of_killed_writers_are_told_from_files(tmp_path) -> None:
    for name in (store.temporary_name("train-00000.tar"), "train-00000.tar", ".hidden.tmp", "notes.tmp"):
        (tmp_path / name).touch()
    assert store.delete_temporaries(str(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", table_names())
def test_dataset_tables(name: str) -> None:
    table = load_table(name)
    assert len(table.classes) == len(table.prompt_names)
    assert not any("_" in prompt for prompt in table.prompt_names)
    assert axes_matrix(table.axes)[3, 3] == 1


def test_modelnet_tables_are_complete() -> None:
    forty, ten = load_table("modelnet40"), load_table("modelnet10")
    assert (len(forty.classes), forty.counts) == (40, {"train": 9843, "test": 2468})
    assert (len(ten.classes), ten.counts) == (10, {"train": 3991, "test": 908})
    assert forty.prompt_names[forty.label("night_stand")] == "night stand"
    assert list(forty.classes) == sorted(forty.classes)
    assert (forty.label("airplane"), forty.label("xbox")) == (0, 39)
    assert (forty.label("spaceship"), forty.label(None)) == (None, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_names": ("a",)}, "1 prompt names for 2 classes"),
        ({"prompt_names": ("a", "b", "c")}, "3 prompt names for 2 classes"),
        ({"classes": ("a", "a")}, "a class comes twice"),
        ({"subsets": {"few": ("a", "c")}}, "subsets.few: c is no class"),
        ({"subsets": {"few": ("a", "a")}}, "subsets.few: a class comes twice"),
        ({"synsets": {"1": "a", "2": "a"}}, "synsets and classes are not the same"),
    ],
)
def test_a_table_that_would_mix_up_labels_is_refused(change: dict, words: str) -> None:
    values = {"name": "x", "classes": ("a", "b"), "prompt_names": ("a", "b"), **change}
    with pytest.raises(ValueError, match=words):
        DatasetTable(**values)


def test_prompt_names_are_words() -> None:
    assert default_prompt_name("night_stand") == default_prompt_name("night-stand") == "night stand"
    assert default_prompt_name("_tv__stand-") == "tv stand"


@pytest.mark.parametrize("axes", [("x", "y", "-z"), ("x", "x", "z"), ("y", "x", "z")])
def test_axes_that_mirror_are_refused(axes: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="mirror"):
        axes_matrix(axes)


def test_the_axes_of_modelnet_put_z_up() -> None:
    assert (axes_matrix(("y", "z", "x"))[:3, :3] @ [1, 2, 3]).tolist() == [2, 3, 1]
    assert (axes_matrix(("-y", "z", "-x"))[:3, :3] @ [1, 2, 3]).tolist() == [-2, 3, -1]
