"""Records, keys, tables and the store."""

from __future__ import annotations

import re

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import records, store
from manifests.errors import Refused
from manifests.tables import axes_matrix, load_table, table_names


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
        store.filesystem("nosuch://x/y")


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


@pytest.mark.parametrize("axes", [("x", "y", "-z"), ("x", "x", "z"), ("y", "x", "z")])
def test_axes_that_mirror_are_refused(axes: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="mirror"):
        axes_matrix(axes)


def test_the_axes_of_modelnet_put_z_up() -> None:
    assert (axes_matrix(("y", "z", "x"))[:3, :3] @ [1, 2, 3]).tolist() == [2, 3, 1]
    assert (axes_matrix(("-y", "z", "-x"))[:3, :3] @ [1, 2, 3]).tolist() == [-2, 3, -1]
