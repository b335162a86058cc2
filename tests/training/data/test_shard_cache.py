"""The cache of tars: it deletes nothing of others, follows no link, and waits for no process without an end."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import REPOSITORY

from manifests import remote
from manifests.errors import Refused, Stopped
from manifests.patience import PATIENCE
from training.data.shard_cache import FOLDER, MARKER, Cache, open_cache

SHA = "ab" * 32


def tar_in_memory(name: str, size: int = 1000) -> tuple[str, str, int]:
    """(URL, sha256, bytes) of some bytes in a store."""
    fs, _ = remote.filesystem("memory://cache/x")
    data = os.urandom(size)
    fs.pipe_file(f"/cache/{name}", data)
    return f"memory://cache/{name}", hashlib.sha256(data).hexdigest(), size


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_others_stay(tmp_path) -> None:
    """A folder of a person's own tars is named as data.cache, and the cache needs room: its own go, no other."""
    names = ("backup.tar", "thesis.tmp", f"{SHA}.tar", f"{SHA}.01234567.tmp", "room.lock")
    for name in names:
        (tmp_path / name).write_bytes(b"mine" * 500)
    cache = open_cache(str(tmp_path), 2500e-9, 100)
    inside = ("imagenet.tar", "notes.tmp", f"{SHA}-copy.tar", f"{SHA}.part.tmp")
    for name in inside:
        (cache.folder / name).write_bytes(b"mine" * 500)
    before = {name: data for name, data in listing(tmp_path).items() if not name.endswith(".lock")}
    tars = [tar_in_memory(name) for name in "abc"]
    for tar in tars:
        cache.open(*tar).close()
        time.sleep(0.01)
    after = {name: data for name, data in listing(tmp_path).items() if not name.endswith(".lock")}
    made = {f"{FOLDER}/{sha256}.tar" for _, sha256, _ in tars[1:]}  # the third had the first one's room
    assert set(after) == set(before) | made
    assert {name: data for name, data in after.items() if name in before} == before
    assert (tmp_path / "room.lock").read_bytes() == b"mine" * 500


def test_a_folder_of_another_is_no_cache(tmp_path) -> None:
    """The cache's folder is known by its marker; one that somebody else has filled is refused and stays as it is."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / f"{SHA}.tar").write_bytes(b"mine")
    with pytest.raises(Refused, match=re.escape(f"{folder} holds files and no {MARKER} of a cache")):
        open_cache(str(tmp_path), 1, 10)
    (folder / MARKER).write_bytes(b"Signature: of another program")
    with pytest.raises(Refused, match=re.escape(f"{folder} holds files and no {MARKER} of a cache")):
        open_cache(str(tmp_path), 1, 10)
    assert listing(folder) == {f"{SHA}.tar": b"mine", MARKER: b"Signature: of another program"}


def test_links_are_not_followed(tmp_path) -> None:
    """Links in place of the cache's folder, of a tar, of a download or of a lock: what they lead to stays."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache = open_cache(str(tmp_path / "dir"), 1500e-9, 100)
    url, sha256, size = tar_in_memory("linked")
    for name in ("tar", "tmp"):
        (elsewhere / name).write_bytes(b"x" * size)
        os.utime(elsewhere / name, (1, 1))
    before = {path.name: path.stat().st_mtime_ns for path in elsewhere.iterdir()}
    (cache.folder / f"{sha256}.tar").symlink_to(elsewhere / "tar")
    (cache.folder / f"{SHA}.01234567.tmp").symlink_to(elsewhere / "tmp")
    with cache.open(url, sha256, size) as file:
        assert hashlib.sha256(file.read()).hexdigest() == sha256
    assert not (cache.folder / f"{sha256}.tar").is_symlink()
    cache.open(*tar_in_memory("needs room")).close()
    assert listing(elsewhere) == {"tar": b"x" * size, "tmp": b"x" * size}
    assert {path.name: path.stat().st_mtime_ns for path in elsewhere.iterdir()} == before

    (cache.folder / "room.lock").unlink()
    (cache.folder / "room.lock").symlink_to(elsewhere / "made")
    with pytest.raises(Stopped, match=r"room\.lock is a link in place of a lock"):
        cache.open(*tar_in_memory("locked"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FOLDER).symlink_to(elsewhere)
    with pytest.raises(Refused, match=f"{FOLDER} is a link in place of the cache's folder"):
        open_cache(str(tmp_path / "other"), 1, 10)
    assert sorted(path.name for path in elsewhere.iterdir()) == ["tar", "tmp"]


HOLD = """
import sys, time
from pathlib import Path
from training.data.shard_cache import Cache
with Cache(Path(sys.argv[1]), 10**9)._locked("abc") as alive:
    print("held", flush=True)
    for _ in range(int(sys.argv[2])):
        time.sleep(0.2)
        alive()
"""


def holding(folder: Path, beats: int) -> subprocess.Popen:
    """A process that holds a lock and gets on every 0.2 s, so many times."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    command = [sys.executable, "-c", HOLD, str(folder), str(beats)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_stopped_process_that_holds_a_lock_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(PATIENCE, "0.5")
    process = holding(tmp_path, 10**6)
    try:
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(Stopped, match=rf"abc\.lock: process {process.pid} holds this lock"):
            Cache(tmp_path, 10**9).open("memory://cache/never", "abc" + SHA[3:], 10)
        assert 0.9 < time.monotonic() - began < 10
    finally:
        process.kill()
        process.communicate()
    with Cache(tmp_path, 10**9)._locked("abc"):  # it went with its process
        pass


def test_a_process_that_gets_on_is_waited_for(tmp_path, monkeypatch) -> None:
    """A large tar takes longer than the limit: who downloads it is not given up."""
    monkeypatch.setenv(PATIENCE, "0.6")
    process = holding(tmp_path, 20)
    began = time.monotonic()
    with Cache(tmp_path, 10**9)._locked("abc"):
        assert time.monotonic() - began > 2.4
    process.communicate(timeout=30)
    assert process.returncode == 0
