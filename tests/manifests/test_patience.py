"""An object store that hangs: everything asked of it ends within the limit. A slow one that moves is waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
from object_store import BUCKET, HangingForwarder, ObjectStore, reached

from manifests import patience, store
from manifests.errors import Refused, Stopped
from manifests.patience import PATIENCE
from manifests.read_ahead import AheadFile

LIMIT, MORE = 1.0, 4.0  # seconds; more: of a loaded machine
THERE, DATA = f"s3://{BUCKET}/there/file", os.urandom(3 << 20)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    server = ObjectStore()
    server.put("there/file", DATA)
    yield server
    server.close()


@pytest.fixture
def forwarder(server) -> Iterator[HangingForwarder]:
    found = HangingForwarder(server.port)
    yield found
    found.close()


def ahead(path: str) -> bytes:
    with AheadFile(path, [(0, len(DATA))], len(DATA)) as file:
        return file.read()


ASKED: dict[str, Callable[[str], object]] = {
    "read": store.read_bytes,
    "read_many": lambda path: store.read_many([path] * 3),
    "open": store.open_reading,
    "ahead": ahead,
    "list": lambda path: store.list_names(path.rpartition("/")[0]),
    "exists": store.exists,
    "write": lambda path: store.write_bytes(path + "2", DATA),
    "create": lambda path: store.create_bytes(path + "3", b"mine"),
    "remove": store.remove,
}


@pytest.mark.parametrize("name", ASKED)
def test_a_store_that_accepts_and_says_nothing_is_given_up(forwarder, monkeypatch, name: str) -> None:
    """Else its library asks again for minutes, and a peer that reads nothing is written to for ever."""
    with reached(forwarder.environment):
        assert store.exists(THERE)  # the connection is there and works
        monkeypatch.setenv(PATIENCE, str(LIMIT))
        forwarder.left = 0
        begun = time.monotonic()
        with pytest.raises(
            Stopped, match=rf"cannot .* s3://{BUCKET}/there.*: no answer for 1 s \({PATIENCE}\); what is"
        ):
            ASKED[name](THERE)
        assert LIMIT - 0.5 < time.monotonic() - begun < LIMIT + MORE


@pytest.mark.parametrize("name", ["read", "ahead", "write"])
def test_a_store_that_hangs_in_the_midst_of_the_bytes_is_given_up(forwarder, monkeypatch, name: str) -> None:
    monkeypatch.setenv(PATIENCE, str(LIMIT))
    with reached(forwarder.environment):
        forwarder.left = 1 << 20
        begun = time.monotonic()
        with pytest.raises(Stopped, match="no answer for 1 s"):
            ASKED[name](THERE)
        assert LIMIT - 0.5 < time.monotonic() - begun < LIMIT + MORE


@pytest.mark.slow
def test_a_slow_upload_that_moves_takes_longer_than_the_limit(server, forwarder, monkeypatch, tmp_path) -> None:
    """Each part that arrives gives the next ones the time again; hung in the midst it ends all the same."""
    monkeypatch.setenv(PATIENCE, "5")
    monkeypatch.setattr(patience, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(patience, "_PARTS_AT_ONCE", 1)
    data = os.urandom(25 << 20)
    with reached(forwarder.environment):
        forwarder.pace = 4 << 20
        begun = time.monotonic()
        store.write_bytes(f"s3://{BUCKET}/slow", data)
        assert time.monotonic() - begun > 5
        assert server.get("slow") == data
        forwarder.left = 12 << 20
        begun = time.monotonic()
        with pytest.raises(Stopped, match=f"cannot write s3://{BUCKET}/slower: no answer for 5 s"):
            store.write_bytes(f"s3://{BUCKET}/slower", data)
        assert time.monotonic() - begun < 3 + 5 + MORE


def test_parts_that_are_sent_anew_give_no_time() -> None:
    """An upload whose second part always fails would be made again for ever."""
    waiting = patience.Patience()
    for _ in range(2):
        waiting.value = 0
        waiting.relative_update(7)
        time.sleep(0.1)
    assert waiting.seconds - waiting.left() > 0.15
    waiting.relative_update(7)
    assert waiting.seconds - waiting.left() < 0.1


@pytest.mark.parametrize("text", ["soon", "-1", "0", "inf", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch, text: str) -> None:
    monkeypatch.setenv(PATIENCE, text)
    with pytest.raises(Refused, match=f"{PATIENCE}={text}: a number of seconds, such as 120"):
        store.exists(THERE)
