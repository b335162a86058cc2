"""The store: files whole or not at all, one winner of several, leftovers told from work, patience with a store."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from disk_order import DiskOrder
from object_store import BUCKET, ObjectStore, reached
from watched_store import watched_store

from manifests import remote, store
from manifests.errors import Refused, Stopped
from manifests.patience import PATIENCE, Patience


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    found = ObjectStore()
    yield found
    found.close()


# --- whole or not at all


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are named by /proc")
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a loss of power leaves an empty file under the name of a finished one. Also what was buffered last."""
    order, path = DiskOrder(monkeypatch), tmp_path / "new" / "train-00000.tar"
    with store.writing(str(path)) as file:
        file.write(b"x" * 100_000)
        file.write(b"the end")
    order.assert_lasting(path)


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path) -> None:
    path = tmp_path / "manifest.json"
    store.write_bytes(str(path), b"old" * 1000)
    with open(path, "rb") as reading:
        with store.writing(str(path)) as file:
            file.write(b"new" * 500)
            file.flush()
            assert path.read_bytes() == b"old" * 1000
        assert reading.read() == b"old" * 1000  # whoever has it open reads on in the old one
    assert path.read_bytes() == b"new" * 500
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_a_full_disk_says_what_to_do(tmp_path) -> None:
    with (
        pytest.raises(Stopped) as caught,
        store.stopping("out/train-00000.tar"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert str(caught.value) == (
        "cannot write out/train-00000.tar: No space left on device; what is finished is kept, run the same again"
    )
    for number in (errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG):
        with pytest.raises(Stopped), store.stopping("x"):
            raise OSError(number, "said")
    with pytest.raises(PermissionError), store.stopping("x"):
        raise PermissionError(errno.EACCES, "said")


@pytest.mark.timeout(20)  # `open` would wait for a writer
def test_a_pipe_or_a_folder_in_place_of_a_file_is_not_read(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            store.read_bytes(str(path))
    assert store.read_bytes(str(tmp_path / "none")) is None
    assert store.read_bytes(str(tmp_path / "pipe" / "below")) is None
    with pytest.raises(Stopped, match="a folder in place of a file"):
        store.remove(str(tmp_path))
    store.remove(str(tmp_path / "pipe"))
    store.remove(str(tmp_path / "pipe"))


def test_a_text_saved_by_an_editor_of_windows_is_read(tmp_path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xef\xbb\xbfseed = 1\r\n# \xc3\xa4")
    assert store.read_text(tmp_path / "recipe.toml") == "seed = 1\r\n# ä"


# --- one of several


def at_once(count: int, work) -> list:
    """What `work(number)` gives in so many threads that begin together."""
    barrier = threading.Barrier(count)

    def begun(number: int):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begun, range(count)))


def test_of_several_that_create_a_file_one_does(tmp_path) -> None:
    """A lock: two builds into one folder would write the same shards."""
    for turn in range(10):
        path = tmp_path / f"lock{turn}"
        won = at_once(8, lambda number, path=path: store.create_bytes(str(path), b"%d" % number))
        assert sum(won) == 1
        assert path.read_bytes() == b"%d" % won.index(True)
    assert len(os.listdir(tmp_path)) == 10  # and nothing is left of the others


def test_a_disk_without_links_is_asked_first(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    path = str(tmp_path / "deep" / "lock")
    assert store.create_bytes(path, b"first")
    assert not store.create_bytes(path, b"second")
    assert store.read_bytes(path) == b"first"
    assert os.listdir(tmp_path / "deep") == ["lock"]


def test_only_what_one_knows_is_taken_away(tmp_path) -> None:
    """Two builds find a stale lock: the slower one must not take away the lock that the faster one has made since."""
    path = tmp_path / "lock"
    store.take_away(str(path), b"stale")
    path.write_bytes(b"another's")
    store.take_away(str(path), b"stale")
    assert path.read_bytes() == b"another's"
    store.take_away(str(path), b"another's")
    assert os.listdir(tmp_path) == []


def test_whoever_comes_while_a_lock_is_looked_at_keeps_it(tmp_path) -> None:
    """A pipe in its place holds up the reading, so that a third one comes in between."""
    path = tmp_path / "lock"
    os.mkfifo(path)
    thread = threading.Thread(target=store.take_away, args=(str(path), b"stale"), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store.create_bytes(str(path), b"third")
    (aside,) = [each for each in tmp_path.iterdir() if each != path]
    with open(aside, "wb") as pipe:
        pipe.write(b"another's")
    thread.join(20)
    assert not thread.is_alive()
    assert path.is_file()
    assert path.read_bytes() == b"third"
    assert os.listdir(tmp_path) == ["lock"]


def test_one_of_several_and_only_what_one_knows_in_an_object_store(server) -> None:
    path = f"s3://{BUCKET}/out/build.lock"
    with reached(server.environment):
        won = at_once(4, lambda number: store.create_bytes(path, b"%d" % number))
        assert sum(won) == 1
        assert server.get("out/build.lock") == b"%d" % won.index(True)
        store.take_away(path, b"stale")
        assert server.get("out/build.lock") == b"%d" % won.index(True)
        store.take_away(path, b"%d" % won.index(True))
        assert store.read_bytes(path) is None
        store.take_away(path, b"stale")


def test_what_others_write_to_an_object_store_is_seen(server) -> None:
    """Workers write shards, another build a lock: a listing that was kept from before would not know them."""
    folder = f"s3://{BUCKET}/seen"
    with reached(server.environment):
        assert store.list_names(folder) == []
        server.put("seen/b.json", b"1")
        assert store.list_names(folder) == ["b.json"]
        server.put("seen/a.json", b"2")
        server.put("seen/deep/c.json", b"3")
        assert store.list_names(folder) == ["a.json", "b.json", "deep"]
        server.put("seen/d.json", b"4")
        assert store.exists(f"{folder}/d.json")
        with store.open_reading(f"{folder}/a.json") as file:
            assert file.read() == b"2"
        server.put("seen/a.json", b"longer")
        with store.open_reading(f"{folder}/a.json") as file:
            assert file.read() == b"longer"
        store.remove(f"{folder}/d.json")
        assert not store.exists(f"{folder}/d.json")
        assert store.read_many([f"{folder}/{name}.json" for name in "bxa"]) == [b"1", None, b"longer"]


# --- leftovers


def left_by(pid: int, host: str = "") -> str:
    host = host or store.temporary_name("x").split(".", 2)[2].rsplit("-", 2)[0]
    return f".train-00000.tar.{host}-{pid}-0123abcd.tmp"


def test_what_a_living_process_writes_is_kept_and_what_a_dead_one_left_is_not(tmp_path) -> None:
    """Also of one that has ended and that nobody has waited for."""
    process = subprocess.Popen(["sleep", "60"])
    path = tmp_path / left_by(process.pid)
    try:
        path.write_bytes(b"half")
        assert store.delete_temporaries(str(tmp_path)) == 0
        assert path.exists()
        process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while store.delete_temporaries(str(tmp_path)) == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


def test_what_another_machine_writes_is_kept_until_it_is_old(tmp_path) -> None:
    """On a shared disk: its processes' numbers mean nothing here."""
    path, gone = tmp_path / left_by(1 << 22, "node-7"), tmp_path / left_by(1 << 22)
    for each in (path, gone):
        each.write_bytes(b"half")
    assert socket.gethostname() != "node-7"
    for age, deleted in ((0, 1), (500, 0), (700, 1)):
        os.utime(path, (time.time() - age,) * 2)
        assert store.delete_temporaries(str(tmp_path)) == deleted, age
    assert os.listdir(tmp_path) == []


def test_leftover_folders_are_deleted_whole_and_nothing_that_only_looks_like_one(tmp_path) -> None:
    folder = tmp_path / store.temporary_name("step-00000010")
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "state.pt").write_bytes(b"half")
    name = store.temporary_name("x")
    others = {name[1:], f"{name}.gz", name.replace(".tmp", "0.tmp"), ".a-1-0123abcd.tmp", ".cache.tmp"}
    for other in others:
        (tmp_path / other).write_bytes(b"mine")
    assert store.delete_temporaries(str(tmp_path)) == 1
    assert set(os.listdir(tmp_path)) == others
    assert store.delete_temporaries(str(tmp_path / "none")) == 0
    names = {store.temporary_name("x") for _ in range(100)}
    assert len(names) == 100


# --- names and places


def test_names_are_listed_in_order(tmp_path) -> None:
    names = [f"train-{number:05d}.json" for number in range(60)]
    for name in random.Random(0).sample(names, len(names)):
        (tmp_path / name).touch()
    assert store.list_names(str(tmp_path)) == names
    assert store.list_names(str(tmp_path / "none")) == []
    assert store.list_names(str(tmp_path / names[0])) == []


def test_paths_and_urls() -> None:
    assert [remote.is_url(path) for path in ("s3://b/x", "file:///x", "/x", "x/y")] == [True, False, False, False]
    assert store.join("s3://b/out/", "views", "x.tar") == "s3://b/out/views/x.tar"
    assert store.join("/out", "x") == "/out/x"
    assert store.absolute("s3://b/out/") == "s3://b/out"
    assert store.absolute("file:///out/x") == "/out/x"
    assert store.absolute("x") == str(Path.cwd() / "x")


@pytest.mark.parametrize(
    "path",
    ["s3://me:hunter2@b/x", "s3://b/x?secret=hunter2", "zip://a::s3://hunter2", "pipe:cat hunter2", "PIPE: hunter2"],
)
def test_keys_commands_and_chains_are_no_paths_and_not_repeated(path: str) -> None:
    with pytest.raises(Refused) as caught:
        store.absolute(path)
    assert "hunter2" not in str(caught.value)


def test_free_space_is_what_is_free(tmp_path) -> None:
    """Also for a folder that is yet to be made: a build that will not fit is told before it begins."""
    free = store.free_bytes(str(tmp_path / "deep" / "out"))
    assert abs(free - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert free < shutil.disk_usage(tmp_path).total - (1 << 20)
    assert store.free_bytes("s3://b/out") is None


# --- patience


class Failing:
    """An attempt that fails so many times."""

    def __init__(self, times: float, error: Exception) -> None:
        self.left, self.error, self.made = times, error, 0

    def __call__(self, patience: Patience) -> str:
        self.made += 1
        if self.left > 0:
            self.left -= 1
            raise self.error
        return "answer"


def test_a_store_that_fails_is_asked_again_after_longer_and_longer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "20")
    attempt, began = Failing(2, OSError("Slow Down")), time.monotonic()
    assert remote.patiently("s3://b/x", "read", attempt) == "answer"
    assert attempt.made == 3
    assert 0.7 < time.monotonic() - began < 10


def test_a_store_that_goes_on_failing_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "1")
    attempt, began = Failing(100, OSError("Slow Down")), time.monotonic()
    with pytest.raises(Stopped, match="cannot write s3://b/x: Slow Down; what is finished is kept"):
        remote.patiently("s3://b/x", "write", attempt)
    assert 1 < attempt.made < 5
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("error", [PermissionError("Forbidden"), ImportError("no library"), ValueError("bad name")])
def test_what_waiting_does_not_mend_is_told_at_once(error: Exception) -> None:
    attempt = Failing(100, error)
    with pytest.raises(Stopped, match=str(error)):
        remote.patiently("s3://b/x", "read", attempt)
    assert attempt.made == 1


@pytest.mark.parametrize("error", [FileNotFoundError("x"), FileExistsError("x"), Refused("x"), Stopped("x")])
def test_an_answer_is_passed_on_at_once(error: Exception) -> None:
    attempt = Failing(100, error)
    with pytest.raises(type(error)) as caught:
        remote.patiently("s3://b/x", "read", attempt)
    assert caught.value is error
    assert attempt.made == 1


def test_of_many_files_the_ones_that_failed_are_read_again() -> None:
    """A record that counts as missing would have its shard made again."""
    with watched_store(a=b"1", b=b"2", c=b"3") as watched:
        watched.failing["/b"] = [OSError("Slow Down"), OSError("Slow Down")]
        paths = [f"watched://{name}" for name in "abxc"]
        assert store.read_many(paths) == [b"1", b"2", None, b"3"]
        assert store.read_many([]) == []
