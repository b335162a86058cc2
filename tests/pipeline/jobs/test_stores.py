"""An object store that refuses writes, for a while or for ever, or hangs, in the middle of a build and of a check."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator

import pytest
from builders import REPOSITORY, SMALL, Commands, tar_hashes
from object_store import BUCKET, FailingProxy, HangingForwarder, ObjectStore

from manifests.patience import PATIENCE

OBJECTS = ("parametric.objects=12", "shard_size=4", *SMALL[:2], "views=['depth10']")


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.close()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    Commands(REPOSITORY)("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
    return {name: (out / name).read_bytes() for name in tar_hashes(out)}


class Refusing:
    """Refuses to write anything from the second tar on, for so many seconds."""

    def __init__(self, proxy: FailingProxy, seconds: float) -> None:
        self.proxy, self.seconds = proxy, seconds
        self.since: float | None = None
        self.refused = 0

    def __call__(self, path: str) -> int | None:
        if self.since is None and sum(m == "PUT" and ".tar" in p for m, p, _ in self.proxy.seen) == 2:
            self.since = time.monotonic()
        if self.since is None or time.monotonic() - self.since > self.seconds or self.proxy.seen[-1][0] != "PUT":
            return None
        self.refused += 1
        return 503


def through(server: ObjectStore, seconds: float) -> tuple[FailingProxy, Commands]:
    """A proxy that refuses writes, and commands that reach the store by it."""
    proxy = FailingProxy(server.port)
    proxy.answer = Refusing(proxy, seconds)
    commands = Commands(REPOSITORY)
    commands.environment |= proxy.environment
    return proxy, commands


def test_a_store_that_refuses_for_a_while_is_waited_for(server, unbroken) -> None:
    proxy, commands = through(server, 8)
    try:
        out = f"s3://{BUCKET}/while"
        commands("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
        assert proxy.answer.refused >= 3
        assert {name: server.get(f"while/{name}") for name in unbroken} == unbroken
        assert json.loads(commands("check", out, "--json").stdout)["ok"]
    finally:
        proxy.close()


@pytest.mark.slow
def test_a_store_that_refuses_for_ever_stops_the_build_and_the_rerun_completes(server, unbroken) -> None:
    proxy, commands = through(server, float("inf"))
    commands.environment[PATIENCE] = "3"
    try:
        out = f"s3://{BUCKET}/ever"
        command = ("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
        (message,) = commands(*command, code=3).stderr.splitlines()[-1:]
        assert message.startswith(f"cannot write s3://{BUCKET}/ever/")
        assert "Service Unavailable" in message
        assert message.endswith("what is finished is kept, run the same again")
        finished = json.loads(commands("check", out, "--json", code=1).stdout)
        assert finished["complete"] is False
        assert not [problem for problem in finished["problems"] if "not finished" not in problem]
        proxy.answer = lambda path: None
        commands(*command)
        assert {name: server.get(f"ever/{name}") for name in unbroken} == unbroken
        assert json.loads(commands("check", out, "--json").stdout)["ok"]
    finally:
        proxy.close()


@pytest.mark.slow
def test_a_store_that_hangs_stops_build_and_check_within_the_limit(server, unbroken) -> None:
    """In the midst of the tars of both. What the store's own library asks again would take minutes."""
    commands, out = Commands(REPOSITORY), f"s3://{BUCKET}/hung"
    build = ("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
    commands.environment[PATIENCE] = "3"
    size = sum(map(len, unbroken.values()))
    for command, left in ((build, size // 2), (("check", out), 0), (build, math.inf), (("check", out), size // 2)):
        forwarder = HangingForwarder(server.port, left)
        commands.environment |= forwarder.environment
        try:
            begun = time.monotonic()
            message = commands(*command, code=0 if left == math.inf else 3).stderr
            if left < math.inf:
                assert f"s3://{BUCKET}/hung/" in message
                assert f"no answer for 3 s ({PATIENCE}); what is finished is kept, run the same again" in message
                assert "Traceback" not in message
                assert time.monotonic() - begun < 45  # mostly of starting a command on a loaded machine
        finally:
            forwarder.close()
    assert {name: server.get(f"hung/{name}") for name in unbroken} == unbroken


def test_a_store_that_may_not_be_written_is_told_at_once(server) -> None:
    proxy = FailingProxy(server.port)
    proxy.answer = lambda path: 403
    commands = Commands(REPOSITORY)
    commands.environment |= proxy.environment
    try:
        start = time.monotonic()
        message = commands("build", "parametric", "--out", f"s3://{BUCKET}/no", "--workers", 0, *OBJECTS, code=3).stderr
        assert f"s3://{BUCKET}/no" in message
        assert "Forbidden" in message or "403" in message
        assert time.monotonic() - start < 60  # and not after the two minutes of patience
    finally:
        proxy.close()
