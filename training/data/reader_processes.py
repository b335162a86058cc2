"""Reader processes, which make batches beside the training: with a limit on every wait, and errors that name the cause.

A reader hands its batches over in shared memory (/dev/shm). When that is full the reader is killed (SIGBUS) or silently
loses a batch. So this module checks that all batches that readers keep will fit before it starts them.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from manifests.errors import Refused, Stopped
from manifests.patience import READER_SECONDS, reader_seconds
from training.data.sample_index import DamagedShard

SHARED = "/dev/shm"
_SPARE_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_AHEAD = 2  # batches that a reader keeps
_GOING_SECONDS = 1.0  # a broken connection to a process is seen before its exit code
_REMEDY = "fewer readers, or none (data.workers=0, of evaluate and embed --workers 0), or in a container a larger"


def this_reader() -> tuple[int, int]:
    """(number of this reader process, number of all); (0, 1) in a process that reads by itself."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


class Readers:
    """The batches of a dataset, made by `workers` processes beside this one; with 0 workers, in this process.

    batch_bytes: of a batch. pin: batches lie in memory that a GPU reads by itself. Making it raises Refused where
    shared memory has no room for what the readers keep. Iterating raises Stopped when a reader has died or no batch
    came for `reader_seconds`; and whatever a reader raised.
    """

    def __init__(self, dataset: IterableDataset, workers: int, batch_bytes: int, pin: bool = False) -> None:
        _require_room(workers, batch_bytes)
        self._workers = workers
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            generator=torch.Generator(),  # else each start would draw from the generator of the towers
            pin_memory=pin,
            prefetch_factor=_AHEAD if workers else None,
        )

    def __iter__(self) -> Iterator[Any]:
        return self._from_processes() if self._workers else iter(self._loader)

    def _from_processes(self) -> Iterator[Any]:
        with _deaths_unheard():
            batches = iter(self._loader)
        readers: Sequence[BaseProcess] = batches._workers  # type: ignore[attr-defined]  # torch has no public name
        guard = _Guard(readers, reader_seconds())
        guard.start()
        try:
            while (batch := self._next(batches, guard)) is not None:
                yield batch
        finally:
            guard.over.set()

    def _next(self, batches: Iterator[Any], guard: _Guard) -> Any:
        """The next batch, or None at the end."""
        try:
            guard.since = time.monotonic()
            return next(batches, None)
        except Stopped as error:  # of a reader: torch has put its traceback before the message
            kind = DamagedShard if isinstance(error, DamagedShard) else Stopped
            if type(error) is not kind:
                raise
            raise kind(str(error).strip().splitlines()[-1].rpartition(f"{kind.__name__}: ")[2]) from error
        except Exception as error:
            gone = [] if guard.hung else _gone(guard.readers)
            if not guard.hung and not gone:
                raise
            _kill(guard.readers)
            raise Stopped(_words(self._workers, gone, guard.limit)) from error
        finally:
            guard.since = math.inf


class _Guard(threading.Thread):
    """Kills all readers when one batch takes too long; then the wait for it ends in an error.

    DataLoader's own timeout is not enough: it limits the wait for the message that says where a batch lies, but not the
    wait for the memory itself, for which a reader must answer on a socket.
    """

    def __init__(self, readers: Sequence[BaseProcess], limit: float) -> None:
        super().__init__(daemon=True, name="cross-most-readers")
        self.readers, self.limit = readers, limit
        self.since = math.inf  # when the wait for a batch began
        self.hung = False
        self.over = threading.Event()

    def run(self) -> None:
        """Looks every half second until `over` is set."""
        while not self.hung and not self.over.wait(_LOOK_SECONDS):
            if time.monotonic() - self.since > self.limit:
                self.hung = True
                for reader in self.readers:
                    reader.kill()


def _require_room(workers: int, batch_bytes: int) -> None:
    """Raises Refused where this machine has shared memory and the batches of its readers do not fit."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, free = processes * (workers * _AHEAD + 1) * batch_bytes, _free()
    if workers and free is not None and needed > free:
        raise Refused(
            f"data.workers={processes * workers}: readers keep up to {_mb(needed)} of batches in {SHARED}, which has "
            f"{_mb(free)} free; {_REMEDY} one (docker run --shm-size={needed // 10**6 + 64}m)"
        )


def _free() -> int | None:
    """Free bytes of shared memory, or None on a machine without it."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def _deaths_unheard() -> Iterator[None]:
    """Keeps torch from interrupting this process when a reader that is started inside dies; `_next` notices it.

    torch's handler would raise wherever the main thread is: in a collective, or while a checkpoint is written.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGCHLD, before)


def _gone(readers: Sequence[BaseProcess]) -> list[BaseProcess]:
    """The readers that failed or were killed; waits a moment for their exit codes."""
    deadline = time.monotonic() + _GOING_SECONDS
    while not (found := [reader for reader in readers if reader.exitcode]) and time.monotonic() < deadline:
        time.sleep(_GOING_SECONDS / 20)
    return found


def _kill(readers: Sequence[BaseProcess]) -> None:
    """Ends readers, also suspended ones: the interpreter waits for its children at exit."""
    for reader in readers:
        reader.kill()
    for reader in readers:
        reader.join(timeout=_SPARE_SECONDS)


def _words(workers: int, gone: Sequence[BaseProcess], limit: float) -> str:
    free = _free()
    room = "" if free is None else f" ({SHARED} has {_mb(free)} free)"
    if gone:
        code = gone[0].exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        what = f"reader process {gone[0].pid} of data.workers={workers} {how}, as for want of memory"
    else:
        what = f"no batch came from the reader processes of data.workers={workers} for {limit:g} s ({READER_SECONDS})"
    return f"{what}{room}; {_REMEDY} {SHARED} (docker run --shm-size=1g); what is finished is kept, run the same again"
