"""The careful way: makes a shard's objects one at a time in a child process, whose death costs one object only.

`python -m pipeline.jobs.isolated_worker FD` is the child: it reads the plan, then one call after the other, and answers
over one socket. The parent knows which object a dead child held and at which stage, starts a new child, tries that
object once more, then records the Failure. Pickles travel between these two processes only and are never stored.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from manifests.errors import Stopped
from manifests.process_info import end_with_parent, environment, peak_mb_of
from manifests.records import Asset, Failure
from manifests.samples import Sample
from pipeline.plan.plan import Plan, ViewSet
from pipeline.shards.build_shard import PlainMaker
from pipeline.shards.object import BuiltObject, Outcome, ViewResults, make_object
from pipeline.sources.source_files import following

ATTEMPTS = 2
_MEGABYTE = 1 << 20
_POLL_SECONDS = 0.2
_START_SECONDS = 120
_END_SECONDS = 30  # a killed process that has not ended by then is stuck in the kernel
_STAGES = 4  # of an object: each may take asset_seconds


class ChildDied(Exception):
    """The child ended, hung or swelled; the message begins with `crash:`, `timeout:` or `memory:`.

    stage: what it was doing. built: the shape, where that was finished.
    """

    def __init__(self, reason: str, stage: str, built: BuiltObject | None) -> None:
        super().__init__(reason)
        self.stage, self.built = stage, built


class CarefulMaker:
    """Makes objects in one long-lived child process; use it in a `with` block."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._child: _Child | None = None

    def __enter__(self) -> CarefulMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_child()

    def build(self, asset: Asset) -> Outcome:
        """Everything of one raw asset. A shape whose drawing kills the child keeps its place, without views."""
        try:
            return self._call("build", asset)
        except ChildDied as error:
            failure = Failure(asset.key, asset.id, error.stage, str(error))
            if error.built is None:
                return failure
            return replace(error.built, views={s.name: failure for s in self._plan.view_sets})

    def redraw(self, shape: Sample, glb: bytes | None, view_sets: tuple[ViewSet, ...]) -> ViewResults:
        """View sets of one stored object."""
        try:
            return self._call("redraw", shape, glb, view_sets)
        except ChildDied as error:
            failure = Failure(shape.key, shape.json["id"], error.stage, str(error))
            return {s.name: failure for s in view_sets}

    def largest_mb(self) -> float:
        """The most memory in megabytes that the child has held so far, 0 without a child."""
        return 0.0 if self._child is None else self._child.largest_mb()

    def _call(self, name: str, *arguments: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            self._child = self._child or _Child(self._plan)
            try:
                return self._child.call(name, arguments)
            except ChildDied:
                self._end_child()
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()


class _Child:
    """One child process and the socket to it."""

    def __init__(self, plan: Plan) -> None:
        self._seconds, self._memory_mb = plan.recipe.asset_seconds, plan.recipe.asset_memory_mb
        self._connection, theirs = mp.Pipe()
        _limit_waits(self._connection, _START_SECONDS)
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment() | {"PYTHONPATH": paths},
        )
        theirs.close()
        self._start(plan)

    def _start(self, plan: Plan) -> None:
        """Gives the child its plan. Raises Stopped where it does not take it, or does not get ready."""
        try:
            self._connection.send(plan)
            if self._connection.poll(_START_SECONDS):
                self._connection.recv()
                _limit_waits(self._connection, self._seconds)
                return
            why = f"did not start within {_START_SECONDS} s"
        except BlockingIOError:
            why = f"did not take its plan within {_START_SECONDS} s"
        except (EOFError, ConnectionError):
            why = f"did not start: it {self._ending()}"
        self.kill()
        raise Stopped(f"a child process ({self._process.pid}) {why}; what is finished is kept, run the same again")

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """The child's answer. Raises ChildDied when it ends, makes no progress or swells."""
        stage, built = "load" if name == "build" else "render", None
        try:
            self._connection.send((name, arguments))
            progress = time.monotonic()
            while True:
                if self._connection.poll(_POLL_SECONDS):
                    kind, *answer = self._connection.recv()
                    if kind == "answer":
                        return answer[0]
                    if kind == "error":
                        raise answer[0]
                    stage, built = answer
                    progress = time.monotonic()
                elif time.monotonic() - progress > self._seconds:
                    raise BlockingIOError
                elif resident_mb(self._process.pid) > self._memory_mb:
                    raise ChildDied(f"memory: more than asset_memory_mb={self._memory_mb}", stage, built)
        except BlockingIOError as error:
            raise ChildDied(f"timeout: no progress for asset_seconds={self._seconds:g}", stage, built) from error
        except (EOFError, ConnectionError) as error:
            raise ChildDied(f"crash: its process {self._ending()}", stage, built) from error

    def largest_mb(self) -> float:
        """The process's peak resident memory in megabytes, 0 where /proc does not tell."""
        return peak_mb_of(self._process.pid)

    def _ending(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def kill(self) -> None:
        """Ends the process and waits for it. Raises Stopped where the kernel does not let it end."""
        self._process.kill()
        self._connection.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Stopped(
                f"process {self._process.pid} was killed and has not ended within {_END_SECONDS} s: a disk or network "
                "folder hangs; what is finished is kept, run the same again"
            ) from error


def longest_silence(asset_seconds: float) -> float:
    """Seconds that a careful worker may need for one object: it is tried in new children, stage by stage."""
    return ATTEMPTS * (_START_SECONDS + _END_SECONDS + _STAGES * asset_seconds)


def _limit_waits(connection: Connection, seconds: float) -> None:
    """Lets reads and writes of half a message raise BlockingIOError (socket(7), SO_RCVTIMEO): the other end hangs.

    A stopped process neither takes in what is sent to it nor finishes what it was sending.
    """
    seconds = min(max(seconds, 0.001), 1e9)  # 0 would be no limit
    limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, limit)


def resident_mb(pid: int) -> float:
    """Resident memory of a process in megabytes, 0 where /proc does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / _MEGABYTE


def _limit_memory(megabytes: int) -> None:
    """Lets this process map `megabytes` more than it has, so that most swelling ends in a MemoryError with a name."""
    try:
        mapped = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (mapped + megabytes * _MEGABYTE,) * 2)


def serve(connection: Connection) -> None:
    """The child's loop: a plan, then calls until the parent closes the socket."""
    # a child that hangs would not see that its parent has closed the socket
    end_with_parent(signal.SIGKILL)
    plan: Plan = connection.recv()
    _limit_memory(plan.recipe.asset_memory_mb)
    with following(plan.followed):
        _answer_calls(connection, plan)


def _answer_calls(connection: Connection, plan: Plan) -> None:
    plain = PlainMaker(plan)
    connection.send(("ready",))
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            if name == "build":
                (asset,) = arguments
                answer: Outcome | ViewResults
                answer = make_object(asset, plan, lambda *report: connection.send(("stage", *report)))
            else:
                answer = plain.redraw(*arguments)
        except Exception as error:  # Refused and Stopped are the parent's to raise
            connection.send(("error", error))
        else:
            connection.send(("answer", answer))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
