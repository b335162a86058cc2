"""OUT/build.lock between machines whose clocks differ: it is judged by its being renewed, by the store's own clock."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, ObjectStore, environment, reached

from manifests import store
from manifests.errors import Refused
from pipeline.jobs import build_lock
from pipeline.jobs.build_lock import build_lock as locked


def dated(ahead: float, number: int = 0) -> bytes:
    """The lock of a build on another machine, whose clock runs so many seconds ahead."""
    values = {"host": "elsewhere", "pid": 1, "started": "1", "renewed": time.time() + ahead, "number": number}
    return json.dumps(values).encode()


def planted(folder: Path, ahead: float, quiet: float = 0.0) -> Path:
    """Such a lock, which was last written `quiet` seconds ago."""
    path = folder / "build.lock"
    path.write_bytes(dated(ahead))
    os.utime(path, (time.time() - quiet,) * 2)
    return path


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ObjectStore()
    with reached(environment(server.port)):
        yield f"s3://{BUCKET}"
    server.close()


@pytest.mark.parametrize("ahead", [3600.0, 1e9, 1e300])
def test_a_dead_build_of_the_future_is_taken_over_at_once(tmp_path, ahead) -> None:
    """Its lock has been quiet: nobody waits for the year that it is dated."""
    path = planted(tmp_path, ahead, quiet=build_lock.QUIET_SECONDS + 1)
    began = time.monotonic()
    with locked(str(tmp_path)):
        assert json.loads(path.read_bytes())["pid"] == os.getpid()
    assert time.monotonic() - began < 5
    assert not list(tmp_path.iterdir())


def test_a_live_build_of_the_future_is_left_alone(tmp_path) -> None:
    """It renews its lock, whatever date it writes."""
    path = planted(tmp_path, 1e6)
    over = threading.Event()

    def renew() -> None:
        number = 0
        while not over.wait(0.5):
            number += 1
            store.write_bytes(str(path), dated(1e6, number))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(Refused, match="is being built by process 1 on elsewhere"), locked(str(tmp_path)):
            pass
    finally:
        over.set()
        thread.join()
    assert json.loads(path.read_bytes())["host"] == "elsewhere"


def test_how_long_it_is_looked_at_has_an_end_and_is_said(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(build_lock, "QUIET_SECONDS", 3)
    path = planted(tmp_path, 1e6, quiet=1)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), locked(str(tmp_path)):
        assert json.loads(path.read_bytes())["pid"] == os.getpid()
    assert 1 < time.monotonic() - began < 10
    assert f"{path} is dated in the future: looking for up to 2 s whether its build renews it" in caplog.text


def test_clocks_that_differ_by_little_are_none_of_the_future(tmp_path) -> None:
    planted(tmp_path, 20, quiet=build_lock.QUIET_SECONDS + 1)
    with pytest.raises(Refused, match="is being built by process 1"), locked(str(tmp_path)):
        pass


def test_in_an_object_store(bucket, monkeypatch) -> None:
    """Its own times tell how long the lock has been quiet."""
    path = f"{bucket}/build.lock"
    store.write_bytes(path, dated(1e6))
    time.sleep(2.5)  # a store tells whole seconds
    assert 1 <= store.age_seconds(path) <= 60
    assert store.age_seconds(f"{bucket}/none.lock") is None
    monkeypatch.setattr(build_lock, "QUIET_SECONDS", 1)
    began = time.monotonic()
    with locked(bucket):
        assert json.loads(store.read_bytes(path))["pid"] == os.getpid()
    assert time.monotonic() - began < 5
    assert store.list_names(bucket) == []


def test_a_file_tells_how_long_it_is_quiet(tmp_path) -> None:
    planted(tmp_path, 0, quiet=100)
    assert 99 < store.age_seconds(str(tmp_path / "build.lock")) < 130
    assert store.age_seconds(str(tmp_path / "none")) is None
    assert [path.name for path in tmp_path.iterdir()] == ["build.lock"]
